"""What a model is, before anything is loaded: its file, its digest, and what its labels mean.

Nothing here imports torch, and nothing is unpickled.
"""

import difflib
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import UsageError
from ..io.url import Url
from ..synthetic.planted import PLANTED_CATEGORIES
from ..types import Category
from .checkpoint_files import (
    check_safetensors,
    check_store,
    check_tensors,
    read_labels,
    read_weights,
    safetensors_header,
    tensors_in_pickle,
)
from .matterport_config import MATTERPORT, STRIDE, MatterportConfig, config_of

COCO_NAMES: Final = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, -,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
-, backpack, umbrella, -, -, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, -, wine glass, cup,
fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut,
cake, chair, couch, potted plant, bed, -, dining table, -, -, toilet, -, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, -, book, clock, vase, scissors,
teddy bear, hair drier, toothbrush
"""
"""The meaning of labels 1 to 90 of models trained on COCO; labels marked `-` were never used."""

COCO_CATEGORIES: Final = tuple(
    Category(label, name)
    for label, name in enumerate(COCO_NAMES.replace("\n", " ").strip().split(", "), start=1)
    if name != "-"
)

ARCHITECTURES: Final = (
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet18_fpn",
    "maskrcnn_efficientnet_lite0_fpn",
    "maskrcnn_resnet50_fpn_detectron2",
    *MATTERPORT,
)
"""What can be loaded: torchvision's two networks, two smaller ones, the last of them that of the embedded model,
detectron2's, and matterport's two."""

TRAINABLE: Final = tuple(name for name in ARCHITECTURES if name not in MATTERPORT)
"""Those whose losses are known here."""

CLASS_SCORES: Final = "roi_heads.box_predictor.cls_score.weight"
"""The tensor whose first dimension is the number of labels, the background included."""

SUFFIXES: Final = (".safetensors", ".pth", ".pt")
_FILES: Final = "the path or URL of a .safetensors, .pth or .pt file"
_EMBEDDED: Final = Path(__file__).with_name("scenes.safetensors")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a run records of its model."""

    name: str
    """A known name, or the file's."""
    uri: str | None
    """Where the file was read, if the user named one."""
    sha256: str
    """Of the weights file, hexadecimal."""
    architecture: str
    """One of `ARCHITECTURES`, or `planted`."""
    categories: tuple[Category, ...]
    """What it can find, in the order of its labels."""
    category_ids: tuple[int, ...]
    """The category id of each label, from label 0, the background; 0 where a label means nothing."""
    min_size: int
    """What the shorter side of an image is resized to, pixels, …"""
    max_size: int
    """… unless the longer side would then exceed this."""
    notice: str | None
    """What its user must know before trusting it."""
    config: MatterportConfig | None = None
    """Of matterport's networks."""


@dataclass(frozen=True, slots=True)
class _Published:
    """Weights that torchvision publishes."""

    file: str
    """In torch's cache; the last part of the stem is the start of its sha256."""
    weights: str
    """The torchvision enumeration, whose member `COCO_V1` it is."""
    architecture: str


_PUBLISHED: Final = {
    "coco": _Published(
        "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        "MaskRCNN_ResNet50_FPN_V2_Weights",
        "maskrcnn_resnet50_fpn_v2",
    ),
    "coco-v1": _Published(
        "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        "MaskRCNN_ResNet50_FPN_Weights",
        "maskrcnn_resnet50_fpn",
    ),
}

_RESNET50: Final = ("resnet50-0676ba61.pth", "ResNet50_Weights")
_IMAGENET: Final[Mapping[str, tuple[str, str]]] = {
    "maskrcnn_resnet50_fpn": _RESNET50,
    "maskrcnn_resnet50_fpn_v2": _RESNET50,
    "maskrcnn_resnet18_fpn": ("resnet18-f37072fd.pth", "ResNet18_Weights"),
}
"""What torchvision publishes for a trunk: the file in torch's cache, and the enumeration whose member
`IMAGENET1K_V1` it is."""

