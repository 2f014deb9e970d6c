"""Annotated images in columns, and the one check of what the reader of any format found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from af_pipeline.data.access import LOCAL, SourceError, Storage
from af_pipeline.data.storage import exists, join, parent, read_bytes
from af_pipeline.images.decode import DecodeError, image_size

MAX_SIDE = 1 << 24  # px; beyond it float32 has no single pixels
READ_AT_ONCE = 16  # small files
_SHOWN = 10

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
    """M images in the order of their file and their N boxes, image by image, in columns.

    Attributes:
        image_ids, uris, sizes: of the images, as in `AnnotatedImage`; int64 [M, 2] of width and
            height, 0 where data read for scoring does not state them.
        numbers: what the file calls each image; counted from 1 where it has no such ids.
        image: int64 [N], the place of each box's image; rising.
        boxes: [N, 4] as in `AnnotatedImage`; float64 and as stated, if read for scoring.
        sides: float64 [N, 2], width and height, px: to the bit those of a file that states them.
        area: float64 [N], px^2: that of the box, or what a file read for scoring says (of a mask).
        labels, crowd: [N], as in `AnnotatedImage`.
        class_names: name of each label.
        category_ids: id of each label; that of the COCO file, else counted from 1.
        dropped: one line for each broken box that was left out (``on_broken="drop"``).
        counts: of the images of each file, where several were read.
    """

    image_ids: tuple[str, ...]
    uris: tuple[str, ...]
    sizes: NDArray[np.int64]
    numbers: tuple[int | str, ...]
    image: NDArray[np.int64]
    boxes: NDArray
    sides: NDArray[np.float64]
    area: NDArray[np.float64]
    labels: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    dropped: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        images: Sequence[AnnotatedImage],
        class_names: tuple[str, ...],
        category_ids: tuple[int, ...],
        dropped: tuple[str, ...] = (),
    ) -> AnnotatedDataset:
        """The columns of single images."""
        boxes = np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes for one in images)])
        sides = np.diff(boxes.astype(np.float64).reshape(-1, 2, 2), axis=1)[:, 0]
        return cls(
            image_ids=tuple(one.image_id for one in images),
            uris=tuple(one.uri for one in images),
            sizes=np.array([(i.width, i.height) for i in images], np.int64).reshape(-1, 2),
            numbers=tuple(range(1, len(images) + 1)),
            image=np.repeat(np.arange(len(images)), [len(one.boxes) for one in images]),
            boxes=boxes,
            sides=sides,
            area=sides.prod(axis=1),
            labels=np.concatenate([np.zeros(0, np.int32), *(one.labels for one in images)]),
            crowd=np.concatenate([np.zeros(0, np.bool_), *(one.crowd for one in images)]),
            class_names=class_names,
            category_ids=category_ids,
            dropped=dropped,
        )

    def with_images(self, images: Sequence[AnnotatedImage]) -> AnnotatedDataset:
        """Other images of the same classes."""
        return AnnotatedDataset.of(images, self.class_names, self.category_ids, self.dropped)

    @property
    def images(self) -> ImageViews:
        """The images one by one; nothing is copied."""
        return ImageViews(self)

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """Int64 [M + 1]: image i has the boxes from bounds[i] to before bounds[i + 1]."""
        return np.searchsorted(self.image, np.arange(len(self.image_ids) + 1))


class ImageViews(Sequence[AnnotatedImage]):
    """The images of a data set, made when they are asked for."""

    def __init__(self, dataset: AnnotatedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset.image_ids)

    @overload
    def __getitem__(self, place: int) -> AnnotatedImage: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[AnnotatedImage, ...]: ...
    def __getitem__(self, place: int | slice) -> AnnotatedImage | tuple[AnnotatedImage, ...]:
        if isinstance(place, slice):
            return tuple(self[number] for number in range(*place.indices(len(self))))
        data, number = self.dataset, range(len(self))[place]
        own = slice(int(data.bounds[number]), int(data.bounds[number + 1]))
        width, height = data.sizes[number].tolist()
        held = (data.boxes[own], data.labels[own], data.crowd[own])
        return AnnotatedImage(data.image_ids[number], data.uris[number], width, height, *held)


class Problems:
    """What is wrong with one file, gathered while it is read and checked.

    Args:
        file: what the messages call it.
        on_broken: ``fail``: a broken box is a problem; ``drop``: it is left out and noted.
        scoring: boxes are to be scored against, not to be learned from: what COCO's own
            evaluation takes is taken, as it stands.

    Raises:
        ValueError: another ``on_broken``.
    """

    def __init__(self, file: str, on_broken: OnBroken = "fail", scoring: bool = False) -> None:
        if on_broken not in ("fail", "drop"):
            raise ValueError(f"on_broken is {on_broken!r}: it must be 'fail' or 'drop'")
        self.file, self.drops, self.scoring = file, on_broken == "drop", scoring
        self.found: list[str] = []
        self.dropped: list[str] = []
        self.boxes = self.dropped if self.drops else self.found

    def check(self) -> None:
        """Raise AnnotationError if there is a problem so far."""
        fail(self.file, self.found)


@dataclass
class Columns:
    """What a reader found: M images and N boxes, in any order, nothing of their places checked.

    Attributes:
        image_ids, uris: of the images. sizes: [M, 2], width and height; 0: not stated.
        image: [N], place of each box's image.
        label: [N], index into ``names``; -1: none.
        boxes: float64 [N, 4], half-open corners, original px; may reach out of the image.
        names: class names. category_ids: their ids; None: the file does not order its classes.
        entry: what messages call a box. given: how its file has it.
        title: what messages call an image.
        crowd: [N]. numbers, sides, area: as in `AnnotatedDataset`; area: nan where not stated.
        faults: what the reader itself found wrong with boxes, text -> bool [N].
        as_stated: boxes are neither clipped nor refused where they are empty.
    """

    image_ids: Sequence[str]
    uris: Sequence[str]
    sizes: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes: NDArray[np.float64]
    names: Sequence[str]
    entry: Callable[[int], str]
    given: Callable[[int], str]
    title: Callable[[int], str]
    crowd: NDArray[np.bool_]
    category_ids: tuple[int, ...] | None = None
    numbers: tuple[int | str, ...] | None = None
    sides: NDArray[np.float64] | None = None
    area: NDArray[np.float64] | None = None
    faults: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    as_stated: bool = False


def check(
    columns: Columns, problems: Problems, classes: tuple[str, ...] | None = None
) -> AnnotatedDataset:
    """The data set of what a reader found.

    Args:
        columns: of one file.
        problems: those of the reader; more are added.
        classes: all names there may be; the order of the labels where the file has none.

    Raises:
        AnnotationError: there are problems, or a name is not in ``classes``.
    """
    if not columns.as_stated:
        read_sizes(columns, problems)
    # A size that is wrong is told once, not for every box.
    size, image = np.where(columns.sizes > 0, columns.sizes, MAX_SIDE), columns.image
    good = _good_boxes(columns, size[image], problems)
    problems.check()
    order = np.flatnonzero(good)
    order = order[np.argsort(image[order], kind="stable")]
    image, label = image[order], columns.label[order]
    boxes: NDArray = columns.boxes[order]
    if not columns.as_stated:
        boxes = _clip(boxes, size[image])
    sides = np.diff(boxes.astype(np.float64).reshape(-1, 2, 2), axis=1)[:, 0]
    if columns.as_stated and columns.sides is not None:
        sides = columns.sides[order]
    area = sides.prod(axis=1)
    if columns.area is not None:
        area = np.where(np.isnan(columns.area[order]), area, columns.area[order])
    names, ids = tuple(columns.names), columns.category_ids
    if ids is None:
        used = [columns.names[place] for place in np.unique(label).tolist()]
        names = order_classes(problems.file, used, classes)
        places = {name: place for place, name in enumerate(names)}
        label = np.array([places.get(name, -1) for name in columns.names], np.int64)[label]
        ids = tuple(range(1, len(names) + 1))
    elif classes is not None:
        check_classes(problems.file, names, classes)
    return AnnotatedDataset(
        image_ids=tuple(columns.image_ids),
        uris=tuple(columns.uris),
        sizes=columns.sizes,
        numbers=columns.numbers or tuple(range(1, len(columns.image_ids) + 1)),
        image=image,
        boxes=boxes,
        sides=sides,
        area=area,
        labels=label.astype(np.int32),
        crowd=columns.crowd[order],
        class_names=names,
        category_ids=ids,
        dropped=tuple(f"{problems.file}: {entry}" for entry in problems.dropped),
    )


def read_sizes(columns: Columns, problems: Problems) -> None:
    """Fill in the sizes that are not stated, from the images' headers; note what is no size."""

    def read(place: int) -> tuple[int, int] | str:
        try:
            height, width = image_size(read_bytes(columns.uris[place]))
        except (SourceError, DecodeError) as error:
            return f"{columns.title(place)} states no size, and its image has none: {error}"
        return width, height

    unknown = np.flatnonzero((columns.sizes == 0).any(axis=1)).tolist()
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        for place, found in zip(unknown, pool.map(read, unknown), strict=True):
            if isinstance(found, str):
                problems.found.append(found)
            else:
                columns.sizes[place] = found
    wrong = (columns.sizes < 0) | (columns.sizes > MAX_SIDE)
    for place in np.flatnonzero(wrong.any(axis=1)).tolist():
        problems.found.append(f"{columns.title(place)} has the size {_size(columns.sizes[place])}")


