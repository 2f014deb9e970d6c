"""Annotated images in PASCAL VOC's layout: an image set, an XML file an image, a folder of images.

ROOT/ImageSets/Main/trainval.txt   names, one a line
ROOT/Annotations/NAME.xml          size and objects
ROOT/JPEGImages/NAME.jpg           or the file name that the XML states
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from af_pipeline.data.access import MissingSourceError, SourceError
from af_pipeline.data.annotations.dataset import (
    AnnotatedDataset,
    AnnotatedImage,
    AnnotationError,
    Box,
    Corners,
    EntryError,
    Findings,
    OnBroken,
    assemble,
    check_size,
    clip_corners,
    order_classes,
)
from af_pipeline.data.sources.folder import list_directory
from af_pipeline.data.storage import read_bytes
from af_pipeline.images.decode import DecodeError, image_size

_SETS = "ImageSets"
_WITH_CLASS = re.compile(r"(.*\S)\s+(?:-1|0|1)")  # a line of cat_train.txt
_ENCODING = re.compile(rb"""^<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class _Object:
    name: str
    corners: Corners
    difficult: bool


@dataclass(frozen=True)
class _Image:
    image_id: str
    uri: str
    size: tuple[int, int]
    objects: tuple[_Object, ...]


def is_image_set(path: str) -> bool:
    """Whether a path is that of an image set: a ``.txt`` somewhere under ``ImageSets``."""
    return path.lower().endswith(".txt") and _SETS in path.split("/")[:-1]


def voc_root(image_set: str) -> str:
    """ROOT of ``ROOT/ImageSets/.../NAME.txt``.

    Raises:
        AnnotationError: no such path.
    """
    if not is_image_set(image_set):
        raise AnnotationError(
            f"{image_set} is no VOC image set: give a file like ROOT/ImageSets/Main/trainval.txt"
        )
    parts = image_set.split("/")
    place = max(index for index, part in enumerate(parts[:-1]) if part == _SETS)
    return "/".join(parts[:place]) or ("/" if place else ".")


