"""Detectors in ONNX files, run by ONNX Runtime (the extra ``onnx``)."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from af_pipeline.models.adapters.decoders import FAMILIES, LayoutError, family_of, shapes
from af_pipeline.models.foreign import Found, files_hash, missing_extra
from af_pipeline.models.info import CheckpointError
from af_pipeline.settings.detector import ForeignConfig

_SIZES = "orig_target_sizes"  # second input of RT-DETR's exports: (width, height) of each image
_PROBE = 256  # px of an input whose outputs tell families apart by their number of rows


class OnnxDetector:
    """An ONNX file as a `ForeignDetector`; raises CheckpointError for one that is unfit."""

    parallel = True

    def __init__(self, config: ForeignConfig) -> None:
        self.identity = files_hash(config.path)
        self.path = config.path
        with open(config.path, "rb") as file:  # noqa: PTH123 (one word for path and message)
            self.data = file.read()
        session = self._session(1)
        image, *others = session.get_inputs()
        strange = [one.name for one in others if one.name != _SIZES]
        if strange or len(image.shape) != 4:
            raise CheckpointError(
                f"{config.path} takes {', '.join(f'{i.name} {i.shape}' for i in (image, *others))}:"
                " expected one image [batch, 3, height, width] or [batch, height, width, 3]"
            )
        self.takes_sizes = bool(others)
        self.channels_last = image.shape[3] == 3
        self.dtype = _dtype(image, config.path)
        batch, *rest = image.shape
        sides = rest[:2] if self.channels_last else rest[1:]
        if isinstance(batch, int) and batch > 1:
            raise CheckpointError(
                f"{config.path} takes batches of {batch} only: export it with a batch of 1 or any"
            )
        self.single = batch == 1
        fixed = all(isinstance(side, int) and side > 0 for side in sides)
        self.shape = (int(sides[0]), int(sides[1])) if fixed else None
        meta = session.get_modelmeta().custom_metadata_map
        stated = _stated_names(meta.get("names", ""))
        declared = self._declared(session, config)
        name = config.decoder or family_of(declared, len(stated))
        if name is None:
            raise CheckpointError(
                f"{config.path} does not say what its outputs {declared} mean: set "
                f"detector.decoder to one of {', '.join(FAMILIES)}"
            )
        self.family, self.family_name = FAMILIES[name], name
        self.suppresses = self.family.suppresses
        # What lists its boxes by itself keeps a number of them that varies: one image at a time.
        self.single = self.single or self.suppresses
        self.colours = config.colours or self.family.colours
        self.mean = np.array(config.mean or self.family.mean, np.float32)
        self.std = np.array(config.std or self.family.std, np.float32)
        self.class_names = config.class_names or stated
        self.session: Any = None
        self._check_run(config)

    def _declared(self, session: Any, config: ForeignConfig) -> dict[str, Sequence[Any]]:
        """Shapes of the outputs; of those that the file leaves open, as a gray image has them."""
        found = {one.name: one.shape for one in session.get_outputs()}
        if config.decoder or all(isinstance(n, int) for shape in found.values() for n in shape):
            return found
        height, width = self.shape or (_side(_PROBE, config.multiple),) * 2
        sides = (height, width, 3) if self.channels_last else (3, height, width)
        feed = {session.get_inputs()[0].name: np.full((1, *sides), config.pad, self.dtype)}
        if self.takes_sizes:
            feed[_SIZES] = np.array([(width, height)], np.int64)
        try:
            return {
                name: value.shape
                for name, value in zip(found, session.run(None, feed), strict=True)
            }
        except Exception:  # of the C++ library; `_check_run` tells why
            return found

    def _session(self, threads: int, device: str = "cpu") -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_extra("onnx", error) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        wanted = ["CPUExecutionProvider"]
        if device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            wanted.insert(0, "CUDAExecutionProvider")
        try:
            return onnxruntime.InferenceSession(self.data, options, providers=wanted)
        except Exception as error:  # its kinds are those of the C++ library
            text = " ".join(str(error).split())
            raise CheckpointError(f"{self.path} is not an ONNX file that runs: {text}") from error

    def _check_run(self, config: ForeignConfig) -> None:
        """Decode one gray image, so that what is wrong is told before anything starts."""
        side = _side(64, config.multiple)
        height, width = self.shape or (side, side)
        batch = np.full((1, height, width, 3), config.pad, np.uint8)
        self.start("cpu", 1)
        try:
            (boxes, scores), *_ = self(batch)
        except LayoutError as error:
            raise CheckpointError(
                f"{config.path} does not look like {self.family_name}: {error}; set "
                f"detector.decoder to one of {', '.join(FAMILIES)}"
            ) from error
        except Exception as error:
            text = " ".join(str(error).split())
            raise CheckpointError(
                f"{config.path} does not run on an input of {height}x{width} px: {text}; "
                "is detector.multiple what its sides must be multiples of?"
            ) from error
        finally:
            self.session = None  # is no part of what travels to the actors
        if self.family.lists and 0 < boxes.max(initial=0) <= 2:
            raise CheckpointError(
                f"{config.path} lists boxes as shares of the image, not in px as "
                f"{self.family_name} does: export it with its postprocessing"
            )
        classes = scores.shape[1]
        if not self.class_names:
            self.class_names = ("text",) if self.family_name == "text_map" else ()
        if not self.class_names:
            known = "" if self.family.lists else f" {classes}"
            raise CheckpointError(
                f"{config.path} does not name its{known} classes: set detector.class_names"
            )
        if not self.family.lists and classes != len(self.class_names):
            raise CheckpointError(
                f"{config.path} finds {classes} classes, and {len(self.class_names)} are named "
                f"({', '.join(self.class_names)[:80]}): set detector.class_names"
            )

    def start(self, device: str, threads: int) -> None:
        """As of `ForeignDetector`; a GPU is used where ONNX Runtime was built for it."""
        self.session = self._session(threads, device)
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.inputs = [one.name for one in self.session.get_inputs()]

    def __call__(self, batch: NDArray[np.uint8]) -> list[Found]:
        """As of `ForeignDetector`."""
        step = 1 if self.single else len(batch)
        found: list[Found] = []
        for start in range(0, len(batch), step):
            found += self._run(batch[start : start + step])
        return found

    def _run(self, batch: NDArray[np.uint8]) -> list[Found]:
        size = batch.shape[1:3]
        feed = {self.inputs[0]: self._input(batch)}
        if self.takes_sizes:
            feed[_SIZES] = np.array([size[::-1]] * len(batch), np.int64)
        values = self.session.run(self.outputs, feed)
        return [
            self.family.decode(self._of_image(values, i, len(batch)), (size[0], size[1]))
            for i in range(len(batch))
        ]

    def _of_image(self, values: Sequence[NDArray[Any]], i: int, batch: int) -> dict[str, Any]:
        named = dict(zip(self.outputs, values, strict=True))
        if batch == 1 and self.family.lists and max(value.ndim for value in values) <= 2:
            return named  # graphs that list boxes without a batch axis
        if any(value.ndim < 1 or (value.shape[0] != batch) for value in values):
            raise LayoutError(f"expected outputs of {batch} images, found {shapes(named)}")
        return {name: value[i] for name, value in named.items()}

    def _input(self, batch: NDArray[np.uint8]) -> NDArray[Any]:
        pixels = batch if self.colours == "rgb" else batch[..., ::-1]
        if self.dtype == np.uint8:
            values: NDArray[Any] = pixels
        else:
            values = ((pixels - self.mean) / self.std).astype(self.dtype)
        return np.ascontiguousarray(values if self.channels_last else values.transpose(0, 3, 1, 2))


def _side(least: int, multiple: int) -> int:
    return -(-least // multiple) * multiple


def _dtype(image: Any, path: str) -> Any:
    kinds = {
        "tensor(float)": np.float32,
        "tensor(float16)": np.float16,
        "tensor(uint8)": np.uint8,
    }
    if image.type not in kinds:
        raise CheckpointError(f"{path} takes {image.type}: expected float, float16 or uint8")
    return kinds[image.type]


def _stated_names(text: str) -> tuple[str, ...]:
    """Class names of the metadata, as Ultralytics writes them: {0: 'car', ...} or ['car', ...]."""
    try:
        names = ast.literal_eval(text) if text else ()
    except (ValueError, SyntaxError):
        return ()
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)]
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()
