"""Benchmarks: what an event costs, stage by stage, on real Kafka and PostgreSQL, with every count asserted."""
