"""Batches, the learning rate and single training steps."""

import threading
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from af_pipeline.core.focus import FocusRule
from af_pipeline.core.scales import Scale
from af_pipeline.models.detector import Targets
from af_pipeline.settings.train import OptimRule
from af_pipeline.sniper.chips import ChipMaking, ChipWindow, SniperRule
from af_pipeline.sniper.sample import LabelledImage, Sample, make_sample
from af_pipeline.sniper.stream import Cursor, StreamState
from af_pipeline.training.batches import Batch, BatchLoader, collate, move
from af_pipeline.training.step import (
    LossModule,
    NonFiniteLossError,
    build_average,
    build_optimizer,
    train_step,
)

MAKING = ChipMaking((Scale(1.0, valid_range=(12, 50)),), SniperRule(flips="all"), FocusRule())


def optim_rule(**changes: Any) -> OptimRule:
    plain: dict[str, Any] = {"steps": 100, "lr": 0.1, "weight_decay": 0.0, "warmup_steps": 10}
    return OptimRule(**(plain | {"bf16": False} | changes))


def sample(number: int, boxes: int | None = None) -> Sample:
    rng = np.random.default_rng(number)
    count = int(rng.integers(0, 4)) if boxes is None else boxes
    corner = rng.uniform(0, 30, (count, 2))
    labelled = LabelledImage(
        rng.integers(0, 256, (64, 64, 3)).astype(np.uint8),
        np.hstack([corner, corner + 30]).astype(np.float32),
        rng.integers(0, 3, count).astype(np.int32),
        np.zeros(count, bool),
    )
    return make_sample(rng, labelled, ChipWindow(0, 1.0, 0, 0, 64), MAKING)


