"""The whole pipeline on drawn scenes: render, index with the committed detector, query, look.

    python jobs/demo.py [--scenes 8] [--output demo]

Needs no data and no network. Ends by naming the Parquet and the report.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from af_pipeline.commands import complain, stoppable
from af_pipeline.config import load_config
from af_pipeline.data.annotations.load import load_annotations
from af_pipeline.evaluation.coco import evaluate_detections
from af_pipeline.reporting.pictures import write_pictures
from af_pipeline.settings.index import IndexConfig

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("1080x1920", "1536x2048")  # height, width px
SEED = 20_000  # scenes that no training of ours has seen

QUERY = """SELECT label, count(*) AS objects, round(avg(score), 2) AS mean_score,
       count(DISTINCT image_id) AS images
FROM '{root}/detections/*.parquet' WHERE score >= 0.4
GROUP BY label ORDER BY objects DESC"""


def main(argv: Sequence[str] | None = None) -> int:
    """Render, index, evaluate, query, draw; exit code 2 for input that cannot be used."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=8, help="scenes to render (8)")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder (demo)")
    arguments = parser.parse_args(argv)
    if arguments.scenes < 1:
        parser.error("--scenes must be at least 1")
    scenes, run, pictures = (
        arguments.output.absolute() / n for n in ("scenes", "index", "pictures")
    )
    for folder in (scenes, run, pictures):
        shutil.rmtree(folder, ignore_errors=True)
    print(f"rendering {arguments.scenes} scenes into {scenes}", flush=True)
    truth = draw_scenes(arguments.scenes, scenes)
    try:
        print(f"\n{run_index(truth.parent / 'images', run)}")
    except ValueError as error:
        return complain(error, 2)
    found = pq.read_table(run / "detections")
    overall = evaluate_detections(load_annotations([str(truth)], scoring=True), found).overall
    print(f"accuracy    AP {overall['AP']:.3f}, AP50 {overall['AP50']:.3f} on these drawn scenes")
    query = QUERY.format(root=run)
    print(f"\nDuckDB> {query}\n{duckdb.sql(query)}")
    print(f"\npictures    {len(write_pictures(run, pictures, limit=4))} in {pictures}")
    print(f"Parquet     {run}/{{detections,images,chips}}/*.parquet")
    print(f"report      {pictures / 'index.html'}")
    print(f"demo took   {time.perf_counter() - began:.0f} s")
    return 0


def draw_scenes(count: int, folder: Path) -> Path:
    """Draw scenes into a folder; returns their annotations."""
    command = [sys.executable, "-m", "examples.aerial_scenes", "--count", str(count)]
    command += ["--seed", str(SEED), "--output", str(folder), "--sizes", *SIZES]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "annotations.json"


def run_index(images: Path, target: Path) -> str:
    """Index a folder through the Ray graph; returns the summary."""
    changes = [f"source.uri={images}", f"output.uri={target}"]
    config = load_config(IndexConfig, ROOT / "configs" / "index" / "aerial.yaml", changes)
    checkpoint = str(ROOT / config.checkpoint)  # of an absolute one that one itself
    config = config.model_copy(update={"checkpoint": checkpoint})
    from af_pipeline.indexing.index import index
    from af_pipeline.indexing.session import ray_session
    from af_pipeline.output.account import summary

    print("starting Ray and the detectors", flush=True)
    with ray_session(config.ray.address):
        return summary(index(config))


if __name__ == "__main__":
    sys.exit(stoppable(main))
