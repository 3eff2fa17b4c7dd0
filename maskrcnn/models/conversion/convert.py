"""Convert the weights of other programs into a model file: each tensor is mapped, or the file is refused by its name.

To add a source, add its key mapping to `key_mapping.KEY_MAPPINGS`, a reader of its files to `_READERS`, and a reference
implementation to `_parity`.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError, plural
from ...io.url import Url, is_folder, is_there
from ...types import Category
from ..architectures.matterport_config import MatterportConfig, configured
from ..architectures.network_config import NetworkConfig
from ..architectures.network_shapes import current_name
from ..architectures.rcnn_config import MMDETECTION, RCNNConfig
from ..model import Model, build_network, load_model, save_model, set_norm_eps, tensors_of
from ..network_entry import Resize
from ..networks import NETWORKS, architecture_of
from ..registry import COCO_CATEGORIES, NO_CATEGORY, ModelFile, is_own_file
from ..weights.checkpoint_files import Checkpoint, read_checkpoint, read_labels, read_weights
from ..weights.published_weights import NORM_EPS, norm_eps_of
from ..weights.state_dicts import unsupported_network
from .detectron2_config import Detectron2Settings, read_settings
from .h5_reader import arrays_in_h5
from .key_mapping import KEY_MAPPINGS, source_of, with_eps
from .keys_detectron2 import architecture_of_detectron2
from .mmdetection_config import origin_of_text
from .moves import Move, Origin, Step, moved, shapes_of
from .parity import Reference, Row, StockTorchvision, compare, generated_images
from .parity_matterport import compare_matterport
from .pickle_reader import arrays_in_pickle
from .reference_detectron2 import ReferenceDetectron2
from .reference_matterport import ReferenceMatterport
from .reference_mmdetection import ReferenceMMDetection
from .report import Converted, write_report

__all__ = ["SOURCES", "Converted", "convert"]

SOURCES: Final = ("torchvision", "detectron2", "mmdetection", "matterport")

log = logging.getLogger("maskrcnn")

_MAX_SIZE: Final = 4096
"""The largest side of a resized image, pixels: the maps of such a square take 3 GiB."""


def convert(
    weights: str,
    output: str,
    labels: str | None = None,
    source: str = "auto",
    *,
    min_size: int | None = None,
    max_size: int | None = None,
    norm_eps: float | None = None,
    settings: Sequence[str] = (),
    config: str | None = None,
) -> Converted:
    """Convert a weights file, and write reports about the tensors and the comparison with the source next to it.

    Args:
        weights: path or URL of a `.pth`, `.pt`, `.ckpt`, `.bin`, `.safetensors`, `.pkl` or `.h5` file.
        output: path of the `.safetensors` file to write; the reports are `OUTPUT.report.json` and `.md`.
        labels: path or URL of category names, one per line, from the first category; None: COCO's, if their number
            fits.
        source: one of `SOURCES`, or `auto`.
        min_size: the length that the shorter side of an image is resized to, pixels, …; None: 800.
        max_size: … unless the longer side would then exceed this; None: 1333, for matterport's networks 1024.
        norm_eps: the epsilon of the norms that weights of torchvision were trained with; None: as `norm_eps_of` knows.
        settings: for matterport's networks: values of its `InferenceConfig`, such as `RPN_NMS_THRESHOLD=0.7`.
        config: for detectron2's networks: path or URL of the `config.yaml` that its trainer wrote; None: the settings
            are those of the model zoo.

    Raises:
        UsageError: the file is damaged or of another network; a tensor is missing, unknown or misshapen; the output
            exists or is no local `.safetensors` path; labels do not fit; the epsilon or a setting is not supported.
    """
    path = _checked_output(output)
    configured(settings)  # a wrong setting is refused before the weights are read
    described = None if config is None else read_settings(config)
    data = read_weights(weights)
    digest = hashlib.sha256(data).hexdigest()
    tensors, checkpoint = _read(weights, data)
    source = source_of(weights, tensors, source)
    origin = _origin(weights, source, described, tensors, checkpoint)
    architecture, moves = KEY_MAPPINGS[source](weights, tensors, origin)
    network_config = (
        _network_config(weights, source, settings) or origin.config or NETWORKS[architecture].config
    )
    sizes = _sizes(NETWORKS[architecture].resize, origin, min_size, max_size)
    eps = _norm_eps(weights, source, architecture, checkpoint, digest, norm_eps)
    moves = moves if eps == NORM_EPS else with_eps(moves, tensors, eps)
    converted, steps = _moved(weights, tensors, moves, config)
    n_labels = NETWORKS[architecture].labels_of(shapes_of(converted))
    categories = _categories(weights, n_labels, labels, checkpoint)

    network = build_network(architecture, n_labels, *sizes, network_config)
    network.load_state_dict(converted)
    provenance = {"converted_from": source, "file": Path(weights).name, "sha256": digest}
    part = path.with_name(path.name + ".part.safetensors")
    try:
        save_model(part, network, architecture, categories, *sizes, provenance, dtype=torch.float32)
        model = load_model(str(part))
        rows = _parity(source, tensors, model, network_config, origin, eps)
        assumed: dict[str, Any] = dict(zip(("min_size", "max_size"), sizes, strict=True))
        assumed |= {"norm_eps": eps} if network_config is None else asdict(network_config)
        place = checkpoint.place if checkpoint else ""
        report = Converted(
            source, architecture, categories, digest, place, assumed, tuple(steps), tuple(rows)
        )
        part.chmod(0o644)  # safetensors makes it readable by the owner only
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    write_report(report, Path(weights).name, path)
    return report


def _moved(
    uri: str, tensors: Mapping[str, Any], moves: list[Move], config: str | None
) -> tuple[dict[str, Tensor], list[Step]]:
    """Return the tensors as the network has them. Of those that do not fit, the configuration may be the cause."""
    try:
        return moved(uri, tensors, moves)
    except UsageError as error:
        if config is None:
            raise
        raise UsageError(f"{error}; if the file is right, --config {config} is of another network") from error


def _network_config(uri: str, source: str, settings: Sequence[str]) -> MatterportConfig | None:
    """Return the configuration of a network of matterport, if settings are given."""
    if not settings:
        return None
    if source != "matterport":
        raise UsageError(
            f"--set is for weights of matterport: leave it out for {uri}, which has those of {source}"
        )
    return configured(settings)


def _origin(
    uri: str,
    source: str,
    described: Detectron2Settings | None,
    tensors: Mapping[str, Tensor],
    checkpoint: Checkpoint | None,
) -> Origin:
    """Return what is known of a network besides its tensors, after a comparison with what they show."""
    if described is None:
        if source == "mmdetection" and checkpoint and checkpoint.configuration:
            return origin_of_text(uri, checkpoint.configuration, MMDETECTION)
        return Origin()
    if source != "detectron2":
        raise UsageError(
            f"--config is for weights of detectron2: leave it out for {uri}, which has those of {source}"
        )
    shapes = shapes_of(tensors)
    architecture = architecture_of_detectron2(shapes)
    network = NETWORKS[architecture]
    described.check(
        {
            "MODEL.MASK_ON": network.has_masks,
            "MODEL.RESNETS.DEPTH": 50 if "resnet50" in architecture else 101,
            "MODEL.RESNETS.NUM_GROUPS": 32 if "resnext" in architecture else 1,
            "MODEL.ROI_HEADS.NUM_CLASSES": network.labels_of(shapes) - 1,
        }
    )
    config = described.applied_to(architecture)
    return Origin(config, described.bgr, described.min_size, described.max_size)


def _parity(
    source: str,
    tensors: Mapping[str, Any],
    model: Model,
    config: NetworkConfig | None,
    origin: Origin,
    eps: float,
) -> Sequence[Row]:
    """Compare the converted model with what the source's own network computes, stage by stage."""
    sizes = model.card.min_size, model.card.max_size
    if isinstance(config, MatterportConfig):
        return _compare_matterport(tensors, model, *sizes, config)
    reference: Reference
    if isinstance(config, RCNNConfig) and source == "mmdetection":
        reference = ReferenceMMDetection(tensors, *sizes, config, bgr=origin.bgr is True)
    elif isinstance(config, RCNNConfig):
        reference = ReferenceDetectron2(tensors, *sizes, config, bgr=origin.bgr is not False)
    else:
        reference = _stock(tensors, model, eps)
    return compare(reference, model, generated_images())


