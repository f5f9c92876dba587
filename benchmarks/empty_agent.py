"""The bare limit of a record: the meter's own Faust application with an agent that does nothing.

`python -m benchmarks.empty_agent BOOTSTRAP TOPIC RECORDS` reads the topic and prints the CPU microseconds a record,
from the first hundredth of the records to the last one. It refuses to look into a record.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Any

import uvloop

# The same settings and buffers as the meter's worker: with others it would be another limit.
from services.meter.settings import MeterSettings
from services.meter.worker import _App, _app_settings
from tollgate.runtime.settings import KafkaSettings

_WARM_SHARE = 0.01


async def _read(bootstrap: str, topic: str, records: int) -> float:
    settings = MeterSettings(kafka=KafkaSettings(bootstrap_servers=bootstrap, topic_prefix="bare." + topic))
    app = _App(**_app_settings(settings), loop=asyncio.get_running_loop())
    done = asyncio.Event()
    marks: list[float] = []
    warm = int(records * _WARM_SHARE)

    async def count(stream: Any) -> None:
        seen = 0
        async for event in stream.events():
            assert isinstance(event.message.value, bytes)
            seen += 1
            if seen in (warm, records):
                marks.append(time.process_time())
            if seen == records:
                done.set()

    channel = app.topic(
        topic,
        key_type=bytes,
        key_serializer="raw",
        value_type=bytes,
        value_serializer="raw",
        acks=False,
        allow_empty=True,
    )
    app.agent(channel, name="empty", concurrency=1)(count)
    app.finalize()
    await app.start()
    await done.wait()
    return (marks[1] - marks[0]) / (records - warm) * 1e6


async def _run(bootstrap: str, topic: str, records: int) -> None:
    sys.stdout.write(f"{await _read(bootstrap, topic, records)}\n")
    sys.stdout.flush()
    # Faust's orderly stop takes seconds and measures nothing.
    os._exit(0)


def main() -> None:
    """Print one number and end."""
    logging.disable(logging.WARNING)
    bootstrap, topic, records = sys.argv[1:]
    uvloop.run(_run(bootstrap, topic, int(records)))


if __name__ == "__main__":
    main()
