"""Convert the weights of other programs into a model file: each tensor is mapped, or the file is refused by its name.

To add a source, add its key mapping to `key_mapping.KEY_MAPPINGS`, a reader of its files to `_READERS`, and a reference
implementation to `_parity`.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError, plural
from ...io.url import Url, is_folder, is_there
from ...types import Category
from ..checkpoint_files import Checkpoint, read_checkpoint, read_labels, read_weights
from ..matterport_config import MatterportConfig, configured
from ..model import Model, build_network, load_model, save_model, set_norm_eps, tensors_of
from ..network_config import NetworkConfig
from ..network_shapes import Shape, current_name
from ..networks import NETWORKS, Resize
from ..published_weights import NORM_EPS, norm_eps_of
from ..rcnn_config import RCNNConfig
from ..registry import COCO_CATEGORIES, NO_CATEGORY, ModelFile, is_own_file
from ..state_dicts import unsupported_network
from .h5_reader import arrays_in_h5
from .key_mapping import KEY_MAPPINGS, source_of, with_eps
from .moves import Origin, Step, moved, shapes_of
from .parity import Reference, Row, StockTorchvision, compare, generated_images
from .parity_matterport import compare_matterport
from .pickle_reader import arrays_in_pickle
from .reference_detectron2 import ReferenceDetectron2
from .reference_matterport import ReferenceMatterport
from .reference_mmdetection import ReferenceMMDetection

__all__ = ["SOURCES", "Converted", "convert"]

SOURCES: Final = ("torchvision", "detectron2", "mmdetection", "matterport")

log = logging.getLogger("maskrcnn")

_MAX_SIZE: Final = 4096
"""The largest side of a resized image, pixels: the maps of such a square take 3 GiB."""


@dataclass(frozen=True, slots=True)
class Converted:
    """The result of a conversion."""

    source: str
    architecture: str
    categories: tuple[Category, ...]
    sha256: str
    """The sha256 of the source file, hexadecimal."""
    place: str
    """The keys in the file under which the weights were, such as `model`; empty: they were the whole file."""
    assumed: dict[str, Any]
    """Settings that the file does not contain: as passed, or the source's defaults."""
    steps: tuple[Step, ...]
    parity: tuple[Row, ...]

    @property
    def within_limit(self) -> bool:
        """Whether every stage agrees with the source within its limit."""
        return all(row.within_limit for row in self.parity)

    def counts(self) -> dict[str, int]:
        """Return the number of tensors that were taken, flipped, …, in the order of first appearance."""
        counts: dict[str, int] = {}
        for step in self.steps:
            counts[step.action] = counts.get(step.action, 0) + 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "source": self.source,
            "architecture": self.architecture,
            "sha256_of_source": self.sha256,
            "place": self.place,
            "categories": [asdict(category) for category in self.categories],
            "assumed": self.assumed,
            "tensors": self.counts(),
            "sound": self.within_limit,
            "parity": [row.to_json() for row in self.parity],
            "parity_note": _PARITY_NOTES[self.source],
            "steps": [asdict(step) for step in self.steps],
        }


