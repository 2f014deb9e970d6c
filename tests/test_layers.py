"""Imports point downwards: who may import whom, found by reading the sources."""

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

# Lowest level first: a module may import from its own level and from those above it in this table.
# "name.*" is a package with all it holds, any other name is one module.
LEVELS: dict[str, tuple[str, ...]] = {
    "contract": ("af_pipeline", "af_pipeline.schema"),
    "pure": (
        "af_pipeline.anchors",
        "af_pipeline.boxes",
        "af_pipeline.budget",
        "af_pipeline.cover",
        "af_pipeline.dataset_stats",
        "af_pipeline.exif",
        "af_pipeline.focus",
        "af_pipeline.jpeg",
        "af_pipeline.lanes",
        "af_pipeline.png",
        "af_pipeline.risk",
        "af_pipeline.scales",
        "af_pipeline.seams",
        "af_pipeline.sniper",
        "af_pipeline.stacking",
        "af_pipeline.suggest",
        "af_pipeline.tiff",
        "af_pipeline.tiff_values",
    ),
    "config": (
        "af_pipeline.config",
        "af_pipeline.depth",
        "af_pipeline.guarantee",
        "af_pipeline.ray_settings",
        "af_pipeline.settings",
        "af_pipeline.train_settings",
    ),
    "data": (
        "af_pipeline.cascade",
        "af_pipeline.chipping",
        "af_pipeline.codec",
        "af_pipeline.compare",
        "af_pipeline.coverage",
        "af_pipeline.data.*",
        "af_pipeline.errors",
        "af_pipeline.matches",
        "af_pipeline.metrics",
        "af_pipeline.oracle",
        "af_pipeline.plans",
        "af_pipeline.replay",
        "af_pipeline.resampling",
        "af_pipeline.samples",
        "af_pipeline.tables",
        "af_pipeline.training_data",
        "af_pipeline.tune_sample",
        "af_pipeline.tuning",
        "af_pipeline.views",
        "af_pipeline.voc_ap",
    ),
    "report": ("af_pipeline.report.*",),
    "torch": (
        "af_pipeline.devices",
        "af_pipeline.engine",
        "af_pipeline.model.*",
        "af_pipeline.predict",
        "af_pipeline.tune",
        "af_pipeline.tuner",
        "af_pipeline.validation",
    ),
    "distributed": ("af_pipeline.dist.*",),
    "jobs": ("af_pipeline.cli", "jobs.*"),
}

# The lowest level that may import these packages of others.
HEAVY = {
    "torch": "torch",
    "torchvision": "torch",
    "safetensors.torch": "torch",
    "ray": "distributed",
}

RANK = {level: rank for rank, level in enumerate(LEVELS)}
TABLE = {entry: level for level, entries in LEVELS.items() for entry in entries}
OURS = ("af_pipeline", "jobs", "tests", "benchmarks")


@dataclass(frozen=True)
class Import:
    """`import target`, or `from target import name`."""

    line: int
    target: str
    name: str = ""

    @property
    def full(self) -> str:
        return f"{self.target}.{self.name}" if self.name else self.target


def level_of(module: str) -> str | None:
    """The level of a module: its own entry in the table or that of a package around it."""
    if module in TABLE:
        return TABLE[module]
    parts = module.split(".")
    around = (".".join(parts[:count]) + ".*" for count in range(len(parts), 0, -1))
    return next((TABLE[entry] for entry in around if entry in TABLE), None)


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


def resolve(found: Import, modules: Iterable[str]) -> str:
    """The module an import loads: `from package import module` loads the module."""
    return found.full if found.full in modules or found.full in TABLE else found.target


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


def direction_faults(module: str, level: str, found: Import, target: str) -> Iterator[str]:
    """What one import does wrong, as seen from a module at this level."""
    where = f"{module}:{found.line}"
    for package, lowest in HEAVY.items():
        if within(found.full, package) and RANK[level] < RANK[lowest]:
            yield f"{where} imports {package}, allowed from level {lowest} up; it is at {level}"
    if target.split(".")[0] not in OURS:
        return
    other = level_of(target)
    if other is None:
        yield f"{where} imports {target}, which has no level"
    elif RANK[other] > RANK[level]:
        yield f"{where} ({level}) imports upwards: {target} ({other})"
    elif within(module, "jobs") and within(target, "jobs"):
        yield f"{where} imports {target}: jobs do not import one another"


