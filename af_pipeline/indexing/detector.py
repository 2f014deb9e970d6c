"""The run's detector on its way to the actors: loaded once by the driver, held by the store."""

from __future__ import annotations

from typing import Any

import ray
import torch

from af_pipeline.indexing.stages import DetectorSource
from af_pipeline.models.checkpoint import load_detector
from af_pipeline.models.detector import Detector
from af_pipeline.models.info import checkpoint_hash
from af_pipeline.models.predictor import (
    TorchPredictor,
    answered_names,
    pick_device,
    predictor_options,
)
from af_pipeline.settings.index import IndexConfig


def shared_predictor(threads: int, detector: bytes, **options: Any) -> TorchPredictor:
    """Predictor of a detector that the driver put into the object store."""
    torch.set_num_threads(threads)
    held: Detector = ray.get(ray.cloudpickle.loads(detector))
    device = pick_device(options.pop("device"))
    return TorchPredictor(held, device, threads=threads, **options)


def detector_from_config(config: IndexConfig) -> DetectorSource:
    """Load the checkpoint once, here; actors on any node get it through the object store.

    Raises CheckpointError or DeviceError before anything is started.
    """
    if not any(pool.num_gpus for pool in config.ray.pools):
        pick_device(config.device)
    detector, info = load_detector(config.checkpoint)
    names = answered_names(config, info)
    options = {
        # The reference goes as bytes: Ray then keeps the object as long as this driver lives,
        # also for actors that restart late.
        "detector": ray.cloudpickle.dumps(ray.put(detector)),
        "device": config.device,
        "options": predictor_options(config),
        "class_names": names,
    }
    return DetectorSource(shared_predictor, options, names, checkpoint_hash(config.checkpoint))
