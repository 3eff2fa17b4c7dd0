"""The report of a conversion: as JSON, and as Markdown."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ...errors import plural
from ...types import Category
from ..architectures.network_shapes import Shape
from .moves import Step
from .parity import Row

__all__ = ["Converted", "write_report"]


@dataclass(frozen=True, slots=True)
class Converted:
    """The result of a conversion."""

    source: str
    architecture: str
    categories: tuple[Category, ...]
    sha256: str
    """The sha256 of the source file, hexadecimal."""
    place: str
    """The keys in the file under which the weights were, such as `model`; empty: they were the whole file."""
    assumed: dict[str, Any]
    """Settings that the tensors do not show: as passed, as in a configuration, or the source's defaults."""
    steps: tuple[Step, ...]
    parity: tuple[Row, ...]

    @property
    def within_limit(self) -> bool:
        """Whether every stage agrees with the source within its limit."""
        return all(row.within_limit for row in self.parity)

    def counts(self) -> dict[str, int]:
        """Return the number of tensors that were taken, flipped, …, in the order of first appearance."""
        counts: dict[str, int] = {}
        for step in self.steps:
            counts[step.action] = counts.get(step.action, 0) + 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "source": self.source,
            "architecture": self.architecture,
            "sha256_of_source": self.sha256,
            "place": self.place,
            "categories": [asdict(category) for category in self.categories],
            "assumed": self.assumed,
            "tensors": self.counts(),
            "sound": self.within_limit,
            "parity": [row.to_json() for row in self.parity],
            "parity_note": _PARITY_NOTES[self.source],
            "steps": [asdict(step) for step in self.steps],
        }


_PARITY_NOTES: Final = {
    "torchvision": "Compared with torchvision's own network on the source's tensors, on generated images.",
    "detectron2": "Compared with a reference implementation of detectron2's forward pass "
    "(maskrcnn/models/conversion/reference_detectron2.py) on the source's own tensors, on generated images. "
    "detectron2 itself was not run. Settings that a checkpoint does not contain are those of the model "
    "zoo's configuration: BGR input, ROIAlignV2, frozen norms with epsilon 1e-5, and those listed below.",
    "mmdetection": "Compared with a reference implementation of MMDetection's forward pass "
    "(maskrcnn/models/conversion/reference_mmdetection.py) on the source's own tensors, on generated images. "
    "MMDetection itself was not run. Settings that a checkpoint does not contain are those of its base configurations: "
    "RGB input, style='pytorch', images resized by OpenCV, RoIAlign with sampling_ratio 0, norms with epsilon 1e-5, "
    "and those listed below.",
    "matterport": "Compared with a reference implementation of matterport's forward pass "
    "(maskrcnn/models/conversion/reference_matterport.py) on the source's own tensors, on generated images. "
    "TensorFlow was not run; the reference implementation is tested against tensors that matterport's code "
    "computed under TensorFlow. Settings that a file does not contain are those of matterport's `Config`, or of --set.",
}


def write_report(report: Converted, weights: str, model: Path) -> None:
    """Write a report next to a model, as `MODEL.report.json` and `MODEL.report.md`.

    Args:
        report: of the conversion.
        weights: the name of the source's file.
        model: the path of the model's file.
    """
    model.with_name(f"{model.name}.report.json").write_text(json.dumps(report.to_json(), indent=1) + "\n")
    model.with_name(f"{model.name}.report.md").write_text(_markdown(report, weights, model.name))


def _markdown(report: Converted, weights: str, output: str) -> str:
    place = f", under `{report.place}`" if report.place else ""
    lines = [
        f"# {output}",
        "",
        f"Converted from `{weights}`{place} ({report.source}, sha256 {report.sha256}).",
    ]
    lines += [
        f"Architecture `{report.architecture}`, {plural(len(report.categories), 'category')}: "
        f"{', '.join(f'{category.name} ({category.id})' for category in report.categories)}.",
        "",
        f"Settings that the tensors do not show: {', '.join(f'{k} {_shown(v)}' for k, v in report.assumed.items())}.",
        "",
        "## Parity",
        "",
    ]
    lines += [_PARITY_NOTES[report.source], "", "| stage | largest difference | | limit | compared | |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {row.stage} | {row.difference:.2g} | {row.unit} | {row.limit:g} | {row.compared:,} | "
        f"{'within the limit' if row.within_limit else 'DIFFERS'} |"
        for row in report.parity
    ]
    counts = ", ".join(f"{count} {action}" for action, count in report.counts().items())
    lines += ["", "## Tensors", "", counts, "", "| source | shape | action | target | shape | reason |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {step.source} | {_sides(step.shape)} | {step.action} | {step.target} | {_sides(step.new_shape)} | "
        f"{step.note} |"
        for step in report.steps
    ]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{number:g}" for number in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sides(shape: Shape) -> str:
    return " x ".join(map(str, shape))
