"""The detector that an index config names, whoever made it, on its way to the cascade."""

from __future__ import annotations

import hashlib
import os
import pkgutil
from dataclasses import dataclass, replace

from af_pipeline.core.cascade import Predictor
from af_pipeline.core.focus import FocusRule
from af_pipeline.models.checkpoint import load_detector
from af_pipeline.models.detector import Detector
from af_pipeline.models.focus_network import (
    FocusedPredictor,
    FocusNetwork,
    load_focus_network,
)
from af_pipeline.models.foreign import ForeignDetector, ForeignPredictor
from af_pipeline.models.info import checkpoint_hash, load_info
from af_pipeline.models.predictor import TorchPredictor, pick_device, predictor_options, spread
from af_pipeline.settings.index import IndexConfig

# Kind of foreign detector -> what reads it of a `ForeignConfig`.
ADAPTERS = {
    "onnx": "af_pipeline.models.adapters.onnx:OnnxDetector",
    "torchvision": "af_pipeline.models.adapters.torchvision:TorchvisionDetector",
    "huggingface": "af_pipeline.models.adapters.huggingface:HuggingFaceDetector",
    "ultralytics": "af_pipeline.models.adapters.ultralytics:UltralyticsDetector",
    "callable": "af_pipeline.models.adapters.function:FunctionDetector",
}


@dataclass(frozen=True)
class OpenedDetector:
    """A detector that is read and checked but on no device yet; it goes through pickle.

    ``class_names`` by label; ``identity``: hash of the weights, those of a focus network too.
    """

    config: IndexConfig
    detector: Detector | ForeignDetector
    class_names: tuple[str, ...]
    identity: str
    network: FocusNetwork | None = None

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of the only input that it takes; None: any."""
        return None if isinstance(self.detector, Detector) else self.detector.shape

    def predictor(self, threads: int = 0) -> Predictor:
        """It as the cascade's predictor, in this process; ``threads`` 0: as many as cores.

        Raises DeviceError.
        """
        threads = threads or os.cpu_count() or 1
        device = pick_device(self.config.device)
        options = predictor_options(self.config)
        predict: Predictor
        if isinstance(self.detector, Detector):
            predict = TorchPredictor(
                self.detector,
                device,
                options=options,
                class_names=self.class_names,
                threads=threads,
            )
        else:
            assert self.config.detector is not None
            at_once = threads > 1 and device.type == "cpu" and self.detector.parallel
            self.detector.start(device.type, 1 if at_once else threads)
            several = spread(threads) if at_once else map
            chosen = options.selection
            predict = ForeignPredictor(self.detector, self.config.detector, chosen, several)
        if self.network is None or self.config.mode != "autofocus":
            return predict
        network = self.config.focus.network
        assert network is not None
        return FocusedPredictor(predict, self.network, device, first=network.first)


def open_detector(config: IndexConfig) -> OpenedDetector:
    """Read the detector of an index config, and its focus network, onto the CPU.

    Raises CheckpointError for weights that are missing, unfit or of another kind.
    """
    opened = _own(config) if config.detector is None else _foreign(config)
    if config.focus.network is None:
        return opened
    network = load_focus_network(config.focus.network.path)
    both = f"{opened.identity} {network.identity}".encode()
    return replace(opened, network=network, identity=hashlib.sha256(both).hexdigest()[:16])


def _own(config: IndexConfig) -> OpenedDetector:
    detector, info = load_detector(config.checkpoint)
    names = ("object",) if config.finds == "proposals" else info.class_names
    return OpenedDetector(config, detector, names, checkpoint_hash(config.checkpoint))


def _foreign(config: IndexConfig) -> OpenedDetector:
    assert config.detector is not None
    read = pkgutil.resolve_name(ADAPTERS[config.detector.reader])
    detector: ForeignDetector = read(config.detector)
    return OpenedDetector(config, detector, detector.class_names, detector.identity)


def focus_labels_of(config: IndexConfig) -> FocusRule:
    """The sizes that the detector was trained to take for FocusPixels; of another maker's those of
    the paper."""
    if config.detector is not None:
        return FocusRule()
    return FocusRule(**load_info(config.checkpoint).training["config"]["focus_labels"])
