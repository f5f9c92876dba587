"""The plumbing every service shares: settings, Kafka, logs, metrics, health, shutdown, the clock."""
