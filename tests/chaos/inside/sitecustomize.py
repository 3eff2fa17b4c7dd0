"""What tests put into the processes of a run; Python imports it at start-up where this folder is on PYTHONPATH.

The functions of the package stay as they are, and are wrapped as they are imported:

- `MASKRCNN_CHAOS=FOLDER`: a process that comes to a phase of a run (fetch, model, PUT part, PUT receipt, reduce)
  says so there, and stops if the test waits for it, so that it can be killed just there; see `chaos.probes`.
- `MASKRCNN_POISON=FOLDER`: images that carry an order do to their process what it says; see `chaos.poison`.

Each change leaves `FOLDER/changed/<module>`, so that a test can see that it was made: a module that was renamed would
never be found here, and nothing would happen to the run. A function that was renamed raises as its module is loaded.
"""

import contextlib
import ctypes
import functools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

CHAOS = os.environ.get("MASKRCNN_CHAOS", "")
ROLE = os.environ.get("MASKRCNN_CHAOS_ROLE", "worker")
POISON = os.environ.get("MASKRCNN_POISON", "")
WORKER = "maskrcnn.pipeline.worker"
HELD_S = 60
"""A process that nobody kills or releases goes on after so many seconds."""


class Wrapping:
    """Finds modules as the others do, and changes some once they are loaded."""

    def __init__(self, changes):
        self._changes = changes

    def find_spec(self, name, path=None, target=None):
        change = self._changes.get(name)
        if change is None:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is not None:
            load = spec.loader.exec_module

            def load_and_change(module):
                load(module)
                change(module)
                for folder in filter(None, (CHAOS, POISON)):
                    mark = Path(folder, "changed", name)
                    mark.parent.mkdir(parents=True, exist_ok=True)
                    mark.touch()

            spec.loader.exec_module = load_and_change
        return spec


# --- phases ---

REDUCED = ("images", "instances", "coco", "stats.json", "timings.json", "report.html", "_SUCCESS")
here = {"output": ""}
"""The run that this process works for."""
inside = threading.local()


def at(phase, side, call):
    """Say that this process is at a phase; wait there if it is the one that was asked for."""
    try:
        asked = json.loads(Path(CHAOS, "asked").read_text())
    except FileNotFoundError:
        return
    if asked["output"] != here["output"]:
        return
    folder = Path(CHAOS, asked["token"])
    number = _next_number(folder / f"{ROLE}.{phase}")
    if (phase, number) != (asked["phase"], asked["number"]) or ROLE not in asked["roles"]:
        return
    held = folder / "holding"
    held.write_text(json.dumps({"pid": os.getpid(), "role": ROLE, "side": side, "call": call}))
    held.rename(folder / "held")
    deadline = time.monotonic() + HELD_S
    while not (folder / "released").exists() and time.monotonic() < deadline:
        time.sleep(0.002)


def _next_number(stem):
    """Return the number of processes and threads that came here before, each number once."""
    number = 0
    while True:
        try:
            stem.with_name(f"{stem.name}.{number}").touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return number


def phase_of(path):
    first = path.partition("/")[0]
    return {"shards": "part", "receipts": "receipt"}.get(first, "reduce" if first in REDUCED else None)


@contextlib.contextmanager
def storing(method, path):
    """Before and after what is stored; a method that calls another one is the same event."""
    call = f"{method}({path.rpartition('/')[2]})"
    phase = None if getattr(inside, "storing", False) else phase_of(path)
    if phase is None:
        yield
        return
    inside.storing = True
    at(phase, "before", call)
    try:
        yield
        at(phase, "after", call)
    finally:
        inside.storing = False


def change_storage(module):
    storage = module.Storage
    init, building = storage.__init__, storage.building

    @functools.wraps(init)
    def noting_the_output(self, url, *arguments, **options):
        init(self, url, *arguments, **options)
        here["output"] = self.url

    @functools.wraps(building)
    @contextlib.contextmanager
    def building_observed(self, path, *arguments, **options):
        # Building is no part of the PUT, nor is what else is stored meanwhile.
        with contextlib.ExitStack() as put, building(self, path, *arguments, **options) as local:
            yield local
            put.enter_context(storing("building", path))

    storage.__init__, storage.building = noting_the_output, building_observed
    for name in ("write", "create", "put_file", "remove", "remove_tree"):
        setattr(storage, name, _stored(getattr(storage, name)))


