"""What the jobs' command lines share."""

from __future__ import annotations

import argparse
import sys
import textwrap

from af_pipeline.data.secrets import redact_text


def config_parser(
    description: str | None, folder: str, required: bool = True
) -> argparse.ArgumentParser:
    """A parser with --config and --set; ``folder``: where recipes are."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=required, help=f"YAML file, see {folder}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    return parser


def complain(error: Exception | str, code: int) -> int:
    """Say in one line on stderr why; torch's messages have hundreds. Returns the exit code."""
    text = textwrap.shorten(redact_text(str(error)), 600, placeholder=" ...")
    print(f"error: {text}", file=sys.stderr)
    return code
