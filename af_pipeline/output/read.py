"""Reading the output directory of an index run: Parquet tables and run.json, local or remote."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds


@dataclass(frozen=True)
class RunDir:
    """An index run's output. `root` is the path as `filesystem` (fsspec) knows it."""

    uri: str
    filesystem: Any
    root: str

    @classmethod
    def open(cls, out_dir: str | Path) -> "RunDir":
        """FileNotFoundError, saying what to give instead, unless the directory exists."""
        filesystem, root = fsspec.core.url_to_fs(str(out_dir))
        if not filesystem.isdir(root):
            raise FileNotFoundError(
                f"{out_dir} is not a directory: give the output of a jobs/index.py run"
            )
        return cls(str(out_dir), filesystem, root)

    def has_table(self, name: str) -> bool:
        """Whether the run wrote this table (it may be empty)."""
        return bool(self.filesystem.isdir(f"{self.root}/{name}"))

    def manifest(self) -> dict[str, Any] | None:
        """The content of run.json; None while the run is incomplete (it is written last)."""
        path = f"{self.root}/run.json"
        if not self.filesystem.isfile(path):
            return None
        try:
            content = json.loads(self.filesystem.cat_file(path))
        except ValueError as error:
            raise ValueError(f"{self.uri}/run.json is not valid json ({error})") from error
        if not isinstance(content, dict):
            raise ValueError(f"{self.uri}/run.json holds no json object: was it edited?")
        return content

    def table(
        self,
        name: str,
        columns: Sequence[str],
        where: pc.Expression | None = None,
        limit: int | None = None,
    ) -> pa.Table:
        """Columns of the rows that pass `where`, at most `limit` (file order).

        A table without part files reads as zero rows with untyped columns.
        FileNotFoundError without the table; ValueError when a column is missing.
        """
        files = self._parts(name)
        if not files:
            return pa.table({column: pa.nulls(0) for column in columns})
        dataset = ds.dataset(files, filesystem=self.filesystem, format="parquet")
        missing = [column for column in columns if column not in dataset.schema.names]
        if missing:
            raise ValueError(
                f"{self.uri}/{name} lacks the columns {', '.join(missing)}: "
                "was it written by jobs/index.py?"
            )
        if limit is not None:
            return dataset.head(limit, columns=list(columns), filter=where)
        return dataset.to_table(columns=list(columns), filter=where)

    def count(self, name: str, where: pc.Expression) -> int:
        """Rows of a table that pass `where`."""
        files = self._parts(name)
        if not files:
            return 0
        dataset = ds.dataset(files, filesystem=self.filesystem, format="parquet")
        return int(dataset.count_rows(filter=where))

    def _parts(self, name: str) -> list[str]:
        if not self.has_table(name):
            raise FileNotFoundError(
                f"{self.uri} has no '{name}' folder: give the output of a jobs/index.py run"
            )
        listed = self.filesystem.ls(f"{self.root}/{name}", detail=False)
        return sorted(path for path in listed if path.endswith(".parquet"))
