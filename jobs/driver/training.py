"""Training by Ray Train: workers that train together, their progress in the log, and the page `training.html`.

OUTPUT gets, besides the datasets (see `training_set`), `checkpoint.pt`, `log.csv`, `training.html`,
`model.safetensors`, and last `result.json`. Whatever process dies, the same command continues.
"""

import json
import logging
import threading
import time
from typing import Any, Final

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import MaskrcnnError, RunError, UsageError, plural
from maskrcnn.imaging.decode_pool import keep_freed_memory
from maskrcnn.io.json_files import read_object
from maskrcnn.io.parquet import read_table
from maskrcnn.io.storage import Storage
from maskrcnn.io.temporary import temporary_folder
from maskrcnn.training.config import LOG, MODEL, RESULT, TrainingConfig, precision_of
from maskrcnn.types import Category
from maskrcnn.visualization.training_report import render_training

from .cluster import connected
from .progress import LOG_EVERY_S, duration
from .ray_errors import condense
from .training_set import TABLES, TRAINING, TrainingRequest, prepare_training
from .where_to_run import check_resources

log = logging.getLogger("maskrcnn")

PROGRESS, FAILURE, PAGE = "progress.json", "failure.json", "training.html"
MAX_FAILURES: Final = 10
"""Maximum number of times that workers that died are replaced."""
REPORT_EVERY_S: Final = 5.0


def run_training(request: TrainingRequest, resources: ResourceConfig, address: str | None) -> dict[str, Any]:
    """Train; continue an unfinished OUTPUT. Return the content of `result.json`.

    Raises:
        UsageError: the dataset has errors, OUTPUT was begun with another configuration, or the batch cannot be divided
            among the workers.
        RunError: the loss diverged, an image is missing, or workers died too often; the same command continues.
    """
    check_resources(address, resources)
    storage = Storage(request.output)
    if storage.exists("run.json"):
        raise UsageError(f"{request.output} holds a run of `maskrcnn segment`; name another OUTPUT")
    facts = prepare_training(request)
    if storage.exists(RESULT):
        log.info("%s is finished", request.output)
        _write_page(storage, facts)  # the process that finished it may have died before
        return _result(storage)
    if storage.exists(FAILURE):
        storage.remove(FAILURE)
    with connected(address, resources) as resolved:
        workers = _workers(request.config.batch_size, resolved)
        _run(storage, facts, resolved, workers)
    if not storage.exists(RESULT):
        raise RunError("the workers ended without a result; the same command continues")
    _write_page(storage, facts)
    return _result(storage)


def _result(storage: Storage) -> dict[str, Any]:
    return read_object(storage, RESULT, "remove it; the same command writes it again")


# --- the workers --------------------------------------------------------------------------------------------


def _workers(batch_size: int, resources: ResourceConfig) -> int:
    """Return the number of workers that divides a batch evenly."""
    available = resources.actors or 1
    workers = max(n for n in range(1, min(batch_size, available) + 1) if batch_size % n == 0)
    if resources.actors is not None and batch_size % available and batch_size > available:
        log.info(
            "%s instead of %d: a batch of %d is divided evenly",
            plural(workers, "worker"), available, batch_size,
        )  # fmt: skip
    return workers


def _run(storage: Storage, facts: dict[str, Any], resources: ResourceConfig, workers: int) -> None:
    threads = resources.threads or 1
    config = {"folder": storage.url, "device": resources.device, "threads": threads}
    cuda = resources.device == "cuda"
    per_worker: dict[str, float] = {"CPU": threads, **({"GPU": 1} if cuda else {})}
    log.info(
        "training with %s of %s on %s",
        plural(workers, "worker"), plural(threads, "thread"), resources.device,
    )  # fmt: skip
    with temporary_folder() as scratch:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=cuda, resources_per_worker=per_worker),
            # Ray Train stores no checkpoints: they are in OUTPUT, where another command finds them too.
            run_config=RunConfig(
                storage_path=str(scratch), failure_config=FailureConfig(max_failures=MAX_FAILURES)
            ),
        )
        monitor = _Monitor(storage, facts)
        monitor.start()
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise RunError(
                f"workers died {MAX_FAILURES} times: {condense(error)}; the same command continues"
            ) from error
        finally:
            monitor.end()
    if storage.exists(FAILURE):
        raise RunError(str(json.loads(storage.read(FAILURE))["message"]))


