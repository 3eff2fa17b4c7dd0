"""Mask R-CNN over image collections: the library, without Ray.

>>> import maskrcnn
>>> model = maskrcnn.load_model("scenes")            # doctest: +SKIP
>>> segmenter = maskrcnn.Segmenter(model)            # doctest: +SKIP
>>> [detections] = segmenter.segment([pixels])       # doctest: +SKIP

Importing this package is cheap; torch is imported with the first name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import ERROR_CODES, ItemError, MaskrcnnError, RunError, UsageError
from .types import Category, Detections

if TYPE_CHECKING:
    from .imaging.decode import Limits, decode_image
    from .models.build import Model, load_model
    from .models.segmenter import MaskRCNNSegmenter as Segmenter
    from .results.run import Run, open_run
    from .synthetic.planted import PlantedSegmenter
    from .visualization.display import display_instances, display_masks
    from .visualization.draw import contact_sheet, draw_instances, draw_mask

_LAZY = {
    "Limits": "imaging.decode",
    "Model": "models.build",
    "PlantedSegmenter": "synthetic.planted",
    "Run": "results.run",
    "Segmenter": "models.segmenter",
    "contact_sheet": "visualization.draw",
    "decode_image": "imaging.decode",
    "display_instances": "visualization.display",
    "display_masks": "visualization.display",
    "draw_instances": "visualization.draw",
    "draw_mask": "visualization.draw",
    "load_model": "models.build",
    "open_run": "results.run",
}

__all__ = [
    "ERROR_CODES",
    "Category",
    "Detections",
    "ItemError",
    "Limits",
    "MaskrcnnError",
    "Model",
    "PlantedSegmenter",
    "Run",
    "RunError",
    "Segmenter",
    "UsageError",
    "contact_sheet",
    "decode_image",
    "display_instances",
    "display_masks",
    "draw_instances",
    "draw_mask",
    "load_model",
    "open_run",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_LAZY[name]}", __name__)
    return getattr(module, "MaskRCNNSegmenter" if name == "Segmenter" else name)


def __dir__() -> list[str]:
    return __all__
