"""A budget for the whole run: the floor a sample gives, and runs that hold on to it."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from af_pipeline.core.budget import BudgetRule, Floor
from af_pipeline.core.lanes import Lane
from af_pipeline.core.plan import Plan, with_gain_floor
from af_pipeline.core.schema import ImageRow
from af_pipeline.images.decode import decode_image
from af_pipeline.indexing import index as job
from af_pipeline.indexing.estimate import floor_of, sample_images
from af_pipeline.indexing.index import dry_run, index, list_source
from af_pipeline.indexing.meter import MeteredPredictor
from af_pipeline.indexing.stages import DetectorSource, SampleStage, StageSettings, Worth
from af_pipeline.output.account import summary
from af_pipeline.output.place import OutputError
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan
from tests.helpers.fakes import GradedPredictor, glow, make_plan, run_cascade
from tests.helpers.planted import (
    CLASS_NAMES,
    KILLS,
    RAISES,
    SCENE,
    by_image,
    index_config,
    picture,
    save,
    table,
)

STEPS = [{"min_size": 32, "threshold": 0.2}] * 2


class Graded(GradedPredictor):
    """As an actor loads it."""

    def __init__(self, threads: int, log: str, pad: bool = False) -> None:
        super().__init__(make_plan(pad=pad))
        self.log = Path(log)

    def __call__(self, crops: Any, lane: Any) -> Any:
        tag = int(np.median(crops[0][..., 2]))
        if tag == RAISES:
            raise RuntimeError("planted failure")
        with self.log.open("a") as file:
            file.write(f"{tag}\n")
        return super().__call__(crops, lane)


def detector(root: Path, pad: bool = False) -> DetectorSource:
    options = {"log": str(root / "log"), "pad": pad}
    return DetectorSource(Graded, options, CLASS_NAMES, "graded-detector-1")


def write_images(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        image = glow(rng, 300 + 20 * number, 400, int(rng.integers(0, 9)))
        image[..., 2] = number  # the tag, see `planted`
        save(folder / f"{number}.png", image)


def config(root: Path, budget: float | None, per: str = "run", **changes: Any) -> IndexConfig:
    focus = {"steps": STEPS, "budget": budget, "budget_per": per}
    return index_config(root / "images", root / "out", focus=focus, **changes)


def rows_of(root: Path, plan: Plan) -> list[ImageRow]:
    """The cascade in this process, image by image."""
    paths = sorted((root / "images").iterdir())
    images = [decode_image(path.read_bytes()) for path in paths]
    predict: Any = Graded(1, str(root / "log"), plan.pad)
    found = [run_cascade([image], plan, predict)[0] for image in images]
    return [replace(row, image_id=path.name) for row, path in zip(found, paths, strict=True)]


def spent_by(rows: list[ImageRow]) -> int:
    return sum(sum(row.ledger.pixels) + sum(row.ledger.padded) for row in rows)


# ---- the floor


def test_the_floor_keeps_the_budget_and_no_more() -> None:
    worths = [Worth(100, (50, 30, 20), (5.0, 4.0, 1.0)), Worth(100, (60, 40), (3.0, 2.0))]
    every = floor_of(worths, 2, 2, 400)
    assert every == Floor(0.0, 2, 200, 400)
    some = floor_of(worths, 2, 2, 345)
    assert (some.coarse, some.expected) == (200, 340)
    assert 2 < some.least_gain < 2.001
    # Of four images looked at, two failed: so will half of the thousand.
    many = floor_of(worths, 4, 1000, 345 * 250)
    assert (many.least_gain, many.coarse, many.expected) == (some.least_gain, 50_000, 85_000)
    assert floor_of([Worth(7)], 1, 10, 70) == Floor(0.0, 1, 70, 70)


def test_a_budget_that_cannot_be_kept_says_what_can() -> None:
    worths = [Worth(100, (50,), (5.0,))]
    with pytest.raises(ValueError, match=r"less than the coarsest looks of 30 images .* give 3000"):
        floor_of(worths, 1, 30, 2999)
    assert floor_of(worths, 1, 30, 3000).expected == 3000
    with pytest.raises(ValueError, match="none of the 9 images of the sample could be looked at"):
        floor_of([], 9, 30, 1e9)


@pytest.mark.parametrize(
    "changes", [{}, {"lanes": {"sides": [128, 256], "overlap": 64, "pad": True}}]
)
def test_a_run_takes_what_the_sample_says(tmp_path: Path, changes: dict[str, Any]) -> None:
    """All images in the sample: the cascade with the floor spends what was expected of it."""
    write_images(tmp_path / "images", 6)
    made = config(tmp_path, 1e9, **changes)
    plan = build_plan(made)
    assert plan.budget == BudgetRule(None, 0.0)
    listed = list_source(made.source, None, tmp_path / "manifest.parquet")
    stage = SampleStage(StageSettings(plan, detector(tmp_path, plan.pad), 10**9, threads=1))
    stage(sample_images(tmp_path / "manifest.parquet", listed, 32))
    worths = stage.worths
    total = sum(one.coarse + sum(one.costs) for one in worths)
    assert total == spent_by(rows_of(tmp_path, plan))
    coarse = sum(one.coarse for one in worths)
    before: set[Any] = set()
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        budget = coarse + share * (total - coarse)
        floor = floor_of(worths, 6, 6, budget)
        rows = rows_of(tmp_path, with_gain_floor(plan, floor.least_gain))
        chips = {(row.image_id, chip.scale, chip.box) for row in rows for chip in row.chips}
        assert floor.expected <= budget
        assert before <= chips
        assert spent_by(rows) == floor.expected
        before = chips
    assert floor.least_gain == 0
    assert sum(sum(row.ledger.refused) for row in rows) == 0


# ---- full batches


@pytest.mark.parametrize(("pad", "room"), [(True, 128 * 256), (False, 96 * 224)])
def test_batches_are_as_full_as_their_canvases_allow(pad: bool, room: int) -> None:
    plan = make_plan(pad=pad, batch_pixels=3 * room + 7)
    metered = MeteredPredictor(GradedPredictor(plan), plan)
    crops = [np.zeros((70, 200, 3), np.uint8), np.zeros((96, 193, 3), np.uint8)]
    metered(crops, Lane(128, 256))
    sums = metered.take()
    assert (sums["forwards"], sums["chips"]) == (1, 2)
    assert sums["fill"] == 70 * 200 + 96 * 193
    assert sums["room"] == 3 * room
    metered(crops * 3, Lane(128, 256))  # larger than the budget: a full batch is what it is
    assert metered.take()["room"] == 6 * room


def test_threads_are_counted_together() -> None:
    plan = make_plan()
    inner = GradedPredictor(plan)
    crops = [np.zeros((70, 200, 3), np.uint8)]
    with ThreadPoolExecutor(8) as pool:
        inner.spread = pool.map  # type: ignore[attr-defined]
        metered = MeteredPredictor(inner, plan)
        list(metered.spread(lambda _: metered(crops, Lane(128, 256)), range(400)))
    sums = metered.take()
    assert (sums["forwards"], sums["chips"], sums["fill"]) == (400, 400, 400 * 70 * 200)


# ---- runs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("budget")
    write_images(made / "images", 5)
    return made


def seen(root: Path) -> set[int]:
    """Tags of the images that were looked at since the last call."""
    found = {int(line) for line in (root / "log").read_text().split()}
    (root / "log").write_text("")
    return found


def check_rows(root: Path, plan: Plan) -> None:
    """The run's chips and account are those of the cascade in this process."""
    rows = rows_of(root, plan)
    images = by_image(root / "out", "images")
    chips = by_image(root / "out", "chips")
    for row in rows:
        [image] = images[row.image_id]
        assert image["pixels_per_scale"] == row.ledger.pixels
        assert image["num_refused"] == sum(row.ledger.refused)
        own = {
            (c["scale"], c["x0"], c["y0"], c["x1"], c["y1"]) for c in chips.get(row.image_id, [])
        }
        assert own == {(chip.scale, *chip.box) for chip in row.chips[1:]}


