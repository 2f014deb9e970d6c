"""The stages of the index graph in this process, block after block, in place of Ray Data."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from af_pipeline.indexing import detector, estimate, index, meter, passes
from af_pipeline.indexing.graph import detecting_stages
from af_pipeline.indexing.meter import Counter
from af_pipeline.indexing.stages import SampleStage, StackStage
from af_pipeline.indexing.watch import heed


class Here:
    """The handle of an actor that lives in this process."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.actor, name))


class Graph:
    """Blocks of the parts through all stages."""

    def __init__(
        self, config: Any, parts: Any, filesystem: Any, settings: Any, pools: Any, alone: bool
    ) -> None:
        self.parts, self.filesystem = parts, filesystem
        self.rows_per_block = 1 if alone else config.rows_per_block
        self.stages = [kind(own) for kind, own in detecting_stages(settings, pools)]
        self.stages.append(StackStage(settings.plan, settings.counter, alone))
        self.judge: Any = None

    def blocks(self) -> Iterator[pa.Table]:
        for part in self.parts:
            listed = pq.read_table(part, filesystem=self.filesystem)
            for start in range(0, listed.num_rows, self.rows_per_block):
                block = listed.slice(start, self.rows_per_block)
                for stage in self.stages:
                    block = stage(block)
                yield block
                self.judge()


def watched(graph: Graph, counter: Here, max_error_rate: float, done: int) -> None:
    graph.judge = lambda: heed(*counter.actor.verdict(max_error_rate, done))


def run_graph(graph: Graph, folder: Any, images_per_file: int, *_: object) -> None:
    waiting: list[pa.Table] = []
    for block in graph.blocks():
        waiting.append(block)
        rows = pa.concat_tables(waiting)
        while rows.num_rows >= images_per_file:
            folder.write_part(rows.slice(0, images_per_file))
            rows = rows.slice(images_per_file)
        waiting = [rows] if rows.num_rows else []
    if waiting:
        folder.write_part(waiting[0])


@contextmanager
def no_progress(total: int, stages: Any, *_: object) -> Iterator[Here]:
    yield Here(Counter(stages))


def look_at_sample(table: pa.Table, settings: Any, *_: object) -> list[Any]:
    stage = SampleStage(settings)
    stage(table)
    return stage.worths


def replace_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks for Ray is answered here, as by a cluster of eight CPUs."""
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 8.0}, get=lambda answer: answer)
    for module in (index, passes, meter):
        monkeypatch.setattr(module, "ray", ray)
    as_it_is = SimpleNamespace(dumps=lambda one: one, loads=lambda one: one)
    store = SimpleNamespace(put=lambda one: one, get=lambda one: one, cloudpickle=as_it_is)
    monkeypatch.setattr(detector, "ray", store)
    monkeypatch.setattr(passes, "gc", SimpleNamespace(collect=int))  # takes most of the time else
    monkeypatch.setattr(passes, "set_context", lambda *_, **__: None)
    monkeypatch.setattr(passes, "shown_progress", no_progress)
    monkeypatch.setattr(passes, "build_graph", Graph)
    monkeypatch.setattr(passes, "watched", watched)
    monkeypatch.setattr(passes, "run_graph", run_graph)
    monkeypatch.setattr(estimate, "look_at_sample", look_at_sample)
