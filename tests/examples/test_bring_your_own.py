"""The page about one's own torchvision detector: its script, its config and its commands."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from af_pipeline.commands import distill, index
from af_pipeline.indexing import session
from examples.aerial_scenes.scenes import CLASS_NAMES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "examples/bring_your_own.md").read_text()


def commands() -> dict[str, list[str]]:
    """The words after each script that the page names, under the script's file name."""
    blocks = [block.replace("\\\n", " ") for block in PAGE.split("\n\n")]
    lines = [line.split()[1:] for line in "\n".join(blocks).splitlines() if "  python " in line]
    return {f"{Path(path).stem}{i}": [path, *words] for i, (path, *words) in enumerate(lines)}


def test_the_page_states_the_config() -> None:
    block = next(block for block in PAGE.split("\n\n") if block.lstrip().startswith("detector:"))
    config = yaml.safe_load((ROOT / "configs/index/own_torchvision.yaml").read_text())
    assert yaml.safe_load(block)["detector"] == config["detector"]
    assert tuple(config["detector"]["class_names"]) == CLASS_NAMES


@pytest.mark.slow
def test_the_page_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_ray: None, capfd: pytest.CaptureFixture
) -> None:
    """Trained for seconds, the detector is sure of nothing yet: what distill then says."""
    steps = commands()
    assert list(steps) == ["train0", "index1", "distill2", "index3"]
    scenes = [sys.executable, "-m", "examples.aerial_scenes", "--output", str(tmp_path / "drawn")]
    subprocess.run([*scenes, "--count", "3", "--sizes", "256x320"], cwd=ROOT, check=True)
    (places,) = (tmp_path / "drawn").glob("*.json")
    names = {"PHOTOS": str(places.parent / "images"), "train.json": str(places)}
    names |= {"mine.pth": str(tmp_path / "mine.pth"), "distilled": str(tmp_path / "distilled")}
    names |= {"OUT": str(tmp_path / "out"), "40": "0.02"}

    def filled(step: str) -> list[str]:
        found = []
        for word in steps[step]:
            setting, equals, value = word.rpartition("=")
            found.append(f"{setting}{equals}{names.get(value, value)}")
        return found

    trained = subprocess.run(
        [sys.executable, *filled("train0"), "--side", "96"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert f"class_names=[{', '.join(CLASS_NAMES)}]" in trained.stdout
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(session, "ray_session", lambda *_: contextlib.nullcontext())
    assert index.main(filled("index1")[1:]) == 0
    rows = pq.read_table(tmp_path / "out/images").to_pylist()
    assert [one["status"] for one in rows] == ["ok"] * 3
    capfd.readouterr()
    assert distill.main(filled("distill2")[1:]) == 2
    assert "is confident of nothing" in capfd.readouterr().err
