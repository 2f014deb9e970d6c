"""The files for clusters, as far as they can be checked without one.

`ray up` checks little of aws.yaml and gcp.yaml itself: a typo inside node_config shows when the
first node is asked for. So their node_config is checked here against the clouds' own field names,
and every command in these files and in docs/CLUSTER.md is read as the job would read it.
"""

import fnmatch
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from af_pipeline.commands import config_parser
from af_pipeline.config import load_config
from af_pipeline.indexing.pools import routes_of
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan
from af_pipeline.settings.ray import PoolConfig

ROOT = Path(__file__).parents[1]
CLOUDS = {name: ROOT / f"cluster/{name}.yaml" for name in ("aws", "gcp")}
KUBERAY = ROOT / "cluster/kuberay-rayjob.yaml"
GUIDE = ROOT / "docs/CLUSTER.md"
FACTS: dict[str, Any] = json.loads((ROOT / "tests/cluster_fields.json").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[KMGT]i?)?")

Tree = dict[str, Any]


def read(path: Path) -> Tree:
    tree: Tree = yaml.safe_load(path.read_text())
    return tree


def locked(name: str) -> str:
    found = re.search(rf"^{re.escape(name)}(\[.*\])?==(\S+)", LOCK, re.M)
    assert found, name
    return found[2]


# Commands: every `jobs/index.py` in the files and the guide.


def commands(path: Path) -> list[list[str]]:
    """Arguments of each `jobs/index.py` in comments, the entrypoint and code blocks."""
    if path == KUBERAY:
        return [shlex.split(read(path)["spec"]["entrypoint"])]
    text = path.read_text()
    if path == GUIDE:
        text = "\n".join(re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.M | re.S))
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    else:
        lines = [line.removeprefix("#") for line in text.splitlines() if line.startswith("#")]
    found, words, rest = [], "", False
    for line in lines:
        if not rest and "jobs/index.py" not in line and "ray job submit" not in line:
            continue
        words += " " + line.strip().removesuffix("\\")
        open_quote = words.count("'") % 2 == 1
        rest = line.rstrip().endswith("\\") or open_quote
        if not rest:
            found.append(shlex.split(words))
            words = ""
    return [one for one in found if any("jobs/index.py" in word for word in one)]


def index_configs(path: Path) -> list[IndexConfig]:
    configs = []
    for words in commands(path):
        start = next(i for i, word in enumerate(words) if word.endswith("jobs/index.py"))
        words = [word.removeprefix("/home/ray/app/") for word in words[start:]]
        assert (ROOT / words[0]).is_file()
        parsed = config_parser(None, "configs/index").parse_args(words[1:])
        assert parsed.config.startswith("configs/index/")
        sets = [one.replace("/home/ray/app/", f"{ROOT}/") for one in parsed.sets]
        config = load_config(IndexConfig, str(ROOT / parsed.config), sets)
        checkpoint = ROOT / config.checkpoint
        assert checkpoint.is_file(), config.checkpoint
        assert config.source.uri, words
        assert config.output.uri, words
        configs.append(config)
    return configs


@pytest.mark.parametrize("path", [*CLOUDS.values(), KUBERAY, GUIDE], ids=lambda path: path.name)
def test_every_command_is_one_that_the_job_takes(path: Path) -> None:
    configs = index_configs(path)
    assert configs
    for config in configs:
        assert routes_of(config, build_plan(config))


# Node groups: what the pools ask for must be somewhere, and enough of it.

Groups = dict[str, tuple[dict[str, float], int]]  # name -> resources of a node, most nodes


def groups_of(path: Path) -> Groups:
    if path == KUBERAY:
        return kuberay_groups()
    kinds = read(path)["available_node_types"]
    return {name: (kind["resources"], kind.get("max_workers", 0)) for name, kind in kinds.items()}