NAMES: Final = (*_PUBLISHED, "scenes", "planted", "planted-mosaic")
"""Models that need no file."""


def describe_model(name: str, labels: str | None = None) -> ModelCard:
    """Say what a model is; downloads COCO weights if they are not in torch's cache.

    Args:
        name: `coco`, `coco-v1`, `scenes`, `planted`, `planted-mosaic`, or the path or URL of a weights file.
        labels: for `.pth` and `.pt` files: path or URL of a text file that names a category on each line,
            from label 1; a blank line or `N/A` is a label that means nothing.

    Raises:
        UsageError: there is no such model, or its file is not one; the message says what to do.
        RunError: its store cannot be read at all.
    """
    return read_model(name, labels)[0]


def read_model(name: str, labels: str | None = None) -> tuple[ModelCard, bytes]:
    """Return what `describe_model` does, and the bytes of the weights file, of which it says so.

    Raises:
        UsageError: as `describe_model`.
        RunError: as `describe_model`.
    """
    if not name.strip():
        raise UsageError(f"no model is named; known are {', '.join(NAMES)}, or {_FILES}")
    check_store(name, "weights")
    suffix = _suffix(name)
    if labels is not None and suffix not in (".pth", ".pt"):
        raise UsageError(f"--labels is for .pth and .pt weights; the model {name} has its own categories")
    if name.partition(":")[0] == "planted":
        return _planted(name), b""
    if name.partition(":")[0] == "planted-mosaic":
        return _planted_mosaic(name), b""
    if name == "scenes":
        return _read_scenes()
    if name in _PUBLISHED:
        return _read_published(name)
    if suffix not in SUFFIXES:
        raise UsageError(_no_such_model(name, suffix))
    data = read_weights(name)
    if suffix == ".safetensors":
        return _card_of_safetensors(_last_part(name), name, data), data
    return _card_of_state_dict(name, data, labels), data


def category_ids_named(categories: Sequence[Category], names: Collection[str]) -> frozenset[int]:
    """Return the ids of the categories of these names.

    Raises:
        UsageError: a name is not among the categories.
    """
    ids = {category.name: category.id for category in categories}
    for name in names:
        if name not in ids:
            listed = ", ".join(list(ids)[:100])
            raise UsageError(f"the model has no category {name!r}{_near(name, ids)} It has {listed}")
    return frozenset(ids[name] for name in names)


def architecture_of(tensors: Collection[str]) -> str | None:
    """Tell torchvision's networks apart by the names of their tensors; None if it is none of them."""
    if CLASS_SCORES not in tensors or "backbone.body.layer1.0.conv1.weight" not in tensors:
        return None
    if "roi_heads.box_head.fc6.weight" in tensors:
        deep = "backbone.body.layer1.0.conv3.weight" in tensors
        return "maskrcnn_resnet50_fpn" if deep else "maskrcnn_resnet18_fpn"
    return "maskrcnn_resnet50_fpn_v2" if "roi_heads.box_head.0.0.weight" in tensors else None


# --- models without a file of the user's --------------------------------------------------------------------


def _planted(name: str) -> ModelCard:
    try:
        sleep_s = float(name.partition(":")[2] or 0)
    except ValueError:
        sleep_s = -1
    if not 0 <= sleep_s <= 3600:
        raise UsageError(f"--model {name}: give the seconds to sleep for each image, as in planted:0.05")
    return _card_of_truth("planted", "planted 1")


def _planted_mosaic(name: str) -> ModelCard:
    jitter = name.partition(":")[2] or "0"
    if not (jitter.isdecimal() and len(jitter) == 1):
        raise UsageError(f"--model {name}: give the pixels of jitter, 0 to 9, as in planted-mosaic:2")
    return _card_of_truth("planted-mosaic", f"planted-mosaic 1 {jitter}")


