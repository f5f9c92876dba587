"""A plain Faust application: an agent and a windowed table, as its documentation has them.

`python -m benchmarks.peers.plain_faust BOOTSTRAP EVENTS_TOPIC USAGE_TOPIC ID GUARANTEE DIRECTORY`. The table's
changelog is what it keeps, so nothing is written to the usage topic.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import faust

from benchmarks.peers.meters import HOUR_MS, SESSION_TIMEOUT_MS, add_event, new_row, report_progress


def main() -> None:
    """Count until SIGTERM."""
    bootstrap, topic, _, name, guarantee, directory = sys.argv[1:]
    app = faust.App(
        name,
        broker=f"kafka://{bootstrap}",
        store="memory://",
        processing_guarantee=guarantee,
        topic_partitions=int(os.environ["PEER_PARTITIONS"]),
        broker_session_timeout=SESSION_TIMEOUT_MS / 1000,
        broker_heartbeat_interval=SESSION_TIMEOUT_MS / 5000,
        datadir=directory,
        web_enabled=False,
    )
    events = app.topic(topic, key_serializer="raw", value_serializer="json")
    usage = app.Table("usage", default=new_row).tumbling(HOUR_MS / 1000).relative_to_stream()

    @app.agent(events)
    async def count(stream: Any) -> None:
        counted = 0
        async for event in stream:
            usage[event["account"]] = add_event(usage[event["account"]].value(), event)
            counted += 1
            report_progress(counted)

    faust.Worker(app, loglevel="WARNING", redirect_stdouts=False).execute_from_commandline()


if __name__ == "__main__":
    main()