def kuberay_groups() -> Groups:
    """As Ray's autoscaler reads them."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    spec = read(KUBERAY)["spec"]["rayClusterSpec"]
    kinds = autoscaling_config._generate_available_node_types_from_ray_cr_spec(spec)
    return {name: (kind["resources"], kind["max_workers"]) for name, kind in kinds.items()}


def needs(pool: PoolConfig) -> dict[str, float]:
    asked = {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}
    if pool.accelerator_type:
        asked[f"accelerator_type:{pool.accelerator_type}"] = 0.001
    return {name: amount for name, amount in asked.items() if amount}


@pytest.mark.parametrize("path", [*CLOUDS.values(), KUBERAY], ids=lambda path: path.name)
def test_pools_find_their_nodes(path: Path) -> None:
    groups = groups_of(path)
    for config in index_configs(path):
        assert config.ray.elastic  # no node is there when the job starts
        wanted = {name: dict.fromkeys(res, 0.0) for name, (res, _) in groups.items()}
        for route in routes_of(config, build_plan(config)):
            asked = needs(route.pool)
            assert asked["CPU"], "left to Ray's share, which an empty cluster does not have"
            fits = [
                name
                for name, (has, _) in groups.items()
                if all(has.get(key, 0) >= amount for key, amount in asked.items())
            ]
            assert len(fits) == 1, (route.name, asked, fits)
            for key, amount in asked.items():
                wanted[fits[0]][key] += amount * route.pool.actor_range[1]
        for name, amounts in wanted.items():
            resources, most = groups[name]
            for key, amount in amounts.items():
                assert amount <= resources[key] * most, (name, key)


@pytest.mark.parametrize("path", [*CLOUDS.values(), KUBERAY], ids=lambda path: path.name)
def test_the_head_does_no_work_and_the_rest_shrinks_to_nothing(path: Path) -> None:
    groups = groups_of(path)
    head = "headgroup" if path == KUBERAY else "head"
    assert groups.pop(head)[0]["CPU"] == 0
    assert len(groups) == 3
    kinds = read(path)
    if path == KUBERAY:
        spec = kinds["spec"]["rayClusterSpec"]
        assert all(group["minReplicas"] == 0 for group in spec["workerGroupSpecs"])
        assert spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 300
    else:
        assert all(k.get("min_workers", 0) == 0 for k in kinds["available_node_types"].values())
        assert kinds["idle_timeout_minutes"] <= 10
        assert sum(most for _, most in groups.values()) == kinds["max_workers"]


# aws.yaml and gcp.yaml.


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_up_takes_the_file(cloud: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    tree = read(CLOUDS[cloud])
    assert tree["cluster_name"]  # Ray would take "default" without a word
    prepared = prepare_config(read(CLOUDS[cloud]))
    validate_config(prepared)
    assert prepared["head_setup_commands"] == [
        *tree["setup_commands"],
        *tree["head_setup_commands"],
    ]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_image_and_the_pins_are_those_of_the_lock_file(cloud: str) -> None:
    tree = read(CLOUDS[cloud])
    assert tree["docker"]["image"] == f"rayproject/ray:{locked('ray')}-py311-gpu"
    assert "--env RAY_AUTH_MODE=token" in tree["docker"]["run_options"]
    assert "--env RAY_USAGE_STATS_ENABLED=0" in tree["docker"]["run_options"]
    if cloud == "aws":  # another boto3 would bring another botocore
        pin = f"boto3=={locked('botocore')}"
        assert pin in CLOUDS[cloud].read_text().split("cluster_name")[0]
        assert tree["head_setup_commands"] == [f"pip install --quiet {pin}"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_nodes_are_given_is_there(cloud: str) -> None:
    tree = read(CLOUDS[cloud])
    local = [path for path in tree["file_mounts"].values() if not path.startswith("~")]
    assert {"requirements.lock", "pyproject.toml", "af_pipeline"} <= set(local)
    assert all((ROOT / path).exists() for path in local)
    assert tree["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    named = re.findall(r'^(?:readme|license-files) = .*?"(.*?)"', read_text("pyproject.toml"), re.M)
    assert set(named) <= set(local)  # the build backend opens them


def read_text(name: str) -> str:
    return (ROOT / name).read_text()


def test_aws_nodes_are_asked_for_as_ec2_understands() -> None:
    """node_config is what boto3's create_instances takes: the input of RunInstances."""
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    for name, kind in read(CLOUDS["aws"])["available_node_types"].items():
        config = kind["node_config"] | {"MinCount": 1, "MaxCount": 1}  # as Ray adds them
        errors = ParamValidator().validate(config, shape)
        assert not errors.has_errors(), errors.generate_report()
        unknown = unknown_keys(config, shape)
        assert not unknown, (name, unknown)
        spot = config.get("InstanceMarketOptions", {}).get("MarketType")
        assert spot == (None if name == "head" else "spot")


def unknown_keys(value: Any, shape: Any, path: str = "") -> list[str]:
    """Names that the shape does not have; botocore's own check overlooks them when nested."""
    if shape.type_name == "list":
        return [
            bad
            for i, one in enumerate(value)
            for bad in unknown_keys(one, shape.member, f"{path}{i}")
        ]
    if shape.type_name != "structure":
        if shape.type_name == "string" and shape.enum and value not in shape.enum:
            return [f"{path}={value}"]
        return []
    found = [f"{path}.{key}" for key in value if key not in shape.members]
    for key in set(value) & set(shape.members):
        found += unknown_keys(value[key], shape.members[key], f"{path}.{key}")
    return found


