"""DuckDB as outputs are read with it."""

from __future__ import annotations

from pathlib import Path

import duckdb

MEMORY = "2GB"


def connect(scratch: Path) -> duckdb.DuckDBPyConnection:
    """DuckDB with bounded memory, spilling to ``scratch``."""
    connection = duckdb.connect()
    connection.execute(f"SET memory_limit = '{MEMORY}'")
    connection.execute("SET temp_directory = ?", [str(scratch / "duckdb")])
    return connection


def scan(path: Path) -> str:
    """SQL for a Parquet file with its row numbers as file_row_number."""
    return f"read_parquet({quoted(path)}, file_row_number = true)"


def quoted(path: Path) -> str:
    """A path as a string of SQL."""
    return "'{}'".format(str(path).replace("'", "''"))
