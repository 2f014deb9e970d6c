"""What a hostile file is, and the register that those of each format are entered into."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SIZE = (37, 53)  # of scene()
TOO_MANY_PIXELS = r"image has 4290250000 pixels \(65500x65500\), more than max_pixels"
Make = Callable[..., bytes]


@dataclass(frozen=True)
class Kind:
    """One kind of file: it decodes to ``size`` (height, width), or is refused with ``message``."""

    name: str
    make: Callable[[], bytes]
    size: tuple[int, int] | None = None
    message: str = ""
    bomb: bool = False


KINDS: list[Kind] = []


def _name(make: Make, arguments: tuple[Any, ...]) -> str:
    return "-".join([make.__name__, *[str(a) for a in arguments if isinstance(a, (str, int))]])


def refused(message: str, *arguments: Any, bomb: bool = False) -> Callable[[Make], Make]:
    """The function makes a file that is a DecodeError with a message like this (a pattern)."""

    def add(make: Make) -> Make:
        name = _name(make, arguments)
        KINDS.append(Kind(name, lambda: make(*arguments), None, message, bomb))
        return make

    return add


def decoded(size: tuple[int, int], *arguments: Any, bomb: bool = False) -> Callable[[Make], Make]:
    """The function makes a file that decodes in spite of everything."""

    def add(make: Make) -> Make:
        name = _name(make, arguments)
        KINDS.append(Kind(name, lambda: make(*arguments), size, bomb=bomb))
        return make

    return add


def deflated(megabytes: int) -> bytes:
    """So many megabytes of zeros in a thousandth of that; the stream has no end."""
    packer = zlib.compressobj(9)
    head, block = [
        packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
    ]
    return head + block * (megabytes - 1)
