"""What a distillation is asked for."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from af_pipeline.config import Section


class DistillRule(Section):
    """The options of `jobs/distill.py`, one a field."""

    output: Path = Field(description="folder for the network, the settings and the report")
    sample: int = Field(60, ge=2, description="images to learn from")
    steps: int = Field(600, ge=1, description="training steps, of 16 crops each")
    seed: int = Field(0, ge=0, description="of the choice of images, and of the training")
    held: int = Field(30, ge=1, description="further images to choose the thresholds on")
    max_lost: float = Field(
        0.05, description="share of the pyramid's confident detections that may be lost there"
    )
    iou: float = Field(0.7, gt=0, le=1, description="overlap from which one of them is found again")
    alpha: float | None = Field(
        None, gt=0, lt=1, description="certify: mean share of confident detections lost, at most"
    )
    delta: float = Field(0.1, gt=0, lt=1, description="probability that this does not hold")
    calibration: int = Field(100, ge=1, description="further images to certify on")
    workers: int = Field(2, ge=1, description="processes that replay")
