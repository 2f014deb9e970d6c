"""A COCO file indexed from a local S3 server to the same server, against the local run.

python benchmarks/s3.py --source VAL.json [--config configs/index/aerial.yaml] [--set KEY=VALUE ...]

Needs moto[server] (a development dependency). Both runs use the same Ray; every table is compared
row by row, clocks left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from moto.server import ThreadedMotoServer
from rich.console import Console

from af_pipeline.config import load_config
from af_pipeline.data.access import Storage
from af_pipeline.data.sources.open import list_images
from af_pipeline.data.storage import filesystem
from af_pipeline.indexing.index import index
from af_pipeline.indexing.session import ray_session
from af_pipeline.settings.index import IndexConfig

TABLES = ("detections", "images", "chips")
DIFFERENT = ("uri", "run_id", "decode_ms", "forward_ms")


def upload(source: str, system: Any, bucket: str) -> str:
    """Put the images of a COCO file and the file itself into a new bucket; returns its URI."""
    system.mkdir(bucket)
    for image in list_images(source):
        system.put_file(image.uri, f"{bucket}/images/{image.image_id}")
    system.put_file(source, f"{bucket}/list.json")
    return f"s3://{bucket}/list.json"


def records(folder: Path, name: str) -> list[str]:
    parts = [pq.read_table(path) for path in sorted((folder / name).glob("*.parquet"))]
    table = pa.concat_tables(parts)
    kept = [column for column in table.column_names if column not in DIFFERENT]
    return sorted(json.dumps(record) for record in table.select(kept).to_pylist())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="COCO json, local")
    parser.add_argument("--config", default="configs/index/aerial.yaml")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    arguments = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ[name] = "benchmark"
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    storage = {"endpoint": f"http://{host}:{port}"}
    system, _ = filesystem("s3://photos", Storage(**storage))
    away = upload(arguments.source, system, "photos")
    system.mkdir("results")
    base = load_config(IndexConfig, arguments.config, arguments.sets).model_dump()
    equal = True
    with tempfile.TemporaryDirectory() as scratch, ray_session(None):
        places = {
            "local": ({"uri": arguments.source}, {"uri": f"{scratch}/local"}),
            "s3": (
                {"uri": away, "images": "s3://photos/images", "storage": storage},
                {"uri": "s3://results/out", "storage": storage},
            ),
        }
        seconds = {}
        for name, (source, output) in places.items():
            tree = base | {"source": source, "output": output}
            began = time.perf_counter()
            outcome = index(IndexConfig.model_validate(tree), console=Console(quiet=True))
            seconds[name] = time.perf_counter() - began
            print(
                f"{name:6} {outcome.totals.images} images, {outcome.totals.detections} "
                f"detections, {outcome.totals.errors} errors, {seconds[name]:.1f} s"
            )
        system.invalidate_cache()
        system.get("results/out", f"{scratch}/s3", recursive=True)
        for name in TABLES:
            same = records(Path(scratch, "local"), name) == records(Path(scratch, "s3"), name)
            equal &= same
            print(f"{name:11} {'equal' if same else 'DIFFERENT'}")
    print(f"s3 / local {seconds['s3'] / seconds['local']:.2f} of the time")
    server.stop()
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
