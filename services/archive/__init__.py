"""The archive: the log of events as Parquet files, each offset in exactly one of them."""
