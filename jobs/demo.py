"""The whole pipeline on drawn scenes: render, index with the committed detector, query, look.

    python jobs/demo.py [--scenes 8] [--output demo]

Needs no data and no network. Ends by naming the Parquet and the report.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from af_pipeline.cli import stoppable
from af_pipeline.config import ConfigError, load_config
from af_pipeline.evaluation.coco import evaluate_detections
from af_pipeline.reporting.pictures import write_pictures
from af_pipeline.settings.index import IndexConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "index" / "aerial.yaml"
SIZES = ("1080x1920", "1536x2048")  # height, width px
SEED = 20_000  # scenes that no training of ours has seen

QUERY = """
SELECT label, count(*) AS objects, round(avg(score), 2) AS mean_score,
       count(DISTINCT image_id) AS images
FROM '{root}/detections/*.parquet' WHERE score >= 0.4
GROUP BY label ORDER BY objects DESC
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Render, index, evaluate, query, draw; exit code 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=8, help="scenes to render (8)")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder (demo)")
    arguments = parser.parse_args(argv)
    if arguments.scenes < 1:
        parser.error("--scenes must be at least 1")
    began = time.perf_counter()
    output = arguments.output.absolute()
    for name in ("scenes", "index", "pictures"):
        shutil.rmtree(output / name, ignore_errors=True)
    print(f"rendering {arguments.scenes} scenes into {output / 'scenes'}", flush=True)
    truth = draw_scenes(arguments.scenes, output / "scenes")
    try:
        run_index(truth.parent / "images", output / "index")
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show_accuracy(truth, output / "index")
    show_query(output / "index")
    pictures = write_pictures(output / "index", output / "pictures", None, limit=4)
    print(f"\npictures    {len(pictures)} in {output / 'pictures'}")
    print(f"Parquet     {output / 'index'}/{{detections,images,chips}}/*.parquet")
    print(f"report      {output / 'pictures' / 'index.html'}")
    print(f"demo took   {time.perf_counter() - began:.0f} s")
    return 0


def draw_scenes(count: int, folder: Path) -> Path:
    """Draw scenes into a folder; returns their annotations."""
    command = [sys.executable, "-m", "examples.aerial_scenes", "--count", str(count)]
    command += ["--seed", str(SEED), "--output", str(folder), "--sizes", *SIZES]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "annotations.json"


def run_index(images: Path, target: Path) -> None:
    """Index a folder through the Ray graph and print the summary."""
    overrides = [f"source.uri={images}", f"output.uri={target}"]
    config = load_config(IndexConfig, CONFIG, overrides)
    if not Path(config.checkpoint).is_absolute():
        config = config.model_copy(update={"checkpoint": str(ROOT / config.checkpoint)})
    from af_pipeline.indexing.index import index
    from af_pipeline.indexing.session import ray_session
    from af_pipeline.output.account import summary

    print("starting Ray and the detectors", flush=True)
    with ray_session(config.ray.address):
        outcome = index(config)
    print(f"\n{summary(outcome)}")


def show_accuracy(truth: Path, run: Path) -> None:
    """Print how many of the drawn vehicles were found."""
    detections = pq.read_table(run / "detections")
    overall = evaluate_detections(json.loads(truth.read_text()), detections).to_json()["overall"]
    print(f"accuracy    AP {overall['AP']:.3f}, AP50 {overall['AP50']:.3f} on these drawn scenes")


def show_query(run: Path) -> None:
    """Print one query on the Parquet files and its answer."""
    query = QUERY.format(root=run).strip()
    print(f"\nDuckDB> {query}\n{duckdb.sql(query)}")


if __name__ == "__main__":
    sys.exit(stoppable(main))
