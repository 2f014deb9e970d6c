"""What of an index job's input can be known to be unusable before Ray is started, without Ray."""

from __future__ import annotations

import os
from pathlib import Path

from af_pipeline.data.access import MissingSourceError, reading_error
from af_pipeline.data.annotations.voc import is_image_set
from af_pipeline.data.secrets import redact
from af_pipeline.data.sources.open import list_images
from af_pipeline.data.storage import exists, is_local
from af_pipeline.indexing.pools import routes_of
from af_pipeline.models.info import load_info
from af_pipeline.output.folder import OutputFolder
from af_pipeline.output.place import OutputError, reaching
from af_pipeline.settings.guarantee import check_guarantee
from af_pipeline.settings.index import IndexConfig, OutputConfig, SourceConfig
from af_pipeline.settings.modes import build_plan, fit_lanes


def check_input(config: IndexConfig, dry_run: bool = False) -> None:
    """Raise what `af_pipeline.indexing.index.index` would, of its errors those that show at once.

    They are told here since a cluster takes some ten seconds to start. Nothing is written.
    """
    if not dry_run:
        check_output(config.output)
    check_source(config.source)
    routes_of(config, build_plan(config))
    if config.detector is None:
        load_info(config.checkpoint)
    # Torch takes some seconds to import: only when all else is fine.
    from af_pipeline.models.open import open_detector
    from af_pipeline.models.predictor import pick_device

    if not any(pool.num_gpus for pool in config.ray.pools):
        pick_device(config.device)
    opened = open_detector(config)
    fitted = fit_lanes(config, opened.shape)
    routes_of(fitted, build_plan(fitted))
    check_guarantee(fitted, opened.identity)


def check_source(source: SourceConfig) -> None:
    """Raise SourceError unless the source can be listed as far as its first image.

    Of a VOC image set, which is read whole, only the file must be there.
    """
    storage = source.storage
    if is_image_set(source.uri):
        if not exists(source.uri, storage):
            raise MissingSourceError(f"there is nothing at {redact(source.uri)}: check the path")
        return
    columns = source.id_column, source.uri_column
    try:
        next(iter(list_images(source.uri, source.images, storage, *columns)), None)
    except OSError as error:  # such as a name that is too long
        raise reading_error(source.uri, error) from error


def check_output(output: OutputConfig) -> None:
    """Raise OutputError or SourceError for a place that cannot be a run's, or holds other files.

    Whether it holds a run with other settings is told later.
    """
    if not output.uri:
        raise OutputError("no output: give --set output.uri=DIRECTORY")
    folder = OutputFolder.at(output.uri, output.storage)
    with reaching(folder.uri):
        if is_local(folder.system):
            place = Path(folder.root)
            there = next(path for path in (place, *place.parents) if path.exists())
            if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                raise OutputError(
                    f"output.uri: {there} is no folder that can be written to: choose another"
                )
        folder.check({"job": "index"}, "overwrite")