def _norm_eps(
    uri: str,
    source: str,
    architecture: str,
    checkpoint: Checkpoint | None,
    digest: str,
    given: float | None,
) -> float:
    """Return the epsilon of the norms of weights of torchvision: as given, or as far as it can be known."""
    if given is not None:
        if source != "torchvision":
            raise UsageError(
                f"--norm-eps is for weights of torchvision: leave it out for {uri}, which has those of {source}"
            )
        if not 0 <= given < 1:
            raise UsageError(f"--norm-eps must be from 0 to below 1, not {given:g}")
    if source != "torchvision" or checkpoint is None:
        return NORM_EPS
    known = norm_eps_of(architecture, checkpoint, digest) if given is None else given
    if known is None:
        raise UsageError(
            f"{uri} does not say with which epsilon its frozen norms were trained: give --norm-eps 0 if it was "
            f"fine-tuned from torchvision's COCO weights, else --norm-eps 1e-5"
        )
    return known


def _sizes(resize: Resize, origin: Origin, min_size: int | None, max_size: int | None) -> tuple[int, int]:
    """Return the sizes that images are resized to, by default those of its configuration or of the network."""
    low = origin.min_size or resize.min_size if min_size is None else min_size
    high = origin.max_size or resize.max_size if max_size is None else max_size
    if resize.fixed and (low, high) != (resize.min_size, resize.max_size):
        raise UsageError(
            f"this network resizes every image to {resize.min_size} x {resize.min_size} pixels: leave --min-size and "
            "--max-size out"
        )
    if not 1 <= low <= high <= _MAX_SIZE:
        given = (origin.min_size or origin.max_size) and None in (min_size, max_size)
        stated = ", of INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST in --config," if given else ""
        raise UsageError(
            f"the sizes {low} and {high}{stated} are not valid: give --min-size and --max-size of 1 to {_MAX_SIZE}, "
            "the smaller first (larger images are cut into windows)"
        )
    if high % resize.multiple:
        raise UsageError(f"--max-size {high} does not fit this network: give a multiple of {resize.multiple}")
    return low, high