_PARITY_NOTES: Final = {
    "torchvision": "Compared with torchvision's own network on the source's tensors, on generated images.",
    "detectron2": "Compared with a reference implementation of detectron2's forward pass "
    "(maskrcnn/models/conversion/reference_detectron2.py) on the source's own tensors, on generated images. "
    "detectron2 itself was not run. Settings that a checkpoint does not contain are those of the model "
    "zoo's configuration: BGR input, ROIAlignV2, frozen norms with epsilon 1e-5, and those listed as assumed.",
    "mmdetection": "Compared with a reference implementation of MMDetection's forward pass "
    "(maskrcnn/models/conversion/reference_mmdetection.py) on the source's own tensors, on generated images. "
    "MMDetection itself was not run. Settings that a checkpoint does not contain are those of its base configurations: "
    "RGB input, style='pytorch', images resized by OpenCV, RoIAlign with sampling_ratio 0, norms with epsilon 1e-5, "
    "and those listed as assumed.",
    "matterport": "Compared with a reference implementation of matterport's forward pass "
    "(maskrcnn/models/conversion/reference_matterport.py) on the source's own tensors, on generated images. "
    "TensorFlow was not run; the reference implementation is tested against tensors that matterport's code "
    "computed under TensorFlow. Settings that a file does not contain are those of matterport's `Config`, or of --set.",
}


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

    Raises:
        UsageError: the file is damaged or of another network; a tensor is missing, unknown or misshapen; the output
            exists or is not a local `.safetensors` path; labels do not fit the classes; the epsilon is not known.
    """
    path = _checked_output(output)
    configured(settings)  # a wrong one is refused before the weights are read
    data = read_weights(weights)
    digest = hashlib.sha256(data).hexdigest()
    tensors, checkpoint = _read(weights, data)
    source = source_of(weights, tensors, source)
    if settings and source != "matterport":
        raise UsageError(
            f"--set is for weights of matterport: leave it out for {weights}, which has those of {source}"
        )
    origin = Origin()
    architecture, moves = KEY_MAPPINGS[source](weights, tensors, origin)
    config = (
        configured(settings) if source == "matterport" else origin.config or NETWORKS[architecture].config
    )
    min_size, max_size = _sizes(NETWORKS[architecture].resize, min_size, max_size)
    eps = _norm_eps(weights, source, architecture, checkpoint, digest, norm_eps)
    if source == "torchvision" and eps != NORM_EPS:
        moves = with_eps(moves, tensors, eps)
    converted, steps = moved(weights, tensors, moves)
    n_labels = NETWORKS[architecture].labels_of(shapes_of(converted))
    categories = _categories(weights, n_labels, labels, checkpoint)

    network = build_network(architecture, n_labels, min_size, max_size, config)
    network.load_state_dict(converted)
    provenance = {"converted_from": source, "file": Path(weights).name, "sha256": digest}
    part = path.with_name(path.name + ".part.safetensors")
    try:
        save_model(
            part, network, architecture, categories, min_size, max_size, provenance, dtype=torch.float32
        )
        model = load_model(str(part))
        rows = _parity(source, tensors, model, config, origin, eps)
        own = {"norm_eps": eps} if source == "torchvision" else {} if config is None else asdict(config)
        assumed = {"min_size": min_size, "max_size": max_size} | own
        place = "" if checkpoint is None else checkpoint.place
        report = Converted(
            source, architecture, categories, digest, place, assumed, tuple(steps), tuple(rows)
        )
        part.chmod(0o644)  # safetensors makes it readable by the owner only
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    path.with_name(path.name + ".report.json").write_text(json.dumps(report.to_json(), indent=1) + "\n")
    path.with_name(path.name + ".report.md").write_text(_markdown(report, Path(weights).name, path.name))
    return report


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


def _sizes(resize: Resize, min_size: int | None, max_size: int | None) -> tuple[int, int]:
    """Return the sizes that images are resized to, by default those of the network."""
    low = resize.min_size if min_size is None else min_size
    high = resize.max_size if max_size is None else max_size
    if not 1 <= low <= high <= _MAX_SIZE:
        raise UsageError(
            f"the sizes {low} and {high} are not valid: give 1 to {_MAX_SIZE}, the smaller first (larger images are "
            "cut into windows)"
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
    if (
        what := unsupported_network({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    ) is not None:
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


# --- reports ------------------------------------------------------------------------------------------------


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
    set_norm_eps(network, eps)
    return StockTorchvision(network)


def _markdown(report: Converted, weights: str, output: str) -> str:
    place = f", under `{report.place}`" if report.place else ""
    lines = [
        f"# {output}",
        "",
        f"Converted from `{weights}`{place} ({report.source}, sha256 {report.sha256}).",
    ]
    lines += [
        f"Architecture `{report.architecture}`, {plural(len(report.categories), 'category')}: "
        f"{', '.join(f'{category.name} ({category.id})' for category in report.categories)}.",
        "",
        f"Not in the file, and assumed: {', '.join(f'{k} {_shown(v)}' for k, v in report.assumed.items())}.",
        "",
        "## Parity",
        "",
    ]
    lines += [_PARITY_NOTES[report.source], "", "| stage | largest difference | | limit | compared | |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {row.stage} | {row.difference:.2g} | {row.unit} | {row.limit:g} | {row.compared:,} | "
        f"{'within the limit' if row.within_limit else 'DIFFERS'} |"
        for row in report.parity
    ]
    counts = ", ".join(f"{count} {action}" for action, count in report.counts().items())
    lines += ["", "## Tensors", "", counts, "", "| source | shape | action | target | shape | reason |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {step.source} | {_sides(step.shape)} | {step.action} | {step.target} | {_sides(step.new_shape)} | "
        f"{step.note} |"
        for step in report.steps
    ]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{number:g}" for number in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sides(shape: Shape) -> str:
    return " x ".join(map(str, shape))
