"""Imports point downwards: the order of the rooms is the rule, found by reading the sources."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINE_LIMIT = 400
OURS = ("af_pipeline", "examples", "jobs", "tests", "benchmarks")

# The floors of the house, lowest first: a room imports from itself and from the floors below.
FLOORS = (
    ("config",),
    ("core",),
    ("images",),
    ("data",),
    ("sniper",),
    ("settings",),
    ("output", "models"),
    ("evaluation", "reporting"),
    ("exports", "indexing", "inference"),
    ("tuning", "training"),
    ("commands",),
    ("examples",),  # beside the package, which knows nothing of them
    ("jobs",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# The rooms that may import these packages of others; jobs and examples may import anything.
HEAVY = {
    "torch": ("models", "training", "indexing"),
    "torchvision": ("models",),
    "safetensors.torch": ("models",),
    "ray": ("indexing", "training"),
    "onnxruntime": ("models",),
    "transformers": ("models",),
    "ultralytics": ("models",),
}


@dataclass(frozen=True)
class Import:
    """`import target`, or `from target import name`."""

    line: int
    target: str
    name: str = ""

    @property
    def full(self) -> str:
        return f"{self.target}.{self.name}" if self.name else self.target


def room_of(module: str) -> str | None:
    """The room of a module; the package's face belongs to none."""
    parts = module.split(".")
    if parts[0] in ("jobs", "examples"):
        return parts[0]
    return parts[1] if len(parts) > 1 else None


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def read_imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[Import]:
    """Every import in a module, those inside functions and by `import_module` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                kept = len(parents) - node.level + is_package
                base = ".".join([*parents[:kept], *([base] if base else [])])
            for alias in node.names:
                yield Import(node.lineno, base, alias.name)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(node.lineno, node.args[0].value)


def private_uses(tree: ast.AST, module: str, imports: list[Import]) -> Iterator[str]:
    """Names with a leading underscore taken from another of our files."""
    ours = [found for found in imports if found.target.split(".")[0] in OURS]
    for found in ours:
        if any(is_private(part) for part in found.full.split(".")):
            yield f"{module}:{found.line} imports the private {found.full}"
    handles = {found.full for found in ours if not found.name}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            handles |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            handles |= {
                alias.asname
                for alias in node.names
                if alias.asname and alias.name.split(".")[0] in OURS
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            handle = ast.unparse(node.value)
            if handle in handles:
                yield f"{module}:{node.lineno} uses the private {handle}.{node.attr}"


def direction_faults(module: str, found: Import) -> Iterator[str]:
    """What one import does wrong, as seen from a module."""
    room, where = room_of(module), f"{module}:{found.line}"
    if module == "af_pipeline":  # the face of the package hands out what lies deepest
        return
    for package, rooms in HEAVY.items():
        if within(found.full, package) and room not in (*rooms, "jobs", "examples"):
            yield f"{where} imports {package}, which only {', '.join(rooms)} may"
    if found.target.split(".")[0] not in OURS:
        return
    other = room_of(found.full if found.target == "af_pipeline" else found.target)
    if other in (None, "__version__") or (other == room and other != "jobs"):
        return
    if other not in FLOOR or room not in FLOOR:
        yield f"{where} imports {found.target}, which has no floor"
    elif FLOOR[other] >= FLOOR[room]:
        yield f"{where} ({room}) imports upwards or sideways: {found.target}"


def find_faults(sources: Mapping[str, str], packages: Iterable[str] = ()) -> list[str]:
    """All broken import rules among modules given as name -> source."""
    faults: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        tree = ast.parse(source)
        imports = list(read_imports(tree, module, module in packages))
        faults += private_uses(tree, module, imports)
        if module.split(".")[0] not in ("af_pipeline", "examples", "jobs"):
            continue
        if room_of(module) not in (None, *FLOOR):
            faults.append(f"{module} is in no room: add it to FLOORS in tests/test_layers.py")
            continue
        targets = {one.full if one.full in sources else one.target for one in imports}
        graph[module] = targets & sources.keys()
        for found in imports:
            faults += direction_faults(module, found)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        faults.append("import cycle: " + " -> ".join(reversed(error.args[1])))
    return faults


def source_files() -> list[Path]:
    return sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def our_modules() -> dict[str, Path]:
    return {module_name(path): path for path in source_files()}


def test_imports_point_downwards() -> None:
    modules = our_modules()
    assert {"af_pipeline.core.boxes", "af_pipeline.models.dense", "jobs.train"} <= modules.keys()
    packages = [name for name, path in modules.items() if path.name == "__init__.py"]
    sources = {name: path.read_text(encoding="utf-8") for name, path in modules.items()}
    faults = find_faults(sources, packages)
    assert not faults, "\n".join(faults)


def test_no_module_lies_flat_in_the_package() -> None:
    flat = {path.stem for path in (ROOT / "af_pipeline").glob("*.py")}
    assert flat == {"__init__", "config"}


@pytest.mark.parametrize("heavy", ["torch", "ray"])
def test_other_rooms_do_not_load(heavy: str) -> None:
    rooms = {
        room
        for room in FLOOR
        if room not in (*HEAVY[heavy], "jobs", "examples", "tuning", "inference")
    }
    names = [name for name in our_modules() if room_of(name) in rooms and "." in name]
    names = [name for name in names if name.startswith("af_pipeline")]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += f"print({heavy!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "False", f"importing {', '.join(names)} loads {heavy}"


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in source_files()}
    long = [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lengths.items() if n > LINE_LIMIT]
    assert not long, f"over {LINE_LIMIT} lines: " + ", ".join(long)


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("core.boxes", "import torch.nn as nn", "imports torch"),
        ("core.boxes", "def f():\n    from torchvision import ops", ":2 imports torchvision"),
        ("data.coco", "from safetensors.torch import load_file", "safetensors.torch"),
        ("models.dense", "if True:\n    import ray.data", ":2 imports ray"),
        ("reporting.page", "from ray import data", "imports ray"),
        ("core.boxes", "from af_pipeline.images.decode import x", "imports upwards"),
        ("core.boxes", "from af_pipeline import models", "imports upwards"),
        ("models.dense", "from ..indexing import session", "imports upwards"),
        ("models.dense", "from af_pipeline.output.folder import x", "sideways"),
        ("data.coco", "import af_pipeline.reporting.page", "imports upwards"),
        ("core.focus", "import importlib\nimportlib.import_module('jobs.train')", ":2 (core)"),
        ("indexing.graph", "from tests.pictures import png", "tests.pictures, which has no floor"),
        ("core.boxes", "from examples.aerial_scenes import x", "imports upwards"),
        ("unheard", "", "af_pipeline.unheard is in no room: add it to FLOORS"),
        (
            "jobs.train",
            "from jobs.index import main",
            "imports upwards or sideways",
        ),
        ("jobs.train", "from . import index", "imports upwards or sideways"),
        ("jobs.train", "from af_pipeline.core.plan import _x", "private af_pipeline.core.plan._x"),
        ("tests.test_x", "from af_pipeline.core import plan as p\np._x()", ":2 uses the private"),
        (
            "tests.test_x",
            "import af_pipeline.commands\naf_pipeline.commands._x()",
            "uses the private",
        ),
        ("core.boxes", "import af_pipeline.core.boxes", "import cycle: af_pipeline.core.boxes"),
    ],
)
def test_rule_bites(module: str, source: str, fault: str) -> None:
    full = module if module.startswith(("jobs", "tests")) else f"af_pipeline.{module}"
    faults = find_faults({full: source})
    assert len(faults) == 1
    assert fault in faults[0]


def test_cycle_through_a_lazy_import_is_found() -> None:
    sources = {
        "af_pipeline.core.boxes": "from af_pipeline.core import scales",
        "af_pipeline.core.scales": "def f():\n    from af_pipeline.core.focus import x",
        "af_pipeline.core.focus": "from .boxes import area",
    }
    (fault,) = find_faults(sources)
    assert fault.startswith("import cycle: ")
    for step in ("boxes -> af_pipeline.core.scales", "scales -> af_pipeline.core.focus"):
        assert step in fault + " -> " + fault.removeprefix("import cycle: ")


def test_rule_lets_good_imports_pass() -> None:
    sources = {
        "af_pipeline.core.boxes": "import numpy as np\n_x = np._y",
        "af_pipeline.core.scales": "from af_pipeline.core.boxes import box_side",
        "af_pipeline.settings.index": "from af_pipeline.core.scales import Scale\n"
        "from af_pipeline import __version__",
        "af_pipeline.training.step": "import torch\nfrom af_pipeline.config import Section",
        "af_pipeline.indexing.graph": "import ray\nimport torch\nfrom af_pipeline.models import x",
        "jobs.train": "import ray\nfrom af_pipeline.indexing.graph import run",
    }
    assert find_faults(sources) == []
