"""Annotated images, whatever file they come from, and what all readers of such files share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from af_pipeline.data.access import LOCAL, Storage
from af_pipeline.data.storage import exists, join, parent

MAX_SIDE = 1 << 24  # px; beyond it float32 has no single pixels
_SHOWN = 10

Corners = tuple[float, float, float, float]
OnBroken = Literal["fail", "drop"]


class AnnotationError(ValueError):
    """Annotations are wrong; names the file and the entries, the first ten problems of all."""


class EntryError(ValueError):
    """One thing wrong with one entry; the message goes on where the entry's name ends."""


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image and its N boxes.

    Attributes:
        image_id: name of the image within its data set, as an index run of its folder calls it.
        uri: where the image's bytes are (not looked at here).
        width: px, as the annotations say.
        height: px, as the annotations say.
        boxes: float32 [N, 4], (x0, y0, x1, y1) in px of the original image, half-open, clipped
            to it; every box has an area.
        labels: int32 [N], index into the data set's class_names.
        crowd: bool [N], boxes that count neither as hit nor as miss: COCO's crowds, VOC's
            difficult objects.
    """

    image_id: str
    uri: str
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int32]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AnnotatedDataset:
    """Images in the order of their file.

    Attributes:
        images: all images, also those without boxes.
        class_names: name of each label.
        category_ids: id of each label; that of the COCO file, else counted from 1.
        dropped: one line for each broken box that was left out (``on_broken="drop"``).
        counts: of the images of each file, where several were read.
    """

    images: tuple[AnnotatedImage, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    dropped: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Box:
    """One checked box: ``corners`` as in :class:`AnnotatedImage`."""

    corners: Corners
    label: int
    crowd: bool


class Findings:
    """What is wrong with one file, gathered while it is read.

    Args:
        file: what the messages call it.
        on_broken: ``fail``: a broken box is a problem; ``drop``: it is left out and noted.

    Raises:
        ValueError: another ``on_broken``.
    """

    def __init__(self, file: str, on_broken: OnBroken = "fail") -> None:
        if on_broken not in ("fail", "drop"):
            raise ValueError(f"on_broken is {on_broken!r}: it must be 'fail' or 'drop'")
        self.file, self.drops = file, on_broken == "drop"
        self.problems: list[str] = []
        self.dropped: list[str] = []
        self.boxes = self.dropped if self.drops else self.problems

    def check(self) -> None:
        """Raise AnnotationError if there is a problem so far."""
        fail(self.file, self.problems)

    def left_out(self) -> tuple[str, ...]:
        """``AnnotatedDataset.dropped`` of this file."""
        return tuple(f"{self.file}: {entry}" for entry in self.dropped)


def fail(file: str, problems: Sequence[str], shown: int = _SHOWN) -> None:
    """Raise AnnotationError with the first problems and their number, if there are any."""
    if not problems:
        return
    noun = "problem" if len(problems) == 1 else "problems"
    lines = "".join(f"\n  {line}" for line in first_of(problems, shown))
    raise AnnotationError(f"{file}: {len(problems)} {noun}:{lines}")


def first_of(lines: Sequence[str], shown: int = _SHOWN) -> list[str]:
    """The first lines, and how many more there are."""
    more = [f"... and {len(lines) - shown} more"] if len(lines) > shown else []
    return [*lines[:shown], *more]


def check_size(width: int, height: int) -> None:
    """Raise EntryError unless both are possible sides of an image, in px."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise EntryError(f"has the size {f'{width}x{height}':.50}")


def clip_corners(corners: Corners, width: int, height: int, given: str) -> Corners:
    """Half-open (x0, y0, x1, y1) in px cut to an image of ``width`` x ``height``.

    Args:
        corners: of the original image; may reach over its edges.
        width: px.
        height: px.
        given: the box as its file has it, for the message.

    Raises:
        EntryError: not finite, or nothing of it lies in the image.
    """
    if not all(map(math.isfinite, corners)):
        raise EntryError(f"has the {given}, which is not finite")
    x0, y0 = max(corners[0], 0.0), max(corners[1], 0.0)
    x1, y1 = min(corners[2], float(width)), min(corners[3], float(height))
    # In the precision it will be kept in: a sliver may vanish there.
    if np.float32(x0) >= np.float32(x1) or np.float32(y0) >= np.float32(y1):
        raise EntryError(f"has the {given}, which has no area inside its image ({width}x{height})")
    return x0, y0, x1, y1


def assemble(
    image_id: str, uri: str, size: tuple[int, int], boxes: Sequence[Box]
) -> AnnotatedImage:
    """An image from its checked boxes; ``size`` is (width, height) in px."""
    return AnnotatedImage(
        image_id=image_id,
        uri=uri,
        width=size[0],
        height=size[1],
        boxes=np.array([box.corners for box in boxes], np.float32).reshape(-1, 4),
        labels=np.array([box.label for box in boxes], np.int32),
        crowd=np.array([box.crowd for box in boxes], np.bool_),
    )


def order_classes(
    file: str, found: Iterable[str], classes: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The class names of a file that does not order them: ``classes``, else the alphabet's order.

    Raises:
        AnnotationError: a found name is not in ``classes``, or that holds a name twice.
    """
    if classes is None:
        return tuple(sorted(set(found)))
    check_classes(file, found, classes)
    return tuple(classes)


def check_classes(file: str, found: Iterable[str], classes: Sequence[str]) -> None:
    """Raise AnnotationError unless ``classes`` are unique and hold every found name."""
    twice = sorted({name for name in classes if list(classes).count(name) > 1})
    if twice:
        raise AnnotationError(f"{file}: classes holds {', '.join(twice)} more than once")
    unknown = sorted(set(found) - set(classes))
    if unknown:
        names = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        raise AnnotationError(
            f"{file}: {len(unknown)} of its classes are not in classes ({', '.join(classes)}): "
            f"{names}; add them there or take their boxes out of the file"
        )


def locate_images(
    names: Iterable[str], path: str, images: str | None = None, storage: Storage = LOCAL
) -> Iterator[str]:
    """The URI of each name of the COCO file at ``path``, by the rule of :func:`list_coco`."""
    if images is not None:
        for name in names:
            yield join(images, name)
        return
    beside = parent(path)
    folders = [beside, join(beside, "images")]
    preferred: list[str] | None = None
    for name in names:
        if preferred is None:
            found = next((f for f in folders if exists(join(f, name), storage)), None)
            rest = [f for f in folders if f != found]
            preferred = folders if found is None else [found, *rest]
            yield join(preferred[0], name)
            continue
        places = [join(folder, name) for folder in preferred]
        # A file that is nowhere belongs where the others are: that is where it will be missed.
        yield next((place for place in places if exists(place, storage)), places[0])
