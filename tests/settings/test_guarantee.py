"""A guarantee holds for the settings it was made for, and says what it is."""

from pathlib import Path

import pytest

from af_pipeline.config import config_from, dump_config
from af_pipeline.settings.guarantee import (
    check_guarantee,
    guarantee_record,
    settings_hash,
    statement,
)
from af_pipeline.settings.index import IndexConfig
from tests.helpers.fakes import made_guarantee

TREE = {
    "pyramid": [{"factor": 0.5}, {"factor": 1.0}],
    "focus": {"steps": [{"threshold": 0.2}]},
}
DETECTOR = "0123456789abcdef"


def config(*sets: str) -> IndexConfig:
    return config_from(IndexConfig, TREE, sets, "test")


def guaranteed(*sets: str) -> IndexConfig:
    """A config with a guarantee that was made for TREE, changed afterwards."""
    held = made_guarantee(settings_hash(config(), DETECTOR))
    return config(*sets).model_copy(update={"guarantee": held})


def test_it_holds_for_its_settings() -> None:
    check_guarantee(guaranteed(), DETECTOR)
    check_guarantee(config(), DETECTOR)  # none, nothing to check
    free = [
        "source.uri=elsewhere",
        "output.uri=out",
        "ray.elastic=true",
        "plan=fused",
        "device=cpu",
    ]
    check_guarantee(guaranteed(*free), DETECTOR)


@pytest.mark.parametrize(
    "change",
    [
        "focus.steps.0.threshold=0.3",
        "focus.steps.0.context=8",
        "focus.budget=1e6",
        "lanes.fill=true",
        "stack.sigma=0.4",
        "detector_score=0.02",
        "source.depth={stretch: window, low: 0, high: 4095}",
        "mode=whole",
        "bf16=false",
    ],
)
def test_it_does_not_hold_for_others(change: str) -> None:
    with pytest.raises(ValueError, match=r"other settings .* guarantee=null"):
        check_guarantee(guaranteed(change), DETECTOR)


def test_it_does_not_hold_for_another_detector() -> None:
    with pytest.raises(ValueError, match="another checkpoint"):
        check_guarantee(guaranteed(), "f" * 16)


def test_the_statement_names_all_its_numbers() -> None:
    held = guaranteed().guarantee
    assert held is not None
    text = statement(held)
    for part in ("0.95", "60 calibration", "at most 0.1.", "0.0123", "0.031", "photos", "0.25"):
        assert part in text
    record = guarantee_record(guaranteed())
    assert record is not None
    assert record["statement"] == text
    assert record["alpha"] == 0.1
    assert guarantee_record(config()) is None


def test_it_survives_the_config_file(tmp_path: Path) -> None:
    wanted = guaranteed()
    again = config_from(IndexConfig, dump_config(wanted), [], "test")
    assert again.guarantee == wanted.guarantee
    check_guarantee(again, DETECTOR)