@pytest.mark.usefixtures("without_ray")
def test_a_budget_per_image(root: Path, tmp_path: Path) -> None:
    output = {"uri": str(tmp_path / "out")}
    made = config(root, 400_000.0, "image", output=output)
    outcome = index(made, detector(tmp_path))
    images = table(tmp_path / "out", "images").to_pylist()
    spent = [image["pixels_processed"] + image["pixels_padded"] for image in images]
    assert max(spent) <= 400_000
    refused = sum(image["num_refused"] for image in images)
    assert refused > 0
    content = json.loads((tmp_path / "out/run.json").read_text())
    assert content["totals"]["chips_refused"] == refused
    assert content["budget"] == {
        "pixels": 400_000.0,
        "per": "image",
        "spent": sum(spent),
        "chips_refused": refused,
    }
    assert f"0.4 MP an image; {refused} chips refused" in summary(outcome)
    assert "budget" not in json.loads((tmp_path / "out/plan.json").read_text())
    lines = "\n".join(dry_run(made, detector(tmp_path)))
    assert f"0.4 MP an image, padding included; {refused / 5:.1f} chips refused an image" in lines


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("plan", ["fused", "staged"])
def test_a_run_keeps_its_budget_and_its_floor(tmp_path: Path, plan: str) -> None:
    write_images(tmp_path / "images", 5)
    source = detector(tmp_path)
    plain = build_plan(config(tmp_path, 1e9))
    every = rows_of(tmp_path, plain)
    coarse = sum(row.ledger.pixels[0] + row.ledger.padded[0] for row in every)
    budget = float((coarse + spent_by(every)) // 2)
    made = config(tmp_path, budget, plan=plan)
    outcome = index(made, source)
    stored = json.loads((tmp_path / "out/plan.json").read_text())["budget"]
    assert outcome.budget is not None
    assert outcome.budget["spent"] <= budget
    assert outcome.budget["spent"] == stored["expected"]  # all were in the sample
    assert stored["sample"] == 5
    content = json.loads((tmp_path / "out/run.json").read_text())
    assert content["budget"] == outcome.budget
    assert content["budget"].items() >= {**stored, "pixels": budget, "per": "run"}.items()
    assert f"{outcome.budget['chips_refused']} chips refused" in summary(outcome)
    check_rows(tmp_path, with_gain_floor(plain, stored["least_gain"]))

    # More images come, none of which asks for anything: a new sample would give another floor.
    for number in range(5, 9):
        save(tmp_path / f"images/{number}.png", picture(number, ()))
    part = min((tmp_path / "out/rows").iterdir())
    lost = {int(Path(name).stem) for name in pq.read_table(part)["image_id"].to_pylist()}
    part.unlink()  # as a kill leaves it
    (tmp_path / "out/run.json").unlink()
    seen(tmp_path)
    again = index(made, source)
    assert again.skipped == 5 - len(lost)
    assert seen(tmp_path) == {5, 6, 7, 8} | lost
    assert json.loads((tmp_path / "out/plan.json").read_text())["budget"] == stored
    assert again.budget is not None
    assert again.budget["least_gain"] == stored["least_gain"]
    check_rows(tmp_path, with_gain_floor(plain, stored["least_gain"]))

    with pytest.raises(OutputError, match=r"config\.focus\.budget: .* there, .* now"):
        index(config(tmp_path, budget + 1), source)


@pytest.mark.usefixtures("without_ray")
def test_a_resumed_run_takes_no_sample(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(root, 8e5, output={"uri": str(tmp_path / "out")})

    class StoppedError(Exception):
        """The driver dies once the run has begun."""

    def stop(*_: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(job.Passes, "execute", stop)
        with pytest.raises(StoppedError):
            index(made, detector(tmp_path))
    stored = json.loads((tmp_path / "out/plan.json").read_text())["budget"]
    assert stored["least_gain"] > 0
    monkeypatch.setattr(job, "planned_floor", stop)
    outcome = index(made, detector(tmp_path))
    assert outcome.totals.images == 5
    assert outcome.budget is not None
    assert outcome.budget["least_gain"] == stored["least_gain"]
    assert outcome.budget["spent"] == stored["expected"] <= 8e5


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_images_that_fail_or_kill_are_no_part_of_the_sample(tmp_path: Path) -> None:
    from tests.helpers.planted import source

    for tag in (1, KILLS, 2, RAISES, 3):
        save(tmp_path / f"images/{tag:03}.png", picture(tag, SCENE))
    (tmp_path / "images/text.jpg").write_text("I am no picture\n")
    made = index_config(
        tmp_path / "images",
        tmp_path / "out",
        focus={"steps": [{"min_size": 64}] * 2, "budget": 1e9, "budget_per": "run"},
    )
    lines = dry_run(made.model_copy(update={"source": only(tmp_path, made)}), source())
    assert any("by 5 images" in line and line.startswith("budget") for line in lines)
    with pytest.raises(ValueError, match="less than the coarsest looks of 6 images take: give"):
        index(
            made.model_copy(update={"focus": made.focus.model_copy(update={"budget": 9.0})}),
            source(),
        )
    assert not (tmp_path / "out").exists()


def only(root: Path, made: IndexConfig) -> Any:
    """A list without the picture that kills: a dry run looks at its sample in this process."""
    names = [
        path.name for path in sorted((root / "images").iterdir()) if str(KILLS) not in path.name
    ]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    (root / "some.json").write_text(json.dumps({"images": images}))
    changes = {"uri": str(root / "some.json"), "images": str(root / "images")}
    return made.source.model_copy(update=changes)
