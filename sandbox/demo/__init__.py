"""`tollgate demo`: the whole road in one command, with two kill -9 on the way, and the proof at its end."""
