"""What an engineer would otherwise use, counting the same ten meters over the same events."""
