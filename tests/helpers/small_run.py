"""A small run without Ray, for tests of what befalls its output (the fixture ``without_ray``)."""

import io
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from af_pipeline.core.schema import STORED_ROW
from af_pipeline.indexing.index import index
from tests.helpers.planted import (
    CLOCKS,
    SCENE,
    SMALL,
    by_image,
    index_config,
    picture,
    save,
    source,
    table,
)

IMAGES = 8
NO_ROWS = STORED_ROW.empty_table()
TABLES = ("detections", "images", "chips")
BROKEN_JSON = [b"", b'{"job": "ind', b"[]", b"\xff\xfe\x00\x01", b"[" * 100_000]


class Place:
    """Some images, their finished run in ``whole`` and what is in its tables.

    Of another place, with its images, and a copy of its run.
    """

    def __init__(self, root: Path, other: "Place | None" = None) -> None:
        self.root, self.images = root, other.images if other else root / "images"
        if other:
            shutil.copytree(other.root / "whole", root / "whole")
            self.expected = other.expected
            return
        for tag in range(1, IMAGES + 1):
            self.draw(tag, tag)
        self.run(root / "whole")
        self.expected = self.tables(root / "whole")

    def draw(self, name: int, tag: int) -> None:
        save(self.images / f"{name}.png", picture(tag, SCENE if tag % 3 else [SMALL]))

    def run(self, out: Path, **output: Any) -> tuple[int, str]:
        """Index into ``out``: how many images were done before, and what was said."""
        said = io.StringIO()
        output = {"uri": str(out), "images_per_file": 4, **output}
        config = index_config(self.images, out, output=output)
        outcome = index(config, source(), Console(file=said, width=80))
        assert outcome.totals.images == IMAGES
        assert table(out, "rows").num_rows == IMAGES
        return outcome.skipped, said.getvalue()

    def tables(self, out: Path) -> list[dict[str, Any]]:
        return [by_image(out, name, CLOCKS) for name in TABLES]

    def copy(self, name: str) -> Path:
        shutil.copytree(self.root / "whole", self.root / name)
        return self.root / name