def load_voc(
    image_set: str | Path,
    images: str | None = None,
    classes: tuple[str, ...] | None = None,
    on_broken: OnBroken = "fail",
) -> AnnotatedDataset:
    """Read and check the images of a VOC image set.

    VOC's corners count pixels from 1 and include the last one; here they become half-open px from
    0: (xmin - 1, ymin - 1, xmax, ymax), clipped to the image. Difficult objects become crowd.

    Args:
        image_set: local path or fsspec URL of ``ROOT/ImageSets/Main/NAME.txt``. A class's file
            ("name -1|0|1" in each line) serves too: all its names are taken.
        images: image folder instead of ``ROOT/JPEGImages``.
        classes: class names by label; otherwise those of the set in the alphabet's order.
        on_broken: ``drop`` leaves broken objects out and names them in the data set's
            ``dropped``; a broken XML file fails all the same. A missing image is kept, under the
            file name that its XML states: whoever opens it finds nothing there.

    Returns:
        Images in the set's order; image_id is the path below the image folder. Where the XML
        states no size, or 0, it is that of the image file's header.

    Raises:
        AnnotationError: a file is missing or broken, a tag is missing or not a number, a box is a
            single point or has no area inside its image, or a class is not in ``classes``. All
            files are checked; the message holds the first ten problems and their number, objects
            counted from 1.
    """
    file = str(image_set)
    root = voc_root(file)
    found = Findings(file, on_broken)
    try:
        names = _names(read_bytes(file).decode(), found)
        folder = _Folder(images or posixpath.join(root, "JPEGImages"))
    except (SourceError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{file}: {error}") from error
    read = list(_read_all(root, names, folder, found))
    found.check()
    stated = (entry.name for image in read for entry in image.objects)
    class_names = order_classes(file, stated, classes)
    labels = {name: label for label, name in enumerate(class_names)}
    return AnnotatedDataset(
        images=tuple(_assemble(image, labels) for image in read),
        class_names=class_names,
        category_ids=tuple(range(1, len(class_names) + 1)),
        dropped=found.left_out(),
    )


def _names(text: str, found: Findings) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    matches = [_WITH_CLASS.fullmatch(line) for line in lines]
    names = [match[1] for match in matches if match]
    if len(names) < len(lines):  # not a class's file then: names may hold blanks
        names = lines
    if not names:
        found.problems.append("lists no image")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            found.problems.append(f"lists {name!r} twice")
        seen.add(name)
    return list(dict.fromkeys(names))


def _read_all(
    root: str, names: Iterable[str], folder: _Folder, found: Findings
) -> Iterator[_Image]:
    taken: dict[str, str] = {}
    for name in names:
        where = f"Annotations/{name}.xml"
        try:
            image = _read(f"{root}/{where}", name, folder, where, found)
            if image.image_id in taken:
                raise EntryError(f"is of the image {image.image_id}, as {taken[image.image_id]} is")
            taken[image.image_id] = where
            yield image
        except EntryError as problem:
            found.problems.append(f"{where} {problem}")


def _read(path: str, name: str, folder: _Folder, where: str, found: Findings) -> _Image:
    try:
        tree = _parse(read_bytes(path))
    except MissingSourceError as error:
        raise EntryError("is missing") from error
    except (SourceError, ElementTree.ParseError, UnicodeError, LookupError) as error:
        raise EntryError(f"cannot be read: {error}") from error
    if tree.tag != "annotation":
        raise EntryError(f"is no VOC annotation: it holds <{tree.tag:.50}>")
    filename = (tree.findtext("filename") or "").strip()
    image_id, uri = folder.find(name, filename, may_miss=found.drops)
    size = _size(tree, uri)
    return _Image(image_id, uri, size, tuple(_objects(tree, size, where, found)))


def _parse(data: bytes) -> Element:
    """The root element. Entities are refused before they can be expanded, in any encoding."""
    declared = _ENCODING.match(data)
    encoding = "utf-16" if data[:2] in _UTF16 else declared[1].decode() if declared else "utf-8"
    text = data.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    if "<!ENTITY" in text:
        raise EntryError("declares XML entities, which are not read")
    return ElementTree.fromstring(text)  # a str is parsed as it is, whatever it declares


def _size(tree: Element, uri: str) -> tuple[int, int]:
    """(width, height) in px as stated, else from the image's header."""
    stated = [(tree.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    if not all(text.isdecimal() and len(text) < 10 for text in stated):
        raise EntryError(f"has the size {'x'.join(stated):.50}, expected whole numbers")
    width, height = map(int, stated)
    if width == 0 or height == 0:
        try:
            height, width = image_size(read_bytes(uri))
        except (SourceError, DecodeError) as error:
            raise EntryError(f"states no size, and its image has none: {error}") from error
    check_size(width, height)
    return width, height


def _objects(
    tree: Element, size: tuple[int, int], where: str, found: Findings
) -> Iterator[_Object]:
    for number, entry in enumerate(tree.findall("object"), start=1):
        name = (entry.findtext("name") or "").strip()
        try:
            if not name:
                raise EntryError("has no name")
            yield _Object(name, _corners(entry, size), _difficult(entry))
        except EntryError as problem:
            title = f"object {number} {name!r:.50}" if name else f"object {number}"
            found.boxes.append(f"{where}: {title} {problem}")


def _corners(entry: Element, size: tuple[int, int]) -> Corners:
    texts = [entry.findtext(f"bndbox/{tag}") for tag in ("xmin", "ymin", "xmax", "ymax")]
    if any(text is None for text in texts):
        raise EntryError("lacks a bndbox with xmin, ymin, xmax and ymax")
    given = f"box ({', '.join(str(text).strip() for text in texts):.60})"
    try:
        x0, y0, x1, y1 = (float(str(text)) for text in texts)
    except ValueError:
        raise EntryError(f"has the {given}, expected 4 numbers") from None
    if x1 < x0 or y1 < y0:
        raise EntryError(f"has the {given}, whose maximum lies before its minimum")
    if x1 == x0 and y1 == y0:  # one pixel to the letter; in practice a click without a drag
        raise EntryError(f"has the {given}, which is a single point without area")
    return clip_corners((x0 - 1, y0 - 1, x1, y1), *size, given)


def _difficult(entry: Element) -> bool:
    text = (entry.findtext("difficult") or "0").strip()
    if text not in ("0", "1"):
        raise EntryError(f"has difficult {text!r:.50}, expected 0 or 1")
    return text == "1"


def _assemble(image: _Image, labels: dict[str, int]) -> AnnotatedImage:
    boxes = [Box(e.corners, labels[e.name], e.difficult) for e in image.objects]
    return assemble(image.image_id, image.uri, image.size, boxes)


class _Folder:
    """The images below a folder, found by a file name or by a name without suffix."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.uris = {image.image_id: image.uri for image in list_directory(root)}
        self.by_stem: dict[str, list[str]] = {}
        for image_id in self.uris:
            self.by_stem.setdefault(posixpath.splitext(image_id)[0], []).append(image_id)

    def find(self, name: str, filename: str, may_miss: bool = False) -> tuple[str, str]:
        """(image_id, uri) of the stated file, else of one called as the XML is."""
        stated, own = self._match(filename), self._match(name)
        if not stated and not own:
            if may_miss:
                # No more than a name: what stands in a file must not lead out of its folder.
                image_id = re.split(r"[\\/]", filename)[-1] or f"{name}.jpg"
                return image_id, posixpath.join(self.root, image_id)
            raise EntryError(f"has no image: neither {filename!r} nor {name!r} in {self.root}")
        one = len(stated) == 1 and stated[0] in own
        matches = stated if one else sorted({*stated, *own})
        if len(matches) > 1:
            raise EntryError(f"could be of several images: {', '.join(matches)}")
        return matches[0], self.uris[matches[0]]

    def _match(self, name: str) -> list[str]:
        base = re.split(r"[\\/]", name)[-1]
        for text in dict.fromkeys((name, base)):
            if text in self.uris:
                return [text]
            found = self.by_stem.get(text) or self.by_stem.get(posixpath.splitext(text)[0])
            if found:
                return found
        return []
