"""Why blocks were lost: Ray Data goes on without them and tells its log only."""

from __future__ import annotations

import logging
import re
from typing import Any

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from af_pipeline.data.secrets import redact_text
from af_pipeline.output.folder import OutputLostError

STOPPED = "the graph stopped: {}; run the same command again to go on from here"
DEATHS = (NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)(: |$)")
TELLER = "ray.data._internal.execution.streaming_executor_state"


class GraphError(RuntimeError):
    """The graph stopped before its end; what is done is kept."""


class Causes(logging.Handler):
    """Listens for the block of a ``with``.

    ``other``: the first reason that is no death, or ""; ``death``: the last that is one.

    Only text is kept: an exception's traceback would hold the actors of the graph.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.other, self.death = "", "blocks were lost with their workers or nodes"
        self.teller = logging.getLogger(TELLER)

    def __enter__(self) -> Causes:
        self.before = (self.teller.level, self.teller.propagate)
        self.teller.setLevel(logging.ERROR)
        self.teller.propagate = False
        self.teller.addHandler(self)
        return self

    def __exit__(self, *_: Any) -> None:
        self.teller.removeHandler(self)
        self.teller.setLevel(self.before[0])
        self.teller.propagate = self.before[1]

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a lost block."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, OutputLostError):
            # Into Ray's loop, which then ends the graph: the rest would be in vain. Ray puts advice
            # of its own below the message.
            raise OutputLostError(str(cause).splitlines()[0])
        reason = reason_in(str(error) or type(error).__name__)
        if is_death(error):
            self.death = reason
        else:
            self.other = self.other or reason


def reason_in(text: str) -> str:
    """The line of a traceback that says why: the first error in it is what the others come from."""
    lines = [line.strip() for line in COLOUR.sub("", text).splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return redact_text((errors or lines[-1:] or ["no reason given"])[0])[:400]


def is_death(error: BaseException) -> bool:
    """Whether a process or node died, or what it held is gone: trying again may help."""
    if isinstance(error, DEATHS):
        return True
    causes = (error.cause if isinstance(error, RayTaskError) else None, error.__cause__)
    return any(cause is not None and cause is not error and is_death(cause) for cause in causes)