def _good_boxes(columns: Columns, size: NDArray, problems: Problems) -> NDArray[np.bool_]:
    """Which boxes have no fault; ``size``: width and height of each box's image [N, 2]."""
    boxes = columns.boxes
    faults = {**columns.faults, "has the {box}, which is not finite": ~np.isfinite(boxes).all(1)}
    if columns.as_stated:
        sides = boxes[:, 2:] - boxes[:, :2] if columns.sides is None else columns.sides
        faults["has the {box}, of which a side is below 0"] = (sides < 0).any(axis=1)
    else:
        inside = _has_area(_clip(boxes, size))
        faults["has the {box}, whose width or height is not positive"] = ~_has_area(boxes)
        faults["has the {box}, which has no area inside its image ({size})"] = ~inside
    wrong = np.stack(list(faults.values()), axis=1)  # [N, faults]
    for row in np.flatnonzero(wrong.any(axis=1)).tolist():
        problem = list(faults)[int(wrong[row].argmax())]  # the first one says most
        problem = problem.format(box=columns.given(row), size=_size(size[row]))
        problems.boxes.append(f"{columns.entry(row)} {problem}")
    return np.asarray(~wrong.any(axis=1))


def _clip(boxes: NDArray[np.float64], size: NDArray[np.int64]) -> NDArray[np.float32]:
    """Boxes [N, 4] cut to images of (width, height) [N, 2], in the precision they are kept in."""
    return np.clip(boxes, 0, np.tile(size, 2)).astype(np.float32)  # a sliver may vanish there


def _has_area(boxes: NDArray) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1), np.bool_)


def _size(size: NDArray[np.int64]) -> str:
    return f"{size[0]}x{size[1]}"


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
