"""A ladder of domains: trained or distilled by its recipe, tuned on one part, measured on another.

python -m benchmarks.domains --data ../shared/data --output runs/domains [--only "aircraft;nuclei"]

Domains: aerial cars (the committed detector), aircraft, blood cells and nuclei (each trained by its
recipe of configs/train, at most 25 minutes on two cores), receipts (a detector of another maker,
with a focus network distilled without labels). jobs/tune.py chooses mode, scales and focus settings
on images that played no part in training; every method is then run, image by image in turns in one
process, on further images. `kept`: share of the pyramid's confident detections that are right and
found again; `MP`: network px an image without padding, `CPU s`: seconds of CPU time an image
without decoding. No weights of licence-bound sets leave the output folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from af_pipeline.config import load_config
from af_pipeline.core.text_table import align
from af_pipeline.data.annotations.load import load_annotations
from af_pipeline.models.open import open_detector
from af_pipeline.settings.index import IndexConfig
from benchmarks.any_detector import cascade, cell, measure
from benchmarks.foreign_cases import part

COLUMNS = ("method", "AP", "AP50", "APS", "APM", "APL", "kept", "MP", "CPU s")


@dataclass(frozen=True)
class Domain:
    """``learn``, ``tune``, ``test``: annotations of the three parts; ``train``: recipe, none: the
    index config names a detector that is there; ``sets``: further settings of the index config;
    ``limits``: options of jobs/tune.py."""

    index: str
    learn: str
    tune: str
    test: str
    images: str | None
    train: str | None = None
    sets: tuple[str, ...] = ()
    distilled: bool = False
    limits: tuple[str, ...] = ()


def domains(data: Path, out: Path) -> dict[str, Domain]:
    """All domains, in the order of their density."""
    out.mkdir(parents=True, exist_ok=True)

    def parts(source: str, name: str, *shares: tuple[int, int], of: int = 8) -> list[str]:
        """COCO files of the images whose number modulo ``of`` lies in each share."""
        made = []
        for number, (low, high) in enumerate(shares):
            path = out / f"{name}_{number}.json"
            made.append(str(part(data / source, path, lambda i, a=low, b=high: a <= i % of < b)))
        return made

    cars = parts("aerial-cars/val.json", "cars", (0, 4), (4, 8))
    planes = parts("airbus-aircraft/val.json", "aircraft", (0, 4), (4, 8))
    receipts = parts("receipts/val.json", "receipts", (0, 5), (5, 8))
    nuclei = parts("nuclei/all.json", "nuclei", (0, 4), (4, 6), (6, 8))
    folder = {one: str(data / one / "images") for one in ("airbus-aircraft", "receipts", "nuclei")}
    ppocr = data / "detectors/ppocr_text/ch_PP-OCRv3_det_infer.onnx"
    bccd = str(data / "bccd/ImageSets/Main")
    return {
        "aerial cars": Domain(
            "configs/index/aerial.yaml", "", *cars, str(data / "aerial-cars/images")
        ),
        "aircraft": Domain(
            "configs/index/aircraft.yaml",
            str(data / "airbus-aircraft/train.json"),
            *planes,
            folder["airbus-aircraft"],
            "configs/train/aircraft.yaml",
        ),
        "receipts": Domain(
            "configs/index/receipts_ppocr.yaml",
            receipts[0],
            receipts[0],
            receipts[1],
            folder["receipts"],
            sets=(f"detector.path={ppocr}", "detector.class_names=[text_line]"),
            distilled=True,
        ),
        "blood cells": Domain(
            "configs/index/bccd.yaml",
            f"{bccd}/train.txt",
            f"{bccd}/val.txt",
            f"{bccd}/test.txt",
            None,
            "configs/train/bccd.yaml",
            limits=("--on-broken", "drop"),
        ),
        "nuclei": Domain(
            "configs/index/nuclei.yaml", *nuclei, folder["nuclei"], "configs/train/nuclei.yaml"
        ),
    }


def run(*words: object) -> None:
    """A job of ours; stops the ladder where it fails."""
    command = [sys.executable, *(str(one) for one in words)]
    print("  $", " ".join(command[1:]), flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode > 1:
        sys.exit(done.stdout[-4000:] + done.stderr[-4000:])
    print("\n".join(f"    {line}" for line in done.stdout.splitlines()[-24:]), flush=True)


def settings(words: Sequence[str]) -> list[str]:
    """Settings as options."""
    return [text for one in words for text in ("--set", one)]


def prepare(name: str, domain: Domain, out: Path) -> Path:
    """Train or distil and tune, as far as that is not done; the config that tuning chose."""
    sets = list(domain.sets)
    images = [f"source.images={domain.images}"] if domain.images else []
    if domain.train is not None:
        weights = out / name / f"{name}.safetensors"
        where = [f"data.train={domain.learn}", f"run.output={out}", f"run.name={name}"]
        where += [f"data.images={domain.images}"] if domain.images else []
        if not weights.exists():
            run("jobs/train.py", "--config", domain.train, *settings(where))
        sets.append(f"checkpoint={weights}")
    kind, file = ("focus", "index.yaml") if domain.distilled else ("tune", "config.yaml")
    chosen = out / f"{name}_{kind}" / file
    if chosen.exists():
        return chosen
    common = ["--config", domain.index, "--output", chosen.parent]
    if domain.distilled:
        sets.append(f"source.uri={domain.learn}")
        sizes = ["--sample", 8, "--held", 4, "--steps", 300]
        run("jobs/distill.py", *common, *sizes, *settings([*sets, *images]))
    else:
        truth = ["--ground-truth", domain.tune, *domain.limits]
        run("jobs/tune.py", *common, *truth, *settings([*sets, *images]))
    return chosen


def score(domain: Domain, chosen: Path) -> list[dict]:
    """Every method on the images held out."""
    base = load_config(IndexConfig, domain.index, domain.sets)
    tuned = load_config(IndexConfig, chosen, [])
    if domain.train is not None:
        base = base.model_copy(update={"checkpoint": tuned.checkpoint})
    methods = {
        mode: cascade(base.model_copy(update={"mode": mode}))
        for mode in ("pyramid", "whole", "tiles", "autofocus")
    }
    methods["autofocus, as configured"] = methods.pop("autofocus")
    methods[f"chosen: {tuned.mode}"] = cascade(tuned)
    dataset = load_annotations([domain.test], domain.images, on_broken="drop")
    names = open_detector(base).class_names
    measure(methods, dataset.with_images(dataset.images[:1]), names)  # warms up
    return measure(methods, dataset, names, right=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("runs/domains"))
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    wanted = [one.strip() for one in given.only.split(";") if one.strip()]
    for name, domain in domains(given.data, given.output).items():
        if wanted and name not in wanted:
            continue
        print(name, flush=True)
        chosen = prepare(name.replace(" ", "_"), domain, given.output)
        rows = score(domain, chosen)
        (given.output / f"{name.replace(' ', '_')}.json").write_text(json.dumps(rows, indent=2))
        lines = [COLUMNS, *([cell(one[key]) for key in COLUMNS] for one in rows)]
        print("\n".join(align(lines)), flush=True)
        for one in rows:
            print(one["method"], {key: cell(value) for key, value in one["classes"].items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
