"""From the name of a model to a segmenter: used by all commands that run a model, and the benchmarks."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..synthetic.planted_models import PlantedModel
from ..types import Segmenter
from .networks import check_tta
from .own.own_code import OwnNetwork
from .own.own_segmenter import SegmenterOptions, build_own
from .registry import refuse_arguments, resolve

__all__ = ["build_segmenter"]


def build_segmenter(
    name: str,
    labels: str | None = None,
    *,
    min_score: float = 0.05,
    max_detections: int = 100,
    categories: Sequence[str] = (),
    tta: str | None = None,
    device: str = "cpu",
    batch_size: int | None = None,
    threads: int | None = None,
    dtype: str | None = None,
    rescale: bool = True,
    expected_sha256: str | None = None,
    lanes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    code_folder: str | None = None,
) -> Segmenter:
    """Build the segmenter of a model; torch is imported only if the model is a network.

    Args:
        name: as of `registry.resolve`.
        labels: as of `model.load_model`.
        min_score: as of `segmenter.MaskRCNNSegmenter`, as are the arguments up to `rescale`.
        max_detections: the maximum number of detections in an image, the best by score.
        categories: names of the categories to keep; empty: all.
        tta: as of `segmenter.MaskRCNNSegmenter`; None for other models than networks of the table.
        device: `cpu`, `cuda` or `auto`; a planted model has none, and ignores it and the arguments up to `rescale`.
        batch_size: images per forward pass.
        threads: of torch on the CPU.
        dtype: of the convolutions.
        rescale: whether images are resized as for training.
        expected_sha256: as `describe_model` returned it; other weights, or other code, are refused.
        lanes: as of `segmenter.MaskRCNNSegmenter`; a planted model has one.
        arguments: of the factory of a network of the user's own.
        code_folder: the folder that holds the code of such a network; None: the working directory.

    Raises:
        UsageError: there is no such model, its file is not valid, or an argument is not; the message says what to do.
        RunError: the store of its file cannot be read at all.
    """
    source = resolve(name)
    if isinstance(source, OwnNetwork):
        check_tta(tta, name, "own")
        limits = (min_score, max_detections, tuple(categories))
        options = SegmenterOptions(*limits, device, batch_size, threads, dtype, rescale, lanes or 1)
        return build_own(source, options, arguments or {}, code_folder, expected_sha256)
    refuse_arguments(name, arguments)
    if isinstance(source, PlantedModel):
        check_tta(tta, name, "planted")
        return source.build(min_score, max_detections, categories)
    from .model import load_model  # noqa: PLC0415 imports torch
    from .segmenter import MaskRCNNSegmenter  # noqa: PLC0415 imports torch

    return MaskRCNNSegmenter(
        load_model(name, labels, expected_sha256=expected_sha256),
        min_score=min_score,
        max_detections=max_detections,
        categories=categories,
        tta=tta,
        device=device,
        batch_size=batch_size,
        threads=threads,
        dtype=dtype,
        rescale=rescale,
        lanes=lanes,
    )
