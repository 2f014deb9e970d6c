"""Odd files and secrets, from the source to the rows and records of a run; without Ray."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from af_pipeline.config import config_hash
from af_pipeline.core.schema import ImageRow, table_to_rows
from af_pipeline.indexing.estimate import costs, describe, run_sample, sample_images
from af_pipeline.indexing.index import list_source
from af_pipeline.indexing.stages import FusedStage, StageSettings
from af_pipeline.output.account import NOT_IDENTITY, Outcome, write_run
from af_pipeline.output.folder import RunFolder
from af_pipeline.output.publish import Totals
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan
from tests.helpers.odd_files import ODD
from tests.helpers.planted import index_config, picture, save, source


def rows_of(config: IndexConfig, folder: Path) -> list[ImageRow]:
    path = folder / "manifest.parquet"
    list_source(config, None, path)
    stage = FusedStage(stage_settings(config))
    return table_to_rows(stage(pq.read_table(path)))


def stage_settings(config: IndexConfig) -> StageSettings:
    limit, storage = config.source.max_pixels, config.source.storage
    return StageSettings(build_plan(config), source(), limit, storage, "all", None)


@pytest.mark.timeout(60)
def test_every_odd_file_is_one_row(tmp_path: Path) -> None:
    for kind, (make, _) in ODD.items():
        (tmp_path / "images" / kind).mkdir(parents=True)
        make(tmp_path / "images" / kind / "p.jpg")
    name = os.fsdecode(b"\xff.png")
    save(tmp_path / "images" / name, picture(1))
    large = {"source": {"uri": f"{tmp_path}/images", "storage": {"max_bytes": 1_000_000}}}
    rows = rows_of(index_config(tmp_path / "images", tmp_path / "out", **large), tmp_path)
    errors = {row.image_id: row.error for row in rows}
    assert errors.pop("\\xff.png") == ""
    assert set(errors) == {f"{kind}/p.jpg" for kind in ODD}
    assert all("\n" not in error and error for error in errors.values())
    assert "more than storage.max_bytes=1000000" in errors["40 GB/p.jpg"]


URIS = ["a b?sig=geheim", "a'b?sig=geheim", 'x"y?sig=geheim', "k#access_token=geheim"]


@pytest.mark.parametrize("name", URIS)
def test_secrets_reach_no_record(tmp_path: Path, name: str) -> None:
    uri = f"http://127.0.0.1:9/{name}"
    (tmp_path / "list.csv").write_text('uri\n"{}"\n'.format(uri.replace('"', '""')))
    once = {"attempts": 1, "timeout_s": 1}
    remote, listed = (
        index_config(tmp_path, tmp_path / "out", mode="whole", source={"uri": u, "storage": once})
        for u in (uri, f"{tmp_path}/list.csv")
    )
    (row,) = rows_of(listed, tmp_path)
    assert row.error.startswith("cannot read http://127.0.0.1:9/")
    table = sample_images(tmp_path / "manifest.parquet", 1)
    sample = run_sample(table, stage_settings(listed))
    lines = describe(remote, build_plan(remote), [], 1) + costs(remote, sample, 1, 1.0)
    folder = RunFolder.at(f"{tmp_path}/out")
    (tmp_path / "out").mkdir()
    outcome = Outcome(f"{tmp_path}/out", Totals(), 0, 1.0)
    write_run(remote, folder, outcome, {"detector": "d", "class_names": []})
    record = (tmp_path / "out/run.json").read_text()
    assert json.loads(record)["config_hash"] == config_hash(remote, NOT_IDENTITY)
    for text in (row.error, row.image_id, *lines, record):
        assert "geheim" not in text