def _checked_output(output: str) -> Path:
    if not Url.parse(output).is_local or not output.lower().endswith(".safetensors"):
        raise UsageError(f"OUT must be a local path that ends in .safetensors, not {output}")
    path = Path(output)
    if is_there(path):
        raise UsageError(f"{output} exists: remove it, or give another name")
    if not is_folder(path.parent):
        raise UsageError(f"the folder of {output} does not exist: create it")
    return path


# --- reading ------------------------------------------------------------------------------------------------


def _read(uri: str, data: bytes) -> tuple[dict[str, Tensor], Checkpoint | None]:
    """Return the tensors of a file, and, of a state dict, how it was found in the file."""
    tensors, checkpoint = _read_by_suffix(uri, data)
    shapes = {current_name(name): tuple(tensor.shape) for name, tensor in tensors.items()}
    if architecture_of(shapes) is None and (what := unsupported_network(shapes)) is not None:
        raise UsageError(f"{uri} {what}")
    return tensors, checkpoint


def _read_by_suffix(uri: str, data: bytes) -> tuple[dict[str, Tensor], Checkpoint | None]:
    suffix = Path(uri).suffix.lower()
    if suffix in _CHECKPOINTS:
        if is_own_file(ModelFile(uri, suffix), data):
            raise UsageError(f"{uri} needs no conversion: it is a model that maskrcnn-ray wrote, for --model")
        checkpoint = read_checkpoint(uri, data)
        if checkpoint.notice:
            log.warning("%s: %s", uri, checkpoint.notice)
        return tensors_of(uri, checkpoint, data), checkpoint
    if suffix not in _READERS:
        raise UsageError(
            f"{uri} is not a weights file that can be converted: give one of {', '.join((*_CHECKPOINTS, *_READERS))}"
        )
    return _READERS[suffix](uri, data), None


def _read_pickle(uri: str, data: bytes) -> dict[str, Tensor]:
    arrays, _ = arrays_in_pickle(uri, data)
    return {name: torch.from_numpy(_torch_compatible(array)) for name, array in arrays.items()}


def _torch_compatible(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array with a type that torch has."""
    return array if array.dtype.kind != "u" or array.dtype.itemsize == 1 else array.astype(np.int64)


def _read_h5(uri: str, data: bytes) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays_in_h5(uri, data).items()}


_CHECKPOINTS: Final = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors")
_READERS: Final[Mapping[str, Callable[[str, bytes], dict[str, Tensor]]]] = {
    ".pkl": _read_pickle,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
}


def _categories(
    uri: str, n_labels: int, labels: str | None, checkpoint: Checkpoint | None
) -> tuple[Category, ...]:
    """Return the categories in the order of their labels, without the labels that have no name."""
    count = n_labels - 1
    stored = () if checkpoint is None else checkpoint.classes
    if labels is None and len(stored) == count and stored != tuple(each.name for each in COCO_CATEGORIES):
        return tuple(Category(label, name) for label, name in enumerate(stored, start=1))
    if labels is None:
        if count not in (80, 90):
            raise UsageError(
                f"{uri} does not name its {count} classes: give --labels FILE with one name per line"
            )
        return COCO_CATEGORIES
    names = read_labels(labels)
    if len(names) != count:
        hint = "; leave the background out" if len(names) == count + 1 else ""
        raise UsageError(
            f"{uri} is a network of {plural(count, 'category')}, but its labels file names {len(names)}{hint}"
        )
    if not names[-1]:
        raise UsageError(f"the labels file {labels} must name the last of the {count} classes")
    return tuple(Category(label, name) for label, name in enumerate(names, start=1) if name)


# --- comparing ----------------------------------------------------------------------------------------------


def _compare_matterport(
    tensors: Mapping[str, Tensor], model: Model, min_size: int, max_size: int, config: MatterportConfig
) -> list[Row]:
    """Compare a converted model with the reference implementation of matterport's network."""
    named = [label for label, category in enumerate(model.card.category_ids) if category != NO_CATEGORY]
    reference = ReferenceMatterport(tensors, min_size, max_size, config, named)
    return compare_matterport(reference, model, generated_images())


def _stock(tensors: Mapping[str, Tensor], model: Model, eps: float) -> StockTorchvision:
    """Return torchvision's own network with the tensors of a file."""
    card = model.card
    network = build_network(card.architecture, len(card.category_ids), card.min_size, card.max_size)
    state = {current_name(name): tensor for name, tensor in tensors.items()}
    network.load_state_dict(network.state_dict() | state)
    if eps != NORM_EPS:  # an SSDLite is built with another one
        set_norm_eps(network, eps)
    return StockTorchvision(network)
