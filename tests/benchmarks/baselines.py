"""What others would do, each at the best setting that leaves its results as they are; to be measured against.

Nothing of this is used by a run. The functions take and give what the engine takes and gives, so that both sides'
results can be compared before their times are.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import box_iou

from maskrcnn.imaging.decode import Limits, decode_image
from maskrcnn.io.parquet import Part, read_table
from maskrcnn.io.schemes import store_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores.remote_store import RemoteStore
from maskrcnn.io.url import Url
from maskrcnn.masks.rle import rle_areas, rle_boxes_xyxy
from maskrcnn.models.model import Model, build_network, save_model
from maskrcnn.models.registry import COCO_CATEGORIES
from maskrcnn.schema import ImageResult, instances_table
from maskrcnn.types import Category, Detections, Pixels


def paste_and_encode(
    boxes: NDArray[np.float32], probabilities: NDArray[np.float32], height: int, width: int
) -> tuple[bytes, ...]:
    """Return masks as run lengths by torchvision's paste and pycocotools' encode, one mask at a time.

    All at once, as torchvision's network does it, gives the same bytes, and takes twice the time or more: it fills
    an array of float32 of all images' pixels, then copies it. See `paste_all_and_encode`.

    Args:
        boxes: (N, 4) xmin, ymin, xmax, ymax, pixels of the image.
        probabilities: (N, M, M).
        height: of the image, pixels.
        width: of the image, pixels.
    """
    encoded = []
    for box, probability in zip(torch.from_numpy(boxes), torch.from_numpy(probabilities), strict=True):
        pasted = paste_masks_in_image(probability[None, None], box[None], (height, width))
        encoded.append(encode_pasted((pasted[0, 0] > 0.5).numpy()))
    return tuple(encoded)


def paste_all_and_encode(
    boxes: NDArray[np.float32], probabilities: NDArray[np.float32], height: int, width: int
) -> tuple[bytes, ...]:
    """Return what `paste_and_encode` does, pasted by one call, as `MaskRCNN.forward` does.

    Memory: 8 bytes for each pixel of the image and each mask.
    """
    pasted = paste_masks_in_image(
        torch.from_numpy(probabilities[:, None]), torch.from_numpy(boxes), (height, width)
    )
    return tuple(encode_pasted(mask) for mask in (pasted[:, 0] > 0.5).numpy())


def encode_pasted(mask: NDArray[np.bool_]) -> bytes:
    """Return pycocotools' run lengths of a mask, (height, width)."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))["counts"]
    return counts


# --- the whole of it, in one process ---


def stock_predict(model: Model, pixels: Pixels) -> Detections:
    """Find the instances of an image as torchvision's own `MaskRCNN.forward` does, and encode its pasted masks.

    Args:
        model: plain torchvision, whose own limits on scores and detections hold.
        pixels: (height, width, 3), uint8.
    """
    height, width, _ = pixels.shape
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div_(255)
    with torch.inference_mode():
        [found] = model.module([image])
        bits = (found["masks"][:, 0] > 0.5).numpy()
    masks = tuple(encode_pasted(mask) for mask in bits)
    rles = [{"size": [height, width], "counts": counts} for counts in masks]
    return Detections(
        height=height,
        width=width,
        boxes=found["boxes"].numpy(),
        labels=np.array(model.card.category_ids, np.int32)[found["labels"].numpy()],
        scores=found["scores"].numpy(),
        masks=masks,
        areas=rle_areas(rles),
        mask_boxes=rle_boxes_xyxy(rles),
        capped=len(masks) == model.module.roi_heads.detections_per_img,
    )


def stock_job(model: Model, paths: Sequence[Path], target: Path) -> list[Detections]:
    """Segment image files one after the other, and write their instances as one Parquet file.

    Threads are torch's, as they are set.
    """
    limits = Limits(10**9, 10**9, 1e9)
    found = [stock_predict(model, decode_image(path.read_bytes(), limits).pixels) for path in paths]
    results = [
        ImageResult(row, row + 1, path.name, str(path), None, None, detections)
        for row, (path, detections) in enumerate(zip(paths, found, strict=True))
    ]
    pq.write_table(instances_table(results, model.categories), target)
    return found


