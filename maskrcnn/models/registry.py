"""What a model name means: its source, and what a run records of it. Nothing here imports torch or unpickles a file.

`resolve` is the one place that decides between the kinds of models; `read_model`, `model.load_model` and
`factory.build_segmenter` follow it. To add a kind, add a class of `ModelSource`, one branch to `resolve`, and one to
each of these three.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import UsageError, plural
from ..io.url import Url, is_folder, is_there
from ..synthetic.planted_models import PlantedModel, parse_planted
from ..types import Category
from .architectures.network_config import NetworkConfig, config_of
from .architectures.rcnn_config import RCNNConfig
from .coco_categories import COCO_CATEGORIES
from .networks import LIKENESS, NETWORKS, architecture_of, check_tensors
from .own.own_code import OwnNetwork, parse_own
from .own.own_description import describe_own
from .own.own_process import Limit
from .weights.category_names import category_ids_named, near
from .weights.checkpoint_files import (
    check_safetensors,
    check_store,
    read_checkpoint,
    read_labels,
    read_weights,
    safetensors_header,
)
from .weights.embedded_models import EMBEDDED, EmbeddedModel
from .weights.finite_values import check_checkpoint_values, check_safetensors_values
from .weights.published_weights import PUBLISHED, PublishedModel, is_cached, norm_eps_of, read_published
from .weights.state_dicts import unsupported_network

__all__ = [
    "COCO_CATEGORIES",
    "GENERATED",
    "NAMES",
    "NO_CATEGORY",
    "ModelCard",
    "ModelFile",
    "ModelSource",
    "UnnamedCategoriesError",
    "category_ids_named",
    "describe_model",
    "is_own_file",
    "needs_download",
    "read_model",
    "refuse_arguments",
    "resolve",
]

NO_CATEGORY: Final = -1
"""What `ModelCard.category_ids` holds for a label that is not a category; any integer from 0 may be a category's id."""

SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
_FILES: Final = "the path or URL of a .safetensors, .pth, .pt, .ckpt, .bin or .pth.tar file"
_OWN: Final = "package.module:factory"
_FORMAT: Final = "maskrcnn-ray"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The description of a model that a run records."""

    name: str
    """The name of a published or embedded model, or the name of the weights file."""
    uri: str | None
    """The weights file as the user named it; None for a published or embedded model."""
    sha256: str
    """The sha256 of the weights file, hexadecimal; of a network of the user's own, of its code and arguments."""
    architecture: str
    """One of `networks.ARCHITECTURES`, or `planted`, or `own`."""
    categories: tuple[Category, ...]
    """The categories that it detects, in the order of its labels."""
    category_ids: tuple[int, ...]
    """The category id of each label; `NO_CATEGORY` for label 0, the background, and for an unused label."""
    min_size: int
    """The length that the shorter side of an image is resized to, pixels, …"""
    max_size: int
    """… unless the longer side would then exceed this."""
    notice: str | None
    """A warning for its user, or None."""
    config: NetworkConfig | None = None
    """The configuration of a network of matterport, detectron2 or MMDetection; None for others."""
    has_masks: bool = True
    """Whether it detects masks; else boxes only."""
    own: Mapping[str, Any] | None = None
    """What is recorded of a network of the user's own, see `own_description.Description`; None for others."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A weights file of the user's."""

    uri: str
    suffix: str
    """One of `SUFFIXES`."""


ModelSource = PlantedModel | EmbeddedModel | PublishedModel | ModelFile | OwnNetwork
"""Where a model comes from."""

GENERATED: Final = ("imagenet", "random")
"""Kinds of initial weights of a training that are no model's, as in `imagenet:ARCHITECTURE`."""

NAMES: Final = (
    "coco",
    "coco-v1",
    *EMBEDDED,
    *(name for name in PUBLISHED if name not in ("coco", "coco-v1")),
)
"""Models that need no file of the user's; the planted ones, which are for tests, are not offered."""


class UnnamedCategoriesError(UsageError):
    """A file of weights does not name its categories, and no file of labels is given."""


