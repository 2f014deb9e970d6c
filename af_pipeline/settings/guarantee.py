"""A certified bound on what AutoFocus loses against the full pyramid, and what it holds for.

Method: learn then test (Angelopoulos et al., arXiv 2110.01052), see `af_pipeline.tuning.risk`.
"""

from __future__ import annotations

from typing import Any

from af_pipeline.config import config_hash
from af_pipeline.images.depth import BY_TYPE
from af_pipeline.settings.index import GuaranteeConfig, IndexConfig

# What an index config may change without a row of an image being another. Weights count by their
# hash, not by where they lie.
_PLACES = ("checkpoint", "detector.path", "focus.network.path")
NOT_IN_ROWS = ("ray", "plan", "output", "device", "max_error_rate", "guarantee", *_PLACES)
FREE = (*NOT_IN_ROWS, "source")  # a guarantee holds for other images too


def settings_hash(config: IndexConfig, detector: str) -> str:
    """Hash of all that decides what is found in an image; ``detector``: hash of the weights."""
    depth = config.source.depth
    shown = "" if depth == BY_TYPE else f"-{config_hash(depth)}"  # the pixels of deep images
    return f"{config_hash(config, FREE)}-{detector[:8]}{shown}"


def check_guarantee(config: IndexConfig, detector: str) -> None:
    """Raise ValueError when the config carries a guarantee that was made for other settings."""
    held = config.guarantee
    if held is not None and held.settings != settings_hash(config, detector):
        raise ValueError(
            "the config's guarantee was certified for other settings or another checkpoint: undo "
            "the changes, run jobs/tune.py --alpha again, or set guarantee=null to go without"
        )


def statement(held: GuaranteeConfig) -> str:
    """What is guaranteed, in words."""
    return (
        f"With probability {1 - held.delta:g} over the draw of {held.images} calibration images, "
        f"the mean share of an image's confident detections (score >= {held.confident:g} in the "
        f"full pyramid) that these settings lose is at most {held.alpha:g}. Lost: no detection of "
        f"its class with IoU >= {held.iou:g} and score >= {held.found_score:g}. It holds for "
        f"images like those of {held.source} that have such detections. Measured there: "
        f"{held.mean_lost:.4f}, p {held.p_value:.4f} ({held.method})."
    )


def guarantee_record(config: IndexConfig) -> dict[str, Any] | None:
    """The statement and its numbers for run.json; None without a guarantee."""
    if config.guarantee is None:
        return None
    return {"statement": statement(config.guarantee), **config.guarantee.model_dump(mode="json")}
