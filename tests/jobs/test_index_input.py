"""jobs/index.py tells what is wrong with its input before it starts Ray, or even imports it."""

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from af_pipeline.commands.index import main

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "index" / "aerial.yaml")


class Page(BaseHTTPRequestHandler):
    """A web server that answers everything with one page of HTML."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"<html><body>no image</body></html>")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Images, an output with other files, and files that are none of what is asked for."""
    for name in ("images", "empty", "mine", "voc"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"listed, not read")
    (tmp_path / "mine" / "letter.txt").write_text("x")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty.json").write_text('{"images": []}')
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    (tmp_path / "list.parquet").write_bytes(b"none")
    (tmp_path / "shard.tar").write_bytes(b"none")
    (tmp_path / "model.safetensors").write_bytes(b"none")
    return tmp_path


WRONG = {
    "source.uri=": "give source.uri",
    "source.uri={here}/nowhere": "there is nothing at",
    "source.uri={here}/empty": "no image found under",
    "source.uri={here}/*.jpg": "no image found under",
    "source.uri={here}/mine/letter.txt": "nothing that lists images",
    "source.uri={here}/nowhere.json": "nowhere.json",
    "source.uri={here}/broken.json": "not valid JSON",
    "source.uri={here}/empty.json": "lists no image",
    "source.uri={here}/list.csv": "uri",
    "source.uri={here}/list.parquet": "list.parquet",
    "source.uri={here}/shard.tar": "shard.tar",
    "source.uri={here}/voc/ImageSets/Main/test.txt": "there is nothing at",
    "source.uri={site}/page.html": "page.html",
    "source.uri={site}/": "127.0.0.1",
    "source.uri=nosuch://a/b": "nosuch",
    "source.uri={long}": "File name too long",
    "output.uri=": "no output: give --set output.uri",
    "output.uri={here}/mine": "is not empty and holds no run",
    "output.uri={here}/broken.json": "no folder that can be written to",
    "output.uri={here}/broken.json/deeper": "no folder that can be written to",
    "output.uri=/proc/1/deeper": "output",
    "checkpoint={here}/nowhere.safetensors": "does not exist",
    "checkpoint={here}/model.safetensors": "has no model.json beside it",
    "checkpoint={here}": "does not exist",
    "checkpoint={long}": "does not exist",
    "output.uri={long}": "output",
    "device=cuda": "torch sees no GPU",
    "ray.pools=[{{max_side: 256}}]": "no pool takes the largest chips",
    "guarantee={guarantee}": "certified for other settings",
}
GUARANTEE = (
    "{alpha: 0.1, delta: 0.1, confident: 0.5, found_score: 0.1, iou: 0.5, images: 9, mean_lost: 0, "
    "p_value: 0, method: m, source: s, settings: other}"
)


def arguments(place: Path, *sets: str) -> list[str]:
    fine = {"source.uri": f"{place}/images", "output.uri": f"{place}/out"}
    given = [f"{key}={value}" for key, value in fine.items() if not sets[0].startswith(f"{key}=")]
    return ["--config", CONFIG, *(part for one in (*given, *sets) for part in ("--set", one))]


@pytest.mark.parametrize("wrong", WRONG)
def test_told_before_ray_starts(
    place: Path,
    site: str,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "af_pipeline.indexing.session", None)  # importing it fails
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    override = wrong.format(here=place, site=site, guarantee=GUARANTEE, long="x" * 300)
    assert main(arguments(place, override)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert WRONG[wrong] in line
    assert not (place / "out").exists()


@pytest.mark.parametrize("wrong", ["source.uri=nowhere", "checkpoint=nowhere.safetensors"])
def test_ray_is_not_imported(place: Path, wrong: str) -> None:
    (place / "ray.py").write_text("raise SystemExit('ray was imported')")
    done = subprocess.run(
        [sys.executable, "jobs/index.py", *arguments(place, wrong)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{place}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "nowhere" in line


def test_good_input_starts_ray(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "af_pipeline.indexing.session", None)
    with pytest.raises(ImportError, match="session"):
        main(arguments(place, "mode=whole"))
    with pytest.raises(ImportError, match="session"):  # which needs no output
        main([*arguments(place, "output.uri="), "--dry-run"])