def state_after(taken: int) -> StreamState:
    return StreamState(taken, ((Cursor(taken // 10, 0, taken % 10),),))


class Stream:
    """Chips by number; remembers which were made. Its walk fails before number ``ends``."""

    def __init__(self, slots: int, fail_at: int = -1, ends: int = 10**9) -> None:
        self.slots, self.fail_at, self.ends = slots, fail_at, ends
        self.asked: list[int] = []

    def walk(self, state: StreamState) -> Iterator[tuple[list[int], StreamState]]:
        for number in range(state.taken, self.ends, self.slots):
            after = number + self.slots
            yield list(range(number, after)), state_after(after)
        raise ValueError("no box of the training data fits")

    def sample(self, number: int) -> Sample:
        self.asked.append(number)
        if number == self.fail_at:
            raise ValueError("broken.jpg cannot be decoded")
        return sample(number)


def made(
    stream: Stream, rank: int = 0, world: int = 1, start: int = 0, **options: int
) -> BatchLoader:
    return BatchLoader(stream, state_after(start), (rank, world), **options)  # type: ignore[arg-type]


def take(steps: BatchLoader, count: int) -> list[Batch]:
    found = list(islice(steps, count))
    steps.close()
    return found


# ---- collate and batches


def test_collate_pads_to_the_most_boxes() -> None:
    samples = [sample(0, 2), sample(1, 0), sample(2, 3)]
    images, targets = collate(samples)
    assert images.shape == (3, 3, 64, 64)
    assert images.dtype == torch.uint8
    assert targets.boxes.shape == (3, 3, 4)
    assert targets.labels.shape == targets.valid.shape == targets.ignored.shape == (3, 3)
    assert targets.labels.dtype == targets.focus.dtype == torch.int64
    assert targets.boxes.dtype == torch.float32
    assert targets.focus.shape == (3, 4, 4)
    for i, one in enumerate(samples):
        np.testing.assert_array_equal(images[i].permute(1, 2, 0).numpy(), one.image)
        count = len(one.boxes.boxes)
        np.testing.assert_array_equal(targets.boxes[i, :count].numpy(), one.boxes.boxes)
        np.testing.assert_array_equal(targets.valid[i, :count].numpy(), one.boxes.valid)
        assert not targets.valid[i, count:].any()
        assert not targets.ignored[i, count:].any()
    assert targets.ranges.tolist() == [[12, 50]] * 3
    assert targets.ranges.dtype == torch.float32
    again = move(targets, torch.device("cpu"))
    assert torch.equal(again.boxes, targets.boxes)
    assert collate([sample(0, 0), sample(1, 0)])[1].boxes.shape == (2, 0, 4)


def images_of(batch: Batch) -> list[bytes]:
    return [image.numpy().tobytes() for image in batch.images.permute(0, 2, 3, 1).contiguous()]


def chip(number: int) -> bytes:
    return sample(number).image.tobytes()


@pytest.mark.parametrize("options", [{}, {"threads": 1, "ahead": 1}, {"threads": 4, "ahead": 9}])
def test_batches_are_the_chips_in_order_with_the_state_after_them(options: dict[str, int]) -> None:
    for number, batch in enumerate(take(made(Stream(3), start=6, **options), 5)):
        first = 6 + 3 * number
        assert images_of(batch) == [chip(first + i) for i in range(3)]
        assert batch.state == state_after(first + 3)
        wanted = collate([sample(first + i) for i in range(3)])[1]
        assert torch.equal(batch.targets.boxes, wanted.boxes)


def test_workers_share_out_the_batches_of_one() -> None:
    alone = take(made(Stream(6)), 3)
    for world in (2, 3):
        streams = [Stream(6) for _ in range(world)]
        workers = [take(made(s, rank, world), 3) for rank, s in enumerate(streams)]
        for step, whole in enumerate(alone):
            assert [images_of(w[step]) for w in workers] == [
                images_of(whole)[rank::world] for rank in range(world)
            ]
            assert {w[step].state for w in workers} == {whole.state}
        for rank, stream in enumerate(streams):  # nobody makes the chips of another
            assert {number % world for number in stream.asked} == {rank}


def test_a_batch_must_divide() -> None:
    with pytest.raises(ValueError, match="global_batch 8 must be a multiple of 3 workers"):
        made(Stream(8), 0, 3)


def stream_threads() -> set[threading.Thread]:
    names = ("chip-stream", "chips_")
    return {t for t in threading.enumerate() if t.name.startswith(names)}


@pytest.mark.parametrize(
    ("stream", "whole", "error"),
    [
        (Stream(2, fail_at=5), 2, r"broken\.jpg"),
        (Stream(1, fail_at=0), 0, r"broken\.jpg"),
        (Stream(2, ends=0), 0, "no box of the training data fits"),
        (Stream(2, ends=30), 12, "no box of the training data fits"),  # 3 steps of 15 are ahead
    ],
)
def test_an_error_reaches_the_consumer_and_ends_the_threads(
    stream: Stream, whole: int, error: str
) -> None:
    before = stream_threads()
    steps = made(stream)
    for _ in range(whole):
        next(steps)
    with pytest.raises(ValueError, match=error):
        next(steps)
    for thread in stream_threads() - before:
        thread.join(5)
        assert not thread.is_alive()


def test_a_consumer_that_leaves_ends_the_threads() -> None:
    before, stream = stream_threads(), Stream(1)
    steps = made(stream)
    next(steps)
    started = stream_threads() - before
    assert sorted(t.name.partition("_")[0] for t in started)[0] == "chip-stream"
    assert 2 <= len(started) <= 3  # and those that make the chips
    steps.close()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()
    assert len(stream.asked) < 20


# ---- the learning rate


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, {0: 0.01, 9: 0.1, 10: 0.1, 55: 0.1 * (0.01 + 0.99 / 2), 100: 0.001, 500: 0.001}),
        ({"warmup_steps": 0}, {0: 0.1}),
        ({"steps": 5}, {step: 0.01 * (step + 1) for step in range(5)}),
        (
            {"schedule": "step", "step_at": (0.5, 0.76)},
            {0: 0.01, 9: 0.1, 49: 0.1, 50: 0.01, 75: 0.01, 76: 0.001, 99: 0.001},
        ),
        ({"schedule": "step", "step_at": ()}, {10: 0.1, 99: 0.1, 1000: 0.1}),
    ],
)
def test_the_learning_rate_warms_up_and_falls(
    changes: dict[str, Any], wanted: dict[int, float]
) -> None:
    rule = optim_rule(**changes)
    assert {step: rule.rate(step) for step in wanted} == pytest.approx(wanted)
    falling = [rule.rate(step) for step in range(rule.warmup_steps, 100)]
    assert falling == sorted(falling, reverse=True)


# ---- one step


class Line(nn.Module):
    """A model of two weights whose parts are what the test says they are."""

    def __init__(self, parts: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 2.0]]))
        self.parts = parts

    def forward(self, batch: Tensor, targets: Targets) -> dict[str, Tensor]:
        return self.parts(self.weight)


def step(model: nn.Module, rule: OptimRule, number: int = 50) -> dict[str, float]:
    optimizer = build_optimizer(model, rule)
    return train_step(model, optimizer, (torch.zeros(1), SimpleNamespace()), rule, number)  # type: ignore[arg-type]


