"""What stops a graph, what is blamed on an image, and what keeps the driver small; without Ray."""

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer
from ray.data._internal.execution.operators.map_operator import MapOperator
from ray.exceptions import RayTaskError, WorkerCrashedError

from af_pipeline.core.cascade import Prediction
from af_pipeline.core.schema import MANIFEST, ImageRow, table_to_rows
from af_pipeline.indexing import stages
from af_pipeline.indexing.meter import Counter, StageSums, fault_of, too_many
from af_pipeline.indexing.passes import (
    BARREN,
    FEW,
    TELLER,
    LostBlocks,
    OneByOne,
    State,
    Stop,
    Together,
    next_pass,
    rounds,
)
from af_pipeline.indexing.stages import (
    ActorFault,
    CoarseStage,
    DetectorSource,
    StageSettings,
    kinds_of,
)
from af_pipeline.indexing.watch import BLOCKS_AHEAD, LISTS_AHEAD, RECORDS_KEPT, FewAhead, Watch
from af_pipeline.output.place import OutputLostError
from af_pipeline.settings.modes import build_plan
from tests.helpers.planted import CLASS_NAMES, RAISES, FakeDetector, index_config, picture, save


@pytest.mark.parametrize(
    ("images", "errors", "rate", "done", "stops"),
    [
        (199, 199, 0.05, 0, False),  # too few to judge by
        (200, 10, 0.05, 0, False),
        (200, 11, 0.05, 0, True),
        (300, 300, 0.05, 9_700, False),  # the bad ones of a run that is fine as a whole
        (10**7, 10**6, 0.05, 0, True),
        (200, 1, 0.0, 0, True),
        (10**4, 10**4, 1.0, 0, False),
    ],
)
def test_when_too_many_images_failed(
    images: int, errors: int, rate: float, done: int, stops: bool
) -> None:
    kinds = {"rare": (1, "a.png: cut short"), "often": (errors - 1, "b.png: access denied")}
    text = too_many((images, errors, 0), kinds, rate, done)
    assert bool(text) == stops
    if stops:
        assert text.startswith(f"{errors} of {images} images failed")
        assert ("b.png: access denied" in text) == (errors > 2)


@pytest.mark.parametrize(
    ("faults", "actors", "stops"), [(0, 0, False), (4, 1, False), (5, 1, True), (9, 2, False)]
)
def test_when_no_actor_of_a_stage_works(faults: int, actors: int, stops: bool) -> None:
    stage = StageSums(faults=faults, faulty={str(n) for n in range(actors)}, reason="dead card")
    assert ("dead card" in fault_of("Detect[s0]", stage)) == stops


def test_messages_that_differ_in_names_and_numbers_are_one_kind() -> None:
    rows = [ImageRow(f"{n}.png", f"s3://b/{n}.png") for n in range(3)]
    for row in rows:
        row.error = f"{row.uri}: 40{row.image_id[0]} access denied"
    rows.append(ImageRow("good.png", "good.png"))
    [(count, example)] = kinds_of(rows).values()
    assert (count, example) == (3, "0.png: s3://b/0.png: 400 access denied")


class Failing(FakeDetector):
    """Raises ``error`` at what ``all`` says: everything, or crops of tag RAISES only."""

    def __init__(self, threads: int, error: Exception, everything: bool) -> None:
        super().__init__(threads)
        self.error, self.everything = error, everything

    def __call__(self, crops: Sequence[NDArray[np.uint8]], lane: Any) -> list[Prediction]:
        if self.everything or any(np.median(crop[..., 2]) == RAISES for crop in crops):
            raise self.error
        return super().__call__(crops, lane)


def look_at(folder: Path, tags: Sequence[int], **options: Any) -> list[ImageRow]:
    """The rows of pictures with these tags after the coarse stage."""
    config = index_config(folder / "images", folder / "out")
    for tag in tags:
        save(folder / f"images/{tag}.png", picture(tag))
    names = [f"{tag}.png" for tag in tags]
    uris = [str(folder / "images" / name) for name in names]
    detector = DetectorSource(Failing, options, CLASS_NAMES, "failing")
    stage = CoarseStage(StageSettings(build_plan(config), detector, 10**6))
    listed = {"image_id": names, "uri": uris, "version": [""] * len(names)}
    return table_to_rows(stage(pa.table(listed).cast(MANIFEST)))


FAULTS = [RuntimeError("CUDA error"), MemoryError(), OSError("cuDNN"), ValueError("weights")]


