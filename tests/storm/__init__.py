"""The storm: everything as real processes, faults from a seeded schedule, and a history file that is the truth."""