def _stored(method):
    @functools.wraps(method)
    def observed(self, path, *arguments, **options):
        with storing(method.__name__, path):
            return method(self, path, *arguments, **options)

    return observed


def change_shard_inputs(module):
    read = module.ShardInputs.read

    @functools.wraps(read)
    def read_observed(self, position):
        at("fetch", "before", f"read({self._entries[position]['uri'].rpartition('/')[2]})")
        return read(self, position)

    module.ShardInputs.read = read_observed


def change_worker(module):
    run_shard = module.ShardWorker.run_shard

    @functools.wraps(run_shard)
    def in_flight(self, shard, *arguments, **options):
        mark = Path(CHAOS, "flight", here["output"].rpartition("/")[2], f"{shard.name}.{os.getpid()}")
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        try:
            return run_shard(self, shard, *arguments, **options)
        finally:
            mark.unlink()

    module.ShardWorker.run_shard = in_flight


# --- poison ---

ENDS_IMAGE = b"IEND\xaeB`\x82"
ORDER = b"POISON:"


def change_pillow(module):
    opened = module.open

    @functools.wraps(opened)
    def open_observed(file, *arguments, **options):
        if hasattr(file, "read") and ENDS_IMAGE + ORDER in (data := _content(file)):
            obey(data.rpartition(ORDER)[2].decode())
        return opened(file, *arguments, **options)

    module.open = open_observed


def _content(file):
    place = file.tell()
    data = file.read()
    file.seek(place)
    return data


def change_planted(module):
    outcomes = module.PlantedSegmenter.outcomes

    @functools.wraps(outcomes)
    def observed(self, images):
        images = list(images)
        if CHAOS:
            at("model", "before", "outcomes()")
        for image in images if POISON else ():
            for instance in module.planted_instances(image):
                if str(instance.shape).startswith(ORDER.decode()):
                    obey(instance.shape.partition(":")[2])
        return outcomes(self, images)

    module.PlantedSegmenter.outcomes = observed


def obey(order):
    """Do what a poison image orders, `<kind>:<name>`, after a note that it was executed; once poison is armed."""
    if not Path(POISON, "armed").exists():
        return
    kind, _, name = order.partition(":")
    with Path(POISON, "executed").open("a") as file:
        file.write(f"{json.dumps([name, kind, os.getpid(), time.time()])}\n")
    if kind == "segv":
        ctypes.string_at(
            0
        )  # as in C: this thread does not come back, while a signal sent to oneself may take a while
    elif kind == "exit":
        os._exit(1)
    elif kind == "kill":  # as the kernel does it when memory runs out
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "endless":
        while True:
            pass
    elif kind == "stuck":
        _hold_the_interpreter()
    elif kind == "memory":
        _allocate_for_ever()
    elif kind == "memory-error":
        raise MemoryError


def _hold_the_interpreter():
    """Sleep in C without letting any other thread run, as a decoder that loops in C does."""
    while True:
        ctypes.PyDLL(None).sleep(1000)


def _allocate_for_ever():
    """Take memory without touching it, which limits count but RAM need not be there for; 1 TiB at the most."""
    import mmap

    taken = []
    for _ in range(1024):
        try:
            taken.append(mmap.mmap(-1, 2**30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        except OSError:
            raise MemoryError from None
    raise MemoryError


CHANGES_FOR_CHAOS = {
    "maskrcnn.io.storage": change_storage,
    "maskrcnn.pipeline.shard_inputs": change_shard_inputs,
    WORKER: change_worker,
    "maskrcnn.synthetic.planted": change_planted,
}
CHANGES_FOR_POISON = {"PIL.Image": change_pillow, "maskrcnn.synthetic.planted": change_planted}
if CHAOS or POISON:
    changes = (CHANGES_FOR_CHAOS if CHAOS else {}) | (CHANGES_FOR_POISON if POISON else {})
    sys.meta_path.insert(0, Wrapping(changes))
