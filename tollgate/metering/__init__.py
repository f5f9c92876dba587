"""The rules: what an event is worth. No I/O, no clock, no environment."""
