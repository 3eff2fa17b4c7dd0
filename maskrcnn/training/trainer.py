"""Training: one process of possibly many that learn together, from a frozen dataset to one weights file (torch).

The path of one datum: a row of the frozen table, decoded; a crop of it, drawn from (seed, epoch, image); its five
losses (`losses`), whose samples are drawn from the same seeds; gradients, averaged over the images of the batch
wherever they were computed; one step. Nothing is drawn from anything else, so that neither the number of workers nor a
kill and a resume changes what is computed. On the CPU that holds to the last digit: each image is a forward pass of its
own, and gradients are summed in float64, whose order float32 does not see.
"""

import csv
import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..errors import RunError, UsageError
from ..evaluation.pycocotools_reference import average_precision
from ..io.storage import Storage
from ..models.build import Model, save_model
from ..models.registry import NO_CATEGORY, ModelCard
from ..models.segmenter import MaskRCNNSegmenter
from ..types import Category
from .config import CHECKPOINT, COLUMNS, LOG, LOSSES, MODEL, TrainingConfig, learning_rate, order_of, steps_of
from .data_loading import Sample, Samples, read_pixels
from .dataset import coco_ground_truth
from .initialization import Start, backbone_parameters, freeze, norms_as_they_are, start
from .losses import ImageLosses

log = logging.getLogger("maskrcnn")

CHECKPOINT_S: Final = 300.0
"""How much work a kill may cost, beside the step at hand."""


@dataclass(frozen=True, slots=True)
class Process:
    """Which of the processes this is, and what it has."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    loaders: int = 0
    """Processes that prepare samples ahead; 0: none, this one does."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned from, and where to: the same in all processes."""

    recipe: TrainingConfig
    folder: str
    train: pa.Table
    """Of `dataset.SCHEMA`, as is `validation`, which may be empty."""
    validation: pa.Table
    categories: tuple[Category, ...]
    identity: str
    """Of recipe and datasets; a checkpoint of another one is refused."""


@dataclass(slots=True)
class State:
    """How far a training is; all of a checkpoint but the tensors."""

    epoch: int = 0
    step: int = 0
    """Of this epoch."""
    sums: list[float] = field(default_factory=lambda: [0.0] * len(LOSSES))
    """Of the losses over the images of this epoch."""
    seconds: float = 0.0
    """Of this epoch, stops not counted."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The log: a row an epoch, with the columns `COLUMNS`."""
    best: float = -1.0


Tell = Callable[[State, int, tuple[str, ...]], None]


class DivergedError(RunError):
    """The loss is no number any more; the batch was saved."""


def train(task: Task, process: Process, tell: Tell = lambda _state, _steps, _notes: None) -> State:
    """Train until the recipe's last epoch; continue what a checkpoint in the folder says.

    Rank 0 writes below `task.folder`: `checkpoint.pt`, `model.safetensors` (the best epoch by mask AP; without a
    validation set, the last), `log.csv` after each epoch.

    Args:
        task: equal in all processes.
        process: this one; where there are several, `torch.distributed` is initialised.
        tell: told the state, the steps of an epoch, and what was taken from the model; after each step, in rank 0.

    Raises:
        UsageError: the checkpoint is of another recipe or dataset, or the model cannot be had.
        DivergedError: the loss was not finite; `diverged-RANK.pt` has the batch, in each process that met it.
        RunError: a store fails.
    """
    learner = _Learner(task, process)
    state = learner.resume()
    steps = steps_of(task.train.num_rows, task.recipe.batch_size)
    while state.epoch < task.recipe.epochs:
        learner.run_epoch(state, steps, tell)
        learner.end_epoch(state, steps)
    return state


# --- steps --------------------------------------------------------------------------------------------------


