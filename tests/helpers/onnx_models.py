"""Small ONNX detectors whose answers are known: by bright regions, by channel means, by lists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Dim = int | str
KINDS = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
OPSET = 17


def write(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: dict[str, Sequence[Dim]],
    constants: dict[str, NDArray[Any]],
    integer: Sequence[str] = (),
    **metadata: str,
) -> str:
    """A checked graph in a file; ``integer``: outputs that hold labels."""
    kinds = {name: TensorProto.INT64 if name in integer else TensorProto.FLOAT for name in outputs}
    graph = helper.make_graph(
        list(nodes),
        "g",
        list(inputs),
        [helper.make_tensor_value_info(n, kinds[n], shape) for n, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    for key, value in metadata.items():
        made.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(made)
    onnx.save(made, path)
    return str(path)


def image_input(
    sides: tuple[Dim, Dim] = ("h", "w"),
    batch: Dim = "n",
    kind: str = "float",
    channels_last: bool = False,
) -> Any:
    shape = [batch, *sides, 3] if channels_last else [batch, 3, *sides]
    return helper.make_tensor_value_info("image", KINDS[kind], shape)


def bright_map(path: Path, **image: Any) -> str:
    """Probability map of what is bright in all channels, of an input 0 to 1 (uint8: 0 to 255)."""
    last = image.get("channels_last", False)
    nodes = [helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT)]
    if image.get("kind") == "uint8":
        nodes.append(helper.make_node("Div", ["x", "most"], ["scaled"]))
    else:
        nodes.append(helper.make_node("Identity", ["x"], ["scaled"]))
    nodes.append(
        helper.make_node("ReduceMin", ["scaled"], ["least"], axes=[3 if last else 1], keepdims=0)
    )
    nodes.append(helper.make_node("Unsqueeze", ["least", "one"], ["map"]))
    constants = {"most": np.float32(255), "one": np.array([1], np.int64)}
    batch, sides = image.get("batch", "n"), image.get("sides", ("h", "w"))
    return write(path, nodes, [image_input(**image)], {"map": [batch, 1, *sides]}, constants)


def channel_means(path: Path, batch: Dim = "n", names: str = "", open_shape: bool = False) -> str:
    """One box (8, 16, 24, 48) as YOLOv8 writes it, with the means of the channels for scores."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["means", "none"], ["zeros"]),  # as many rows as images
        helper.make_node("ReduceSum", ["zeros", "one"], ["zero"], keepdims=1),
        helper.make_node("Add", ["zero", "box"], ["boxes"]),
        helper.make_node("Concat", ["boxes", "means"], ["flat"], axis=1),
        helper.make_node("Unsqueeze", ["flat", "two"], ["answer"]),
        helper.make_node("ReduceSum", ["zeros"], ["nought"], keepdims=0),
        helper.make_node("Cast", ["nought"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Add", ["whole", "sides"], ["shape"]),  # known only when it is run
        helper.make_node("Reshape", ["answer", "shape"], ["output0"]),
    ]
    constants = {
        "none": np.float32(0),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "sides": np.array([-1, 7, 1], np.int64),
        "box": np.array([[16, 32, 16, 32]], np.float32),
    }
    shape = [batch, "rows" if open_shape else 7, "boxes"]
    metadata = {"names": names} if names else {}
    return write(path, nodes, [image_input(batch=batch)], {"output0": shape}, constants, **metadata)


def listing(path: Path, answers: dict[str, Any], batch_axis: bool = True, names: str = "") -> str:
    """Answers {output: values} to any image, as graphs that select their boxes themselves."""
    nodes, constants, shapes = [], {}, {}
    for name, values in answers.items():
        value = np.array(values, np.int64 if name == "labels" else np.float32)
        constants[f"of_{name}"] = value[None] if batch_axis else value
        nodes.append(helper.make_node("Identity", [f"of_{name}"], [name]))
        shapes[name] = [f"{name}_{i}" for i in range(value.ndim + batch_axis - 1)]
        shapes[name].append(value.shape[-1] if value.ndim > 1 else f"{name}_n")
    integer = [name for name in answers if name == "labels"]
    metadata = {"names": names} if names else {}
    return write(path, nodes, [image_input()], shapes, constants, integer, **metadata)


def sized(path: Path) -> str:
    """As RT-DETR's exports: boxes of shares of the image times `orig_target_sizes`."""
    sizes = helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, ["n", 2])
    nodes = [
        helper.make_node("Cast", ["orig_target_sizes"], ["side"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["side", "side"], ["four"], axis=1),
        helper.make_node("Unsqueeze", ["four", "one"], ["scale"]),
        helper.make_node("Mul", ["scale", "shares"], ["boxes"]),
        helper.make_node("Identity", ["of_labels"], ["labels"]),
        helper.make_node("Identity", ["of_scores"], ["scores"]),
    ]
    constants = {
        "one": np.array([1], np.int64),
        "shares": np.array([[[0.25, 0.5, 0.5, 1]]], np.float32),
        "of_labels": np.array([[1]], np.int64),
        "of_scores": np.array([[0.8]], np.float32),
    }
    outputs: dict[str, Sequence[Dim]] = {
        "labels": ["n", 1],
        "boxes": ["n", 1, 4],
        "scores": ["n", 1],
    }
    return write(path, nodes, [image_input(), sizes], outputs, constants, ["labels"])
