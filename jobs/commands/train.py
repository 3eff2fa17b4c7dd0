"""`maskrcnn train`: a dataset checked and frozen, workers that learn together by Ray Train, and what they left.

OUTPUT holds `train.parquet` and `validation.parquet` (what is learned from), `training.json` (the recipe; the commit
point: with it, the dataset is never read again), `checkpoint.pt`, `log.csv`, `training.html`, `model.safetensors`, and
last `result.json`. Whatever dies, the same command goes on.
"""

import dataclasses
import hashlib
import io
import json
import logging
import tempfile
import threading
import time
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import MaskrcnnError, RunError, UsageError
from maskrcnn.imaging.decode_pool import keep_freed_memory
from maskrcnn.io.storage import Storage
from maskrcnn.models.networks import TRAINABLE
from maskrcnn.models.registry import describe_model
from maskrcnn.training.config import LOG, MODEL, RESULT, TrainingConfig, identity_of
from maskrcnn.training.dataset import Dataset, read_dataset, split_dataset
from maskrcnn.types import Category
from maskrcnn.visualization.training_report import render_training

from ..driver.cluster import check_device, connected
from ..driver.progress import LOG_EVERY_S, duration

log = logging.getLogger("maskrcnn")

TRAINING, PROGRESS, FAILURE, PAGE = "training.json", "progress.json", "failure.json", "training.html"
TABLES: Final = ("train.parquet", "validation.parquet")
MAX_FAILURES: Final = 10
"""How often workers that died are replaced."""
TELL_EVERY_S: Final = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What a training is asked for."""

    source: str
    output: str
    recipe: TrainingConfig
    validation: str | None = None
    """A COCO JSON; None: `share` of the images of `source`."""
    share: float = 0.1
    images_root: str | None = None
    validation_root: str | None = None
    skip_invalid: bool = False
    """Leave out what has errors, instead of stopping."""


def train(request: Request, speed: ResourceConfig, address: str | None) -> dict[str, Any]:
    """Train; continue an unfinished OUTPUT. Return the content of `result.json`.

    Raises:
        UsageError: the dataset has errors, the recipe is another one than OUTPUT was begun with, or the batch cannot be
            shared by the workers.
        RunError: the loss diverged, an image has gone, or workers died too often; the same command continues.
    """
    check_device(address, speed)
    storage = Storage(request.output)
    if storage.exists("run.json"):
        raise UsageError(f"{request.output} holds a run of `maskrcnn segment`; name another OUTPUT")
    facts = prepare(request)
    if storage.exists(RESULT):
        log.info("%s is finished", request.output)
        _draw(storage, facts)  # whoever finished it may have died before
        return dict(json.loads(storage.read(RESULT)))
    if storage.exists(FAILURE):
        storage.remove(FAILURE)
    with connected(address, speed) as resolved:
        workers = _workers(request.recipe.batch_size, resolved)
        _run(storage, facts, resolved, workers)
    if not storage.exists(RESULT):
        raise RunError("the workers ended without a result; the same command continues")
    _draw(storage, facts)
    return dict(json.loads(storage.read(RESULT)))


# --- the dataset --------------------------------------------------------------------------------------------


def prepare(request: Request) -> dict[str, Any]:
    """Check and freeze the dataset, unless OUTPUT has one; return the content of `training.json`."""
    storage = Storage(request.output)
    asked = json.loads(json.dumps(dataclasses.asdict(request) | {"output": None}))
    try:
        facts: dict[str, Any] = json.loads(storage.read(TRAINING))
    except FileNotFoundError:
        facts = _frozen(request, storage, asked)
    _check_same(request.output, facts["request"], asked)
    return facts


def check(request: Request) -> tuple[Dataset, pa.Table, pa.Table]:
    """Read and check the datasets of a request, and the model; list what is found in the log.

    Returns:
        the training set, and the images to learn from and to validate on, of `dataset.SCHEMA`.

    Raises:
        UsageError: they have errors, nothing to learn from, or cannot be split; there is no such model.
    """
    _check_model(request.recipe.model)
    dataset = read_dataset(request.source, request.images_root, progress=_count)
    _list(request.source, dataset)
    validation = None
    if request.validation is not None:
        validation = read_dataset(
            request.validation, request.validation_root, expected=dataset.categories, progress=_count
        )
        _list(request.validation, validation)
    kinds = sum(len(part.errors) for part in (dataset, validation) if part)
    if kinds and not request.skip_invalid:
        raise UsageError(
            f"the data has {kinds} {'kind' if kinds == 1 else 'kinds'} of errors, listed above; mend them, or leave "
            "out what they concern with --skip-invalid"
        )
    if validation is not None:
        images, apart = dataset.images, validation.images
    else:
        images, apart = split_dataset(dataset.images, request.share)
    if not pa.compute.any(pa.compute.greater(pa.compute.list_value_length(images["labels"]), 0)).as_py():
        raise UsageError(f"{request.source} has no object to learn from")
    return dataset, images, apart


def _check_model(model: str) -> None:
    """Raise UsageError where there is no such model, before anything is started for it."""
    source, _, architecture = model.partition(":")
    if source not in ("imagenet", "random"):
        card = describe_model(model)
        if card.architecture not in TRAINABLE:
            raise UsageError(
                f"--model {model}: {card.architecture} is run here, not trained; start from coco, "
                "imagenet:maskrcnn_resnet50_fpn, or a model converted from torchvision or detectron2"
            )
    elif architecture not in TRAINABLE:
        raise UsageError(f"--model {model}: name one of {', '.join(TRAINABLE)} after {source}:")


def _list(source: str, dataset: Dataset) -> None:
    log.info(
        "%s: %s images, %s objects, %d categories",
        source, f"{dataset.images.num_rows:,}", f"{dataset.n_objects:,}", len(dataset.categories),
    )  # fmt: skip
    for finding in dataset.findings:
        log.warning("%s: %s", source, finding)


def _count(done: int, total: int) -> None:
    if done % 10_000 == 0:
        log.info("%s of %s images looked at", f"{done:,}", f"{total:,}")


def _frozen(request: Request, storage: Storage, asked: dict[str, Any]) -> dict[str, Any]:
    dataset, train_images, validation_images = check(request)
    digests = []
    for name, table in zip(TABLES, (train_images, validation_images), strict=True):
        data = io.BytesIO()
        pq.write_table(table, data)
        storage.write(name, data.getvalue())
        digests.append(hashlib.sha256(data.getvalue()).hexdigest())
    facts = {
        "request": asked,
        "identity": identity_of(request.recipe, *digests),
        "categories": [dataclasses.asdict(category) for category in dataset.categories],
        "images": {"train": train_images.num_rows, "validation": validation_images.num_rows},
        "findings": [str(finding) for finding in dataset.findings],
    }
    if not storage.create(TRAINING, json.dumps(facts, indent=2).encode()):
        raise RunError(f"{request.output} was begun by another process meanwhile; the same command joins it")
    return facts


def _check_same(output: str, begun: dict[str, Any], asked: dict[str, Any]) -> None:
    flat = [
        {**{k: v for k, v in request.items() if k != "recipe"}, **request["recipe"]}
        for request in (begun, asked)
    ]
    other = [
        f"{key} {flat[0].get(key)!r}, now {flat[1].get(key)!r}"
        for key in flat[1]
        if flat[0].get(key) != flat[1][key]
    ]
    if other:
        raise UsageError(
            f"{output} was begun with {'; '.join(other)}: repeat its command, or name another OUTPUT"
        )


# --- the workers --------------------------------------------------------------------------------------------


def _workers(batch_size: int, speed: ResourceConfig) -> int:
    """Return how many workers share a batch evenly."""
    most = speed.actors or 1
    if speed.actors is not None and batch_size % most and batch_size > most:
        log.info(
            "%d workers instead of %d: a batch of %d is shared evenly",
            _divisor(batch_size, most),
            most,
            batch_size,
        )
    return _divisor(batch_size, most)


def _divisor(batch_size: int, most: int) -> int:
    return max(n for n in range(1, min(batch_size, most) + 1) if batch_size % n == 0)


def _run(storage: Storage, facts: dict[str, Any], speed: ResourceConfig, workers: int) -> None:
    threads = speed.threads or 1
    config = {"folder": storage.url, "device": speed.device, "threads": threads}
    cuda = speed.device == "cuda"
    resources: dict[str, float] = {"CPU": threads, **({"GPU": 1} if cuda else {})}
    log.info("training with %d workers of %d threads on %s", workers, threads, speed.device)
    with tempfile.TemporaryDirectory(prefix="maskrcnn-train-") as scratch:
        trainer = TorchTrainer(
            work,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=cuda, resources_per_worker=resources),
            # Ray Train keeps no checkpoint of ours: they are in OUTPUT, where a new command finds them too.
            run_config=RunConfig(
                storage_path=scratch, failure_config=FailureConfig(max_failures=MAX_FAILURES)
            ),
        )
        watch = _Watch(storage, facts)
        watch.start()
        try:
            trainer.fit()
        except TrainingFailedError as error:
            last = str(error).strip().splitlines()[-1]
            raise RunError(
                f"workers died {MAX_FAILURES} times: {last}; the same command continues"
            ) from error
        finally:
            watch.end()
    if storage.exists(FAILURE):
        raise RunError(str(json.loads(storage.read(FAILURE))["message"]))


def work(config: dict[str, Any]) -> None:
    """Run in each worker of Ray Train: learn until the end, from wherever a checkpoint says."""
    # Not in the driver, which needs no network.
    import torch

    from maskrcnn.training.trainer import DivergedError, Process, State, Task
    from maskrcnn.training.trainer import train as learn

    storage = Storage(config["folder"])
    if storage.exists(FAILURE):  # what is no accident would happen again
        return
    context = ray.train.get_context()
    cuda = config["device"] == "cuda"
    torch.set_num_threads(config["threads"])
    keep_freed_memory()
    facts = json.loads(storage.read(TRAINING))
    train_images, validation_images = (pq.read_table(io.BytesIO(storage.read(name))) for name in TABLES)
    recipe = facts["request"]["recipe"]
    task = Task(
        recipe=TrainingConfig(**recipe | {"jitter": tuple(recipe["jitter"])}),
        folder=storage.url,
        train=train_images,
        validation=validation_images,
        categories=tuple(Category(**category) for category in facts["categories"]),
        identity=facts["identity"],
    )
    rank = context.get_world_rank()
    device = str(ray.train.torch.get_device()) if cuda else "cpu"
    process = Process(rank, context.get_world_size(), device, max(config["threads"] - 1, 0) if cuda else 0)
    told = 0.0

    def tell(state: State, steps: int, notes: tuple[str, ...]) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            progress = {
                "epoch": state.epoch,
                "step": state.step,
                "steps": steps,
                "notes": notes,
                "rows": state.rows,
            }
            storage.write(PROGRESS, json.dumps(progress | {"seconds": state.seconds}).encode())

    try:
        state = learn(task, process, tell)
    except MaskrcnnError as error:
        storage.create(FAILURE, json.dumps({"rank": rank, "message": str(error)}).encode())
        if isinstance(error, DivergedError):  # in all processes at once: none waits for another
            return
        raise
    if rank == 0:
        best = max(state.rows, key=lambda row: (row.get("mask_ap", -1), row["epoch"]))
        result = {
            "model": f"{storage.url}/{MODEL}",
            "epochs": len(state.rows),
            "best": best,
            "rows": state.rows,
        }
        storage.write(RESULT, json.dumps(result, indent=2).encode())


# --- what is shown ------------------------------------------------------------------------------------------


class _Watch(threading.Thread):
    """Tells in the log how far the workers are, and draws the page after each epoch."""

    def __init__(self, storage: Storage, facts: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._storage, self._facts = storage, facts
        self._ended = threading.Event()
        self._rows: int | None = None
        self._noted = False

    def end(self) -> None:
        """Stop, after a last look."""
        self._ended.set()
        self.join()
        self._look()

    def run(self) -> None:
        """Look now and then."""
        while not self._ended.wait(LOG_EVERY_S):
            self._look()

    def _look(self) -> None:
        try:
            progress = json.loads(self._storage.read(PROGRESS))
        except (FileNotFoundError, RunError):  # the next look may do; the workers tell what matters
            return
        if not self._noted:
            self._noted = True
            for note in progress["notes"]:
                log.info("%s", note)
        rows = read_log(self._storage)
        for row in rows[self._rows if self._rows is not None else 0 :]:
            log.info("%s", line_of(row))
        if len(rows) != self._rows:
            self._rows = len(rows)
            _draw(self._storage, self._facts)
        if progress["epoch"] == len(rows) and progress["step"] < progress["steps"]:
            left = progress["seconds"] / max(progress["step"], 1) * (progress["steps"] - progress["step"])
            log.info(
                "epoch %d: step %d of %d, %s left of it",
                progress["epoch"] + 1, progress["step"], progress["steps"], duration(left),
            )  # fmt: skip


def read_log(storage: Storage) -> list[dict[str, float]]:
    """Return the rows of `log.csv`; none where there is none yet."""
    try:
        text = storage.read(LOG)
    except FileNotFoundError:
        return []
    lines = [line.split(",") for line in text.decode().splitlines()]
    return [
        {name: float(value) for name, value in zip(lines[0], line, strict=True) if value}
        for line in lines[1:]
    ]


def line_of(row: dict[str, float]) -> str:
    """Return a row of the log as a line."""
    losses = ", ".join(
        f"{name.removeprefix('loss_')} {row[name]:.3f}" for name in row if name.startswith("loss_")
    )
    measured = ", ".join(
        f"{name} {row[name]:.3f}" for name in ("mask_ap", "mask_ap50", "box_ap") if name in row
    )
    parts = [
        f"loss {row['loss']:.3f} ({losses})",
        *([measured] if measured else []),
        duration(row["seconds"]),
    ]
    return f"epoch {row['epoch']:.0f}: {', '.join(parts)}"


def _draw(storage: Storage, facts: dict[str, Any]) -> None:
    storage.write(PAGE, render_training(read_log(storage), facts).encode())
