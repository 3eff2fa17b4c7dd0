"""A run of planted images without Ray: requested, planned, and its shards processed in a loop."""

from pathlib import Path

from maskrcnn_jobs.driver.planning import Request, prepare
from planted_images import write_planted

from maskrcnn.config import InferenceConfig
from maskrcnn.imaging.decode import Limits
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.plan import read_plan
from maskrcnn.pipeline.receipts import complete_receipts
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.synthetic.planted import PlantedSegmenter
from maskrcnn.visualization.run_report import write_report


def request_in(folder: Path, images: int = 7) -> Request:
    """Write planted images to `images/`; return the request of a run over them, in `run/`."""
    write_planted(folder / "images", images, seed=2)
    return Request(str(folder / "images"), str(folder / "run"), InferenceConfig("planted"), shard_images=2)


def process_shards(storage: Storage, at_most: int = 10**6) -> None:
    """Process the shards that have no receipt."""
    plan = read_plan(storage)
    assert plan is not None
    worker = ShardWorker(storage, PlantedSegmenter(), Limits(10**8, 10**8, 1333.0), {})
    for shard in list(plan.pending(complete_receipts(storage)))[:at_most]:
        worker.run_shard(shard)


def finished_run(folder: Path, images: int = 7) -> str:
    """Plan a run, process its shards and write its tables; return its directory."""
    request = request_in(folder, images)
    prepare(request)
    process_shards(Storage(request.output))
    reduce_run(request.output, write_report=write_report)
    return request.output
