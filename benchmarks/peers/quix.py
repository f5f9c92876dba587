"""Quix Streams: a tumbling window reduced to one row an account, emitted when it closes, as its documentation has it.

`python -m benchmarks.peers.quix BOOTSTRAP EVENTS_TOPIC USAGE_TOPIC GROUP GUARANTEE DIRECTORY`
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

from quixstreams import Application

from benchmarks.peers.meters import (
    GRACE_MS,
    HOUR_MS,
    SESSION_TIMEOUT_MS,
    add_event,
    new_row,
    report_progress,
)


def main() -> None:
    """Count until SIGTERM."""
    bootstrap, events, usage, group, guarantee, directory = sys.argv[1:]
    app = Application(
        broker_address=bootstrap,
        consumer_group=group,
        auto_offset_reset="earliest",
        processing_guarantee=guarantee,
        state_dir=directory,
        consumer_extra_config={"session.timeout.ms": SESSION_TIMEOUT_MS},
        loglevel="WARNING",
    )
    numbers = itertools.count(1)

    def note(_: dict[str, Any]) -> None:
        report_progress(next(numbers))

    frame = app.dataframe(app.topic(events, value_deserializer="json"))
    frame = frame.update(note)
    frame = (
        frame.tumbling_window(duration_ms=HOUR_MS, grace_ms=GRACE_MS)
        .reduce(reducer=add_event, initializer=lambda event: add_event(new_row(), event))
        .final()
    )
    frame.to_topic(app.topic(usage, value_serializer="json"))
    app.run()


if __name__ == "__main__":
    main()
