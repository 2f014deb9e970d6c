"""Detections of a run as COCO's evaluation server takes them, with or without ground truth.

With ``--ground-truth FILE``, a COCO json, images and classes have its ids; annotations need not be
in it (image_info_test-dev2017.json), and where it has no categories COCO's own are meant. What it
does not list is left out: test-dev is a part of the test images. Without it images are numbered in
the order of their image_ids, classes in the alphabet's, and the file is an object with the lists
``images``, ``categories`` and ``annotations``.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from af_pipeline.data.annotations.coco import columns_of
from af_pipeline.data.annotations.dataset import Problems
from af_pipeline.data.storage import read_json
from af_pipeline.evaluation.coco import detection_columns
from af_pipeline.evaluation.inputs import read_detections, warn, write_json
from af_pipeline.output.read import RunDir

# The 80 of 91 numbered categories of COCO that its detection task has.
_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,,"
    "backpack,umbrella,,,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,"
    "baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,,wine glass,cup,fork,"
    "knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,"
    "chair,couch,potted plant,bed,,dining table,,,toilet,,tv,laptop,mouse,remote,keyboard,"
    "cell phone,microwave,oven,toaster,sink,refrigerator,,book,clock,vase,scissors,teddy bear,"
    "hair drier,toothbrush"
)
COCO_CATEGORIES = [
    {"id": number, "name": name} for number, name in enumerate(_NAMES.split(","), 1) if name
]


def write(run: RunDir, target: str, args: argparse.Namespace) -> str:
    """Write the detections from ``args.min_score`` up to a local path or any fsspec URI."""
    found = detection_columns(read_detections(run, args.min_score))
    if args.ground_truth:
        images, classes = _ids(args.ground_truth)
        kept = _known(found, images, classes)
        content: Any = _results(kept, images, classes)
    else:
        kept, listed = found, run.table("images", ("image_id",))["image_id"].to_pylist()
        images = {name: number for number, name in enumerate(sorted(listed), start=1)}
        labels = sorted(pc.unique(kept["label"]).to_pylist())
        classes = {name: number for number, name in enumerate(labels, start=1)}
        content = {
            "images": [{"id": number, "file_name": name} for name, number in images.items()],
            "categories": [{"id": number, "name": name} for name, number in classes.items()],
            "annotations": _results(kept, images, classes),
        }
    write_json(target, content, indent=None)
    count = len(pc.unique(kept["image_id"]))
    return f"{kept.num_rows} detections of {count} images written to {target}"


def _ids(file: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Ids of the images and of the classes of a COCO json, by name."""
    document = read_json(file)
    document = {**document, "categories": document.get("categories") or COCO_CATEGORIES}
    problems = Problems(file, scoring=True)
    columns = columns_of({**document, "annotations": []}, problems)
    problems.check()
    if not columns.image_ids:
        raise ValueError(f"{file} lists no image: give the json the images were indexed from")
    images = dict(zip(columns.image_ids, columns.numbers or (), strict=True))
    return images, dict(zip(columns.names, columns.category_ids or (), strict=True))


def _known(found: pa.Table, images: dict[str, Any], classes: dict[str, int]) -> pa.Table:
    """The detections of known images and classes; on stderr, which are left out.

    Raises ValueError when none of the images or none of the classes is known.
    """
    masks = {}
    for name, ids in (("image_id", images), ("label", classes)):
        masks[name] = pc.is_in(found[name], value_set=pa.array(list(ids), pa.string()))
        strays = pc.unique(found[name].filter(pc.invert(masks[name]))).to_pylist()
        if found.num_rows and not pc.any(masks[name]).as_py():
            raise ValueError(
                f"no detection has a {name} of the json: the run has {strays[0]!r:.99}, the "
                f"json {next(iter(ids))!r:.99}; give the json the images were indexed from"
            )
        what = "images that the json does not list" if name == "image_id" else "classes without a "
        what += "" if name == "image_id" else "category"
        warn(f"{len(strays)} {what} were left out", strays)
    return found.filter(pc.and_(masks["image_id"], masks["label"]))


def _results(
    found: pa.Table, images: dict[str, Any], classes: dict[str, int]
) -> list[dict[str, Any]]:
    """Entries image_id, category_id, bbox [x, y, width, height] (original px), score."""
    corners = np.stack([found[name].to_numpy() for name in ("x0", "y0", "x1", "y1")], axis=1)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
    texts = (found[name].to_pylist() for name in ("image_id", "label", "score"))
    return [
        {"image_id": images[i], "category_id": classes[label], "bbox": box, "score": score}
        for i, label, score, box in zip(*texts, boxes, strict=True)
    ]
