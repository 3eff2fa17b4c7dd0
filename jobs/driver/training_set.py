"""The datasets of a training: checked, divided, and stored in OUTPUT before the first step.

OUTPUT gets `train.parquet` and `validation.parquet`, and then `training.json`, the commit point: with it, the datasets
are never read again.
"""

import dataclasses
import hashlib
import io
import json
import logging
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn.errors import RunError, UsageError, plural
from maskrcnn.io.json_files import read_object
from maskrcnn.io.manifests.sources import check_source, refuse_query
from maskrcnn.io.storage import Storage
from maskrcnn.models.networks import NETWORKS
from maskrcnn.models.own.own_code import OwnNetwork
from maskrcnn.models.registry import (
    GENERATED,
    ModelCard,
    UnnamedCategoriesError,
    describe_model,
    needs_download,
    resolve,
)
from maskrcnn.models.weights.backbone_weights import check_imagenet, needs_imagenet_download
from maskrcnn.training.config import TrainingConfig, identity_of
from maskrcnn.training.dataset import Dataset, read_dataset, split_dataset
from maskrcnn.training.joining import join_datasets, match_validation
from maskrcnn.training.network_choice import check_architecture, check_trainable, crop_of, sizes_of

log = logging.getLogger("maskrcnn")

TRAINING: Final = "training.json"
TABLES: Final = ("train.parquet", "validation.parquet")


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingRequest:
    """A training as the user requested it."""

    source: str
    """A COCO JSON: with masks, or for a network that detects boxes only, with boxes."""
    output: str
    config: TrainingConfig
    validation: str | None = None
    """A COCO JSON; None: `share` of the images of `source`."""
    share: float = 0.1
    images_root: str | None = None
    validation_root: str | None = None
    also: tuple[str, ...] = ()
    """Further COCO JSONs to train on."""
    also_roots: tuple[str | None, ...] = ()
    """`images_root` of each of them."""
    skip_invalid: bool = False
    """Leave out images and annotations that have errors, instead of stopping."""


def prepare_training(request: TrainingRequest) -> dict[str, Any]:
    """Check and store the datasets, unless OUTPUT has them already; return the content of `training.json`.

    Raises:
        UsageError: as `check_datasets`, or OUTPUT was begun with another request.
        RunError: the store failed, or another process stored its datasets meanwhile.
    """
    storage = Storage(request.output)
    requested = json.loads(json.dumps(dataclasses.asdict(request) | {"output": None}))
    try:
        facts = read_object(storage, TRAINING, "restore it, or start again in an empty directory")
    except FileNotFoundError:
        facts = _store(request, storage, requested)
    _check_same(request.output, facts["request"], requested)
    return facts


@dataclasses.dataclass(frozen=True, slots=True)
class CheckedData:
    """The data of a training, checked."""

    parts: tuple[Dataset, ...]
    """The datasets to train on."""
    training: Dataset
    """The one that they make."""
    validation: Dataset | None
    """That of `--val`, with the categories of the training set."""
    images: pa.Table
    """To train on, of `dataset.SCHEMA`."""
    validation_images: pa.Table

    @property
    def findings(self) -> list[str]:
        """The findings of all datasets; of several, each after the name of its own."""
        datasets = [*self.parts, *([self.validation] if self.validation else [])]
        return [
            str(finding) if len(datasets) == 1 else f"{dataset.source}: {finding}"
            for dataset in datasets
            for finding in dataset.findings
        ]


def check_datasets(request: TrainingRequest) -> CheckedData:
    """Read and check the datasets of a request, and the name of the model; list the findings in the log.

    Raises:
        UsageError: they have errors, contain no object, or cannot be split; there is no such model.
    """
    roots = request.images_root, *request.also_roots
    sources = dict(zip((request.source, *request.also), roots, strict=True))
    if len(sources) <= len(request.also):
        raise UsageError("--also: name each dataset once")
    if _needs_download(request.config.model):
        for source in filter(None, (*sources, request.validation)):
            check_source(source)  # before a download, which takes minutes
    masks = NETWORKS[_check_model(request.config)].has_masks
    for root in sources.values():
        refuse_query(root or "", "--images-root")
    refuse_query(request.validation_root or "", "--val-images-root")
    read = [
        read_dataset(source, root, masks=masks, progress=_log_progress) for source, root in sources.items()
    ]
    parts, training = join_datasets(read)
    validation = None
    if request.validation is not None:
        validation = match_validation(
            read_dataset(request.validation, request.validation_root, masks=masks, progress=_log_progress),
            training,
        )
    listed = [*parts, *([validation] if validation else [])]
    for dataset in listed:
        _log_findings(dataset)
    kinds = sum(len(dataset.errors) for dataset in listed)
    if kinds and not request.skip_invalid:
        raise UsageError(
            f"the data has {plural(kinds, 'kind of error', 'kinds of errors')}, listed above: correct the data, or "
            "leave out the images and annotations concerned with --skip-invalid"
        )
    if validation is not None:
        images, validation_images = training.images, validation.images
    else:
        images, validation_images = split_dataset(training.images, request.share)
    if not pa.compute.any(pa.compute.greater(pa.compute.list_value_length(images["labels"]), 0)).as_py():
        raise UsageError(f"{training.source} has no object to train on; add annotations")
    return CheckedData(tuple(parts), training, validation, images, validation_images)


