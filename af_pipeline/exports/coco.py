"""Detections of a run as COCO's evaluation server takes them, with or without ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from af_pipeline.evaluation.coco import (
    Inputs,
    check_ground_truth,
    detection_annotations,
    detection_columns,
)

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


def coco_results(inputs: Inputs) -> list[dict[str, Any]]:
    """The detections as entries image_id, category_id, bbox [x, y, w, h] (original px), score."""
    keys = ("image_id", "category_id", "bbox", "score")
    found = detection_annotations(inputs.detections, inputs.image_ids, inputs.category_ids)
    return [{key: entry[key] for key in keys} for entry in found]


def inputs_without_truth(info: Mapping[str, Any], detections: pa.Table) -> tuple[Inputs, list[str]]:
    """What `coco_results` takes, from a COCO json without annotations; and what is left out.

    ``info`` has the list ``images``, as image_info_test-dev2017.json does: it alone knows the ids.
    Where it has no ``categories`` those of COCO are meant. Detections of images that it does not
    list are left out (test-dev is a part of the test images), their image_ids are returned.

    Raises ValueError for a malformed ``info``, or when it lists none of the images or classes.
    """
    info = {**info, "annotations": [], "categories": info.get("categories") or COCO_CATEGORIES}
    check_ground_truth(info, objects=False)
    image_ids = {image["file_name"]: image["id"] for image in info["images"]}
    category_ids = {category["name"]: category["id"] for category in info["categories"]}
    columns = detection_columns(detections)
    known, unknown = {}, {}
    for name, ids in (("image_id", image_ids), ("label", category_ids)):
        known[name] = pc.is_in(columns[name], value_set=pa.array(list(ids), pa.string()))
        unknown[name] = pc.unique(columns.filter(pc.invert(known[name]))[name]).to_pylist()
        if columns.num_rows and not pc.any(known[name]).as_py():
            raise ValueError(
                f"no detection has a {name} of the json: the run has {unknown[name][0]!r:.99}, the "
                f"json {next(iter(ids))!r:.99}; give the json the images were indexed from"
            )
    kept = columns.filter(pc.and_(known["image_id"], known["label"]))
    strays = dict.fromkeys(unknown["label"], 0)
    return Inputs(info, kept, image_ids, category_ids, strays), unknown["image_id"]
