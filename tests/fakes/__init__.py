"""Stand-ins that keep the promises of the real parts, in memory, for tests without I/O."""
