"""Render `training.html`: the losses and the average precision of each epoch, as curves and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..training.config import precision_of
from .charts import Mark
from .templates import render

MEASURED: Final = {
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP at IoU 0.50",
    "box_ap": "box AP",
    "box_ap50": "box AP at IoU 0.50",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through points, in fractions of the plot with y downwards, with its name in the legend."""

    name: str
    path: str
    """SVG path data, in a plot of 1000 x 1000 units."""
    points: tuple[tuple[float, float, str], ...]
    """Each x, y and its tooltip."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves over epochs on one pair of axes."""

    title: str
    note: str
    curves: list[Curve]
    x_marks: list[Mark]
    y_marks: list[Mark]


def render_training(rows: Sequence[Mapping[str, float]], facts: Mapping[str, Any]) -> str:
    """Return the page of a training run as HTML.

    Args:
        rows: of the log, one per epoch, with columns of `training.config.columns_of`: those that were measured.
        facts: the content of `training.json`.
    """
    epochs = int(facts["request"]["config"]["epochs"])
    shown = list(dict.fromkeys(column for row in rows for column in row))
    losses = {
        name: name.removeprefix("loss_").replace("_", " ") for name in shown if name.startswith("loss_")
    }
    plots = [
        _curves("Losses", "means over the images of an epoch", rows, losses, epochs, None),
        _curves(
            "Average precision", "on the validation set, as defined by COCO", rows, MEASURED, epochs, 1.0
        ),
    ]
    best = max(rows, key=lambda row: (precision_of(row), row["epoch"]), default=None)
    shape = "mask" if best is not None and "mask_ap" in best else "box"
    return render(
        "training.html.j2",
        facts=facts, config=facts["request"]["config"], plots=[plot for plot in plots if plot.curves],
        columns=shown, rows=rows, best=best, shape=shape, epochs=epochs, text=_text,
    )  # fmt: skip


def _text(column: str, value: float | None) -> str:
    if value is None:
        return ""
    if column in ("epoch", "seconds"):
        return f"{value:.0f}"
    return f"{value:.2e}" if column == "learning_rate" else f"{value:.3f}"


def _curves(
    title: str,
    note: str,
    rows: Sequence[Mapping[str, float]],
    names: Mapping[str, str],
    epochs: int,
    most: float | None,
) -> Curves:
    known = {column: [(row["epoch"], row[column]) for row in rows if column in row] for column in names}
    highest = max((y for points in known.values() for _, y in points), default=1.0)
    top = most or nice_ceiling(highest)
    curves = []
    for column, points in known.items():
        if points:
            places = [((x - 0.5) / epochs, 1 - min(max(y / top, 0.0), 1.0)) for x, y in points]
            path = "M" + "L".join(f"{1000 * x:.1f} {1000 * y:.1f}" for x, y in places)
            titles = [f"{names[column]} after epoch {x:.0f}: {y:.3f}" for x, y in points]
            dots = tuple((x, y, text) for (x, y), text in zip(places, titles, strict=True))
            curves.append(Curve(names[column], path, dots))
    step = max(1, -(-epochs // 12))
    x_marks = [Mark((x - 0.5) / epochs, str(x)) for x in range(1, epochs + 1) if (x - 1) % step == 0]
    y_marks = [Mark(1 - i / 4, f"{top * i / 4:.2f}") for i in range(5)]
    return Curves(title, note, curves, x_marks, y_marks)


def nice_ceiling(value: float) -> float:
    """Return the smallest of 1, 2, 4, 5 times a power of ten that is at least a value.

    >>> nice_ceiling(0.73), nice_ceiling(1.2), nice_ceiling(37)
    (1.0, 2.0, 40.0)
    """
    if not value > 0:
        return 1.0
    power = 1e-6
    while True:
        for step in (1, 2, 4, 5):
            if step * power >= value:
                return float(f"{step * power:.6g}")
        power *= 10
