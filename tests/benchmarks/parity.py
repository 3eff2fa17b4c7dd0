"""Compare every network as it runs here with its source: the same instances, at what cost.

Run `python -m tests.benchmarks.parity`: generated scenes, or photos of a folder with `--photos`. For torchvision's
networks the source is torchvision's own code; both run in this process, image by image in turns. For those of
detectron2 and MMDetection, which are not run, it is the reference implementation that `maskrcnn convert` compares with:
it shows that the instances are the same, and nothing about speed. Weights are random, shaped so that scores are apart.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from checkpoints import detectron2_tensors, mmdetection_tensors
from networks import settle
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from maskrcnn.models.architectures.rcnn_config import RCNNConfig
from maskrcnn.models.conversion.key_mapping import KEY_MAPPINGS
from maskrcnn.models.conversion.moves import Origin, moved
from maskrcnn.models.conversion.parity import StockTorchvision, own_limits
from maskrcnn.models.conversion.reference_detectron2 import Instances, ReferenceDetectron2
from maskrcnn.models.conversion.reference_mmdetection import ReferenceMMDetection
from maskrcnn.models.model import Model, build_network
from maskrcnn.models.networks import NETWORKS
from maskrcnn.models.registry import NO_CATEGORY, ModelCard
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.synthetic.scenes import render_scene
from maskrcnn.types import Category, Detections, Pixels

CLASSES = 90
DETECTORS = tuple(
    name for name, network in NETWORKS.items() if network.from_state_dict and not network.has_masks
)
"""torchvision's detectors of boxes."""
COMPARED = tuple(
    name
    for name, network in NETWORKS.items()
    if network.from_state_dict or isinstance(network.config, RCNNConfig)
)
"""All but the embedded models' network, whose source this project is, and matterport's (`benchmarks.matterport`)."""


@dataclass
class Parity:
    """The differences of one network over all images."""

    instances: int = 0
    unmatched: int = 0
    box_px: float = 0.0
    score: float = 0.0
    mask_pixels: int = 0
    """Of the source's masks."""
    other_pixels: int = 0
    """That are in one of two masks of an instance only."""

    def add(self, found: Detections, expected: Instances) -> None:
        """Match what was found in an image with what the source finds in it."""
        boxes, labels, scores = expected.boxes.numpy(), expected.labels.numpy(), expected.scores.numpy()
        free = np.ones(len(found), np.bool_)
        # torchvision's networks of one stage may return the background, in the place of others.
        used = np.flatnonzero(labels > 0)
        self.instances += len(used)
        for index in used.tolist():
            apart = np.abs(found.boxes - boxes[index]).max(1, initial=0.0)
            fit = np.where(
                free & (found.labels == labels[index]), apart + np.abs(found.scores - scores[index]), np.inf
            )
            near = int(fit.argmin()) if len(fit) else -1
            if near < 0 or fit[near] > 1:
                self.unmatched += 1
                continue
            free[near] = False
            self.box_px = max(self.box_px, float(apart[near]))
            self.score = max(self.score, abs(float(found.scores[near] - scores[index])))
            if expected.masks is not None:
                mask = coco_mask.encode(np.asfortranarray(expected.masks[index], np.uint8))
                area = int(coco_mask.area(mask))
                both = int(coco_mask.area(coco_mask.merge([found.rles()[near], mask], intersect=True)))
                self.mask_pixels += area
                self.other_pixels += area + int(found.areas[near]) - 2 * both
        self.unmatched += max(int(free.sum()) - int((labels == 0).sum()), 0)


def random_model(
    architecture: str,
    photos: list[Tensor],
    size: int | None,
    classes: int = CLASSES,
    seed: int = 3,
    change: Callable[[torch.nn.Module], object] | None = None,
) -> Model:
    """Return a network of torchvision with random weights whose scores are apart.

    Args:
        architecture: one of `networks.ARCHITECTURES`.
        photos: (3, H, W) from 0 to 1, by which its outputs are shaped.
        size: the shorter side of an image after the resize, pixels; None, and networks of one size: their own.
        classes: without the background.
        seed: of the weights.
        change: what to change in the network before its outputs are shaped.
    """
    torch.manual_seed(seed)
    network = build_network(architecture, classes + 1, *_sizes(architecture, size)).eval()
    if change is not None:
        change(network)
    settle(network, photos)
    return _described(architecture, network, classes, *_sizes(architecture, size))


def _sizes(architecture: str, size: int | None) -> tuple[int, int]:
    resize = NETWORKS[architecture].resize
    ratio = 1.0 if size is None or resize.fixed else min(size / resize.min_size, 1.0)
    return round(resize.min_size * ratio), round(resize.max_size * ratio)


def _described(
    architecture: str, network: torch.nn.Module, classes: int, min_size: int, max_size: int
) -> Model:
    entry = NETWORKS[architecture]
    card = ModelCard(
        name=architecture,
        uri=None,
        sha256="",
        architecture=architecture,
        categories=tuple(Category(label, f"class {label}") for label in range(1, classes + 1)),
        category_ids=(NO_CATEGORY, *range(1, classes + 1)),
        min_size=min_size,
        max_size=max_size,
        notice=None,
        config=entry.config,
        has_masks=entry.has_masks,
    )
    return Model(network.eval(), card)


