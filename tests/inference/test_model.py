"""The Python API: what `af_pipeline.load` gives, and that it is what the job gives."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import af_pipeline
from af_pipeline.core.resize import RGB
from af_pipeline.core.schema import ImageRow, rows_to_table, table_to_rows
from af_pipeline.images.decode import encode_png
from af_pipeline.inference.model import Model
from af_pipeline.models.checkpoint import load_detector, save_checkpoint
from af_pipeline.models.info import load_info

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/index/aerial.yaml")
CHECKPOINT = str(ROOT / "checkpoints/aerial_tiny.safetensors")


@pytest.fixture(scope="module")
def model() -> Model:
    return af_pipeline.load(CONFIG, checkpoint=CHECKPOINT, device="cpu")


@pytest.fixture(scope="module")
def photographs() -> list[RGB]:
    """Grey ground with bright oblong things, some of which the detector takes for vehicles."""
    rng = np.random.default_rng(0)
    made = []
    for height, width in ((240, 320), (300, 260)):
        image = rng.integers(90, 120, (height, width, 3)).astype(np.uint8)
        for x, y in ((40, 50), (150, 120), (60, 180)):
            image[y : y + 16, x : x + 36] = rng.integers(180, 255, 3)
            image[y + 4 : y + 12, x + 8 : x + 14] = 30
        made.append(image)
    return made


def outcome(row: ImageRow) -> list[object]:
    row.ledger.decode_ms = row.ledger.forward_ms = 0.0
    found = row.detections
    return [found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(),
            [chip.box for chip in row.chips], vars(row.ledger)]  # fmt: skip


def test_a_path_an_array_and_a_list_give_the_same(
    model: Model, photographs: list[RGB], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(photographs[0]))
    alone = model.detect(path)
    several = model.detect([photographs[0], str(path), photographs[1]])
    assert len(alone) == len(alone.boxes) == len(alone.labels) > 0
    assert [outcome(one.row) for one in several[:2]] == [outcome(alone.row)] * 2
    assert outcome(several[2].row) != outcome(alone.row)
    assert (alone.row.image_id, several[2].row.image_id) == ("a.png", "")
    assert 0 < alone.pixels_processed < alone.pixels_pyramid
    assert len(alone.chips)
    assert (alone.chips[:, 2:] <= [320, 240]).all()
    assert alone.class_names[alone.labels[0]] in model.class_names
    x, y, width, height = alone.to_coco()[0]["bbox"]
    assert [x, y, x + width, y + height] == pytest.approx(alone.boxes[0].tolist(), abs=0.02)
    assert {one["image_id"] for one in alone.to_coco(7)} == {7}


def test_the_picture_has_the_boxes_and_is_written(
    model: Model, photographs: list[RGB], tmp_path: Path
) -> None:
    result = model.detect(photographs[0])
    picture = result.plot(tmp_path / "a.png", min_score=0.0)
    assert picture.shape == photographs[0].shape
    assert (picture != photographs[0]).any()
    assert (result.plot(min_score=1.1) == photographs[0]).all()
    assert (tmp_path / "a.png").stat().st_size
    with pytest.raises(ValueError, match=r"\.jpg or \.png"):
        result.plot(tmp_path / "a.txt")


def test_a_checkpoint_alone_looks_with_the_pyramid_it_was_trained_with() -> None:
    model = af_pipeline.load(CHECKPOINT, mode="whole", device="cpu", stack__min_score=0.3)
    assert [scale.factor for scale in model.config.pyramid] == [0.5, 1.0, 2.0]
    assert (model.config.mode, model.config.stack.min_score) == ("whole", 0.3)
    assert len(model.config.focus.steps) == 2


def test_proposals_have_the_name_of_proposals(photographs: list[RGB]) -> None:
    result = af_pipeline.load(
        CONFIG,
        checkpoint=Path(CHECKPOINT),
        finds="proposals",
        mode="pyramid",
        stack__min_score=0.0,
        stack__valid_ranges=False,
    ).detect(photographs[0])
    assert result.class_names == ("object",)
    assert set(result.labels.tolist()) == {0}


def test_a_checkpoint_that_does_not_say_its_pyramid_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    state = load_detector(CHECKPOINT)[0].state_dict()
    info = load_info(CHECKPOINT)
    save_checkpoint(path, state, replace(info, training={}))
    with pytest.raises(ValueError, match="does not say its pyramid"):
        af_pipeline.load(path)


def test_a_secret_in_a_place_is_not_told(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("af_pipeline.inference.model.read_bytes", lambda *_: b"no picture")
    with pytest.raises(ValueError, match="not an image") as caught:
        model.detect("https://host/a.jpg?sig=SECRET")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m: af_pipeline.load("nowhere.yaml"), "nowhere.yaml"),
        (lambda m: af_pipeline.load("model.onnx"), "neither an index config"),
        (lambda m: af_pipeline.load(CONFIG, mod="whole"), "did you mean 'mode'"),
        (lambda m: m.detect("/nowhere.jpg"), "nothing at /nowhere.jpg"),
        (lambda m: m.detect(CONFIG), "aerial.yaml: not an image"),
        (lambda m: m.detect(np.zeros((4, 4))), r"\[H, W, 3\]"),
    ],
)
def test_what_cannot_be_used_is_told(
    model: Model, use: Callable[[Model], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        use(model)


def test_ray_is_not_imported() -> None:
    code = "import sys, af_pipeline; af_pipeline.load(sys.argv[1]); print('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, CHECKPOINT], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.ray
def test_rows_are_those_of_the_job(
    model: Model, photographs: list[RGB], tmp_path: Path, cluster: None
) -> None:
    from af_pipeline.indexing.index import index

    (tmp_path / "images").mkdir()
    paths = [tmp_path / f"images/{name}.png" for name in "ab"]
    for path, image in zip(paths, photographs, strict=True):
        path.write_bytes(encode_png(image))
    config = model.config.model_copy(
        update={
            "source": model.config.source.model_copy(update={"uri": str(tmp_path / "images")}),
            "output": model.config.output.model_copy(update={"uri": str(tmp_path / "out")}),
        }
    )
    index(config)
    job = {row.image_id: row for row in table_to_rows(pq.read_table(tmp_path / "out/rows"))}
    for result in model.detect(paths):
        (own,) = table_to_rows(rows_to_table([result.row], stored=True))
        assert outcome(own) == outcome(job[own.image_id])
