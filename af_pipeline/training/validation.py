"""Scoring a detector on annotated images with the cascade that the index job runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from af_pipeline.core.cascade import run_cascade
from af_pipeline.core.schema import ImageRow
from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage
from af_pipeline.evaluation.coco import evaluate_detections
from af_pipeline.models.detector import Detector
from af_pipeline.models.predictor import TorchPredictor, predictor_options
from af_pipeline.output.tables import detections_table
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan
from af_pipeline.settings.train import DataConfig
from af_pipeline.sniper.images import BrokenImageError, open_image

logger = logging.getLogger(__name__)
Found = tuple[ImageRow, AnnotatedImage]  # what was found, and the annotation it is scored by


def find_objects(
    detector: Detector,
    images: Sequence[AnnotatedImage],
    index: IndexConfig,
    device: torch.device,
    data: DataConfig,
) -> list[Found]:
    """What ``detector`` finds in ``images`` under an index config; the detector is not changed.

    Images that cannot be used are left out with ``data.on_broken=drop``, else a BrokenImageError.
    """
    predict = TorchPredictor(detector, device, options=predictor_options(index))
    plan = build_plan(index)
    found: list[Found] = []
    for image in images:
        try:
            pixels, annotated, _ = open_image(image, data.exif, index.source.depth)
        except BrokenImageError as error:
            if data.on_broken != "drop":
                raise
            logger.warning("left out of the validation: %s", error)
            continue
        row = ImageRow(image.image_id, image.uri)
        run_cascade(row, pixels, plan, predict)
        row.chips = []
        found.append((row, annotated))
    return found


def score(found: Sequence[Found], dataset: AnnotatedDataset) -> dict[str, float]:
    """``val_AP``, ``val_AP50`` (COCO, mean over the classes present) and the share of pixels."""
    if not found:
        raise BrokenImageError("no image of data.val can be used: see jobs/train.py --check")
    rows = [row for row, _ in found]
    truth = dataset.with_images([image for _, image in found])
    overall = evaluate_detections(truth, detections_table(rows, truth.class_names)).overall
    processed = sum(sum(row.ledger.pixels) for row in rows)
    pyramid = sum(row.ledger.pixels_pyramid for row in rows)
    scores = {f"val_{name}": overall[name] or 0.0 for name in ("AP", "AP50")}
    return {**scores, "val_pixels_share": processed / max(1, pyramid)}