class _Learner:
    """The network, its optimizer, and what this process does with them."""

    def __init__(self, task: Task, process: Process) -> None:
        torch.manual_seed(task.recipe.seed)  # of what is new in the network
        self.task, self.process = task, process
        self.storage = Storage(task.folder)
        self.begun: Start = start(
            task.recipe.model, task.categories, task.recipe.min_size, task.recipe.max_size
        )
        self.device = torch.device(process.device)
        network = self.begun.network
        freeze(network, task.recipe.freeze)
        self.optimizer = _optimizer(network, task.recipe)
        network.to(self.device)
        self.losses: nn.Module = ImageLosses(network)
        self.network = network
        self.learning = [p for p in network.parameters() if p.requires_grad]
        if self.device.type == "cpu":
            self.gradient = _joined_gradients(self.learning)
            self.total = torch.zeros_like(self.gradient, dtype=torch.float64)
        elif process.world > 1:
            self.losses = DistributedDataParallel(self.losses, gradient_as_bucket_view=True)
        self.saved = time.monotonic()

    def resume(self) -> State:
        """Take the state of a checkpoint, if there is one."""
        try:
            data = self.storage.read(CHECKPOINT)
        except FileNotFoundError:
            return State()
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if content["identity"] != self.task.identity:
            raise UsageError(
                f"{self.task.folder} has a checkpoint of another recipe or dataset: train into another folder"
            )
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        state = State(**content["state"])
        log.info("resumed at epoch %d, step %d", state.epoch + 1, state.step)
        return state

    def run_epoch(self, state: State, steps: int, tell: Tell) -> None:
        """Do what is left of an epoch."""
        self.network.train()
        norms_as_they_are(self.network)
        # What other processes have summed up is rank 0's after a checkpoint.
        sums = torch.tensor(
            state.sums if self.process.rank == 0 else [0.0] * len(LOSSES), dtype=torch.float64
        )
        last = time.monotonic()
        for batch in self._batches(state):
            sums += self._step(batch, (state.epoch + state.step / steps) / self.task.recipe.epochs)
            state.step += 1
            now = time.monotonic()
            state.seconds, last = state.seconds + now - last, now
            due = self.process.rank == 0 and now - self.saved > CHECKPOINT_S
            if self._any(due) and state.step < steps:
                sums = self._collected(sums)
                state.sums = sums.tolist()
                self._save(state)
                sums *= self.process.rank == 0
            if self.process.rank == 0:
                tell(state, steps, self.begun.notes)
        state.sums = self._collected(sums).tolist()

    def _batches(self, state: State) -> Iterator[list[Sample]]:
        """Yield this process's share of each batch that is left of an epoch."""
        recipe, process = self.task.recipe, self.process
        batches = order_of(state.epoch, self.task.train.num_rows, recipe)[state.step :]
        keys = [[(state.epoch, row) for row in batch[process.rank :: process.world]] for batch in batches]
        sizes = (self.begun.min_size, self.begun.max_size)
        samples = Samples(self.task.train, recipe, sizes, self.network.transform.image_mean)
        yield from DataLoader(
            samples, batch_sampler=keys, num_workers=process.loaders, collate_fn=list,
            multiprocessing_context="forkserver" if process.loaders else None,
        )  # fmt: skip

    def _step(self, batch: list[Sample], done: float) -> Tensor:
        """Learn from a batch; return the sums of the losses over its images here."""
        recipe = self.task.recipe
        rate = recipe.learning_rate * learning_rate(done, recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        sums = self._gradients(batch) if self.device.type == "cpu" else self._gradients_at_once(batch)
        norm = nn.utils.clip_grad_norm_(self.learning, recipe.clip)
        bad = not bool(torch.isfinite(sums).all())
        if self._any(bad or not bool(torch.isfinite(norm))):
            self._diverged(batch, sums, float(norm))
        self.optimizer.step()
        return sums

    def _gradients_at_once(self, batch: list[Sample]) -> Tensor:
        """Compute the gradients of a batch in one pass, averaged over the processes."""
        self.optimizer.zero_grad(set_to_none=False)
        values = self._forward(batch)
        values.sum().backward()  # type: ignore[no-untyped-call]
        return values.detach().double().cpu() * len(batch)

    def _gradients(self, batch: list[Sample]) -> Tensor:
        """Compute the gradients of each image apart, which is no slower on a CPU, and average over all processes.

        A sum of float32 in another order differs in its last digits, which training makes into other choices after
        some ten steps. Of float64 it differs below what is left when the sum becomes float32 again.
        """
        sums = torch.zeros(len(LOSSES), dtype=torch.float64)
        gradient, total = self.gradient, self.total
        total.zero_()
        for sample in batch:
            gradient.zero_()
            values = self._forward([sample])
            values.sum().backward()  # type: ignore[no-untyped-call]
            total += gradient
            sums += values.detach().double()
        if self.process.world > 1:
            dist.all_reduce(total)
        gradient.copy_(total.div_(len(batch) * self.process.world))
        return sums

    def _forward(self, group: list[Sample]) -> Tensor:
        images = [sample.image.to(self.device, non_blocking=True) for sample in group]
        targets = [{name: t.to(self.device) for name, t in sample.target.items()} for sample in group]
        mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=self.task.recipe.dtype == "bfloat16")
        with mixed:
            losses = self.losses(images, targets, [sample.seed for sample in group])
        return torch.stack([losses[name].float() for name in LOSSES])

    def _diverged(self, batch: list[Sample], sums: Tensor, norm: float) -> None:
        name = f"diverged-{self.process.rank}.pt"
        content = {
            "losses": dict(zip(LOSSES, sums.tolist(), strict=True)),
            "gradient_norm": norm,
            "image_ids": [sample.image_id for sample in batch],
            "images": [sample.image for sample in batch],
            "targets": [sample.target for sample in batch],
        }
        with self.storage.building(name) as path:
            torch.save(content, path)
        raise DivergedError(
            f"the loss is not finite any more; {self.task.folder}/{name} has the batch: images {content['image_ids']}"
        )

    # --- together ---

    def _any(self, here: bool) -> bool:
        """Return whether something holds in any process."""
        if self.process.world == 1:
            return here
        flag = torch.tensor(float(here), device=self.device)
        dist.all_reduce(flag)
        return bool(flag > 0)

    def _collected(self, sums: Tensor) -> Tensor:
        """Return the sums over all processes."""
        if self.process.world == 1:
            return sums
        total = sums.to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    # --- the end of an epoch ---

    def end_epoch(self, state: State, steps: int) -> None:
        """Validate, log, and keep what is best."""
        recipe = self.task.recipe
        scores = self._validated()
        images = steps * recipe.batch_size
        losses = {name: total / images for name, total in zip(LOSSES, state.sums, strict=True)}
        state.epoch += 1
        rate = recipe.learning_rate * learning_rate(state.epoch / recipe.epochs, recipe)
        row = {"epoch": state.epoch, **losses, "loss": sum(losses.values()), **scores, "learning_rate": rate}
        state.rows.append(row | {"seconds": round(state.seconds, 1)})
        state.step, state.sums, state.seconds = 0, [0.0] * len(LOSSES), 0.0
        if self.process.rank != 0:
            return
        best = scores.get("mask_ap", -1.0)
        if not self.task.validation.num_rows or best >= state.best:
            state.best = best
            self._export(state)
        self._save(state)
        self.storage.write(LOG, log_csv(state.rows).encode())

    def _validated(self) -> dict[str, float]:
        """Measure the network on the validation set, each process on its share of it."""
        images = self.task.validation
        if not images.num_rows:
            return {}
        segmenter = MaskRCNNSegmenter(
            self._model(), max_detections=self.task.recipe.max_detections, device=self.device.type
        )
        found: list[dict[str, Any]] = []
        for row in range(self.process.rank, images.num_rows, self.process.world):
            entry = images.slice(row, 1).to_pylist()[0]
            (detections,) = segmenter.segment([read_pixels(entry["uri"])])
            for i, rle in enumerate(detections.rles()):
                x0, y0, x1, y1 = detections.boxes[i].tolist()
                found.append(
                    {
                        "image_id": entry["image_id"],
                        "category_id": int(detections.labels[i]),
                        "score": float(detections.scores[i]),
                        "segmentation": rle,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                    }
                )
        if self.process.world > 1:
            shares: list[Any] | None = [None] * self.process.world if self.process.rank == 0 else None
            dist.gather_object(found, shares)
            found = [entry for share in shares or [] for entry in share]
        if self.process.rank != 0:
            return {}
        truth = coco_ground_truth(images, self.task.categories)
        most = max(self.task.recipe.max_detections, 11)
        masks = average_precision(truth, found, "segm", most)
        boxes = average_precision(truth, found, "bbox", most)
        return {"mask_ap": masks.ap, "mask_ap50": masks.ap50, "box_ap": boxes.ap}

    def _model(self) -> Model:
        card = ModelCard(
            name="training", uri=None, sha256="", architecture=self.begun.architecture,
            categories=self.task.categories,
            category_ids=(NO_CATEGORY, *(category.id for category in self.task.categories)),
            min_size=self.begun.min_size, max_size=self.begun.max_size, notice=None,
        )  # fmt: skip
        return Model(self.network.eval(), card)

    def _export(self, state: State) -> None:
        provenance = {
            "recipe": asdict(self.task.recipe),
            "identity": self.task.identity,
            "start": list(self.begun.notes),
            "images": self.task.train.num_rows,
            "torch": torch.__version__,
            **state.rows[-1],
        }
        begun = self.begun
        with self.storage.building(MODEL) as path:
            save_model(
                path,
                self.network,
                begun.architecture,
                self.task.categories,
                begun.min_size,
                begun.max_size,
                provenance,
            )
            path.chmod(0o644)  # safetensors writes for the owner alone

    def _save(self, state: State) -> None:
        self.saved = time.monotonic()
        if self.process.rank != 0:
            return
        content = {
            "identity": self.task.identity,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": asdict(state),
        }
        with self.storage.building(CHECKPOINT) as path:
            torch.save(content, path)


def _joined_gradients(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Give each parameter a gradient that is a view of one vector; return the vector."""
    sizes = [p.numel() for p in parameters]
    gradient = torch.zeros(sum(sizes))
    for p, part in zip(parameters, torch.split(gradient, sizes), strict=True):
        p.grad = part.view_as(p)
    return gradient


def _optimizer(network: nn.Module, recipe: TrainingConfig) -> torch.optim.Optimizer:
    trunk = {id(p) for p in backbone_parameters(network)}
    learning = [p for p in network.parameters() if p.requires_grad]
    groups = []
    for of_trunk, scale in ((True, 0.5), (False, 1.0)):
        for decays in (True, False):
            # Biases, and the weights of norms, are not pulled to zero.
            chosen = [p for p in learning if (id(p) in trunk) == of_trunk and (p.ndim > 1) == decays]
            decay = recipe.weight_decay if decays else 0.0
            groups.append({"params": chosen, "scale": scale, "weight_decay": decay})
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


def log_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return the log as CSV: a row an epoch, with the columns `COLUMNS`; empty where nothing was measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
