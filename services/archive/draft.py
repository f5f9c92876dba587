"""A file in the making: rows of one partition, row group by row group.

Owns the Parquet writer and its options. It refuses to know when a file is closed and what becomes of it.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tollgate.contracts.archive import FACTS_KEY, FileFacts, encode_facts


class Draft:
    """One file being written. Blocking; one thread at a time."""

    def __init__(self, path: Path, schema: pa.Schema, zstd_level: int) -> None:
        """Raises OSError, FileExistsError among them."""
        self.path = path
        self._file = path.open("xb")
        # Statistics let a reader skip row groups by time and offset; a page's checksum names a rotten disk.
        self._writer = pq.ParquetWriter(
            self._file, schema, compression="zstd", compression_level=zstd_level, write_page_checksum=True
        )

    @property
    def bytes_written(self) -> int:
        return self._file.tell()

    def write(self, rows: pa.Table) -> None:
        """Add `rows` as one row group: a record is never in two."""
        self._writer.write_table(rows, row_group_size=max(1, len(rows)))

    def close(self, facts: FileFacts) -> int:
        """Complete the file; its size in bytes. It is not synced."""
        self._writer.add_key_value_metadata({FACTS_KEY: encode_facts(facts)})
        self._writer.close()
        size_bytes = self._file.tell()
        self._file.close()
        return size_bytes

    def discard(self) -> None:
        """Throw it away, in whatever state it is."""
        # Or the writer completes the file when it is collected.
        self._writer.is_open = False
        self._file.close()
        self.path.unlink(missing_ok=True)
