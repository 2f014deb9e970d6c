"""Draw aerial scenes into a folder: JPEG images and a COCO file of their boxes.

python -m examples.aerial_scenes --count 96 --output DIR [--seed 0] [--sizes HxW ...]
"""

import argparse
from pathlib import Path

from examples.aerial_scenes.scenes import SIZES, write_dataset


def main() -> None:
    """Draw, and name the annotations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, required=True, help="scenes to draw")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, help="other scenes for every seed (0)")
    parser.add_argument(
        "--sizes", nargs="+", type=_size, default=SIZES, metavar="HxW",
        help="heights and widths in px, taken in turn",
    )  # fmt: skip
    given = parser.parse_args()
    print(f"annotations: {write_dataset(given.output, given.count, given.seed, given.sizes)}")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)


if __name__ == "__main__":
    main()
