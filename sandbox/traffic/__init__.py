"""A seeded traffic generator: calls, the formats gateways log them in, a sender, and the history that is the truth."""