def _check_model(config: TrainingConfig) -> str:
    """Return the architecture of a request's model, before anything is started for it.

    Raises:
        UsageError: it does not exist, cannot be trained, or not at these sizes.
    """
    model, known = config.model, None
    source, _, architecture = model.partition(":")
    if source in GENERATED:
        check_architecture(source, architecture)
        if source == "imagenet":
            check_imagenet(architecture)
    else:
        if isinstance(resolve(model, _OTHER_STARTS), OwnNetwork):
            raise UsageError(f"--model {model}: a network of your own is trained by your own program")
        card = _describe(model)
        architecture, known = card.architecture, (card.min_size, card.max_size)
        check_trainable(model, architecture)
    sizes_of(architecture, config.min_size, config.max_size, known)
    crop_of(architecture, config.crop)
    return architecture


_OTHER_STARTS: Final = "imagenet:ARCHITECTURE or random:ARCHITECTURE"


def _needs_download(model: str) -> bool:
    """Return whether weights must be downloaded, which takes minutes. Raises UsageError as `_check_model`."""
    source, _, architecture = model.partition(":")
    if source not in GENERATED:
        resolve(model, _OTHER_STARTS)
        return needs_download(model)
    check_architecture(source, architecture)
    return source == "imagenet" and needs_imagenet_download(architecture)


def _describe(model: str) -> ModelCard:
    """Return the description of a model. Raises UsageError as `describe_model`; there is no --labels here."""
    try:
        return describe_model(model)
    except UnnamedCategoriesError as error:
        raise UsageError(
            f"--model {model} does not name its categories: convert it with `maskrcnn convert {model} "
            "MODEL.safetensors --labels FILE`, with one name per line in FILE, and train with --model MODEL.safetensors"
        ) from error


def _log_findings(dataset: Dataset) -> None:
    counts = zip(dataset.n_left_out, ("image", "annotation"), strict=True)
    left_out = " and ".join(plural(count, noun) for count, noun in counts if count)
    log.info(
        "%s: %s, %s, %s%s",
        dataset.source,
        plural(dataset.images.num_rows, "image"),
        plural(dataset.n_objects, "object"),
        plural(len(dataset.categories), "category"),
        f", after leaving out {left_out}" if left_out else "",
    )
    for finding in dataset.findings:
        log.warning("%s: %s", dataset.source, finding)


def _log_progress(done: int, total: int) -> None:
    if done % 10_000 == 0:
        log.info("%s of %s checked", f"{done:,}", plural(total, "image"))


def _store(request: TrainingRequest, storage: Storage, requested: dict[str, Any]) -> dict[str, Any]:
    data = check_datasets(request)
    digests = []
    for name, table in zip(TABLES, (data.images, data.validation_images), strict=True):
        file = io.BytesIO()
        pq.write_table(table, file)
        storage.write(name, file.getvalue())
        digests.append(hashlib.sha256(file.getvalue()).hexdigest())
    facts = {
        "request": requested,
        "identity": identity_of(request.config, *digests),
        "categories": [dataclasses.asdict(category) for category in data.training.categories],
        "images": {"train": data.images.num_rows, "validation": data.validation_images.num_rows},
        "findings": data.findings,
    }
    if not storage.create(TRAINING, json.dumps(facts, indent=2).encode()):
        raise RunError(f"{request.output} was begun by another process meanwhile; the same command joins it")
    return facts


def _check_same(output: str, begun: dict[str, Any], requested: dict[str, Any]) -> None:
    if "config" not in begun:
        raise UsageError(
            f"{output} was begun by maskrcnn-ray 0.1: continue it with that version, or name another OUTPUT"
        )
    begun = {"also": [], "also_roots": []} | begun  # version 0.2 has none
    flat = [
        {**{key: value for key, value in request.items() if key != "config"}, **request["config"]}
        for request in (begun, requested)
    ]
    changed = [
        f"{key} {flat[0].get(key)!r}, now {flat[1].get(key)!r}"
        for key in flat[1]
        if flat[0].get(key) != flat[1][key]
    ]
    if changed:
        raise UsageError(
            f"{output} was begun with {'; '.join(changed)}: repeat its command, or name another OUTPUT"
        )
