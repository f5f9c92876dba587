"""The mutation gate: bugs planted one at a time, each of which some test or simulated run must find."""
