"""The words: topics, the `events/1` schema, ticks, dead letters and journal entries, as they travel on Kafka."""
