"""Drawing primitives on RGB arrays: text strips, legends, outlines, colours, sizes.

Line widths and letters are derived from the picture's longest side, so that a photograph of
any size is legible when it is looked at whole. Frames: x right, y down, px of the array given.
"""

import colorsys
from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]  # [H, W, 3] RGB
Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)
INK: Color = (28, 30, 34)  # background of strips
FAINT: Color = (150, 155, 165)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GOLDEN = 0.61803398875


def longest_side(image: Image) -> int:
    """The larger of height and width, px."""
    return max(int(image.shape[0]), int(image.shape[1]))


def line_px(image: Image) -> int:
    """Outline width in px for a picture of this size."""
    return max(2, round(longest_side(image) / 900))


def letter_px(image: Image) -> int:
    """Height of capital letters in px for a picture of this size."""
    return int(np.clip(round(longest_side(image) / 95), 9, 80))


def distinct_color(index: int) -> Color:
    """A bright colour for a class; golden-ratio hues keep neighbours in the list apart."""
    hue = (0.97 + index * _GOLDEN) % 1.0
    saturation = (0.85, 0.55)[index // 9 % 2]
    value = (1.0, 0.75)[index // 18 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def outline(canvas: Image, box: npt.NDArray[np.float64], color: Color, width: int) -> None:
    """Draw a half-open xyxy box [4] in place; large boxes get a dark edge to stand out."""
    x0, y0, x1, y1 = (int(v) for v in np.round(box))
    # Upright lines on whole px: anti-aliasing would only dull and widen them.
    corners = (x0, y0), (max(x0, x1 - 1), max(y0, y1 - 1))
    if min(x1 - x0, y1 - y0) > 8 * width:
        cv2.rectangle(canvas, *corners, BLACK, width + 2, cv2.LINE_8)
    cv2.rectangle(canvas, *corners, color, width, cv2.LINE_8)


def dashed_outline(canvas: Image, box: npt.NDArray[np.float64], color: Color, width: int) -> None:
    """Draw a half-open xyxy box [4] in place with dashes of 8 line widths."""
    x0, y0, x1, y1 = (float(v) for v in np.round(box))
    x1, y1 = max(x0, x1 - 1), max(y0, y1 - 1)
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    for start, end in pairwise(corners):
        _dashed_line(canvas, np.array(start), np.array(end), color, width)


def _dashed_line(
    canvas: Image,
    start: npt.NDArray[np.float64],
    end: npt.NDArray[np.float64],
    color: Color,
    width: int,
) -> None:
    count = max(1, round(float(np.abs(end - start).max()) / (8 * width)))
    stops = start + (end - start) * np.linspace(0, 1, count + 1)[:, None]  # [count + 1, 2]
    points = np.round(stops).astype(int).tolist()
    for a, b in zip(points[:-1:2], points[1::2], strict=False):
        cv2.line(canvas, a, b, color, width, cv2.LINE_8)


def text_width(text: str, height: int) -> int:
    """Width in px of one line of text whose capitals are `height` px tall."""
    (width, _), _ = cv2.getTextSize(_ascii(text), _FONT, _font_scale(height), _weight(height))
    return int(width)


def put_text(canvas: Image, text: str, left: int, base: int, height: int, color: Color) -> None:
    """Write in place; (left, base) is the left end of the base line."""
    scale, weight = _font_scale(height), _weight(height)
    cv2.putText(canvas, _ascii(text), (left, base), _FONT, scale, color, weight, cv2.LINE_AA)


def _ascii(text: str) -> str:
    """The text as the font, which has no other letters, shows it."""
    return text.encode("ascii", "replace").decode()


def put_tag(canvas: Image, text: str, left: int, base: int, height: int, color: Color) -> None:
    """`put_text` in place on a plate of the colour, in black or white, whichever reads better."""
    pad = max(2, height // 3)
    right = left + text_width(text, height) + 2 * pad
    cv2.rectangle(canvas, (left, base - height - pad), (right, base + pad), color, cv2.FILLED)
    luma = float(np.dot(color, (0.299, 0.587, 0.114)))  # Rec. 601
    put_text(canvas, text, left + pad, base, height, BLACK if luma > 110 else WHITE)


def caption_strip(width: int, text: str, height: int) -> Image:
    """A dark strip [h, width, 3] with the text wrapped to it; h is 0 for an empty text."""
    lines = wrap_text(text, height, width - 2 * height)
    total = 1.9 * len(lines) + 0.7 if lines else 0  # in letter heights
    strip = np.full((round(total * height), width, 3), INK, np.uint8)
    for number, line in enumerate(lines):
        put_text(strip, line, height, round((1.8 + 1.9 * number) * height), height, WHITE)
    return strip


def wrap_text(text: str, height: int, width: int) -> list[str]:
    """The words of the text in lines at most `width` px wide; a longer word is cut with '...'."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, height) <= width:
            lines[-1] = joined
        else:
            lines.append(_cut_word(word, height, width))
    return lines


def legend_strip(width: int, entries: Sequence[tuple[Color, str]], height: int) -> Image:
    """A dark strip [h, width, 3] of colour swatches with text, flowing over as many rows."""
    pad, row = height, round(2.1 * height)
    places, left, top = [], pad, 0
    texts = [_cut_word(text, height, width - 5 * pad) for _, text in entries]
    for text in texts:
        needed = text_width(text, height) + 2 * pad
        if left > pad and left + needed > width - pad:
            left, top = pad, top + row
        places.append((left, top))
        left += needed + 2 * pad
    strip = np.full((top + row + pad if entries else 0, width, 3), INK, np.uint8)
    for (color, _), text, (x, y) in zip(entries, texts, places, strict=True):
        base = y + round(1.9 * height)
        cv2.rectangle(strip, (x, base - height), (x + height, base), color, cv2.FILLED)
        put_text(strip, text, x + 2 * pad - pad // 3, base, height, WHITE)
    return strip


def framed(image: Image, title: str, entries: Sequence[tuple[Color, str]]) -> Image:
    """The image with a caption strip on top and a legend strip below: [H + strips, W, 3]."""
    width, height = image.shape[1], letter_px(image)
    parts = [caption_strip(width, title, height), image, legend_strip(width, entries, height)]
    return np.concatenate(parts)


def _cut_word(word: str, height: int, width: int) -> str:
    if text_width(word, height) <= width:
        return word
    word = word[: max(1, width)]  # a letter is wider than a px
    while len(word) > 1 and text_width(f"{word}...", height) > width:
        word = word[:-1]
    return f"{word}..."


def _font_scale(height: int) -> float:
    return float(cv2.getFontScaleFromHeight(_FONT, height, _weight(height)))


def _weight(height: int) -> int:
    return max(1, round(height / 11))