def _of_a_zoo(
    architecture: str, config: RCNNConfig, size: int | None, classes: int
) -> tuple[Model, Callable[[Pixels], Instances]]:
    """Return a network of detectron2 or MMDetection with random weights, and its reference implementation."""
    source = "mmdetection" if architecture.endswith("mmdetection") else "detectron2"
    tensors_of = mmdetection_tensors if source == "mmdetection" else detectron2_tensors
    tensors = tensors_of(classes, architecture=architecture)
    name, moves = KEY_MAPPINGS[source](architecture, tensors, Origin())
    converted, _ = moved(architecture, tensors, moves)
    sizes = _sizes(architecture, size)
    network = build_network(name, classes + 1, *sizes, config)
    network.load_state_dict(converted)
    reference = (ReferenceMMDetection if source == "mmdetection" else ReferenceDetectron2)(
        tensors, *sizes, config
    )
    return _described(name, network, classes, *sizes), reference.instances


def compare_float64(architecture: str, images: list[Pixels], size: int | None) -> Parity:
    """Return the differences from torchvision's own code in float64: what rounding alone amounts to."""
    tensors = [torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in images]
    model = random_model(architecture, tensors, size)
    min_score, max_detections = own_limits(model.module)
    segmenter = MaskRCNNSegmenter(model, min_score=min_score, max_detections=max_detections)
    exact, parity = copy.deepcopy(model.module).double(), Parity()
    for tensor, found in zip(tensors, segmenter.segment(images), strict=True):
        with torch.inference_mode():
            (output,) = exact([tensor.double()])
        masks = (output["masks"][:, 0] >= 0.5).numpy() if "masks" in output else None
        boxes, scores = output["boxes"].float(), output["scores"].float()
        parity.add(found, Instances(boxes, output["labels"], scores, masks))
    return parity


def compare(
    architecture: str, images: list[Pixels], size: int | None, repeats: int, classes: int = CLASSES
) -> tuple[Parity, list[tuple[float, float]]]:
    """Return the differences, and the CPU seconds an image of this code and of the source, in each repeat."""
    config = NETWORKS[architecture].config
    if isinstance(config, RCNNConfig):
        model, instances = _of_a_zoo(architecture, config, size, classes)
    else:
        tensors = [torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in images]
        model = random_model(architecture, tensors, size, classes)
        instances = StockTorchvision(model.module).instances
    min_score, max_detections = own_limits(model.module)
    segmenter = MaskRCNNSegmenter(model, min_score=min_score, max_detections=max_detections)
    parity, seconds = Parity(), []
    for repeat in range(repeats + 1):
        spent = [0.0, 0.0]
        for image in images:
            began = time.process_time()
            with torch.inference_mode():
                expected = instances(image)
            between = time.process_time()
            (found,) = segmenter.segment([image])
            spent[0] += between - began
            spent[1] += time.process_time() - between
            if repeat == 0:
                parity.add(found, expected)
        if repeat:  # the first one is the warm-up
            seconds.append((spent[1] / len(images), spent[0] / len(images)))
    return parity, seconds


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(COMPARED)}; all of them"
    )
    parser.add_argument("--photos", type=Path, metavar="DIR", help="JPEG photos; by default generated scenes")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument(
        "--size", type=int, metavar="PX", help="of the shorter side; by default each network's own"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--float64",
        action="store_true",
        help="compare with torchvision in float64 instead: what rounding costs",
    )
    options = parser.parse_args()
    paths = sorted(options.photos.rglob("*.jpg"))[: options.images] if options.photos else []
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    images = images or [render_scene(seed, 480).image for seed in range(options.images)]
    if len(images) < 2 and any(NETWORKS[name].resize.fixed for name in options.networks or COMPARED):
        parser.error("the weights of an SSD are shaped by two images or more: give --images 4")
    print(f"{len(images)} images, torch {torch.__version__}, {torch.get_num_threads()} threads")
    heads = f"{'instances':>9} {'unmatched':>9} {'box px':>8} {'score':>8} {'pixels':>8}"
    print(f"{'network':42} {heads}  CPU time, of torchvision's; images a CPU second, of both")
    for architecture in options.networks or COMPARED:
        if options.float64:
            parity, seconds = compare_float64(architecture, images, options.size), []
        else:
            parity, seconds = compare(architecture, images, options.size, options.repeats)
        values = f"{parity.instances:9} {parity.unmatched:9} {parity.box_px:8.4f} {parity.score:8.1e}"
        share = parity.other_pixels / max(parity.mask_pixels, 1)
        values += f" {share:8.1e}" if NETWORKS[architecture].has_masks else " " * 9
        spread = ""
        if seconds and NETWORKS[architecture].from_state_dict:
            ratios = [ours / theirs for ours, theirs in seconds]
            rates = (f"{1 / statistics.median(side):.2f}" for side in zip(*seconds, strict=True))
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); {' and '.join(rates)}"
        print(f"{architecture:42} {values}  {spread}", flush=True)


if __name__ == "__main__":
    main()