def write_random_model(
    path: Path,
    photos: Sequence[Pixels],
    *,
    architecture: str = "maskrcnn_resnet50_fpn",
    min_size: int = 800,
    max_size: int = 1333,
    seed: int = 0,
) -> None:
    """Write a model with random weights that finds some hundred instances of all sizes in photos like these.

    Plain random weights find nothing, or one category everywhere. So what the heads get is standardised on the
    photos, the classifier's background is raised until `CANDIDATES` boxes a photo pass the score, coarser levels of
    the pyramid get more weight, and the mask head blurs, so that its masks are smooth.
    """
    torch.manual_seed(seed)
    network = build_network(architecture, len(COCO_CATEGORIES) + 1, min_size, max_size)
    tensors = [torch.from_numpy(photo.copy()).permute(2, 0, 1).float().div_(255) for photo in photos]
    with torch.inference_mode():
        _settle_norms(network, tensors)
        heads, predictor = network.roi_heads, network.roi_heads.box_predictor
        _amplify_coarse_levels(network)
        _standardise(network, network.rpn.head.cls_logits, tensors, spread=1.0)
        _standardise(network, predictor.cls_score, tensors, spread=1.5)
        predictor.cls_score.bias[0] = _background(network, tensors)
        for layer in (heads.mask_head, heads.mask_predictor):
            _blur(layer)
        _standardise(network, heads.mask_predictor.mask_fcn_logits, tensors, spread=2.0)
    provenance = {"random": seed}
    save_model(path, network, architecture, COCO_CATEGORIES, min_size, max_size, provenance)


CANDIDATES: Final = 300
"""Boxes per photo that pass the score before suppression."""

_LEVEL_GAIN: Final = 1.6
"""Of a level of the pyramid over the next finer one."""


def _settle_norms(network: MaskRCNN, images: list[Tensor]) -> None:
    """Give the backbone's batch norms the statistics of the images; else activations double from block to block."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average
        norm.train()
    network.backbone(network.transform(images)[0].tensors)
    network.eval()


def _amplify_coarse_levels(network: MaskRCNN) -> None:
    """Amplify coarse levels, so that not only the smallest anchors, of which most are, win."""
    fpn = network.backbone.fpn
    for level, block in enumerate(reversed(list(fpn.layer_blocks))):
        for convolution in block.modules():
            if isinstance(convolution, nn.Conv2d):
                convolution.weight /= _LEVEL_GAIN**level


def _inputs(network: MaskRCNN, layer: nn.Module, images: list[Tensor]) -> Tensor:
    """Return what reaches a layer when the network sees the images, (samples, channels)."""
    seen: list[Tensor] = []

    def keep(_layer: nn.Module, arguments: tuple[Tensor]) -> None:
        features = arguments[0]
        seen.append(features.flatten(2).mT.flatten(0, 1) if features.dim() == 4 else features)

    handle = layer.register_forward_pre_hook(keep)
    for image in images:
        network.eval()
        _without_pasting(network, image)
    handle.remove()
    return torch.cat(seen)


def _without_pasting(network: MaskRCNN, image: Tensor) -> None:
    inputs, _ = network.transform([image])
    features = network.backbone(inputs.tensors)
    proposals, _ = network.rpn(inputs, features)
    network.roi_heads(features, proposals, inputs.image_sizes)


def _standardise(
    network: MaskRCNN, layer: nn.Linear | nn.Conv2d, images: list[Tensor], spread: float
) -> None:
    """Set a linear layer's weights at random so that its outputs have mean 0 and a deviation of `spread`."""
    features = _inputs(network, layer, images)
    mean, deviation = features.mean(0), features.std(0)
    alive = deviation > 0.1 * deviation.mean()  # half-precision has no room for the weights of the others
    weight = torch.where(alive, torch.randn(len(layer.weight), features.shape[1]) / deviation, 0)
    outputs = (features - mean) @ weight.T
    weight *= (spread / outputs.std(0))[:, None]
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(-(weight @ mean))


def _background(network: MaskRCNN, images: list[Tensor]) -> float:
    """Return the background's bias with which `CANDIDATES` boxes an image pass the score."""
    classifier = network.roi_heads.box_predictor.cls_score
    logits = classifier(_inputs(network, classifier, images))
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        shifted = torch.cat([logits[:, :1] + middle, logits[:, 1:]], dim=1)
        passing = int((shifted.softmax(-1)[:, 1:] > network.roi_heads.score_thresh).sum())
        low, high = (middle, high) if passing > CANDIDATES * len(images) else (low, middle)
    return float(classifier.bias[0]) + middle


def _blur(head: nn.Module) -> None:
    """Make each 3 x 3 convolution a blur of mixed channels, and each upsampling a repetition."""
    along = torch.tensor([1.0, 2.0, 1.0])
    kernel = along[:, None] * along / 16
    for layer in head.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            layer.weight.copy_(layer.weight[:, :, :1, :1].expand_as(layer.weight))
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            mix = torch.randn(layer.weight.shape[:2]) * (2 / layer.weight.shape[1]) ** 0.5
            layer.weight.copy_(mix[:, :, None, None] * kernel)


# --- COCO JSON, and fetching ---


