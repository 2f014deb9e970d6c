"""A run whose config carries a guarantee states it, or refuses to start."""

import json
from pathlib import Path

import numpy as np
import pytest

from af_pipeline.indexing.index import dry_run, index
from af_pipeline.settings.guarantee import settings_hash, statement
from af_pipeline.settings.index import IndexConfig
from tests.helpers.fakes import made_guarantee
from tests.helpers.planted import index_config, save, source

pytestmark = pytest.mark.usefixtures("without_ray")


def guaranteed(config: IndexConfig) -> IndexConfig:
    held = made_guarantee(settings_hash(config, source().identity))
    return config.model_copy(update={"guarantee": held})


def test_run_json_carries_the_statement(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", np.zeros((200, 300, 3), np.uint8))
    config = guaranteed(index_config(tmp_path / "images", tmp_path / "out"))
    index(config, source())
    written = json.loads((tmp_path / "out" / "run.json").read_text())["guarantee"]
    assert config.guarantee is not None
    assert written["statement"] == statement(config.guarantee)
    assert written["images"] == config.guarantee.images
    # the rows are those of the same settings without it
    again = index(config.model_copy(update={"guarantee": None}), source())
    assert again.skipped == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["guarantee"] is None


def test_other_settings_are_refused_before_anything_is_touched(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", np.zeros((200, 300, 3), np.uint8))
    config = guaranteed(index_config(tmp_path / "images", tmp_path / "out"))
    changed = config.model_copy(update={"detector_score": 0.3})
    for job in (index, dry_run):
        with pytest.raises(ValueError, match="certified for other settings"):
            job(changed, source())
    assert not (tmp_path / "out").exists()
