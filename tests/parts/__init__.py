"""Real parts for tests: which are there, one of each a session, and something fresh in it for each test."""