def find_faults(sources: Mapping[str, str], packages: Iterable[str] = ()) -> list[str]:
    """All broken import rules among modules given as name -> source."""
    faults: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        tree = ast.parse(source)
        imports = list(read_imports(tree, module, module in packages))
        faults += private_uses(tree, module, imports)
        if module.split(".")[0] not in ("af_pipeline", "jobs"):
            continue
        level = level_of(module)
        if level is None:
            faults.append(f"{module} has no level: add it to LEVELS in tests/test_layers.py")
            continue
        targets = [resolve(found, sources) for found in imports]
        graph[module] = {target for target in targets if target in sources}
        for found, target in zip(imports, targets, strict=True):
            faults += direction_faults(module, level, found, target)
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
    assert {"af_pipeline.boxes", "af_pipeline.model.heads", "jobs.train"} <= modules.keys()
    packages = [name for name, path in modules.items() if path.name == "__init__.py"]
    sources = {name: path.read_text(encoding="utf-8") for name, path in modules.items()}
    faults = find_faults(sources, packages)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("heavy", ["torch", "ray"])
def test_lower_levels_do_not_load(heavy: str) -> None:
    below = {level for level in LEVELS if RANK[level] < RANK[HEAVY[heavy]]}
    names = [name for name in our_modules() if level_of(name) in below]
    assert names
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
        ("af_pipeline.boxes", "import torch.nn as nn", "imports torch"),
        (
            "af_pipeline.boxes",
            "def f():\n    from torchvision import ops",
            ":2 imports torchvision",
        ),
        ("af_pipeline.data.coco", "from safetensors.torch import load_file", "safetensors.torch"),
        ("af_pipeline.engine", "if True:\n    import ray.data", ":2 imports ray"),
        ("af_pipeline.report.canvas", "from ray import data", "imports ray"),
        ("af_pipeline.boxes", "from af_pipeline.codec import resize", "imports upwards"),
        ("af_pipeline.boxes", "from af_pipeline import engine", "af_pipeline.engine (torch)"),
        ("af_pipeline.model.heads", "from ..dist import session", "imports upwards"),
        ("af_pipeline.model", "from ..dist.session import x", "imports upwards"),
        ("af_pipeline.data.coco", "import af_pipeline.report.canvas", "imports upwards"),
        (
            "af_pipeline.focus",
            "import importlib\nimportlib.import_module('jobs.train')",
            ":2 (pure)",
        ),
        (
            "af_pipeline.dist.graph",
            "from tests.pictures import png",
            "tests.pictures, which has no",
        ),
        ("af_pipeline.unheard", "", "af_pipeline.unheard has no level: add it to LEVELS"),
        ("jobs.train", "from jobs.index import main", "jobs do not import one another"),
        ("jobs.train", "from . import index", "jobs do not import one another"),
        ("jobs.train", "from af_pipeline.codec import _open", "private af_pipeline.codec._open"),
        (
            "tests.test_x",
            "from af_pipeline import codec as c\nc._open()",
            ":2 uses the private c._open",
        ),
        ("tests.test_x", "import af_pipeline.codec\naf_pipeline.codec._open()", "uses the private"),
        ("af_pipeline.boxes", "import af_pipeline.boxes", "import cycle: af_pipeline.boxes"),
    ],
)
def test_rule_bites(module: str, source: str, fault: str) -> None:
    packages = ["af_pipeline.model"] if module == "af_pipeline.model" else []
    faults = find_faults({module: source}, packages)
    assert len(faults) == 1
    assert fault in faults[0]


def test_cycle_through_a_lazy_import_is_found() -> None:
    sources = {
        "af_pipeline.boxes": "from af_pipeline import scales",
        "af_pipeline.scales": "def f():\n    from af_pipeline.focus import x",
        "af_pipeline.focus": "from .boxes import area",
    }
    (fault,) = find_faults(sources)
    assert fault.startswith("import cycle: ")
    for step in ("boxes -> af_pipeline.scales", "scales -> af_pipeline.focus"):
        assert step in fault + " -> " + fault.removeprefix("import cycle: ")


def test_rule_lets_good_imports_pass() -> None:
    sources = {
        "af_pipeline.boxes": "from __future__ import annotations\nimport numpy as np\n_x = np._y",
        "af_pipeline.scales": "from af_pipeline.boxes import box_side",
        "af_pipeline.config": "from af_pipeline.scales import Scale\nfrom . import __version__",
        "af_pipeline.engine": "import torch\nfrom af_pipeline.config import Config",
        "af_pipeline.dist.graph": "import ray\nimport torch\nfrom af_pipeline import engine",
        "jobs.train": "import ray\nfrom af_pipeline.dist.graph import run",
    }
    assert find_faults(sources) == []