def coco_content(
    storage: Storage, parts: Sequence[Part], categories: Sequence[Category], info: dict[str, Any]
) -> dict[str, Any]:
    """Return a COCO dataset as dictionaries, an object an annotation, from a run's tables.

    A score is the shortest number that gives the float32 back.
    """
    content: dict[str, Any] = {
        "info": info,
        "licenses": [],
        "categories": [{"id": c.id, "name": c.name, "supercategory": ""} for c in categories],
        "images": [],
        "annotations": [],
    }
    for part in parts:
        for image in read_table(storage, part.images).to_pylist():
            content["images"].append(
                {
                    "id": image["image_id"],
                    "file_name": image["name"],
                    "width": image["width"],
                    "height": image["height"],
                }
            )
        table = read_table(storage, part.instances)
        scores = table["score"].cast(pa.string()).to_pylist()
        for found, score in zip(table.to_pylist(), scores, strict=True):
            xmin, ymin, xmax, ymax = found["mask_box"].values()
            content["annotations"].append(
                {
                    "id": found["id"],
                    "image_id": found["image_id"],
                    "category_id": found["category_id"],
                    "segmentation": found["segmentation"],
                    "area": found["area"],
                    "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
                    "iscrowd": 0,
                    "score": float(score),
                }
            )
    return content


def json_dump(content: dict[str, Any], path: Path) -> None:
    """Write dictionaries by the standard library."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file)


def orjson_dump(content: dict[str, Any], path: Path) -> None:
    """Write dictionaries by orjson.

    Raises:
        ImportError: it is not installed.
    """
    import orjson

    path.write_bytes(orjson.dumps(content))


def fetch_each(uris: Sequence[str]) -> Iterator[bytes]:
    """Yield objects, fetched by s3fs one after the other."""
    for uri in uris:
        url = Url.parse(uri)
        store = store_of(url)
        assert isinstance(store, RemoteStore)
        yield store.client().cat_file(url.path)


# --- comparing ---

BOX_TOLERANCE_PX: Final = 0.02
MASK_IOU: Final = 0.999
SCORE_TIE: Final = 1e-4
"""Scores so close to the weakest of a full image, or to the threshold, may fall to either side."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two segmenters agree on images."""

    instances: int
    """Of both, matched one to one."""
    ties: int
    """Instances of one side alone, whose score is within `SCORE_TIE` of where the other cut off."""
    thin: int
    """Matched instances whose masks have an IoU below `MASK_IOU`; see `disagreements`."""
    problems: tuple[str, ...]
    """What is neither; none if they agree."""
    swaps: int = 0
    """Pairs of an instance of ours and one of the baseline's, of one label and overlapping by half, where each side
    suppressed the other's: rounding decided between two proposals."""

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            self.instances + other.instances,
            self.ties + other.ties,
            self.thin + other.thin,
            self.problems + other.problems,
            self.swaps + other.swaps,
        )


def agreement(ours: Detections, baseline: Detections, min_score: float) -> Agreement:
    """Compare what two segmenters found in one image.

    Instances match if their labels are equal and their boxes within `BOX_TOLERANCE_PX`.

    Args:
        min_score: below it neither stores an instance.
    """
    distance = np.abs(ours.boxes[:, None] - baseline.boxes[None]).max(2, initial=0.0)
    distance[ours.labels[:, None] != baseline.labels[None]] = np.inf
    free = set(range(len(baseline)))
    pairs = []
    for i in range(len(ours)):
        near = [j for j in free if distance[i, j] <= BOX_TOLERANCE_PX]
        if near:
            j = min(near, key=lambda k: (distance[i, k], abs(ours.scores[i] - baseline.scores[k])))
            free.remove(j)
            pairs.append((i, j))
    matched = {i for i, _ in pairs}
    floor = max([min_score] + [float(side.scores[-1]) for side in (ours, baseline) if side.capped])
    swapped = _swapped(ours, baseline, [i for i in range(len(ours)) if i not in matched], free)
    alone = [float(ours.scores[i]) for i in range(len(ours)) if i not in matched | set(swapped)]
    alone += [float(baseline.scores[j]) for j in free - set(swapped.values())]
    strange = [score for score in alone if abs(score - floor) > SCORE_TIE]
    left, right = ours.rles(), baseline.rles()
    ious = [
        float(coco_mask.iou([left[i]], [right[j]], [0])[0, 0]) if ours.areas[i] else 1.0 for i, j in pairs
    ]
    problems = [f"an instance of one side alone, score {score:.6f} (cut at {floor:.6f})" for score in strange]
    return Agreement(
        len(pairs),
        len(alone) - len(strange),
        sum(iou < MASK_IOU for iou in ious),
        tuple(problems),
        len(swapped),
    )


def _swapped(ours: Detections, baseline: Detections, left: Sequence[int], right: set[int]) -> dict[int, int]:
    """Return pairs of unmatched instances, ours and the baseline's, of one label whose boxes overlap by half."""
    overlap = box_iou(torch.from_numpy(ours.boxes), torch.from_numpy(baseline.boxes)).numpy()
    pairs: dict[int, int] = {}
    for i in left:
        near = [
            j
            for j in right - set(pairs.values())
            if ours.labels[i] == baseline.labels[j] and overlap[i, j] > 0.5
        ]
        if near:
            pairs[i] = max(near, key=lambda j: overlap[i, j])
    return pairs
