"""Scoring a detector on annotated images with the cascade that the index job runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from af_pipeline.cascade import run_cascade
from af_pipeline.data.annotations import AnnotatedDataset, AnnotatedImage
from af_pipeline.data.load import to_coco
from af_pipeline.data.training import read_image
from af_pipeline.depth import BY_TYPE, DepthConfig
from af_pipeline.metrics import evaluate_detections
from af_pipeline.model.base import Detector
from af_pipeline.plans import Plan, build_plan
from af_pipeline.predict import TorchPredictor, predictor_options
from af_pipeline.schema import ImageRow
from af_pipeline.settings import IndexConfig
from af_pipeline.tables import detections_table


def run_images(
    images: Sequence[AnnotatedImage],
    plan: Plan,
    predict: TorchPredictor,
    depth: DepthConfig = BY_TYPE,
) -> list:
    """The rows of ``images``, one after the other, without their pixels."""
    rows = []
    for image in images:
        row = ImageRow(image.image_id, image.uri)
        run_cascade(row, read_image(image.uri, depth), plan, predict)
        row.chips = []
        rows.append(row)
    return rows


def find_objects(
    detector: Detector, images: Sequence[AnnotatedImage], index: IndexConfig, device: torch.device
) -> list[ImageRow]:
    """What ``detector`` finds in ``images`` under an index config; the detector is not changed."""
    predict = TorchPredictor(detector, device, **predictor_options(index))
    return run_images(images, build_plan(index), predict, index.source.depth)


def score_rows(rows: Sequence[ImageRow], dataset: AnnotatedDataset) -> dict[str, float]:
    """``val_AP``, ``val_AP50`` (COCO, mean over the classes present) and the share of pixels."""
    table = detections_table(rows, dataset.class_names)
    overall = evaluate_detections(to_coco(dataset), table).overall
    processed = sum(sum(row.ledger.pixels) for row in rows)
    pyramid = sum(row.ledger.pixels_pyramid for row in rows)
    scores = {f"val_{name}": overall[name] or 0.0 for name in ("AP", "AP50")}
    return {**scores, "val_pixels_share": processed / max(1, pyramid)}