def resolve(name: str, others: str = _OWN) -> ModelSource:
    """Return what a model name stands for, without reading it.

    Args:
        name: `coco`, `coco-v1`, `scenes`, `nuclei`, the path or URL of a weights file, `package.module:factory` for a
            network of the user's own, or in tests `planted[:SECONDS]` and `planted-mosaic[:PIXELS]`.
        others: what a user can name besides models and files, for messages.

    Raises:
        UsageError: there is no such model; the message says which there are.
    """
    files = f"{_FILES}, or {others}"
    if not name.strip():
        raise UsageError(f"--model is empty: give one of {', '.join(NAMES)}, or {files}")
    if (kind := name.partition(":")[0]) in GENERATED:
        raise UsageError(
            f"--model {kind}:… are the initial weights of `maskrcnn train`: give one of {', '.join(NAMES)}, or {files}"
        )
    check_store(name, "weights")
    planted = parse_planted(name)
    if planted is not None:
        return planted
    if (own := parse_own(name)) is not None:
        return own
    if name in EMBEDDED:
        return EMBEDDED[name]
    if name in PUBLISHED:
        return PUBLISHED[name]
    suffix = _suffix(name)
    if suffix not in SUFFIXES:
        raise UsageError(_no_such_model(name, suffix, files))
    return ModelFile(name, suffix)


def needs_download(name: str) -> bool:
    """Return whether the weights of a model must first be downloaded. Raises UsageError as `resolve`."""
    source = resolve(name)
    return isinstance(source, PublishedModel) and not is_cached(source.weights)


def describe_model(
    name: str,
    labels: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    limit: Limit | None = None,
) -> ModelCard:
    """Return the description of a model; downloads COCO weights if they are not in torch's cache.

    Args:
        name: as of `resolve`.
        labels: for files that do not name their categories: path or URL of a text file that names a category on each
            line, from label 1; a blank line or `N/A` marks an unused label.
        arguments: of the factory of a network of the user's own, which is built in another process.
        limit: how long that may take; None: `own_description.PATIENCE`.

    Raises:
        UsageError: there is no such model, or its file is not valid; the message says what to do.
        RunError: its store cannot be read at all.
    """
    return read_model(name, labels, arguments, limit)[0]


def is_own_file(source: ModelSource, data: bytes) -> bool:
    """Return whether a weights file is one that `save_model` wrote, with all that describes its model."""
    if not isinstance(source, ModelFile) or source.suffix != ".safetensors":
        return isinstance(source, EmbeddedModel)
    metadata, _ = safetensors_header(source.uri, data)
    return isinstance(metadata, dict) and metadata.get("format") == _FORMAT


def read_model(
    name: str,
    labels: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    limit: Limit | None = None,
) -> tuple[ModelCard, bytes]:
    """Return the description of a model and the bytes of its weights file; no bytes for one without such a file.

    Raises:
        UsageError: as `describe_model`.
        RunError: as `describe_model`.
    """
    source = resolve(name)
    if not isinstance(source, ModelFile):
        _refuse_labels(name, labels)
    if isinstance(source, OwnNetwork):
        return _card_of_own(source, arguments or {}, limit), b""
    refuse_arguments(name, arguments)
    if isinstance(source, PlantedModel):
        return _card_of_planted(source), b""
    if isinstance(source, EmbeddedModel):
        data = source.read()
        return _card_of_safetensors(source.name, None, data, source.notice), data
    if isinstance(source, PublishedModel):
        return _read_published(source)
    data = read_weights(name)
    if is_own_file(source, data):
        _refuse_labels(name, labels)
        return _card_of_safetensors(_last_part(name), name, data), data
    return _card_of_state_dict(name, data, labels), data


def _refuse_labels(name: str, labels: str | None) -> None:
    if labels is not None:
        raise UsageError(
            f"--labels is for weights that do not name their categories: leave it out, since the model {name} has its "
            "own categories"
        )


def refuse_arguments(name: str, arguments: Mapping[str, Any] | None) -> None:
    """Raise UsageError for arguments of a model that takes none."""
    if arguments:
        raise UsageError(
            f"--model-arg is for a network of your own, --model package.module:factory: leave it out with {name}"
        )


