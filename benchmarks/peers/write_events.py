"""`python write_events.py BOOTSTRAP TOPIC`: lines of stdin into a topic, one JSON event a record, lz4.

A line is partition, epoch milliseconds, account and event, separated by tabs. Runs among the peers' packages.
"""

from __future__ import annotations

import sys

from confluent_kafka import Producer


def main() -> None:
    """Write every line, acknowledged."""
    bootstrap, topic = sys.argv[1:]
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "compression.type": "lz4",
            "linger.ms": 50,
            "enable.idempotence": True,
            "queue.buffering.max.messages": 500_000,
        }
    )
    for line in sys.stdin.buffer:
        partition, time_ms, account, event = line.rstrip(b"\n").split(b"\t", 3)
        while True:
            try:
                producer.produce(topic, event, account, partition=int(partition), timestamp=int(time_ms))
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    if producer.flush(60):
        sys.exit("not every event was acknowledged")


if __name__ == "__main__":
    main()
