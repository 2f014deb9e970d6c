"""An output that is full, gone or another's: one line, and the same command goes on from there."""

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from af_pipeline.indexing import passes
from af_pipeline.indexing.meter import GraphError
from af_pipeline.output.folder import OutputFolder
from af_pipeline.output.place import GO_ON, OutputError, OutputLostError
from tests.helpers.planted import table
from tests.helpers.small_run import BROKEN_JSON, IMAGES, NO_ROWS, Place

pytestmark = pytest.mark.usefixtures("without_ray")


# A full disk


def test_no_room_for_any_of_the_files(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file that is written in one go is once the one that does not fit any more."""
    write_bytes, left = Path.write_bytes, [0]
    said: list[str] = []

    def limited(path: Path, data: bytes) -> int:
        left[0] -= 1
        if left[0] == 0:
            write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "planted")
        return write_bytes(path, data)

    for last in range(1, 100):
        out, left[0] = place.root / f"out{last}", last
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", limited)
            try:
                place.run(out)
                break
            except (GraphError, OutputError) as error:
                said.append(str(error))
        assert not (out / "run.json").exists()
        assert not list(out.rglob("*.partial"))
        place.run(out)
        assert place.tables(out) == place.expected
    assert len(said) == last - 1 > 5
    for line in said:
        assert re.match(rf"cannot write to {place.root}/out\d+( or .*)?: .*{GO_ON}$", line), line


@pytest.mark.parametrize("room", ["20k", "36k", "44k", "52k", "60k"])
def test_a_disk_that_fills_up(place: Place, small_disk: Callable[[str], Path], room: str) -> None:
    """In rows/ first, then in the tables."""
    out = small_disk(room) / "out"
    with pytest.raises(GraphError, match=r"cannot write to .*: no space left on device; once"):
        place.run(out)
    assert not (out / "run.json").exists()
    small_disk("8m")
    place.run(out)
    assert place.tables(out) == place.expected


# Gone, or another's


@pytest.mark.parametrize("content", [*BROKEN_JSON, None])
def test_an_owner_file_that_is_damaged_or_gone(tmp_path: Path, content: bytes | None) -> None:
    folder = OutputFolder.at(str(tmp_path / "out")).open({"job": "index", "schema": 1})
    folder.check_owner()
    owner = tmp_path / "out/owner.json"
    if content is None:
        shutil.rmtree(owner.parent)
    else:
        owner.write_bytes(content)
    for step in (folder.check_owner, folder.release, lambda: folder.write_part(NO_ROWS)):
        with pytest.raises(OutputLostError, match=rf"(owner\.json.*:|went on;) {GO_ON}$"):
            step()


@pytest.mark.parametrize("moment", ["rows", "detections", "run.json"])
def test_an_output_that_is_removed_half_way(
    place: Place, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Before its rows are written, before its tables are, at the very end."""
    out = place.root / "out"

    def removing(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            shutil.rmtree(out)
            return function(*arguments, **named)

        return wrapped

    where = {
        "rows": (passes, "run_graph"),
        "detections": (OutputFolder, "read_rows"),
        "run.json": (OutputFolder, "release"),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(*where, removing(getattr(*where)))
        with pytest.raises(GraphError, match=f"{out} was removed or emptied while the run|nothing"):
            place.run(out)
    assert not out.exists()
    assert place.run(out)[0] == 0
    assert place.tables(out) == place.expected


@pytest.mark.parametrize("moment", ["rows", "detections", "run.json"])
def test_a_second_start_at_any_moment(
    place: Place, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """It ends right, and the first one stops without a row or a table more."""
    out, second = place.root / "out", []

    def starting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if not second:
                second.append(0)
                second[0] = place.run(out)[0]
            return function(*arguments, **named)

        return wrapped

    where = {
        "rows": (OutputFolder, "write_part"),
        "detections": (OutputFolder, "read_rows"),
        "run.json": (OutputFolder, "release"),
    }[moment]
    monkeypatch.setattr(*where, starting(getattr(*where)))
    with pytest.raises(GraphError, match="another start of this job has taken"):
        place.run(out)
    assert second == [0 if moment == "rows" else IMAGES]
    assert place.tables(out) == place.expected
    assert sorted(table(out, "rows")["image_id"].to_pylist()) == sorted(place.expected[1])
    assert json.loads((out / "run.json").read_text())["totals"]["images"] == IMAGES