# --- models without a file of the user's --------------------------------------------------------------------


def _card_of_planted(model: PlantedModel) -> ModelCard:
    return ModelCard(
        name=model.name,
        uri=None,
        sha256=model.sha256,
        architecture="planted",
        categories=model.categories,
        category_ids=(NO_CATEGORY, *(category.id for category in model.categories)),
        min_size=800,
        max_size=1333,
        notice=f"`{model.name}` is not a model: it reads the ground truth that test images carry, and finds nothing "
        "else",
        has_masks=model.has_masks,
    )


def _card_of_own(own: OwnNetwork, arguments: Mapping[str, Any], limit: Limit | None) -> ModelCard:
    described = describe_own(own, arguments, limit)
    return ModelCard(
        name=own.name,
        uri=None,
        sha256=described.sha256,
        architecture="own",
        categories=described.categories,
        category_ids=(NO_CATEGORY, *(category.id for category in described.categories)),
        min_size=described.max_side,
        max_size=described.max_side,
        notice=None,
        has_masks=described.has_masks,
        own=described.record,
    )


def _read_published(model: PublishedModel) -> tuple[ModelCard, bytes]:
    alternatives = ", or use --model PATH.safetensors, or an embedded model, --model scenes or nuclei"
    _, data, digest = read_published(model.weights, model.name, alternatives)
    used = {category.id for category in COCO_CATEGORIES}
    network = NETWORKS[model.architecture]
    card = ModelCard(
        name=model.name,
        uri=None,
        sha256=digest,
        architecture=model.architecture,
        categories=COCO_CATEGORIES,
        category_ids=tuple(label if label in used else NO_CATEGORY for label in range(91)),
        min_size=network.resize.min_size,
        max_size=network.resize.max_size,
        notice=None,
        has_masks=network.has_masks,
    )
    return card, data


# --- weights files ------------------------------------------------------------------------------------------


def _no_such_model(name: str, suffix: str, files: str) -> str:
    if suffix == ".py" or suffix.startswith(".py:"):
        return (
            f"--model {name}: name a module as `import` does, as in nets:build, in the folder that holds it"
        )
    if (url := Url.parse(name)).is_local and is_folder(url.local_path):
        return f"--model {name} is a directory: give {files}"
    if suffix or not url.is_local or "/" in name or is_there(name):
        what = f"is a {suffix} file" if suffix else "has no suffix"
        return f"--model {name} {what}: give {files}"
    return f"unknown model {name!r}{near(name, NAMES)} Known are {', '.join(NAMES)}, or {files}"


def _card_of_safetensors(name: str, uri: str | None, data: bytes, notice: str | None = None) -> ModelCard:
    shown = uri or name
    metadata, shapes = safetensors_header(shown, data)
    if metadata.get("version") != "1":
        raise UsageError(
            f"{shown} has version {metadata.get('version')} of the format, and this program reads version 1: upgrade it"
        )
    try:
        categories = _categories(json.loads(metadata["categories"]))
        architecture = str(metadata["architecture"])
        min_size, max_size = int(metadata["min_size"]), int(metadata["max_size"])
        network = NETWORKS.get(architecture)
        config = _config_of(metadata, None if network is None else network.config)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{shown} has damaged metadata: {type(error).__name__}: {error}") from error
    if network is None:
        known = ", ".join(NETWORKS)
        raise UsageError(f"{shown} has the unknown architecture {architecture!r}: supported are {known}")
    resize = network.resize
    other = resize.fixed and (min_size, max_size) != (resize.min_size, resize.max_size)
    if not 1 <= min_size <= max_size or max_size % resize.multiple or other:
        raise UsageError(f"{shown} has damaged metadata: sizes {min_size} and {max_size}")
    labels = network.labels_of(shapes)
    check_tensors(shown, architecture, shapes, labels, config)
    check_safetensors(shown, data)
    check_safetensors_values(shown, data)
    return ModelCard(
        name=name,
        uri=uri,
        sha256=hashlib.sha256(data).hexdigest(),
        architecture=architecture,
        categories=categories,
        category_ids=_ids_of_labels(shown, categories, labels),
        min_size=min_size,
        max_size=max_size,
        notice=notice,
        config=config,
        has_masks=network.has_masks,
    )