def test_gcp_nodes_are_asked_for_as_compute_engine_understands() -> None:
    tree = read(CLOUDS["gcp"])
    assert tree["provider"]["project_id"]
    assert tree["provider"]["availability_zone"].startswith(tree["provider"]["region"])
    for name, kind in tree["available_node_types"].items():
        config = kind["node_config"]
        assert set(config) <= set(FACTS["gcp_instance"]), name
        assert set(config.get("scheduling", {})) <= set(FACTS["gcp_scheduling"])
        for disk in config["disks"]:
            assert set(disk) <= set(FACTS["gcp_disk"])
            assert set(disk["initializeParams"]) <= set(FACTS["gcp_disk_initialize"])
        spot = config.get("scheduling", {}).get("provisioningModel")
        assert spot == (None if name == "head" else "SPOT")
        if "GPU" in kind["resources"]:
            assert config["scheduling"]["onHostMaintenance"] == "TERMINATE"


# kuberay-rayjob.yaml.


def check_fields(tree: Tree, kind: str, path: str = "") -> None:
    """Only fields that FACTS knows for this kind; goes into those whose kind it knows too."""
    fields = FACTS["kubernetes"][kind]
    for key, value in tree.items():
        assert key in fields, f"{path}.{key} is no field of {kind}"
        inner = fields[key]
        for one in value if isinstance(value, list) else [value]:
            if inner in FACTS["kubernetes"]:
                check_fields(one, inner, f"{path}.{key}")
            elif inner:
                expected = {"string": str, "integer": int, "boolean": bool, "object": dict}[inner]
                assert type(one) is expected, f"{path}.{key} is a {inner}: {one!r}"


def test_the_rayjob_has_fields_that_kuberay_knows() -> None:
    tree = read(KUBERAY)
    assert (tree["apiVersion"], tree["kind"]) == ("ray.io/v1", "RayJob")
    spec = tree["spec"]
    check_fields(spec, "RayJobSpec")
    assert spec["rayClusterSpec"]["rayVersion"] == locked("ray")
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_USAGE_STATS_ENABLED"] == "0"
    assert spec["shutdownAfterJobFinishes"]
    # Ray 2.52 and KubeRay 1.5.1 have it; off by default before Ray 2.61.
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_pods_are_whole() -> None:
    spec = read(KUBERAY)["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert limits == requests  # Ray must not be given more than the node has
        assert {"cpu", "memory"} <= set(limits)
        assert all(QUANTITY.fullmatch(amount) for amount in limits.values())
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups}
    assert len(images) == 1


# Dockerfile.


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in docker_lines() if line))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def docker_lines() -> list[str]:
    return [line for line in read_text("Dockerfile").splitlines() if not line.startswith("#")]


def ignored(path: str) -> bool:
    """As Docker reads .dockerignore: the last line that matches a path or its parent wins."""
    result = False
    for line in read_text(".dockerignore").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = Path(path).parts
        tails = range(len(parts)) if "**/" in line else range(1)
        heads = ["/".join(parts[i : j + 1]) for i in tails for j in range(i, len(parts))]
        if any(fnmatch.fnmatchcase(head, pattern) for head in heads):
            result = not line.startswith("!")
    return result


def test_the_dockerfile_copies_what_is_there_and_runs_as_a_user() -> None:
    found = instructions()
    kinds = [kind for kind, _ in found]
    known = {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}
    assert kinds[0] == "FROM"
    assert set(kinds) <= known
    assert ("FROM", "python:3.11-slim-bookworm") in found
    sources = [name for kind, rest in found if kind == "COPY" for name in rest.split()[:-1]]
    assert {"requirements.lock", "af_pipeline", "jobs", "configs", "checkpoints"} <= set(sources)
    for name in sources:
        assert (ROOT / name).exists()
        assert not ignored(name)
    assert [rest for kind, rest in found if kind == "USER"] == ["ray"]
    assert kinds.index("USER") == len(kinds) - 2  # all but the command
    command = json.loads(found[-1][1])
    assert command[0] == "python"
    assert (ROOT / command[1]).is_file()


@pytest.mark.parametrize(
    "path",
    [".git", ".venv/bin/python", "runs/x", "demo", "tests", "token", "jobs/__pycache__/a.pyc"],
)
def test_the_image_is_not_given_more(path: str) -> None:
    assert ignored(path)


@pytest.mark.parametrize("path", ["af_pipeline/indexing/index.py", "configs/index/aerial.yaml"])
def test_the_image_is_given_the_package(path: str) -> None:
    assert not ignored(path)
