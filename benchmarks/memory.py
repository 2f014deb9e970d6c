"""Peak memory against the number of images, and of one 100 MP image.

python benchmarks/memory.py [--images 1000 5000 20000] [--plan staged] [--output FILE.json]
python benchmarks/memory.py --large [--side 10000] [--output FILE.json]

The first runs the real graph, each size in a process and a Ray of its own, with a detector that
costs nothing; a few hundred JPEGs are listed many times over. Memory is RssAnon of the driver and
all processes below it, plus what lies in the object store, once. The second runs the cascade on
one image, each mode in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from af_pipeline.core.cascade import Prediction, run_cascade
from af_pipeline.core.focus import STRIDE
from af_pipeline.core.resize import resize
from af_pipeline.core.schema import ImageRow
from af_pipeline.images.decode import decode_image, encode_jpeg
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan

DISTINCT = 200  # JPEGs on the disk
HEIGHT, WIDTH = 480, 640
STORE_BYTES = 1_000_000_000
EVERY_S = 0.5
MODES = ("autofocus", "tiles", "pyramid")
MB = 1e6


class StubDetector:
    """Answers by the tint of a crop alone: three boxes and a lit patch of FocusPixels."""

    def __init__(self, threads: int) -> None:
        assert threads >= 1

    def __call__(self, crops: Sequence[NDArray[np.uint8]], lane: Any) -> list[Prediction]:
        """As `af_pipeline.core.cascade.Predictor`."""
        return [self.predict(crop) for crop in crops]

    def predict(self, crop: NDArray[np.uint8]) -> Prediction:
        """The answer for one crop."""
        height, width = crop.shape[:2]
        focus = np.zeros((-(-height // STRIDE), -(-width // STRIDE)), np.float32)
        top, left = int(crop[0, 0, 0]) % focus.shape[0], int(crop[-1, -1, 1]) % focus.shape[1]
        focus[top : top + 3, left : left + 3] = 0.9
        low = np.array([[0.2, 0.2], [0.4, 0.5], [0.7, 0.3]]) * [width, height]
        boxes = np.concatenate([low, low + 24], 1).astype(np.float32)
        scores = np.array([0.9, 0.8, 0.7], np.float32)
        return Prediction(boxes, scores, np.zeros(3, np.int32), focus)


def index_config(source: str, output: str, **changes: Any) -> IndexConfig:
    """Three scales; all valid ranges open, so every detection is written."""
    tree: dict[str, Any] = {
        "source": {"uri": source},
        "output": {"uri": output},
        "device": "cpu",
        "pyramid": [{"factor": 0.5}, {"factor": 1.0}, {"factor": 2.0}],
        "focus": {"steps": [{"min_size": 64}, {"min_size": 64}]},
    }
    return IndexConfig.model_validate(tree | changes)


# ---- the graph


def write_images(folder: Path) -> list[Path]:
    """Smooth noise, each of another tint."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:04d}.jpg" for number in range(DISTINCT)]
    for path in paths:
        small = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3)).astype(np.uint8)
        path.write_bytes(encode_jpeg(resize(small, HEIGHT, WIDTH)))
    return paths


def write_list(path: Path, files: Sequence[Path], count: int) -> None:
    """A manifest of ``count`` images, files over and over."""
    ids = [f"{number:08d}" for number in range(count)]
    uris = [str(files[number % len(files)]) for number in range(count)]
    pq.write_table(pa.table({"image_id": ids, "uri": uris}), path)


class StoreWatch:
    """The object store's use, asked of the raylet by a thread of the driver."""

    def __init__(self) -> None:
        import ray
        from ray._private import internal_api

        (node,) = ray.nodes()
        self.address = (node["NodeManagerAddress"], node["NodeManagerPort"])
        self.ask = internal_api.node_stats
        self.peak = self.spilled = self.objects = 0
        self.series: list[tuple[float, int]] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.ended.wait(EVERY_S):
            stats = self.ask(*self.address, include_memory_info=False).store_stats
            used = stats.object_store_bytes_used + stats.object_store_bytes_fallback
            self.series.append((time.time(), used))
            self.peak = max(self.peak, used)
            self.objects = max(self.objects, stats.num_local_objects)
            self.spilled = stats.spilled_bytes_total

    def end(self) -> None:
        """Stop asking."""
        self.ended.set()
        self.thread.join()