def _config_of(metadata: Mapping[str, Any], default: NetworkConfig | None) -> NetworkConfig | None:
    """Return the configuration of a file; files of before version 0.3 have none for detectron2's network."""
    if default is None or (isinstance(default, RCNNConfig) and "config" not in metadata):
        return default
    return config_of(metadata["config"], default)


def _categories(entries: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
    """Return the categories of a file's metadata; raise ValueError, KeyError or TypeError if they are not valid."""
    categories = []
    for entry in entries:
        number, name = entry["id"], entry["name"]
        if type(number) is not int or not isinstance(name, str):
            raise ValueError(f"the category {number!r} is named {name!r}")
        name.encode()  # raises for half of a surrogate pair, which could not be written
        if not name.strip():
            raise ValueError(f"the category {number} has an empty name")
        categories.append(Category(number, name))
    for values in ([c.id for c in categories], [c.name for c in categories]):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise ValueError(f"it names the category {twice[0]!r} twice")
    if not categories:
        raise ValueError("it names no category")
    return tuple(categories)


def _ids_of_labels(shown: str, categories: Sequence[Category], labels: int) -> tuple[int, ...]:
    """Return the category id of each label.

    The categories are those of the labels 1, 2, … in their order. If a network has more labels than categories, as
    COCO's 91 for 80, the ids are the labels, and the last label is used.
    """
    ids = [category.id for category in categories]
    if len(ids) == labels - 1:
        return (NO_CATEGORY, *ids)
    if len(ids) < labels - 1 == max(ids) and min(ids) > 0:
        return tuple(label if label in ids else NO_CATEGORY for label in range(labels))
    raise UsageError(f"{shown} names {plural(len(ids), 'category')} for a network of {labels - 1}")


def _card_of_state_dict(uri: str, data: bytes, labels: str | None) -> ModelCard:
    checkpoint = read_checkpoint(uri, data)
    shapes = checkpoint.shapes
    architecture = architecture_of(shapes)
    if architecture is None and (what := unsupported_network(shapes)) is not None:
        raise UsageError(f"{uri} {what}")
    architecture = architecture or architecture_of(shapes, LIKENESS)
    if architecture is None:
        raise UsageError(
            f"{uri} has no weights of torchvision's detectors: convert others with `maskrcnn convert`"
        )
    network = NETWORKS[architecture]
    known = network.labels_of(shapes)
    check_tensors(uri, architecture, shapes, known)
    digest = hashlib.sha256(data).hexdigest()
    if norm_eps_of(architecture, checkpoint, digest) is None:
        raise UsageError(
            f"{uri} does not say with which epsilon its frozen norms were trained: convert it, with `maskrcnn convert "
            f"--norm-eps 0` if it was fine-tuned from torchvision's COCO weights, else with `--norm-eps 1e-5`"
        )
    if labels is None:
        raise UnnamedCategoriesError(
            f"{uri} does not name its categories: give --labels FILE with one name per line, or convert it with "
            "`maskrcnn convert`"
        )
    check_checkpoint_values(uri, checkpoint, data)
    category_names = read_labels(labels)
    if len(category_names) != known - 1:
        raise UsageError(
            f"{uri} is a network of {plural(known - 1, 'category')}, but its labels file names {len(category_names)}"
        )
    ids = tuple(label if name else NO_CATEGORY for label, name in enumerate(category_names, start=1))
    return ModelCard(
        name=_last_part(uri),
        uri=uri,
        sha256=digest,
        architecture=architecture,
        categories=tuple(Category(label, category_names[label - 1]) for label in ids if label != NO_CATEGORY),
        category_ids=(NO_CATEGORY, *ids),
        min_size=network.resize.min_size,
        max_size=network.resize.max_size,
        notice=checkpoint.notice,
        has_masks=network.has_masks,
    )


def _suffix(name: str) -> str:
    return os.path.splitext(_last_part(name))[1].lower()  # noqa: PTH122 may be a URL


def _last_part(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]
