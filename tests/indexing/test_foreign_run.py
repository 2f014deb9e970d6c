"""The index job with a detector of another maker: every mode and layout, and going on."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from af_pipeline import load
from af_pipeline.indexing.index import index
from af_pipeline.indexing.preflight import check_input
from af_pipeline.output.place import OutputError
from af_pipeline.settings.index import IndexConfig
from tests.helpers.bright import write_scenes

MODES = ("autofocus", "pyramid", "tiles", "whole")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 6, 5)


def config(images: Path, out: Path, mode: str, plan: str = "auto") -> IndexConfig:
    """The coarse scale sees patches of 20 px and more, the fine one all."""
    step = {"threshold": 0.02, "dilation": 3, "min_size": 32, "context": 8}
    return IndexConfig(
        source={"uri": str(images)},
        output={"uri": str(out)},
        detector={"path": "tests.helpers.bright:load"},
        mode=mode,
        plan=plan,
        pyramid=[{"factor": 0.5}, {"factor": 2.0}],
        focus={"steps": [step]},
        tiles={"side": 256, "overlap": 64},
        stack={"method": "hard", "min_score": 0.3},
        device="cpu",
    )


def detections(out: Path) -> list[dict]:
    table = pq.read_table(out / "detections").sort_by(
        [("image_id", "ascending"), ("x0", "ascending"), ("y0", "ascending")]
    )
    return table.to_pylist()


@pytest.mark.parametrize("mode", MODES)
def test_rows_do_not_depend_on_the_layout(
    images: Path, tmp_path: Path, mode: str, without_ray: None
) -> None:
    found = []
    for plan in ("staged", "fused"):
        run = config(images, tmp_path / plan, mode, plan)
        check_input(run)
        outcome = index(run)
        assert (outcome.totals.images, outcome.totals.errors) == (6, 0)
        found.append(detections(tmp_path / plan))
    assert found[0] == found[1]
    assert {one["label"] for one in found[0]} == {"patch"}
    own = load_rows(config(images, tmp_path / "x", mode), images)
    assert [one["x0"] for one in found[0]] == pytest.approx(own)


def load_rows(run: IndexConfig, images: Path) -> list[float]:
    """Left edges of what the Python API finds, in the same order."""
    from af_pipeline.inference.model import Model
    from af_pipeline.models.open import open_detector

    model = Model(run, open_detector(run).predictor())
    edges = []
    for path in sorted(images.iterdir()):
        boxes = model.detect(str(path)).boxes
        edges += sorted(boxes[:, :2].tolist())
    return [x0 for x0, _ in edges]


def test_a_run_goes_on_with_the_same_detector_only(
    images: Path, tmp_path: Path, without_ray: None
) -> None:
    run = config(images, tmp_path / "out", "autofocus")
    index(run)
    again = index(run)
    assert again.skipped == 6
    other = {"detector": run.detector.model_copy(update={"path": "tests.helpers.bright:blind"})}
    with pytest.raises(OutputError, match="detector: "):
        index(run.model_copy(update=other))


def test_a_budget_holds_for_it(images: Path, tmp_path: Path, without_ray: None) -> None:
    run = config(images, tmp_path / "free", "autofocus")
    index(run)
    free = pq.read_table(tmp_path / "free/images").to_pylist()
    most = max(one["pixels_processed"] + one["pixels_padded"] for one in free) - 1
    focus = run.focus.model_copy(update={"budget": most})
    output = run.output.model_copy(update={"uri": str(tmp_path / "spent")})
    index(run.model_copy(update={"focus": focus, "output": output}))
    spent = pq.read_table(tmp_path / "spent/images").to_pylist()
    assert max(one["pixels_processed"] + one["pixels_padded"] for one in spent) <= most
    assert sum(one["num_refused"] for one in spent) > 0 == sum(one["num_refused"] for one in free)


def test_settings_reach_it_by_keyword(images: Path, tmp_path: Path) -> None:
    """`af_pipeline.load` of a recipe with the file of one's own."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "detector: {path: nothing.onnx}\nmode: whole\npyramid: [{factor: 1.0}]\n"
        "stack: {method: hard, min_score: 0.3}\ndevice: cpu\n"
    )
    model = load(recipe, detector__path="tests.helpers.bright:load")
    assert model.class_names == ("patch",)
    assert len(model.detect(str(images / "00.png")).boxes) >= 1
