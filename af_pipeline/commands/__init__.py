"""The command line `af-pipeline`, and what its commands share."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pkgutil import resolve_name
from types import FrameType
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from af_pipeline.config import Section
from af_pipeline.data.secrets import redact_text

Answer = TypeVar("Answer")

COMMANDS = {
    "index": "af_pipeline.commands.index:main",
    "train": "af_pipeline.commands.train:main",
    "mine": "af_pipeline.commands.mine:main",
    "tune": "af_pipeline.commands.tune:main",
    "distill": "af_pipeline.commands.distill:main",
    "evaluate": "af_pipeline.commands.evaluate:main",
    "compare": "af_pipeline.commands.compare:main",
    "export": "af_pipeline.commands.export:main",
}
USAGE = f"usage: af-pipeline {{{','.join(COMMANDS)}}} ...; af-pipeline COMMAND --help says more"


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Run `af-pipeline COMMAND ...`; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    if not given or given[0] not in COMMANDS:
        asked = given[:1] in (["-h"], ["--help"])
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    run: Callable[[Sequence[str]], int] = resolve_name(COMMANDS[given[0]])
    return stoppable(lambda: run(given[1:]))


def stoppable(job: Callable[[], int]) -> int:
    """Run a job of a command line; Ctrl-C and SIGTERM end it with one line and 130 or 143.

    A second signal ends the process at once. Libraries that take the signals over
    are kept from it by `af_pipeline.indexing.session.ray_session` and `in_thread`.
    """

    def stop(number: int, _: FrameType | None) -> None:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, lambda number, _: os._exit(128 + number))
        raise Stopped(number)

    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, stop)
    try:
        return job()
    except Stopped as stopped:
        name = "Ctrl-C" if stopped.number == signal.SIGINT else "SIGTERM"
        text = f"stopped by {name}; run the same command again to go on from here"
        return complain(text, 128 + stopped.number)


def in_thread(work: Callable[[], Answer]) -> Answer:
    """Call ``work`` in a thread of its own and wait for it; what it raises is raised here.

    Ray Train takes Ctrl-C over where it is called from the main thread, and then ends with 0.
    """
    answer: Future[Answer] = Future()

    def call() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return answer.result()


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


def options_of(
    parser: argparse.ArgumentParser, kind: type[Section], argv: Sequence[str] | None
) -> dict[str, Any]:
    """What the command line gives, as text, with an option for each field of ``kind``."""
    for name, field in kind.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            required=field.is_required(),
            default=argparse.SUPPRESS,
            help=f"{field.description}{_shown(field.default)}",
        )
    return vars(parser.parse_args(argv))


def option_error(error: ValidationError) -> str:
    """The first of what is wrong with options that `options_of` gave."""
    problem = error.errors()[0]
    option = "".join(map(str, problem["loc"][:1])).replace("_", "-")
    return f"--{option}: {problem['msg']}"


def _shown(default: Any) -> str:
    """A default as help ends with it; nothing where there is none."""
    values = default if isinstance(default, tuple) else (default,)
    words = [str(one) for one in values if one not in (None, PydanticUndefined)]
    return f" ({','.join(words)})" if words else ""


def complain(error: Exception | str, code: int) -> int:
    """Say in one line on stderr why; torch's messages have hundreds. Returns the exit code."""
    text = textwrap.shorten(redact_text(str(error)), 600, placeholder=" ...")
    print(f"error: {text}", file=sys.stderr)
    return code
