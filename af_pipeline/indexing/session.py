"""Connecting to Ray: the cluster a job was submitted to, a given address, or a local one."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def ray_session(address: str | None, dashboard: bool = False) -> Iterator[None]:
    """Initialise Ray for the block and shut it down after.

    ``address`` None joins the cluster named by RAY_ADDRESS (set by ``ray job submit``), else
    starts a local one; a stale address file of an earlier cluster is never followed. A session
    that is already there (tests) is used and left alone. Ray Train's bookkeeping asks the
    ``dashboard`` for the state of its actors, once a second and loudly where there is none.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it doubles every printed line
    # By default the control store keeps records of 100,000 tasks, 9 KB each.
    os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", "1000")
    # Ray 2.60 announces this default with a warning on every start otherwise.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray 2.60 announces that a cluster of its own takes only callers with its token.
    token_log = "ray._private.authentication.authentication_token_setup"
    logging.getLogger(token_log).setLevel(logging.ERROR)
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    # The graph needs a little more than one CPU of bookkeeping, so a single core counts as two.
    cpus = max(2, os.cpu_count() or 1) if target == "local" else None
    with _own_signals():
        ray.init(
            address=target,
            num_cpus=cpus,
            include_dashboard=dashboard if target == "local" else None,
            logging_level=logging.WARNING,
        )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of this process while Ray starts.

    Ray's own end the process with other exit codes: with that of SIGABRT and a stack of addresses
    once it runs, with sys.exit(15) or sys.exit(1) while it starts.
    """
    if threading.current_thread() is not threading.main_thread():  # where Ray sets none
        yield
        return
    interrupt, terminate = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        if callable(terminate):
            terminate(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)
