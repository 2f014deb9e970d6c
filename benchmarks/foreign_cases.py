"""Detectors and photographs of `benchmarks.any_detector`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np


@dataclass(frozen=True)
class Case:
    """``config`` with ``sets``; ``learn``: COCO json of images to learn from, ``test``: of those to
    score on; ``side``: what SAHI's slices are resized to, network px; ``sample``, ``held``: as of
    jobs/distill.py."""

    config: str
    sets: tuple[str, ...]
    learn: Path
    test: Path
    images: Path
    side: int
    sample: int
    held: int


def part(source: Path, to: Path, keep: Callable[[int], bool]) -> Path:
    """A COCO file with some of the images of another, by number."""
    data = json.loads(source.read_text())
    data["images"] = [one for i, one in enumerate(data["images"]) if keep(i)]
    ids = {one["id"] for one in data["images"]}
    data["annotations"] = [one for one in data["annotations"] if one["image_id"] in ids]
    to.write_text(json.dumps(data))
    return to


def scenes(data: Path, folder: Path, count: int, first: int, last: int) -> Path:
    """Composites of the photographs ``first`` to ``last`` of coco128, two in each."""
    coco = json.loads((data / "coco128/val.json").read_text())
    grounds = sorted((data / "airbus-aircraft/images").iterdir())
    photos = sorted(coco["images"], key=lambda one: one["id"])[first:last]
    rng = np.random.default_rng(first)
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        ground = cv2.imread(str(grounds[(first + number) % len(grounds)]))
        canvas = cv2.GaussianBlur(ground, (0, 0), 16)  # the aircraft on it are airplanes of COCO
        taken: list[tuple[int, int, int, int]] = []
        for index in rng.permutation(len(photos))[:2]:
            photo = photos[index]
            pixels = cv2.imread(str(data / "coco128/images" / photo["file_name"]))
            factor = rng.uniform(300, 640) / max(pixels.shape[:2])
            small = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            height, width = small.shape[:2]
            for _ in range(100):
                x, y = (
                    int(rng.integers(0, side - own))
                    for side, own in zip(canvas.shape[1::-1], (width, height), strict=True)
                )
                if all(
                    x + width < x0 or x > x1 or y + height < y0 or y > y1
                    for x0, y0, x1, y1 in taken
                ):
                    break
            else:
                continue
            taken.append((x, y, x + width, y + height))
            canvas[y : y + height, x : x + width] = small
            for one in coco["annotations"]:
                if one["image_id"] == photo["id"]:
                    left, top, wide, high = (value * factor for value in one["bbox"])
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": number,
                            "category_id": one["category_id"],
                            "bbox": [left + x, top + y, wide, high],
                            "area": wide * high,
                            "iscrowd": one.get("iscrowd", 0),
                        }
                    )
        name = f"scene_{first}_{number}.jpg"
        cv2.imwrite(str(folder / name), canvas, [cv2.IMWRITE_JPEG_QUALITY, 92])
        size = {"width": canvas.shape[1], "height": canvas.shape[0]}
        images.append({"id": number, "file_name": name, **size})
    path = folder / f"scenes_{first}.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": coco["categories"]})
    )
    return path


def only_class(source: Path, to: Path, name: str) -> Path:
    """A COCO file with one of its classes."""
    data = json.loads(source.read_text())
    data["categories"] = [one for one in data["categories"] if one["name"] == name]
    ids = {one["id"] for one in data["categories"]}
    data["annotations"] = [one for one in data["annotations"] if one["category_id"] in ids]
    to.write_text(json.dumps(data))
    return to


def cases(data: Path, out: Path, mine: Path | None) -> dict[str, Case]:
    """Detector and photographs of each case."""
    out.mkdir(parents=True, exist_ok=True)
    detectors, receipts = data / "detectors", data / "receipts/val.json"
    scene = out / "scenes"
    learn, test = scene / "scenes_0.json", scene / "scenes_80.json"
    if not test.exists():
        scenes(data, scene, 36, 0, 80)
        scenes(data, scene, 16, 80, 128)
    found = {
        "receipts": Case(
            "configs/index/receipts_ppocr.yaml",
            (
                f"detector.path={detectors / 'ppocr_text/ch_PP-OCRv3_det_infer.onnx'}",
                "detector.class_names=[text_line]",
            ),
            part(receipts, out / "receipts_learn.json", lambda i: i % 5 < 3),
            part(receipts, out / "receipts_test.json", lambda i: i % 5 >= 3),
            data / "receipts/images",
            640,
            7,
            5,
        ),
        "scenes, YOLOX": Case(
            "configs/index/coco_yolox.yaml",
            (
                f"detector.path={detectors / 'yolox_nano/yolox_nano.onnx'}",
                "pyramid=[{max_side: 832}, {max_side: 2496}]",
                "focus.steps=[{threshold: 0.02, dilation: 3, context: 16, min_size: 32}]",
            ),
            learn,
            test,
            scene,
            416,
            24,
            12,
        ),
        "scenes, FastestDet": Case(
            "configs/index/coco_yolox.yaml",
            (
                f"detector.path={detectors / 'fastestdet/FastestDet.onnx'}",
                "detector.decoder=fastestdet",
                "pyramid=[{max_side: 704}, {max_side: 2112}]",
                "focus.steps=[{threshold: 0.2, dilation: 3, context: 16, min_size: 32}]",
            ),
            learn,
            test,
            scene,
            352,
            24,
            12,
        ),
        "scenes, RTMDet": Case(
            "configs/index/persons_rtmdet.yaml",
            (
                f"detector.path={detectors / 'rtmdet_nano_person/end2end.onnx'}",
                "pyramid=[{max_side: 640}, {max_side: 1280}, {max_side: 2560}]",
            ),
            only_class(learn, out / "persons_learn.json", "person"),
            only_class(test, out / "persons_test.json", "person"),
            scene,
            640,
            24,
            12,
        ),
    }
    if mine is not None:
        names = "[car, truck, bus, minibus, cyclist]"
        found["aerial, torchvision"] = Case(
            "configs/index/own_torchvision.yaml",
            (f"detector.path={mine}", f"detector.class_names={names}"),
            data / "aerial-cars/train.json",
            data / "aerial-cars/val.json",
            data / "aerial-cars/images",
            512,
            24,
            8,
        )
    return found
