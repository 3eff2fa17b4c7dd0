"""The trainer: one of the processes that train a network together, from stored datasets to a weights file (torch).

Data flow: a row of the stored table is decoded; a crop of it is drawn from (seed, epoch, image); its losses are
computed (`losses`, `one_stage_losses`), with random choices drawn from the same seeds; gradients are averaged over the
images of the batch, in whichever processes they were computed; the optimizer takes one step. Nothing is drawn from any
other source, so that neither the number of workers nor a kill and a resume changes the result. On the CPU the result is
the same to the last digit: each image is a forward pass of its own, and gradients are summed in float64, in which the
order of the sum makes no difference that is left in float32.
"""

import csv
import io
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN

from ..errors import RunError, UsageError
from ..io.storage import Storage
from ..models.model import Model, save_model
from ..models.registry import NO_CATEGORY, ModelCard
from ..models.segmenter import MaskRCNNSegmenter
from ..types import Category
from .config import CHECKPOINT, CONFIG_KEY, LOG, MODEL, TrainingConfig, columns_of, precision_of
from .data_loading import Sample, Samples
from .initialization import (
    Start,
    backbone_parameters,
    batch_norm_statistics_taken,
    freeze,
    freeze_batch_norm_statistics,
    start,
)
from .losses import ImageLosses
from .one_stage_losses import OneStageLosses
from .schedule import learning_rate, order_of, steps_of
from .validation import validate

log = logging.getLogger("maskrcnn")

STATISTICS_IMAGES: Final = 8
"""The number of images from which a network with random weights takes the statistics of its batch norms."""
CHECKPOINT_S: Final = 300.0
"""Seconds between checkpoints within an epoch: the work that a kill may cost, besides the present step."""


@dataclass(frozen=True, slots=True)
class Process:
    """The rank of this process among all processes, and its resources."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    loaders: int = 0
    """Number of processes that prepare samples ahead; 0: this process prepares them."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to train, on what, and where to write: the same in all processes."""

    config: TrainingConfig
    folder: str
    train: pa.Table
    """The training set, a table of `dataset.SCHEMA`."""
    validation: pa.Table
    """The validation set, a table of the same schema; may be empty."""
    categories: tuple[Category, ...]
    identity: str
    """Identity of the training configuration and the datasets; a checkpoint with another identity is refused."""


@dataclass(slots=True)
class State:
    """The progress of a training run: the content of a checkpoint except the tensors."""

    epoch: int = 0
    step: int = 0
    """Number of steps done in this epoch."""
    sums: list[float] = field(default_factory=list)
    """Sums of the losses over the images of this epoch so far, in the order of the network's; empty: none yet."""
    seconds: float = 0.0
    """Seconds spent in this epoch, interruptions not counted."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The log: one row per epoch, with the columns of `config.columns_of`."""
    best: float = -1.0
    """The best average precision so far, see `config.precision_of`; -1: none yet, or none measured."""


class ReportProgress(Protocol):
    """A callable that receives the progress of a training run."""

    def __call__(self, state: State, steps: int, notes: tuple[str, ...], /) -> None:
        """Receive the progress after a step.

        Args:
            state: the state after the step.
            steps: number of steps of an epoch.
            notes: which weights were copied from the model and which are new, as in `initialization.Start`.
        """


def _no_report(_state: State, _steps: int, _notes: tuple[str, ...], /) -> None:
    """Discard the progress."""


class DivergedError(RunError):
    """The loss or the gradient is NaN or infinite; the batch was saved."""


def train(task: Task, process: Process, report: ReportProgress = _no_report) -> State:
    """Train to the last epoch of the configuration; resume from the checkpoint in the folder, if there is one.

    Rank 0 writes to `task.folder`: `checkpoint.pt`, `model.safetensors` (the weights of the epoch with the best average
    precision, see `config.precision_of`, or without a validation set those of the last epoch), and `log.csv`, after
    each epoch.

    Args:
        task: the task, equal in all processes.
        process: this process; if there are several, `torch.distributed` must be initialized.
        report: called after each step, in rank 0.

    Raises:
        UsageError: the checkpoint is of another training configuration or dataset, or as `initialization.start`.
        DivergedError: the loss or the gradient was not finite in any process; `diverged-RANK.pt` has the batch of each.
        ItemError: an image cannot be read.
        RunError: a store failed.
    """
    trainer = _Trainer(task, process)
    state = trainer.resume()
    steps = steps_of(task.train.num_rows, task.config.batch_size)
    while state.epoch < task.config.epochs:
        trainer.run_epoch(state, steps, report)
        trainer.end_epoch(state, steps)
    return state


# --- steps --------------------------------------------------------------------------------------------------


