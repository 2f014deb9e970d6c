"""The stream of training chips: every chip of every image once an epoch, in a seeded order.

A global batch has as many slots as chips, and each slot goes through images of its own: in every
epoch the images are dealt to the slots, a slot makes all chips of its image in consecutive steps,
mixed with those of a few more. A worker that serves some of the slots therefore decodes no image
that another worker decodes in that epoch, and holds only the images its slots are at.

The chips of an image follow from (seed, epoch, image id), the dealing from (seed, epoch), so any
number of workers that share out the slots train on the same batches. A `Cursor` says where a slot
stands; a resumed run goes on with the very next batch.
"""

from __future__ import annotations

import heapq
import logging
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.sniper.chips import ChipMaking, ChipWindow, ImageBoxes, image_chips
from af_pipeline.sniper.images import BrokenImageError, FileImages, turn_boxes
from af_pipeline.sniper.sample import Sample, boxes_in_window, make_sample

logger = logging.getLogger(__name__)

MAX_REPEAT = 8.0  # a chip comes at most so often an epoch for its rare classes
RECENT = 4  # dealt chunks kept a source, for slots are not all at the same one;
RECENT_CHIPS = 50_000  # more of small ones, which slots pass at more different times
ATTEMPTS = 16  # images tried in place of a broken one


@dataclass(frozen=True)
class Cursor:
    """The next chip of a slot: epoch, chunk of the source's images, place in the slot's chips."""

    epoch: int = 0
    chunk: int = 0
    offset: int = 0


@dataclass(frozen=True)
class ChipRef:
    """A chip to be made: source, image number, epoch, number among the image's chips."""

    source: int
    image: int
    epoch: int
    number: int
    window: ChipWindow


@dataclass(frozen=True)
class StreamState:
    """Where a run stands: batches taken, and a cursor for each source and slot."""

    taken: int
    cursors: tuple[tuple[Cursor, ...], ...]

    def to_list(self) -> list[Any]:
        """Plain numbers, for a checkpoint."""
        return [self.taken, [[list(astuple(slot)) for slot in one] for one in self.cursors]]

    @classmethod
    def from_list(cls, numbers: list[Any]) -> StreamState:
        """The inverse of `to_list`. Raises ValueError for what an earlier version wrote."""
        try:
            cursors = tuple(tuple(Cursor(*slot) for slot in one) for one in numbers[1])
        except TypeError:
            raise ValueError(
                "the checkpoint is of an earlier version, whose chips came in another order: "
                "begin under another run.name, with model.weights from that run"
            ) from None
        return cls(numbers[0], cursors)


