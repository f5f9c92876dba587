"""A whole installation in one process, in virtual time, under faults held as data."""
