"""What an event costs as partitions and workers grow: the same events through N partitions and M meter processes."""