class ChipStream:
    """Batches of chips of several sources mixed by ``shares``, without end.

    Args:
        slots: chips of a global batch. mix: images that a slot goes through together.
        repeats: [C], how often a chip with an object of a class comes an epoch, fractions by
            chance (repeat-factor sampling, Gupta et al., LVIS, 2019); None: once.
        drop_broken: chips of images that cannot be used are made of others instead.
    """

    def __init__(
        self,
        sources: Sequence[FileImages],
        shares: Sequence[float],
        making: ChipMaking,
        seed: int,
        *,
        slots: int = 1,
        mix: int = 4,
        repeats: NDArray[np.float64] | None = None,
        drop_broken: bool = False,
    ) -> None:
        self.sources, self.shares, self.making = tuple(sources), tuple(shares), making
        self.seed, self.repeats, self.slots, self.mix = seed, repeats, slots, mix
        self.drop_broken, self.left_out = drop_broken, set[str]()
        self.recent: OrderedDict[tuple[int, int, int], list[list[ChipRef]]] = OrderedDict()

    def start(self) -> StreamState:
        """Before the first batch."""
        return StreamState(0, tuple((Cursor(),) * self.slots for _ in self.sources))

    def walk(self, state: StreamState) -> Iterator[tuple[list[ChipRef], StreamState]]:
        """Global batches from ``state`` on, a chip of every slot, each with the state after it."""
        cursors = [list(slots) for slots in state.cursors]
        walks = [
            [self.walk_slot(index, slot, cursor) for slot, cursor in enumerate(slots)]
            for index, slots in enumerate(state.cursors)
        ]
        edges = np.cumsum(self.shares) / sum(self.shares)
        for taken in range(state.taken, np.iinfo(np.int64).max):
            draws = np.random.default_rng([self.seed, taken, 11]).random(self.slots)
            batch = []
            for slot, index in enumerate(np.searchsorted(edges, draws, side="right").tolist()):
                ref, cursors[index][slot] = next(walks[index][slot])
                batch.append(ref)
            yield batch, StreamState(taken + 1, tuple(map(tuple, cursors)))

    def walk_slot(self, index: int, slot: int, cursor: Cursor) -> Iterator[tuple[ChipRef, Cursor]]:
        """Chips of one source for one slot. Raises ValueError where the source has none at all."""
        source = self.sources[index]
        chunks = -(-len(source) // source.chunk)
        empty, epoch, chunk, offset = 0, cursor.epoch, cursor.chunk, cursor.offset
        while empty < 2 * chunks:  # an epoch may begin where the one before ended
            dealt = self.deal_chunk(index, epoch, chunk)
            empty = 0 if any(dealt) else empty + 1
            following = (epoch, chunk + 1) if chunk + 1 < chunks else (epoch + 1, 0)
            refs = dealt[slot]
            for place in range(offset, len(refs)):
                last = place + 1 == len(refs)
                yield refs[place], Cursor(*following) if last else Cursor(epoch, chunk, place + 1)
            (epoch, chunk), offset = following, 0
        raise ValueError(
            "no box of the training data fits a chip at any scale and no image is without boxes: "
            "see the sizes with --suggest, then change pyramid or chips.size"
        )

    def deal_chunk(self, index: int, epoch: int, chunk: int) -> list[list[ChipRef]]:
        """All chips of one chunk of a source's images, dealt to the slots."""
        key = index, epoch, chunk
        if key not in self.recent:
            source = self.sources[index]
            order = np.random.default_rng([self.seed, epoch, index, 1]).permutation(len(source))
            numbers = order[chunk * source.chunk : (chunk + 1) * source.chunk].tolist()
            images = [self.image_refs(index, number, epoch) for number in numbers]
            rng = np.random.default_rng([self.seed, epoch, index, chunk, 2])
            self.recent[key] = deal(rng, images, self.slots, self.mix)
            most = max(RECENT * len(self.sources), RECENT_CHIPS // (1 + sum(map(len, images))))
            while len(self.recent) > most:
                self.recent.popitem(last=False)
        self.recent.move_to_end(key)
        return self.recent[key]

    def image_refs(self, index: int, number: int, epoch: int) -> list[ChipRef]:
        """The chips of one image in ``epoch``."""
        source = self.sources[index]
        image, labels = source.boxes(number)
        rng = self._rng(index, number, epoch)
        windows = []
        for window in image_chips(rng, image, self.making):
            windows += [window] * self._repeat(rng, window, image, labels)
        return [ChipRef(index, number, epoch, i, window) for i, window in enumerate(windows)]

    def sample(self, ref: ChipRef) -> Sample:
        """Make a chip: decode, cut, augment, targets. Safe to call from several threads.

        Raises BrokenImageError; with ``drop_broken`` only where many images in a row are broken.
        """
        for attempt in range(ATTEMPTS):
            try:
                image = self.sources[ref.source].load(ref.image)
                break
            except BrokenImageError as error:
                if not self.drop_broken:
                    raise BrokenImageError(f"{error} (or set data.on_broken=drop)") from error
                if attempt + 1 == ATTEMPTS:
                    raise BrokenImageError(f"{ATTEMPTS} images in a row; last {error}") from error
                self._leave_out(str(error))
                ref = self._instead_of(ref, attempt)
        window = ref.window
        if image.turn != 1:  # laid where the boxes were drawn
            spot = turn_boxes(np.array([window.box]), image.drawn_size, image.turn)[0]
            window = replace(window, x0=int(spot[0]), y0=int(spot[1]))
        rng = self._rng(ref.source, ref.image, ref.epoch, ref.number + 1)
        return make_sample(rng, image, window, self.making)

    def _leave_out(self, text: str) -> None:
        if text not in self.left_out:
            self.left_out.add(text)
            logger.warning("left out, %d so far: %s", len(self.left_out), text)

    def _instead_of(self, ref: ChipRef, attempt: int) -> ChipRef:
        """A chip of another image, the same whichever worker asks."""
        rng = np.random.default_rng([self.seed, ref.epoch, ref.image, ref.number, attempt, 3])
        for number in rng.permutation(len(self.sources[ref.source])).tolist():
            refs = self.image_refs(ref.source, number, ref.epoch) if number != ref.image else []
            if refs:
                return refs[int(rng.integers(len(refs)))]
        return ref

    def _rng(self, index: int, number: int, epoch: int, chip: int = 0) -> np.random.Generator:
        name = zlib.crc32(self.sources[index].key(number).encode())
        return np.random.default_rng([self.seed, epoch, name, chip])

    def _repeat(
        self,
        rng: np.random.Generator,
        window: ChipWindow,
        image: ImageBoxes,
        labels: NDArray[np.int32],
    ) -> int:
        if self.repeats is None or window.kind != "positive":
            return 1
        scale = self.making.scales[window.scale]
        range_px = scale.valid_range_px(scale.factor_for(*image.size))
        inside = boxes_in_window(window, image.boxes, labels, image.crowd, range_px)
        most = self.repeats[inside.labels[inside.valid]].max(initial=1.0)
        return int(most + rng.random())


def deal(
    rng: np.random.Generator, images: Sequence[list[ChipRef]], slots: int, mix: int
) -> list[list[ChipRef]]:
    """Give every image to one of ``slots``, so that each gets as many chips as the others.

    An image with more chips than a slot's share is split, which adds less than ``slots`` parts in
    all. A slot's images come in random order, the chips of ``mix`` at a time shuffled.
    """
    share = max(1, -(-sum(map(len, images)) // slots))
    parts = [
        [image[i] for i in part]
        for image in images
        if image
        for part in np.array_split(rng.permutation(len(image)), -(-len(image) // share))
    ]
    parts.sort(key=len, reverse=True)  # largest first to the slot with least: nearly equal sums
    heap = [(0, int(order), slot) for slot, order in enumerate(rng.permutation(slots))]
    heapq.heapify(heap)
    dealt: list[list[list[ChipRef]]] = [[] for _ in range(slots)]
    for part in parts:
        load, order, slot = heap[0]
        dealt[slot].append(part)
        heapq.heapreplace(heap, (load + len(part), order, slot))
    return [_mixed(rng, own, mix) for own in dealt]


def _mixed(rng: np.random.Generator, parts: list[list[ChipRef]], mix: int) -> list[ChipRef]:
    order = rng.permutation(len(parts))
    found: list[ChipRef] = []
    for first in range(0, len(parts), mix):
        group = [ref for i in order[first : first + mix] for ref in parts[i]]
        found += [group[i] for i in rng.permutation(len(group))]
    return found


def class_repeats(dataset: AnnotatedDataset, power: float) -> NDArray[np.float64]:
    """How often a class's chips come [C]: (most frequent / own frequency)^power, at most 8."""
    count = np.bincount(dataset.labels, minlength=len(dataset.class_names)).astype(np.float64)
    repeats = (max(1.0, count.max(initial=0.0)) / np.maximum(count, 1.0)) ** power
    return np.minimum(repeats, MAX_REPEAT)
