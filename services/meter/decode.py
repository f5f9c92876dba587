"""From a record of the log to what the fold understands: the contract's reading, under the name the meter uses."""

from __future__ import annotations

from tollgate.contracts.records import ROWS_MAX, TIME_MS_MAX, decode_records

__all__ = ["ROWS_MAX", "TIME_MS_MAX", "decode_records"]
