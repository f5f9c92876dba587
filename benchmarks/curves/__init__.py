"""How the fold's cost moves with what an installation differs by."""
