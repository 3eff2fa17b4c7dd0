"""Compare torchvision's detectors as they run here with torchvision's own code: the same boxes, at what cost.

Run `python -m tests.benchmarks.detectors`: generated scenes, or photos of a folder with `--photos`. Weights are
random, shaped so that scores are apart (`tests/networks.py`). Both run in this process, image by image in turns.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskrcnn.models.conversion.parity import own_limits
from maskrcnn.models.model import Model, build_network
from maskrcnn.models.networks import NETWORKS
from maskrcnn.models.registry import NO_CATEGORY, ModelCard
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.synthetic.scenes import render_scene
from maskrcnn.types import Category, Detections, Pixels

sys.path.insert(0, str(Path(__file__).parent.parent))
from networks import settle

CLASSES = 90
DETECTORS = tuple(
    name for name, network in NETWORKS.items() if network.from_state_dict and not network.has_masks
)


@dataclass
class Parity:
    """The differences of one network over all images."""

    instances: int = 0
    unmatched: int = 0
    box_px: float = 0.0
    score: float = 0.0

    def add(self, found: Detections, expected: dict[str, Tensor]) -> None:
        """Match what was found in an image with what torchvision finds in it."""
        boxes, labels, scores = (expected[name].numpy() for name in ("boxes", "labels", "scores"))
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
        self.unmatched += max(int(free.sum()) - int((labels == 0).sum()), 0)


def random_model(
    architecture: str,
    photos: list[Tensor],
    size: int | None,
    classes: int = CLASSES,
    seed: int = 3,
    change: Callable[[torch.nn.Module], object] | None = None,
) -> Model:
    """Return a network with random weights whose scores are apart.

    Args:
        architecture: one of `networks.ARCHITECTURES`.
        photos: (3, H, W) from 0 to 1, by which its outputs are shaped.
        size: the shorter side of an image after the resize, pixels; None, and networks of one size: their own.
        classes: without the background.
        seed: of the weights.
        change: what to change in the network before its outputs are shaped.
    """
    torch.manual_seed(seed)
    resize = NETWORKS[architecture].resize
    ratio = 1.0 if size is None or resize.fixed else min(size / resize.min_size, 1.0)
    min_size, max_size = round(resize.min_size * ratio), round(resize.max_size * ratio)
    network = build_network(architecture, classes + 1, min_size, max_size).eval()
    if change is not None:
        change(network)
    settle(network, photos)
    categories = tuple(Category(label, f"class {label}") for label in range(1, classes + 1))
    labels = (NO_CATEGORY, *range(1, classes + 1))
    has_masks = NETWORKS[architecture].has_masks
    card = ModelCard(
        architecture,
        None,
        "",
        architecture,
        categories,
        labels,
        min_size,
        max_size,
        None,
        has_masks=has_masks,
    )
    return Model(network, card)


def compare(
    architecture: str, images: list[Pixels], size: int | None, repeats: int, classes: int = CLASSES
) -> tuple[Parity, list[float]]:
    """Return the differences, and this code's CPU seconds divided by torchvision's of each repeat."""
    tensors = [torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in images]
    model = random_model(architecture, tensors, size, classes)
    min_score, max_detections = own_limits(model.module)
    segmenter = MaskRCNNSegmenter(model, min_score=min_score, max_detections=max_detections)
    parity, ratios = Parity(), []
    for repeat in range(repeats + 1):
        spent = [0.0, 0.0]
        for image, tensor in zip(images, tensors, strict=True):
            began = time.process_time()
            with torch.inference_mode():
                (expected,) = model.module([tensor])
            between = time.process_time()
            (found,) = segmenter.segment([image])
            spent[0] += between - began
            spent[1] += time.process_time() - between
            if repeat == 0:
                parity.add(found, expected)
        if repeat:  # the first one is the warm-up
            ratios.append(spent[1] / spent[0])
    return parity, ratios


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(DETECTORS)}; all of them"
    )
    parser.add_argument("--photos", type=Path, metavar="DIR", help="JPEG photos; by default generated scenes")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument(
        "--size", type=int, metavar="PX", help="of the shorter side; by default each network's own"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    paths = sorted(options.photos.rglob("*.jpg"))[: options.images] if options.photos else []
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    images = images or [render_scene(seed, 480).image for seed in range(options.images)]
    print(f"{len(images)} images, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(
        f"{'network':40} {'instances':>9} {'unmatched':>9} {'box px':>8} {'score':>8}  CPU time, of torchvision's"
    )
    for architecture in options.networks or DETECTORS:
        parity, ratios = compare(architecture, images, options.size, options.repeats)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        counts = f"{parity.instances:9} {parity.unmatched:9}"
        print(f"{architecture:40} {counts} {parity.box_px:8.4f} {parity.score:8.1e}  {spread}", flush=True)


if __name__ == "__main__":
    main()
