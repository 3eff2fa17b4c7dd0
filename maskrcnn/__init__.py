"""Mask R-CNN over image collections: the library, without Ray.

>>> import maskrcnn
>>> model = maskrcnn.load_model("scenes")            # doctest: +SKIP
>>> segmenter = maskrcnn.Segmenter(model)            # doctest: +SKIP
>>> [detections] = segmenter.segment([pixels])       # doctest: +SKIP
>>> run = maskrcnn.segment_collection("photos", "output")  # doctest: +SKIP
>>> run = maskrcnn.open_run("output")                # doctest: +SKIP
>>> maskrcnn.verify("output").proven                 # doctest: +SKIP

Importing this package is cheap; torch is imported with the first name that needs it.
"""

from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

from .errors import ERROR_CODES, ItemError, MaskrcnnError, RunError, UsageError
from .types import Category, Detections

if TYPE_CHECKING:
    from .evaluation.evaluate_run import Evaluation, EvaluationOptions
    from .imaging.decode import Limits, decode_image
    from .models.conversion.convert import convert
    from .models.conversion.report import Converted
    from .models.model import Model, load_model
    from .models.own.own_segmenter import SegmenterOptions
    from .models.segmenter import MaskRCNNSegmenter as Segmenter
    from .models.torchvision_segmenter import TorchvisionSegmenter
    from .results.diff_matching import Rules as DiffRules
    from .results.run import Run, open_run
    from .results.verify import VerificationReport
    from .results.verify import verify_run as verify
    from .synthetic.planted import PlantedSegmenter
    from .visualization.diff_report import diff_runs as diff
    from .visualization.display import display_instances, display_masks
    from .visualization.draw import contact_sheet, draw_instances, draw_mask
    from .visualization.evaluation_report import evaluate

_LAZY = {
    "Converted": "models.conversion.report",
    "DiffRules": "results.diff_matching",
    "Evaluation": "evaluation.evaluate_run",
    "EvaluationOptions": "evaluation.evaluate_run",
    "Limits": "imaging.decode",
    "Model": "models.model",
    "PlantedSegmenter": "synthetic.planted",
    "Run": "results.run",
    "Segmenter": "models.segmenter",
    "SegmenterOptions": "models.own.own_segmenter",
    "TorchvisionSegmenter": "models.torchvision_segmenter",
    "VerificationReport": "results.verify",
    "contact_sheet": "visualization.draw",
    "convert": "models.conversion.convert",
    "decode_image": "imaging.decode",
    "diff": "visualization.diff_report",
    "display_instances": "visualization.display",
    "display_masks": "visualization.display",
    "draw_instances": "visualization.draw",
    "draw_mask": "visualization.draw",
    "evaluate": "visualization.evaluation_report",
    "load_model": "models.model",
    "open_run": "results.run",
    "verify": "results.verify",
}
"""The module of each public name that is imported on first use."""
_NAMED_THERE = {
    "DiffRules": "Rules",
    "Segmenter": "MaskRCNNSegmenter",
    "diff": "diff_runs",
    "verify": "verify_run",
}
"""The name in that module, if it is another."""

__all__ = [
    "ERROR_CODES",
    "Category",
    "Converted",
    "Detections",
    "DiffRules",
    "Evaluation",
    "EvaluationOptions",
    "ItemError",
    "Limits",
    "MaskrcnnError",
    "Model",
    "PlantedSegmenter",
    "Run",
    "RunError",
    "Segmenter",
    "SegmenterOptions",
    "TorchvisionSegmenter",
    "UsageError",
    "VerificationReport",
    "contact_sheet",
    "convert",
    "decode_image",
    "diff",
    "display_instances",
    "display_masks",
    "draw_instances",
    "draw_mask",
    "evaluate",
    "load_model",
    "open_run",
    "segment_collection",
    "verify",
]


def segment_collection(
    source: str | PathLike[str],
    output: str | PathLike[str],
    *,
    model: str | PathLike[str] = "coco",
    labels: str | PathLike[str] | None = None,
    images_root: str | PathLike[str] | None = None,
    shard_images: int | None = None,
    coco: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    dtype: str | None = None,
    strict: bool = False,
    update: bool = False,
    **inference: Any,
) -> "Run":
    """Do in this process what `maskrcnn segment SOURCE OUTPUT --no-ray` does; continue OUTPUT if it is unfinished.

    Plan, receipts, tables and pages are those of the command, which can continue what was begun here, on Ray too. What
    the run is doing is logged by the logger `maskrcnn`, at the level INFO.

    Args:
        source: a folder, a glob, a prefix, an archive, a .parquet file that contains the pictures, a manifest (.txt,
            .csv, .tsv, .jsonl, .parquet), an S3 Inventory, or a JSON of COCO, LVIS or MegaDetector.
        output: a directory or a prefix of an object store.
        model: `coco`, `coco-v1`, `scenes`, the path or URL of a weights file, or `package.module:factory`.
        labels: names of the categories of a `.pth` file, one per line.
        images_root: folder that relative names in a manifest refer to.
        shard_images: images per shard, the unit that is done again after an interruption.
        coco: whether to write COCO JSON: `auto`, `always` or `never`.
        device: `auto`, `cpu` or `cuda`.
        batch_size: images per forward pass; None: 1 on the CPU, 8 on CUDA.
        threads: CPUs per image; None: 1.
        dtype: of the convolutions; None: float32 on the CPU, float16 on CUDA.
        strict: whether it is an error that a listing finds files that are no inputs.
        update: list the inputs again if the run is finished, and process what was added or changed since.
        inference: other fields of `config.InferenceConfig`: `min_score`, `max_detections`, `categories`, `limit`,
            `window`, `overlap`, `bands`, `scale`, `assume_crs`, `alpha`, `max_windows`, `allow_http`, `tta`,
            `image_column`, `sidecars`, and `model_args`, the arguments of the factory of a network of your own.

    Returns:
        The finished run.

    Raises:
        UsageError: an argument is wrong, or OUTPUT holds another run.
        RunError: the run stopped before its end; the same call continues it.
    """
    # A job lives with the jobs, above the library, and is imported only where it is called.
    arguments = {name: value for name, value in locals().items() if name != "inference"}
    run: Run = import_module("maskrcnn_jobs.driver.collection").segment_collection(**arguments, **inference)
    return run


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("maskrcnn-ray")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_LAZY[name]}", __name__)
    return getattr(module, _NAMED_THERE.get(name, name))


def __dir__() -> list[str]:
    return __all__