def _card_of_truth(name: str, identity: str) -> ModelCard:
    return ModelCard(
        name=name,
        uri=None,
        sha256=hashlib.sha256(identity.encode()).hexdigest(),
        architecture="planted",
        categories=PLANTED_CATEGORIES,
        category_ids=(0, *(category.id for category in PLANTED_CATEGORIES)),
        min_size=800,
        max_size=1333,
        notice=f"`{name}` is no model: it reads the truth that test images carry, and finds nothing else",
    )


def _read_scenes() -> tuple[ModelCard, bytes]:
    if not _EMBEDDED.exists():
        raise UsageError(
            f"the embedded model is missing: {_EMBEDDED.name} was not installed with the package"
        )
    data = _EMBEDDED.read_bytes()
    notice = "the embedded model knows only generated aerial scenes"
    return _card_of_safetensors("scenes", None, data, notice), data


def read_imagenet(architecture: str) -> tuple[Path, bytes]:
    """Return torchvision's ImageNet weights for a network's trunk: where they are, and their bytes.

    Raises:
        UsageError: there are none for this network, or they are not in torch's cache and cannot be downloaded.
    """
    if architecture not in _IMAGENET:
        raise UsageError(f"torchvision publishes no ImageNet weights for {architecture}")
    file, enumeration = _IMAGENET[architecture]
    path = _torch_hub() / "checkpoints" / file
    if not path.exists():
        way_out = f"put {file} there (TORCH_HOME moves the place)"
        _download(f"imagenet:{architecture}", f"{enumeration}.IMAGENET1K_V1", path, way_out)
    return path, _whole(path)[0]


def _whole(path: Path) -> tuple[bytes, str]:
    """Return a file of torch's cache and its sha256, of which its name holds the beginning."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(path.stem.rpartition("-")[2]):
        raise UsageError(f"{path} is damaged: its sha256 begins with {digest[:8]}; delete it and try again")
    return data, digest


def _read_published(name: str) -> tuple[ModelCard, bytes]:
    published = _PUBLISHED[name]
    path = _torch_hub() / "checkpoints" / published.file
    if not path.exists():
        way_out = (
            f"put {published.file} there (TORCH_HOME moves the place), or use --model PATH.safetensors, "
            "or --model scenes, which knows only generated scenes"
        )
        _download(name, f"detection.{published.weights}.COCO_V1", path, way_out)
    data, digest = _whole(path)
    used = {category.id for category in COCO_CATEGORIES}
    card = ModelCard(
        name=name,
        uri=None,
        sha256=digest,
        architecture=published.architecture,
        categories=COCO_CATEGORIES,
        category_ids=tuple(label if label in used else 0 for label in range(91)),
        min_size=800,
        max_size=1333,
        notice=None,
    )
    return card, data


def _torch_hub() -> Path:
    """Return the directory of torch's downloads by torch's rules, without importing it."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))  # noqa: PTH118 `~` stands for home
    return Path(home).expanduser() / "hub"


def _download(name: str, member: str, path: Path, way_out: str) -> None:
    """Let torchvision download its weights, a member of an enumeration of its models, in another process."""
    code = f"from torchvision import models; models.{member}.get_state_dict(progress=False, check_hash=True)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode == 0 and path.exists():
        return
    cause = (done.stderr.strip() or "no reason given").splitlines()[-1]
    raise UsageError(
        f"the weights of --model {name} are not at {path} and could not be downloaded ({cause}). Without a "
        f"network: {way_out}"
    )


# --- weights files ------------------------------------------------------------------------------------------


def _no_such_model(name: str, suffix: str) -> str:
    if Url.parse(name).is_local and Path(name).is_dir():
        return f"--model {name} is a directory; give {_FILES} in it"
    if suffix or not Url.parse(name).is_local or "/" in name or Path(name).exists():
        what = f"a {suffix} file" if suffix else "without a suffix"
        return f"--model {name} is {what}; weights are {_FILES}"
    return f"unknown model {name!r}{_near(name, NAMES)} Known are {', '.join(NAMES)}, or {_FILES}"