def child(listed: str, out: str, options: dict[str, Any]) -> dict[str, Any]:
    """One index run in this process; what it says of itself."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: starved by any other job
    import ray

    from af_pipeline.indexing.index import index
    from af_pipeline.indexing.stages import DetectorSource

    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 1),  # as af_pipeline.indexing.session does
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        logging_level="WARNING",
    )
    watch = StoreWatch()
    config = index_config(listed, out, **options)
    detector = DetectorSource(StubDetector, {}, ("thing",), "stub-detector-0001")
    outcome = index(config, detector)
    watch.end()
    ray.shutdown()
    return {
        "images": outcome.totals.images,
        "errors": outcome.totals.errors,
        "chips": outcome.totals.chips,
        "seconds": outcome.seconds,
        "images_per_s": outcome.totals.images / outcome.seconds,
        "store_peak": watch.peak,
        "store_objects": watch.objects,
        "spilled": watch.spilled,
        "store_series": watch.series,
    }


def memory_of(pid: int) -> tuple[int, int] | None:
    """Bytes of its own (RssAnon), and resident without shared memory (RssAnon + RssFile)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    if not found:
        return None  # a zombie
    anon, file = (int(found[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return anon, anon + file


def processes_below(root: int) -> list[int]:
    """``root`` and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def role_of(pid: int, root: int) -> str:
    """What a process is for: driver, raylet, gcs_server, or the stage of a worker."""
    if pid == root:
        return "driver"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    first = words.split()[0] if words.split() else "kernel"
    if first.startswith("ray::"):
        name = words.removeprefix("ray::")
        known = ("Detect[s0]", "Detect[s1]", "Detect[s2]", "Cascade", "Stack", "Counter", "IDLE")
        return next((one for one in known if one in name), "task")
    name = Path(first).name
    return "ray helper" if name.startswith("python") else name


class TreeWatch:
    """Peaks over a process and all below it."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.peak_own = self.peak_worker = self.processes = 0
        self.by_role: dict[str, int] = {}
        self.series: list[tuple[float, dict[str, int]]] = []

    def sample(self) -> None:
        """Look once."""
        own: dict[str, int] = {}
        pids = processes_below(self.root)
        for pid in pids:
            found = memory_of(pid)
            if found is None:
                continue
            role = role_of(pid, self.root)
            own[role] = own.get(role, 0) + found[0]
            if role != "driver":
                self.peak_worker = max(self.peak_worker, found[1])
        for role, size in own.items():
            self.by_role[role] = max(self.by_role.get(role, 0), size)
        total = sum(own.values())
        if total > self.peak_own:
            self.peak_own, self.processes = total, len(pids)
        self.series.append((time.time(), own))


def run_watched(scratch: Path, count: int, files: Sequence[Path], options: dict) -> dict[str, Any]:
    """One size in a process of its own, sampled from here."""
    listed, out, said = (scratch / f"{count}{end}" for end in (".parquet", "_out", ".json"))
    write_list(listed, files, count)
    command = [sys.executable, __file__, "--child", str(listed), str(out), str(said)]
    process = subprocess.Popen([*command, json.dumps(options)])
    watch = TreeWatch(process.pid)
    while process.poll() is None:
        watch.sample()
        time.sleep(EVERY_S)
    if process.returncode:
        raise SystemExit(f"the run of {count} images failed")
    result: dict[str, Any] = json.loads(said.read_text())
    complete = pq.read_table(out / "images", columns=["image_id"])["image_id"]
    result["unique"] = len(set(complete.to_pylist()))
    result["own_peak"], result["worker_peak"] = watch.peak_own, watch.peak_worker
    result["processes"], result["own_by_role"] = watch.processes, watch.by_role
    result["total_peak"] = total_peak(watch.series, result.pop("store_series"))
    result["series"] = thinned(watch.series)
    shutil.rmtree(out)
    return result


def total_peak(
    own: Sequence[tuple[float, dict[str, int]]], store: Sequence[tuple[float, int]]
) -> int:
    """Highest sum of the processes' own memory and of the store at about the same time."""
    times = np.array([at for at, _ in store])
    used = np.array([size for _, size in store])
    peak = 0
    for at, roles in own:
        near = np.abs(times - at) <= 2 * EVERY_S
        peak = max(peak, sum(roles.values()) + int(used[near].max(initial=0)))
    return peak


def thinned(series: Sequence[tuple[float, dict[str, int]]]) -> list[Any]:
    """About a hundred samples, seconds and MB by role: enough to see what grows."""
    every = max(1, len(series) // 100)
    began = series[0][0]
    return [
        (round(at - began, 1), {role: round(size / MB) for role, size in own.items()})
        for at, own in series[::every]
    ]


def measure_graph(arguments: argparse.Namespace) -> dict[str, Any]:
    """All sizes, one after the other."""
    options: dict[str, Any] = {
        "plan": arguments.plan,
        "mode": arguments.mode,
        "ray": {"rows_per_block": arguments.rows_per_block},
    }
    results = []
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch:
        folder = Path(scratch) / "images"
        folder.mkdir()
        files = write_images(folder)
        print(
            "images   rows  img/s  own MB  ratio  processes  worker MB  store MB  spilled  all MB"
        )
        for count in arguments.images:
            result = run_watched(Path(scratch), count, files, options)
            results.append(result)
            print(line_of(result, results[0]), flush=True)
            roles = sorted(result["own_by_role"].items(), key=lambda pair: -pair[1])
            print("        " + ", ".join(f"{name} {size / MB:.0f}" for name, size in roles))
    return {"options": options, "store_bytes": STORE_BYTES, "runs": results}


def line_of(result: dict[str, Any], first: dict[str, Any]) -> str:
    """A line of the table."""
    own, total = (result[key] / first[key] for key in ("own_peak", "total_peak"))
    return (
        f"{result['images']:6d} {result['unique']:6d} {result['images_per_s']:6.1f} "
        f"{result['own_peak'] / MB:7.0f} {own:6.3f} {result['processes']:6d} "
        f"{result['worker_peak'] / MB:10.0f} {result['store_peak'] / MB:9.1f} "
        f"{result['spilled'] / MB:8.0f} {result['total_peak'] / MB:7.0f} {total:6.3f}"
    )


# ---- one large image


def large_child(path: str, mode: str) -> dict[str, float]:
    """The cascade on one image in this process: resident MB after each step."""
    plan = build_plan(index_config("", "", mode=mode))
    steps = {"start": peak_resident()}
    image = decode_image(Path(path).read_bytes())
    steps["decoded"] = peak_resident()
    row, began = ImageRow("large", path), time.perf_counter()
    run_cascade(row, image, plan, StubDetector(1))
    steps["seconds"] = time.perf_counter() - began
    steps["peak"] = peak_resident()
    steps["image"] = image.nbytes / MB
    steps["megapixels_seen"] = sum(row.ledger.pixels) / 1e6
    return steps


def peak_resident() -> float:
    """VmHWM of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith("VmHWM")]
    return int(found.split()[1]) * 1024 / MB


def measure_large(side: int) -> dict[str, Any]:
    """Every mode on a square image."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch:
        path = Path(scratch) / "large.jpg"
        rng = np.random.default_rng(0)
        small = rng.integers(0, 256, (side // 64, side // 64, 3)).astype(np.uint8)
        path.write_bytes(encode_jpeg(resize(small, side, side)))
        print("mode       image MB  start MB  decoded MB  peak MB  MP looked at  s")
        for mode in MODES:
            command = [sys.executable, __file__, "--large-child", str(path), mode]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = results[mode] = json.loads(said)
            print(
                f"{mode:10s} {found['image']:8.0f} {found['start']:9.0f} {found['decoded']:11.0f} "
                f"{found['peak']:8.0f} {found['megapixels_seen']:13.0f} {found['seconds']:5.1f}",
                flush=True,
            )
    return {"side": side, "modes": results}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--plan", default="staged")
    parser.add_argument("--mode", default="autofocus")
    parser.add_argument("--rows-per-block", type=int, default=4)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--output")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--large-child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        listed, out, said, options = arguments.child
        Path(said).write_text(json.dumps(child(listed, out, json.loads(options))))
        return 0
    if arguments.large_child:
        print(json.dumps(large_child(*arguments.large_child)))
        return 0
    result = measure_large(arguments.side) if arguments.large else measure_graph(arguments)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
