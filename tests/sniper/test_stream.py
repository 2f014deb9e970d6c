"""The stream of training chips: each chip once an epoch, whoever asks and wherever it starts."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from af_pipeline.core.focus import FocusRule
from af_pipeline.core.scales import Scale
from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.sniper import images
from af_pipeline.sniper.chips import ChipMaking, SniperRule
from af_pipeline.sniper.images import BrokenImageError, FileImages, ImageCache
from af_pipeline.sniper.sample import Sample
from af_pipeline.sniper.stream import ChipRef, ChipStream, Cursor, StreamState, class_repeats, deal
from af_pipeline.training.batches import BatchLoader
from tests.helpers.annotated import SIDE, data_of, grey_images


def files(data: AnnotatedDataset, cache: int = 10**6, **options: Any) -> FileImages:
    return FileImages(data, ImageCache(cache), **options)


def making(*scales: Scale) -> ChipMaking:
    rule = SniperRule(64, jitter=(0.9, 1.1), flips="all", focus_chips=0)
    return ChipMaking(scales or (Scale(1.0), Scale(2.0)), rule, FocusRule())


def stream(
    *sources: FileImages, seed: int = 0, how: ChipMaking | None = None, **options: Any
) -> ChipStream:
    shares = options.pop("shares", [1.0] * len(sources))
    return ChipStream(sources, shares, how or making(), seed, **options)


def image_of(sample: Sample) -> int:
    return int(sample.image[32, 32, 0]) // 10


def epoch_of(chips: ChipStream, epoch: int) -> list[ChipRef]:
    """The chips of one epoch, slot by slot."""
    found = []
    for slot in range(chips.slots):
        for ref, after in chips.walk_slot(0, slot, Cursor(epoch)):
            if ref.epoch > epoch:
                break
            found.append(ref)
            if after.epoch > epoch:
                assert after == Cursor(epoch + 1)
                break
    return found


# ---- epochs


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_every_chip_comes_once_an_epoch(tmp_path: Path, chunk: int, slots: int) -> None:
    chips = stream(files(grey_images(tmp_path), chunk=chunk), slots=slots)
    orders = []
    for epoch in range(4):
        all_chips = [ref for number in range(7) for ref in chips.image_refs(0, number, epoch)]
        found = epoch_of(chips, epoch)
        assert Counter(found) == Counter(all_chips)
        assert len({(ref.image, ref.number) for ref in found}) == len(found)
        assert {ref.image for ref in found} == set(range(7))
        orders.append([ref.image for ref in found])
        chips.recent.clear()
        assert found == epoch_of(chips, epoch)
    assert len(set(map(tuple, orders))) == 4


def test_a_walk_goes_from_chunk_to_chunk_and_epoch_to_epoch(tmp_path: Path) -> None:
    chips = stream(files(grey_images(tmp_path), chunk=3))
    wanted = [ref for epoch in range(3) for ref in epoch_of(chips, epoch)]
    walked = list(islice(chips.walk(chips.start()), len(wanted)))
    assert [ref for (ref,), _ in walked] == wanted
    assert [state.taken for _, state in walked] == list(range(1, len(wanted) + 1))
    assert walked[-1][1] == StreamState(len(wanted), ((Cursor(3),),))
    dealt = [[ref for refs in chips.deal_chunk(0, 0, chunk) for ref in refs] for chunk in range(3)]
    assert [len({ref.image for ref in refs}) for refs in dealt] == [3, 3, 1]
    assert [ref for refs in dealt for ref in refs] == epoch_of(chips, 0)


def test_slots_have_images_of_their_own_and_as_many_chips() -> None:
    rng = np.random.default_rng(5)
    for slots, mix, most in ((1, 1, 9), (4, 3, 9), (16, 2, 40)):
        counts = rng.integers(0, most, 60).tolist()
        images = [[(number, i) for i in range(count)] for number, count in enumerate(counts)]
        dealt = deal(rng, images, slots, mix)  # type: ignore[arg-type]
        found = [ref for slot in dealt for ref in slot]
        assert sorted(found) == sorted(ref for image in images for ref in image)  # type: ignore[type-var]
        loads, share = [len(slot) for slot in dealt], -(-sum(counts) // slots)
        assert max(loads) - min(loads) <= 2
        owners = [(slot, ref[0]) for slot, own in enumerate(dealt) for ref in own]  # type: ignore[index]
        parts = Counter(image for _, image in set(owners))
        assert all(parts[n] <= -(-count // share) for n, count in enumerate(counts))
        for own in dealt:  # the chips of an image lie within ``mix`` images of the slot
            order = list(dict.fromkeys(ref[0] for ref in own))  # type: ignore[index]
            for first in range(0, len(own), 1):
                ahead = order.index(own[first][0]) // mix  # type: ignore[index]
                assert all(order.index(ref[0]) // mix >= ahead for ref in own[first:])  # type: ignore[index]


@pytest.mark.parametrize("world", [1, 2, 8])
def test_an_image_is_decoded_once_an_epoch_whatever_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    """Each worker with a cache that holds little more than the images its slots are at."""
    slots, mix, steps = 8, 2, 80
    read: list[str] = []
    whole = images.read_bytes
    monkeypatch.setattr(images, "read_bytes", lambda uri: read.append(uri) or whole(uri))  # type: ignore[func-returns-value]
    data = grey_images(tmp_path, count=64)
    room = slots // world * (mix + 2) * 3 * SIDE * SIDE
    batches = []
    for rank in range(world):
        chips = stream(files(data, cache=room), slots=slots, mix=mix)
        made = BatchLoader(chips, chips.start(), (rank, world))
        batches.append([batch.images.numpy() for batch in islice(made, steps)])
        made.close()
    chips = stream(files(data), slots=slots, mix=mix)
    made_ahead = steps + 9  # 4 in the making, 4 in the queue, 1 between
    walked = [ref for refs, _ in islice(chips.walk(chips.start()), made_ahead) for ref in refs]
    visits = {(ref.epoch, ref.image) for ref in walked}
    assert len({epoch for epoch, _ in visits}) >= 2
    assert len({(i % slots, r.epoch, r.image) for i, r in enumerate(walked)}) == len(visits)
    assert 128 <= len(read) <= len(visits)
    alone = stream(files(data), slots=slots, mix=mix)
    for step, (refs, _) in enumerate(islice(alone.walk(alone.start()), steps)):
        wanted = [alone.sample(ref).image.transpose(2, 0, 1).tobytes() for ref in refs]
        found = [batches[slot % world][step][slot // world].tobytes() for slot in range(slots)]
        assert found == wanted


def test_other_epochs_and_seeds_give_other_chips(tmp_path: Path) -> None:
    source = files(grey_images(tmp_path))
    one, two = stream(source), stream(source, seed=1)
    windows = [tuple(ref.window for ref in one.image_refs(0, 2, epoch)) for epoch in range(12)]
    assert len(set(windows)) == 12
    first, other = ({ref.window for ref in epoch_of(chips, 0)} for chips in (one, two))
    assert len(first & other) < len(first) / 2


# ---- going on


def test_a_stream_goes_on_from_every_state(tmp_path: Path) -> None:
    data = grey_images(tmp_path)
    some = data_of(data.images[4:], *data.class_names)
    chips = stream(files(data, chunk=2), files(some, chunk=2), shares=(0.7, 0.3), slots=2)
    walked = list(islice(chips.walk(chips.start()), 90))
    again = stream(files(data, chunk=2), files(some, chunk=2), shares=(0.7, 0.3), slots=2)
    for taken in range(0, 60, 3):
        state = walked[taken - 1][1] if taken else chips.start()
        saved = json.loads(json.dumps(state.to_list()))
        assert StreamState.from_list(saved) == state
        rest = islice(again.walk(StreamState.from_list(saved)), 30)
        assert list(rest) == walked[taken : taken + 30]


def test_a_chip_is_a_function_of_its_reference(tmp_path: Path) -> None:
    data = grey_images(tmp_path)
    one, two = stream(files(data)), stream(files(data, cache=1))
    refs = epoch_of(one, 0) + epoch_of(one, 1)
    forward = {ref: one.sample(ref) for ref in refs}
    for ref in reversed(refs):
        a, b = forward[ref], two.sample(ref)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.boxes.boxes, b.boxes.boxes)
        np.testing.assert_array_equal(a.focus, b.focus)
        assert image_of(a) == ref.image
        assert a.window == ref.window


def test_a_state_of_an_earlier_version_is_refused() -> None:
    with pytest.raises(ValueError, match=r"earlier version.*begin under another run\.name"):
        StreamState.from_list([[40], [1, 0, 3]])


# ---- several sources


def test_sources_are_mixed_by_their_shares(tmp_path: Path) -> None:
    data = grey_images(tmp_path)
    chips = stream(files(data), files(data_of(data.images[5:6], *data.class_names)), shares=(3, 1))
    refs = [ref for (ref,), _ in islice(chips.walk(chips.start()), 1000)]
    assert sum(ref.source for ref in refs) == pytest.approx(250, abs=45)
    longest = max(map(len, "".join(str(ref.source) for ref in refs).split("1")))
    assert longest < 40  # mixed, not one after the other
    assert image_of(chips.sample(next(ref for ref in refs if ref.source))) == 5


# ---- what chips there are


def test_a_source_without_any_chip_says_so(tmp_path: Path) -> None:
    data = grey_images(tmp_path, count=3)
    for source in (files(data, chunk=2), files(data_of([], "a"))):
        chips = stream(source, how=making(Scale(1.0, valid_range=(1000, -1))))
        with pytest.raises(ValueError, match="no box of the training data fits a chip at any sc"):
            next(chips.walk(chips.start()))


def test_chunks_without_chips_are_passed_over(tmp_path: Path) -> None:
    nothing_fits = making(Scale(1.0, valid_range=(1000, -1)))
    chips = stream(files(grey_images(tmp_path), chunk=1), how=nothing_fits)
    refs = [ref for (ref,), _ in islice(chips.walk(chips.start()), 8)]
    assert [(ref.image, ref.epoch) for ref in refs] == [(3, n // 2) for n in range(8)]
    assert {ref.window.kind for ref in refs} == {"negative"}


def test_proposals_give_mined_chips(tmp_path: Path) -> None:
    near = np.tile(np.array([[0, 0, 8, 8]], np.float32), (30, 1))
    source = files(grey_images(tmp_path), proposals={"5.png": near})
    given = [source.boxes(number)[0].proposals for number in range(7)]
    assert [len(proposals) for proposals in given if proposals is not None] == [0] * 5 + [30, 0]
    assert files(grey_images(tmp_path)).boxes(5)[0].proposals is None
    found = {ref.image for ref in epoch_of(stream(source), 0) if ref.window.kind == "negative"}
    assert found == {5}  # not the image without boxes either: nothing was found in it


def test_chips_with_rare_classes_come_again(tmp_path: Path) -> None:
    # Image k has class k and class 2, number 0 that as a crowd.
    data = grey_images(tmp_path, count=3)
    once = stream(files(data))
    chips = stream(files(data), repeats=np.array([1.0, 3, 1]))
    for epoch in range(5):
        first, second = (
            Counter(ref.window for ref in s.image_refs(0, 1, epoch)) for s in (once, chips)
        )
        assert first.keys() == second.keys()
        assert set(first.values()) == {1}
        assert 3 in second.values()
        assert set(second.values()) <= {1, 3}
        numbers = [ref.number for ref in chips.image_refs(0, 1, epoch)]
        assert numbers == list(range(len(numbers)))
        assert chips.image_refs(0, 0, epoch) == once.image_refs(0, 0, epoch)
    seen = {chips.sample(ref).boxes.boxes.tobytes() for ref in chips.image_refs(0, 1, 0)}
    assert len(seen) > len(once.image_refs(0, 1, 0))  # turned anew each time
    chips = stream(files(data), repeats=np.array([1.5, 1, 1]))  # fractions come by chance
    more, plain = (sum(len(s.image_refs(0, 0, e)) for e in range(200)) for s in (chips, once))
    assert more / plain == pytest.approx(1.5, abs=0.1)


def test_class_repeats(tmp_path: Path) -> None:
    data = grey_images(tmp_path)  # labels 0: 2, 1: 2, 2: 8
    assert class_repeats(data, 1.0).tolist() == [4, 4, 1]
    assert class_repeats(data, 0.5).tolist() == [2, 2, 1]
    assert class_repeats(data, 0.0).tolist() == [1, 1, 1]
    unseen = data_of([*data.images] * 3, "a", "b", "c", "d")
    assert class_repeats(unseen, 1.0).tolist() == [4, 4, 1, 8]  # 24, but for the limit


# ---- images


def test_an_image_of_another_size_than_annotated(tmp_path: Path) -> None:
    chips = stream(files(grey_images(tmp_path, count=1, declared=SIDE + 1)))
    (ref,), _ = next(chips.walk(chips.start()))
    with pytest.raises(BrokenImageError, match=r"0\.png is 80x80 px, its annotation says 81x80"):
        chips.sample(ref)