def test_a_step_weighs_the_parts_and_goes_downhill() -> None:
    model = Line(lambda w: {"class": w.sum(), "box": (w**2).sum()})
    losses = step(model, optim_rule())
    norm = ((1 + 4) ** 2 + (1 + 8) ** 2) ** 0.5  # of the gradient of w.sum() + 2 (w^2).sum()
    wanted = {"class": 3, "box": 5, "total": 13, "grad_norm": norm}
    assert losses == pytest.approx(wanted)
    assert (model.weight < torch.tensor([[1.0, 2.0]])).all()


def test_a_part_without_a_weight_counts_once_and_a_part_of_weight_0_not_at_all() -> None:
    model = Line(lambda w: {"class": w.sum(), "box": (w**2).sum(), "other": 3 * w.sum()})
    losses = step(model, optim_rule(class_weight=0.0, box_weight=1.0))
    assert losses["total"] == pytest.approx(5 + 9)


def test_a_step_of_sgd() -> None:
    model = Line(lambda w: {"class": w.sum()})
    rule = optim_rule(optimizer="sgd", momentum=0.5, warmup_steps=0, schedule="step")
    optimizer = build_optimizer(model, rule)
    assert isinstance(optimizer, torch.optim.SGD)
    weights = []
    for number in (0, 1):
        train_step(model, optimizer, (torch.zeros(1), SimpleNamespace()), rule, number)  # type: ignore[arg-type]
        weights.append(model.weight.tolist()[0])
    assert weights[0] == pytest.approx([0.9, 1.9])
    assert weights[1] == pytest.approx([0.75, 1.75])  # 0.1 and half of the step before


@pytest.mark.parametrize(
    ("box", "error"),
    [
        (lambda w: w.sum() * float("nan"), r"loss .* step 50.*'class': 3\.0.*'box': nan"),
        (lambda w: w.sum() * float("inf"), r"loss .* step 50.*'class': 3\.0.*'box': inf"),
        (lambda w: (w - w.detach()).abs().sum().sqrt(), "gradient"),  # sqrt has no slope at 0
    ],
)
def test_what_is_not_finite_leaves_the_weights(box: Any, error: str) -> None:
    model = Line(lambda w: {"class": w.sum(), "box": box(w)})
    with pytest.raises(NonFiniteLossError, match=error):
        step(model, optim_rule())
    assert model.weight.tolist() == [[1, 2]]


def test_gradients_are_clipped() -> None:
    model = Line(lambda w: {"class": 1e6 * w.sum()})
    step(model, optim_rule(clip_norm=1.0))
    assert float(model.weight.grad.norm()) == pytest.approx(1, rel=1e-3)  # type: ignore[union-attr]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_norms_and_biases_are_not_decayed_and_frozen_ones_left_out(optimizer: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model[0].requires_grad_(False)
    groups = build_optimizer(model, optim_rule(weight_decay=0.05, optimizer=optimizer)).param_groups
    shapes = [[tuple(p.shape) for p in group["params"]] for group in groups]
    assert shapes == [[(4, 4, 3, 3)], [(4,)] * 3]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]


def averaged(steps: int) -> tuple[float, float]:
    """A weight and a statistic that are 0, then 1 for ``steps`` steps -> their averages."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = build_average(model, 0.9)
    values = model[0].weight, model[1].running_mean
    for step in range(steps + 1):
        with torch.no_grad():
            for value in values:
                value.fill_(min(step, 1))  # type: ignore[operator]
        average.update_parameters(model)
    state = average.module.state_dict()  # type: ignore[operator]
    return float(state["0.weight"][0]), float(state["1.running_mean"][0])


def test_the_average_follows_weights_and_statistics() -> None:
    shares = [1 - averaged(steps)[0] for steps in (0, 1, 2, 100, 101)]
    assert [averaged(steps)[1] for steps in (0, 1, 2)] == pytest.approx(
        [1 - share for share in shares[:3]]
    )
    assert shares[0] == 1
    assert shares[1] == pytest.approx(2 / 11)  # a short run is not mostly its first weights
    assert shares[2] == pytest.approx(2 / 11 * 3 / 12)
    assert shares[4] < 1e-4
    model = nn.Linear(1, 1)
    average = build_average(model, 0.9)
    for value in [0.0] * 200 + [1.0]:  # grown to the decay by then
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(0.1)  # type: ignore[operator]


def test_the_loss_module_is_the_detectors_losses() -> None:
    detector = nn.Linear(1, 1)
    detector.losses = lambda batch, targets: {"class": batch + targets}  # type: ignore[assignment]
    assert LossModule(detector)(1, 2) == {"class": 3}  # type: ignore[arg-type]