class _Trainer:
    """The network, its optimizer, and the training steps of this process."""

    def __init__(self, task: Task, process: Process) -> None:
        torch.manual_seed(task.config.seed)  # for the new weights of the network
        self.task, self.process = task, process
        self.storage = Storage(task.folder)
        self.begun: Start = start(
            task.config.model, task.categories, task.config.min_size, task.config.max_size
        )
        self.device = torch.device(process.device)
        network = self.begun.network
        freeze(network, task.config.freeze)
        self.optimizer = _optimizer(network, task.config)
        network.to(self.device)
        losses = ImageLosses(network) if isinstance(network, FasterRCNN) else OneStageLosses(network)
        self.losses: nn.Module = losses
        self.names = losses.names
        self.network = network
        if task.config.model.startswith("random:"):
            self._take_statistics()
        self.trainable = [p for p in network.parameters() if p.requires_grad]
        if self.device.type == "cpu":
            self.gradient = _joined_gradients(self.trainable)
            self.total = torch.zeros_like(self.gradient, dtype=torch.float64)
        elif process.world > 1:
            self.losses = DistributedDataParallel(self.losses, gradient_as_bucket_view=True)
        self.saved = time.monotonic()

    def _take_statistics(self) -> None:
        """Set the statistics of batch norms to those of the first images of the training: the same in all processes."""
        images, samples = self.task.train.num_rows, self._samples()
        keys = (
            (epoch, row)
            for epoch in itertools.count()
            for batch in order_of(epoch, images, self.task.config)
            for row in batch
        )
        self.network.train()
        with batch_norm_statistics_taken(self.network), torch.no_grad():
            self._forward([samples[key] for key in itertools.islice(keys, STATISTICS_IMAGES)])

    def resume(self) -> State:
        """Load the checkpoint, if there is one; return its state, or a new one."""
        try:
            data = self.storage.read(CHECKPOINT)
        except FileNotFoundError:
            return State()
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if content["identity"] != self.task.identity:
            raise UsageError(
                f"{self.task.folder} has a checkpoint of another training configuration or dataset: name another OUTPUT"
            )
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        state = State(**content["state"])
        log.info("resumed at epoch %d, step %d", state.epoch + 1, state.step)
        return state

    def run_epoch(self, state: State, steps: int, report: ReportProgress) -> None:
        """Run the remaining steps of an epoch."""
        self.network.train()
        freeze_batch_norm_statistics(self.network)
        # At a checkpoint, the sums of all processes are added up and become those of rank 0.
        sums = torch.tensor(
            (state.sums if self.process.rank == 0 else []) or [0.0] * len(self.names), dtype=torch.float64
        )
        last = time.monotonic()
        for batch in self._batches(state):
            sums += self._step(batch, (state.epoch + state.step / steps) / self.task.config.epochs)
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
                report(state, steps, self.begun.notes)
        state.sums = self._collected(sums).tolist()

    def _batches(self, state: State) -> Iterator[list[Sample]]:
        """Yield this process's share of each remaining batch of an epoch."""
        config, process = self.task.config, self.process
        batches = order_of(state.epoch, self.task.train.num_rows, config)[state.step :]
        keys = [[(state.epoch, row) for row in batch[process.rank :: process.world]] for batch in batches]
        yield from DataLoader(
            self._samples(), batch_sampler=keys, num_workers=process.loaders, collate_fn=list,
            multiprocessing_context="forkserver" if process.loaders else None,
        )  # fmt: skip

    def _samples(self) -> Samples:
        begun, means = self.begun, self.network.transform.image_mean
        sizes = begun.min_size, begun.max_size
        return Samples(self.task.train, self.task.config, begun.architecture, sizes, means)

    def _step(self, batch: list[Sample], done: float) -> Tensor:
        """Take a training step on a batch; return the sums of the losses over this process's images."""
        config = self.task.config
        rate = config.learning_rate * learning_rate(done, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        sums = self._gradients(batch) if self.device.type == "cpu" else self._gradients_at_once(batch)
        norm = nn.utils.clip_grad_norm_(self.trainable, config.clip)
        bad = not bool(torch.isfinite(sums).all())
        if self._any(bad or not bool(torch.isfinite(norm))):
            self._diverged(batch, sums, float(norm))
        self.optimizer.step()
        return sums

    def _gradients_at_once(self, batch: list[Sample]) -> Tensor:
        """Compute the gradients of a batch in one pass, averaged over the processes; return the sums of the losses."""
        self.optimizer.zero_grad(set_to_none=False)
        values = self._forward(batch)
        values.sum().backward()  # type: ignore[no-untyped-call]
        return values.detach().double().cpu() * len(batch)

    def _gradients(self, batch: list[Sample]) -> Tensor:
        """Compute the gradients image by image, and average over all processes; return the sums of the losses.

        On a CPU this is not slower than one pass. Sums of float32 in another order differ in their last digits, which
        leads to other choices of samples after about ten steps. Sums of float64 differ by less than the precision to
        which they are rounded when converted back to float32.
        """
        sums = torch.zeros(len(self.names), dtype=torch.float64)
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
        """Return the losses of a forward pass, float32, in the order of their names."""
        images = [sample.image.to(self.device, non_blocking=True) for sample in group]
        targets = [{name: t.to(self.device) for name, t in sample.target.items()} for sample in group]
        mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=self.task.config.dtype == "bfloat16")
        with mixed:
            losses = self.losses(images, targets, [sample.seed for sample in group])
        return torch.stack([losses[name].float() for name in self.names])

    def _diverged(self, batch: list[Sample], sums: Tensor, norm: float) -> None:
        """Save the batch and raise DivergedError."""
        name = f"diverged-{self.process.rank}.pt"
        content = {
            "losses": dict(zip(self.names, sums.tolist(), strict=True)),
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

    # --- communication between the processes ---

    def _any(self, here: bool) -> bool:
        """Return whether a condition is true in any process."""
        if self.process.world == 1:
            return here
        flag = torch.tensor(float(here), device=self.device)
        dist.all_reduce(flag)
        return bool(flag > 0)

    def _collected(self, sums: Tensor) -> Tensor:
        """Return the sums added up over all processes."""
        if self.process.world == 1:
            return sums
        total = sums.to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    # --- the end of an epoch ---

    def end_epoch(self, state: State, steps: int) -> None:
        """Validate, log, write a checkpoint, and keep the best model."""
        config = self.task.config
        scores = self._validated()
        images = steps * config.batch_size
        losses = {name: total / images for name, total in zip(self.names, state.sums, strict=True)}
        state.epoch += 1
        rate = config.learning_rate * learning_rate(state.epoch / config.epochs, config)
        row = {"epoch": state.epoch, **losses, "loss": sum(losses.values()), **scores, "learning_rate": rate}
        state.rows.append(row | {"seconds": round(state.seconds, 1)})
        state.step, state.sums, state.seconds = 0, [], 0.0
        if self.process.rank != 0:
            return
        best = precision_of(scores)
        if not self.task.validation.num_rows or best >= state.best:
            state.best = best
            self._export(state)
        self._save(state)
        columns = columns_of(self.names, has_masks=self.begun.has_masks)
        self.storage.write(LOG, log_csv(state.rows, columns).encode())

    def _validated(self) -> dict[str, float]:
        """Evaluate the network on the validation set, each process on its share; return the scores, in rank 0."""
        images, process, most = self.task.validation, self.process, self.task.config.max_detections
        if not images.num_rows:
            return {}
        segmenter = MaskRCNNSegmenter(self._model(), max_detections=most, device=self.device.type)
        return validate(segmenter, images, self.task.categories, most, rank=process.rank, world=process.world)

    def _model(self) -> Model:
        """Return the network as a model in evaluation mode."""
        card = ModelCard(
            name="training", uri=None, sha256="", architecture=self.begun.architecture,
            categories=self.task.categories,
            category_ids=(NO_CATEGORY, *(category.id for category in self.task.categories)),
            min_size=self.begun.min_size, max_size=self.begun.max_size, notice=None,
            has_masks=self.begun.has_masks,
        )  # fmt: skip
        return Model(self.network.eval(), card)

    def _export(self, state: State) -> None:
        provenance = {
            CONFIG_KEY: asdict(self.task.config),
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
            path.chmod(0o644)  # safetensors creates files that only the owner can read

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
    """Set the gradient of each parameter to a view of one vector; return the vector."""
    sizes = [p.numel() for p in parameters]
    gradient = torch.zeros(sum(sizes))
    for p, part in zip(parameters, torch.split(gradient, sizes), strict=True):
        p.grad = part.view_as(p)
    return gradient


def _optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    backbone = {id(p) for p in backbone_parameters(network)}
    trainable = [p for p in network.parameters() if p.requires_grad]
    groups = []
    for in_backbone, scale in ((True, 0.5), (False, 1.0)):
        for decays in (True, False):
            # There is no weight decay for biases and the weights of norms.
            chosen = [p for p in trainable if (id(p) in backbone) == in_backbone and (p.ndim > 1) == decays]
            decay = config.weight_decay if decays else 0.0
            groups.append({"params": chosen, "scale": scale, "weight_decay": decay})
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def log_csv(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Return the log as CSV: one row per epoch; values not measured are empty.

    Args:
        rows: of the log.
        columns: as `config.columns_of` returns them.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
