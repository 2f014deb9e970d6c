"""Annotations in PASCAL VOC's layout: an image set, an XML file an image, a folder of images.

ROOT/ImageSets/Main/trainval.txt   names, one a line
ROOT/Annotations/NAME.xml          size and objects
ROOT/JPEGImages/NAME.jpg           or the file name that the XML states

VOC's corners count pixels from 1 and include the last one; here they become half-open px from 0:
(xmin - 1, ymin - 1, xmax, ymax). Difficult objects become crowd.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from af_pipeline.data.access import MissingSourceError, SourceError
from af_pipeline.data.annotations.dataset import AnnotationError, Columns, EntryError, Problems
from af_pipeline.data.sources.folder import list_directory
from af_pipeline.data.storage import read_bytes

_SETS = "ImageSets"
_WITH_CLASS = re.compile(r"(.*\S)\s+(?:-1|0|1)")  # a line of cat_train.txt
_ENCODING = re.compile(rb"""^<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_TAGS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Object:
    image: int
    number: int  # in its file, from 1
    name: str
    corners: list[float]  # as stated
    difficult: bool


def is_image_set(path: str) -> bool:
    """Whether a path is that of an image set: a ``.txt`` somewhere under ``ImageSets``."""
    return path.lower().endswith(".txt") and _SETS in path.split("/")[:-1]


def voc_root(image_set: str) -> str:
    """ROOT of ``ROOT/ImageSets/.../NAME.txt``, which `is_image_set` knows."""
    parts = image_set.split("/")
    place = max(index for index, part in enumerate(parts[:-1]) if part == _SETS)
    return "/".join(parts[:place]) or ("/" if place else ".")


def read(path: str, images: str | None, problems: Problems) -> Columns:
    """Read the images of ``ROOT/ImageSets/Main/NAME.txt``.

    A class's file ("name -1|0|1" in each line) serves too: all its names are taken. image_id is
    the path below the image folder, ``images`` or ``ROOT/JPEGImages``. Where broken boxes are
    dropped, a missing image is kept under the file name that its XML states: whoever opens it
    finds nothing there.
    """
    root = voc_root(path)
    try:
        names = _names(read_bytes(path).decode(), problems)
        folder = _Folder(images or posixpath.join(root, "JPEGImages"))
    except (SourceError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path}: {error}") from error
    found: dict[str, tuple[str, str, tuple[int, int]]] = {}  # file, uri, size by image_id
    objects: list[_Object] = []
    for name in names:
        where = f"Annotations/{name}.xml"
        try:
            tree = _tree(f"{root}/{where}")
            stated = (tree.findtext("filename") or "").strip()
            image_id, uri = folder.find(name, stated, may_miss=problems.drops)
            if image_id in found:
                raise EntryError(f"is of the image {image_id}, as {found[image_id][0]} is")
            found[image_id] = where, uri, _size(tree)
            objects += _objects(tree, len(found) - 1, where, problems)
        except EntryError as problem:
            problems.found.append(f"{where} {problem}")
    files = [where for where, *_ in found.values()]
    classes = list(dict.fromkeys(one.name for one in objects))
    label = {name: place for place, name in enumerate(classes)}
    corners = np.array([one.corners for one in objects], np.float64).reshape(-1, 4)
    return Columns(
        image_ids=list(found),
        uris=[uri for _, uri, _ in found.values()],
        sizes=np.array([size for *_, size in found.values()], np.int64).reshape(-1, 2),
        image=np.array([one.image for one in objects], np.int64),
        label=np.array([label[one.name] for one in objects], np.int64),
        boxes=corners - [1, 1, 0, 0],
        names=classes,
        entry=lambda row: _title(files[objects[row].image], objects[row].number, objects[row].name),
        given=lambda row: f"box ({', '.join(f'{value:g}' for value in objects[row].corners)})",
        title=lambda place: files[place],
        crowd=np.array([one.difficult for one in objects], np.bool_),
    )


def _names(text: str, problems: Problems) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    matches = [_WITH_CLASS.fullmatch(line) for line in lines]
    names = [match[1] for match in matches if match]
    if len(names) < len(lines):  # not a class's file then: names may hold blanks
        names = lines
    if not names:
        problems.found.append("lists no image")
    once = list(dict.fromkeys(names))
    if len(once) < len(names):
        problems.found += [f"lists {name!r} twice" for name in once if names.count(name) > 1]
    return once


def _tree(path: str) -> Element:
    try:
        tree = _parse(read_bytes(path))
    except MissingSourceError as error:
        raise EntryError("is missing") from error
    except (SourceError, ElementTree.ParseError, UnicodeError, LookupError) as error:
        raise EntryError(f"cannot be read: {error}") from error
    if tree.tag != "annotation":
        raise EntryError(f"is no VOC annotation: it holds <{tree.tag:.50}>")
    return tree


def _parse(data: bytes) -> Element:
    """The root element. Entities are refused before they can be expanded, in any encoding."""
    declared = _ENCODING.match(data)
    encoding = "utf-16" if data[:2] in _UTF16 else declared[1].decode() if declared else "utf-8"
    text = data.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    if "<!ENTITY" in text:
        raise EntryError("declares XML entities, which are not read")
    return ElementTree.fromstring(text)  # a str is parsed as it is, whatever it declares


def _size(tree: Element) -> tuple[int, int]:
    """(width, height) in px as stated; 0 where they are not."""
    stated = [(tree.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    if not all(text.isdecimal() and len(text) < 10 for text in stated):
        raise EntryError(f"has the size {'x'.join(stated):.50}, expected whole numbers")
    width, height = map(int, stated)
    return width, height


def _title(where: str, number: int, name: str) -> str:
    return f"{where}: object {number}" + (f" {name!r:.50}" if name else "")


def _objects(tree: Element, image: int, where: str, problems: Problems) -> Iterator[_Object]:
    for number, entry in enumerate(tree.findall("object"), start=1):
        name = (entry.findtext("name") or "").strip()
        try:
            if not name:
                raise EntryError("has no name")
            yield _Object(image, number, name, _corners(entry), _difficult(entry))
        except EntryError as problem:
            problems.boxes.append(f"{_title(where, number, name)} {problem}")


def _corners(entry: Element) -> list[float]:
    texts = [entry.findtext(f"bndbox/{tag}") for tag in _TAGS]
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
    return [x0, y0, x1, y1]


def _difficult(entry: Element) -> bool:
    text = (entry.findtext("difficult") or "0").strip()
    if text not in ("0", "1"):
        raise EntryError(f"has difficult {text!r:.50}, expected 0 or 1")
    return text == "1"


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