@pytest.mark.parametrize("error", FAULTS, ids=repr)
def test_a_detector_that_fails_on_black_is_at_fault(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(ActorFault, match="fails on a black picture too"):
        look_at(tmp_path, [1, 2], error=error, everything=True)


@pytest.mark.parametrize("error", FAULTS, ids=repr)
def test_an_image_is_blamed_where_black_is_no_trouble(tmp_path: Path, error: Exception) -> None:
    rows = look_at(tmp_path, [1, RAISES, 2], error=error, everything=False)
    assert ["failed" in row.error for row in rows] == [False, True, False]
    assert repr(error) in rows[1].error


@pytest.mark.parametrize("everything", [True, False])
def test_memory_that_a_decoder_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    def no_memory(*_: Any) -> None:
        raise stages.DecodeError("PNG needs more memory than there is") from MemoryError()

    monkeypatch.setattr(stages, "decode_image", no_memory)
    if everything:
        with pytest.raises(ActorFault):
            look_at(tmp_path, [1], error=MemoryError(), everything=True)
    else:
        [row] = look_at(tmp_path, [1], error=MemoryError(), everything=False)
        assert row.error == "PNG needs more memory than there is"


class Operator:
    """As much of Ray Data's as is asked for."""

    def __init__(self, before: list[Any]) -> None:
        self.input_dependencies = before
        self._output_blocks_stats: list[int] = []


def test_records_of_blocks_do_not_pile_up() -> None:
    assert "self._output_blocks_stats" in inspect.getsource(MapOperator)
    records: list[int] = []
    operator = Operator([])
    operator._output_blocks_stats = records
    executor = SimpleNamespace(_topology={operator: None})
    watch = Watch()
    for number in range(10 * RECORDS_KEPT):
        records.append(number)
        watch.on_execution_step(executor)
        assert len(records) <= RECORDS_KEPT


@pytest.mark.parametrize("reads", [True, False])
def test_no_stage_runs_far_ahead(reads: bool) -> None:
    before = object.__new__(InputDataBuffer) if reads else object()
    op, queue = Operator([before]), SimpleNamespace(num_blocks=0)
    topology: Any = {op: SimpleNamespace(output_queue=queue)}
    nothing: Any = None
    policy = FewAhead(nothing, topology, nothing)
    limit = LISTS_AHEAD if reads else BLOCKS_AHEAD
    for queue.num_blocks in (0, limit - 1):
        assert policy.can_add_input(op)
        assert policy.max_task_output_bytes_to_read(op) is None
    queue.num_blocks = limit
    assert not policy.can_add_input(op)
    assert policy.max_task_output_bytes_to_read(op) == 0


@pytest.mark.parametrize(
    ("parts", "rows_per_block", "graphs"), [(1, 4, 1), (50, 4, 1), (500, 4, 10)]
)
def test_a_million_images_are_one_graph(parts: int, rows_per_block: int, graphs: int) -> None:
    """A part of the list has 20,000 images."""
    listed = [str(number) for number in range(parts)]
    made = list(rounds(listed, rows_per_block))
    assert [name for one in made for name in one] == listed
    assert len(made) == graphs


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State(0), Stop()),
        (State(0, passes=3, barren=2, other="boom"), Stop()),
        (State(1000), Together()),
        (State(1), Together()),
        (State(FEW + 1, passes=1), Together()),  # a node died: nobody's fault
        (State(FEW, passes=1), OneByOne()),
        (State(1000, passes=2), OneByOne()),
        (State(5, passes=BARREN, barren=BARREN - 1, death="died"), OneByOne()),
        (State(5, passes=BARREN, barren=BARREN, death="died"), Stop("died")),
        (State(5, passes=1, barren=1, other="boom", death="died"), Stop("boom")),
        (State(5, passes=1, other="boom"), OneByOne()),  # some got through
    ],
)
def test_what_comes_after_a_pass(state: State, expected: object) -> None:
    assert next_pass(state) == expected


def tell(error: Exception) -> None:
    """As Ray Data does of a lost block."""
    logging.getLogger(TELLER).error("lost", exc_info=error)


def test_lost_blocks_are_deaths_or_reasons_and_an_output_that_is_gone_ends_all() -> None:
    text = "\x1b[36mray::Map()\x1b[39m\n  File x.py\nValueError: bad key=1\nRuntimeError: later"
    with LostBlocks() as lost:
        tell(WorkerCrashedError())
        assert (lost.other, "died" in lost.death) == ("", True)
        tell(RayTaskError("Map", text, ValueError("bad")))
        tell(RayTaskError("Map", "KeyError: second", KeyError()))
        assert lost.other == "ValueError: bad key=1"
        with pytest.raises(OutputLostError, match=r"^it is full$"):
            tell(RayTaskError("Write", "OSError: x", OutputLostError("it is full\nadvice of Ray")))


def test_images_begun_twice_and_never_ended_are_accused() -> None:
    counter = Counter(["first", "second"])
    for image in ("survivor", "killer", "lost"):
        counter.begun("first", [image])
    counter.ended("first", ["survivor"])
    for image in ("survivor", "killer"):
        counter.begun("second" if image == "survivor" else "first", [image])
    assert counter.accused() == ["killer"]
    counter.broken("first", "actor", ["killer"], "dead card")
    assert counter.accused() == []
