"""The run's detector on its way to the actors: loaded once by the driver, held by the store."""

from __future__ import annotations

import ray
import torch

from af_pipeline.core.cascade import Predictor
from af_pipeline.indexing.stages import DetectorSource
from af_pipeline.models.open import OpenedDetector, open_detector
from af_pipeline.models.predictor import pick_device
from af_pipeline.settings.index import IndexConfig


def shared_predictor(threads: int, opened: bytes) -> Predictor:
    """Predictor of a detector that the driver put into the object store."""
    torch.set_num_threads(threads)
    held: OpenedDetector = ray.get(ray.cloudpickle.loads(opened))
    return held.predictor(threads)


def detector_from_config(config: IndexConfig) -> DetectorSource:
    """Load the detector once, here; actors on any node get it through the object store.

    Raises CheckpointError or DeviceError before anything is started.
    """
    if not any(pool.num_gpus for pool in config.ray.pools):
        pick_device(config.device)
    opened = open_detector(config)
    # The reference goes as bytes: Ray then keeps the object as long as this driver lives, also for
    # actors that restart late.
    options = {"opened": ray.cloudpickle.dumps(ray.put(opened))}
    return DetectorSource(
        shared_predictor, options, opened.class_names, opened.identity, opened.shape
    )