def train_worker(config: dict[str, Any]) -> None:
    """Train to the end, from the checkpoint if there is one; runs in each worker of Ray Train."""
    # Not in the driver, which needs no network.
    import torch

    from maskrcnn.training.trainer import DivergedError, Process, State, Task
    from maskrcnn.training.trainer import train as train_network

    storage = Storage(config["folder"])
    if storage.exists(FAILURE):  # a failure that would happen again
        return
    context = ray.train.get_context()
    cuda = config["device"] == "cuda"
    torch.set_num_threads(config["threads"])
    keep_freed_memory()
    facts = json.loads(storage.read(TRAINING))
    train_images, validation_images = (read_table(storage, name) for name in TABLES)
    values = facts["request"]["config"]
    task = Task(
        TrainingConfig(**values | {"jitter": tuple(values["jitter"])}),
        folder=storage.url,
        train=train_images,
        validation=validation_images,
        categories=tuple(Category(**category) for category in facts["categories"]),
        identity=facts["identity"],
    )
    rank = context.get_world_rank()
    device = str(ray.train.torch.get_device()) if cuda else "cpu"
    process = Process(rank, context.get_world_size(), device, max(config["threads"] - 1, 0) if cuda else 0)
    reported = 0.0

    def report(state: State, steps: int, notes: tuple[str, ...]) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            progress = {
                "epoch": state.epoch,
                "step": state.step,
                "steps": steps,
                "notes": notes,
                "rows": state.rows,
            }
            storage.write(PROGRESS, json.dumps(progress | {"seconds": state.seconds}).encode())

    try:
        state = train_network(task, process, report)
    except MaskrcnnError as error:
        storage.create(FAILURE, json.dumps({"rank": rank, "message": str(error)}).encode())
        if isinstance(error, DivergedError):  # in all processes at once: none waits for another
            return
        raise
    if rank == 0:
        best = max(state.rows, key=lambda row: (precision_of(row), row["epoch"]))
        result = {
            "model": f"{storage.url}/{MODEL}",
            "epochs": len(state.rows),
            "best": best,
            "rows": state.rows,
        }
        storage.write(RESULT, json.dumps(result, indent=2).encode())


# --- progress -----------------------------------------------------------------------------------------------


class _Monitor(threading.Thread):
    """Logs the progress of the workers, and draws the page after each epoch."""

    def __init__(self, storage: Storage, facts: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._storage, self._facts = storage, facts
        self._ended = threading.Event()
        self._rows: int | None = None
        self._noted = False

    def end(self) -> None:
        """Stop, after a last check."""
        self._ended.set()
        self.join()
        self._check()

    def run(self) -> None:
        """Check every `LOG_EVERY_S` seconds."""
        while not self._ended.wait(LOG_EVERY_S):
            self._check()

    def _check(self) -> None:
        try:
            progress = json.loads(self._storage.read(PROGRESS))
        except (FileNotFoundError, RunError):  # try again at the next check; the workers report real failures
            return
        if not self._noted:
            self._noted = True
            for note in progress["notes"]:
                log.info("%s", note)
        rows = read_log(self._storage)
        for row in rows[self._rows if self._rows is not None else 0 :]:
            log.info("%s", epoch_line(row))
        if len(rows) != self._rows:
            self._rows = len(rows)
            _write_page(self._storage, self._facts)
        if progress["epoch"] == len(rows) and progress["step"] < progress["steps"]:
            left = progress["seconds"] / max(progress["step"], 1) * (progress["steps"] - progress["step"])
            log.info(
                "epoch %d: step %d of %d, %s left",
                progress["epoch"] + 1, progress["step"], progress["steps"], duration(left),
            )  # fmt: skip


def read_log(storage: Storage) -> list[dict[str, float]]:
    """Return the rows of `log.csv`; an empty list if there is no such file yet."""
    try:
        text = storage.read(LOG)
    except FileNotFoundError:
        return []
    lines = [line.split(",") for line in text.decode().splitlines()]
    return [
        {name: float(value) for name, value in zip(lines[0], line, strict=True) if value}
        for line in lines[1:]
    ]


def epoch_line(row: dict[str, float]) -> str:
    """Return a row of `log.csv` as a line of the log."""
    losses = ", ".join(
        f"{name.removeprefix('loss_')} {row[name]:.3f}" for name in row if name.startswith("loss_")
    )
    measured = ", ".join(
        f"{name} {row[name]:.3f}" for name in ("mask_ap", "mask_ap50", "box_ap", "box_ap50") if name in row
    )
    parts = [
        f"loss {row['loss']:.3f} ({losses})",
        *([measured] if measured else []),
        duration(row["seconds"]),
    ]
    return f"epoch {row['epoch']:.0f}: {', '.join(parts)}"


def _write_page(storage: Storage, facts: dict[str, Any]) -> None:
    storage.write(PAGE, render_training(read_log(storage), facts).encode())