def _card_of_safetensors(name: str, uri: str | None, data: bytes, notice: str | None = None) -> ModelCard:
    shown = uri or name
    metadata, shapes = safetensors_header(shown, data)
    if not isinstance(metadata, dict) or metadata.get("format") != "maskrcnn-ray":
        raise UsageError(
            f"{shown} does not say what its labels mean: it lacks maskrcnn-ray's metadata (architecture, "
            "categories, min_size, max_size), which `maskrcnn.models.build.save_model` writes"
        )
    if metadata.get("version") != "1":
        raise UsageError(f"{shown} has version {metadata.get('version')} of the format; known is 1: upgrade")
    try:
        categories = _categories(json.loads(metadata["categories"]))
        architecture = str(metadata["architecture"])
        min_size, max_size = int(metadata["min_size"]), int(metadata["max_size"])
        config = config_of(metadata["config"]) if architecture in MATTERPORT else None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{shown} has damaged metadata: {type(error).__name__}: {error}") from error
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UsageError(f"{shown} is for the unknown architecture {architecture!r}; known are {known}")
    if not 1 <= min_size <= max_size or (config is not None and max_size % STRIDE):
        raise UsageError(f"{shown} has damaged metadata: sizes {min_size} and {max_size}")
    labels = _labels_of(shapes)
    check_tensors(shown, architecture, shapes, labels)
    check_safetensors(shown, data)
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
    )


def _categories(entries: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
    """Return the categories of the metadata. Raises ValueError, KeyError, TypeError."""
    categories = []
    for entry in entries:
        number, name = entry["id"], entry["name"]
        if type(number) is not int or not isinstance(name, str):
            raise ValueError(f"the category {number!r} is named {name!r}")
        name.encode()  # A half of a surrogate pair cannot be written.
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


def _labels_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many labels a network has, the background included; 0 if its tensors do not say so."""
    return (*shapes.get(CLASS_SCORES, ()), 0)[0]


def _ids_of_labels(shown: str, categories: Sequence[Category], labels: int) -> tuple[int, ...]:
    """Return the category id of each label.

    Categories are those of the labels 1, 2, … in their order; where a network has further labels, as COCO's
    91 for 80 categories, the ids are the labels, and the last label is used.
    """
    ids = [category.id for category in categories]
    if len(ids) == labels - 1:
        return (0, *ids)
    if len(ids) < labels - 1 == max(ids):
        return tuple(label if label in ids else 0 for label in range(labels))
    raise UsageError(f"{shown} names {len(ids)} categories for a network of {labels - 1}")


def _card_of_state_dict(uri: str, data: bytes, labels: str | None) -> ModelCard:
    shapes = tensors_in_pickle(uri, data)
    architecture = architecture_of(shapes)
    if architecture is None:
        raise UsageError(f"{uri} holds no weights of torchvision's Mask R-CNN with ResNet-50 and FPN")
    known = _labels_of(shapes)
    check_tensors(uri, architecture, shapes, known)
    if labels is None:
        raise UsageError(f"{uri} does not say what its labels mean: name them with --labels FILE, one a line")
    category_names = read_labels(labels)
    if len(category_names) != known - 1:
        raise UsageError(
            f"{uri} is a network of {known - 1} categories, but {len(category_names)} labels are named"
        )
    ids = tuple(label if name else 0 for label, name in enumerate(category_names, start=1))
    return ModelCard(
        name=_last_part(uri),
        uri=uri,
        sha256=hashlib.sha256(data).hexdigest(),
        architecture=architecture,
        categories=tuple(Category(label, category_names[label - 1]) for label in ids if label),
        category_ids=(0, *ids),
        min_size=800,
        max_size=1333,
        notice=None,
    )


def _suffix(name: str) -> str:
    return os.path.splitext(_last_part(name))[1].lower()  # noqa: PTH122 may be a URL


def _last_part(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]


def _near(name: str, known: Collection[str]) -> str:
    spelled = {word.lower(): word for word in known}
    match = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.5)
    return f"; did you mean {spelled[match[0]]!r}?" if match else "."
