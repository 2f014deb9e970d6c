"""Whether the project still gives the same results, to the bit: before and after a rebuilding.

python benchmarks/golden.py --data DATA --write runs/golden.json     before
python benchmarks/golden.py --data DATA --check runs/golden.json     after: exit code 1 if not equal

DATA holds aerial-cars and bccd. Digests of what the jobs write: rows/ of every mode and layout,
metrics.json and errors.parquet, 20 steps' losses, replayed trials, the texts of --suggest, and the
chips of two epochs. Only the same machine and library versions give the same digests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
MODES = ("whole", "tiles", "pyramid", "autofocus")
LAYOUTS = ("staged", "fused")
EPOCHS = 2
SAMPLES = 200  # chips made of each epoch; of all of them the place is compared
CHANGING = ("_ms", "seconds", "version", "run_id", "time", "chips_per_s", "uri", "detections")


def main() -> int:
    """Write the digests, or compare with those written."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    arguments = parser.parse_args()
    before = json.loads(arguments.check.read_text()) if arguments.check else {}
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.only.split(","):
            for name, digest in PARTS[part](arguments.data.resolve(), Path(folder)):
                found[name] = digest
                same = {None: "new", digest: "equal"}.get(before.get(name), "DIFFERENT")
                print(f"{name:<28}{digest[:16]}  {same}", flush=True)
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(json.dumps(found, indent=1))
    return int(any(before[name] != digest for name, digest in found.items() if name in before))


def job(name: str, *arguments: str) -> str:
    """Run a job; returns what it printed. Raises where it fails."""
    command = [sys.executable, f"jobs/{name}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout


def digest(value: Any) -> str:
    """Of anything that json takes, without what changes from run to run."""
    return hashlib.sha256(json.dumps(stable(value), sort_keys=True).encode()).hexdigest()


def stable(value: Any) -> Any:
    """The value without times and places."""
    if isinstance(value, dict):
        return {
            key: stable(item)
            for key, item in value.items()
            if not (key.endswith(CHANGING) and not isinstance(item, (list, dict)))
        }
    return [stable(item) for item in value] if isinstance(value, list) else value


def rows(data: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """rows/ of every mode and layout, then the scores and errors of one run."""
    val = data / "aerial-cars/val.json"
    for mode in MODES:
        for layout in LAYOUTS:
            out = folder / f"{mode}-{layout}"
            job("index", "--config", "configs/index/aerial.yaml", "--set", f"source.uri={val}",
                "--set", f"output.uri={out}", "--set", f"mode={mode}",
                "--set", f"plan={layout}")  # fmt: skip
            held = pq.read_table(out / "rows").to_pylist()
            yield f"rows {mode} {layout}", digest(sorted(held, key=lambda row: row["image_id"]))
    out = folder / "autofocus-fused"
    job("evaluate", "--detections", str(out), "--ground-truth", str(val))
    yield "metrics.json", digest(json.loads((out / "metrics.json").read_text()))
    yield "errors.parquet", digest(pq.read_table(out / "errors.parquet").to_pylist())


def chips(data: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Places and pixels of the training chips of two epochs."""
    from af_pipeline.config import load_config
    from af_pipeline.settings.train import TrainConfig
    from af_pipeline.training.data import build_stream, load_training

    train = data / "aerial-cars/train.json"
    changes = [f"data.train={train}"]
    config = load_config(TrainConfig, ROOT / "configs/train/aerial_tiny.yaml", changes)
    stream = build_stream(config, load_training(config))
    source = stream.sources[0]
    for epoch in range(EPOCHS):
        places, pixels = [], hashlib.sha256()
        for number in range(len(source)):
            refs = stream.image_refs(0, number, epoch)
            window = [(r.window.scale, r.window.kind, r.window.box) for r in refs]
            places.append([source.key(number), repr(window)])
            for ref in refs[:2] if number < SAMPLES // 2 else ():
                sample = stream.sample(ref)
                for name in sorted(vars(sample)):
                    value = getattr(sample, name)
                    pixels.update(value.tobytes() if hasattr(value, "tobytes") else b"")
        yield f"chips epoch {epoch}", digest(places)
        yield f"pixels epoch {epoch}", pixels.hexdigest()
    walk = stream.walk(stream.start())
    order = [repr([(r.image, r.epoch, r.number) for r in next(walk)[0]]) for _ in range(100)]
    yield "order of chips", digest(order)


def losses(data: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Losses of 20 steps on blood cells."""
    train = data / "bccd/ImageSets/Main/trainval.txt"
    job("train", "--config", "configs/train/bccd.yaml", "--set", f"data.train={train}",
        "--set", "optim.steps=20", "--set", f"run.output={folder}",
        "--set", "run.name=golden")  # fmt: skip
    text = (folder / "golden/metrics.jsonl").read_text()
    steps = [json.loads(line) for line in text.splitlines()]
    kept = ("step", "loss", "class", "box", "focus", "lr")
    yield "losses of 20 steps", digest([{k: s.get(k) for k in kept} for s in steps])


def trials(data: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Replayed trials on a few photographs, and what was chosen."""
    out = folder / "tune"
    job("tune", "--config", "configs/index/aerial.yaml", "--ground-truth",
        str(data / "aerial-cars/val.json"), "--output", str(out), "--sample", "4",
        "--thresholds", "0.05,0.1,0.2,0.4,0.6", "--dilations", "1,3", "--contexts", "0",
        "--min-sizes", "96,160", "--confirm", "1",
        "--max-loss", "1", "--max-lost", "1")  # fmt: skip
    lines = (out / "trials.jsonl").read_text().splitlines()
    yield "replayed trials", digest(sorted(digest(json.loads(line)) for line in lines))
    yield "chosen config", digest((out / "config.yaml").read_text())


def suggestions(data: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """The texts of --suggest."""
    sets = {
        "aerial-cars": data / "aerial-cars/train.json",
        "bccd": data / "bccd/ImageSets/Main/trainval.txt",
    }
    for name, file in sets.items():
        text = job("train", "--suggest", "--set", f"data.train={file}",
                   "--set", "data.on_broken=drop")  # fmt: skip
        yield f"suggest {name}", digest(text)


PARTS = {
    "suggest": suggestions,
    "chips": chips,
    "losses": losses,
    "trials": trials,
    "rows": rows,
}


if __name__ == "__main__":
    sys.exit(main())
