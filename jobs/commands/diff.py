"""`maskrcnn diff`: two finished runs over the same images, compared in this process."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Final

import maskrcnn
from maskrcnn.errors import UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.results.diff import Comparison
from maskrcnn.results.diff_matching import KINDS, Rules
from maskrcnn.results.diff_tables import compare_runs
from maskrcnn.results.reader import RunReader
from maskrcnn.visualization.diff_report import draw_diffs, write_page

log = logging.getLogger("maskrcnn")

_ROWS: Final = 20
"""The most categories in the terminal's table."""


def diff(a: str, b: str, rules: Rules, output: str | None, pictures: int) -> dict[str, Any]:
    """Compare two finished runs; return what differs, as JSON.

    Args:
        a: directory of one run.
        b: of the other.
        rules: when instances are the same.
        output: an empty directory or prefix that gets `diff.parquet`, `images.parquet`, `diff.json` and `diff.html`.
        pictures: the most images on the page.

    Raises:
        UsageError: there is no finished run, or the output is not empty.
        RunError: something cannot be read or written.
    """
    target = None if output is None else _empty(output)
    with RunReader(maskrcnn.open_run(a)) as one, RunReader(maskrcnn.open_run(b)) as other:
        comparison = Comparison(one, other, rules)
        tally, most = compare_runs(comparison, target, pictures)
        if not tally.images["compared"] and not tally.images["failed"]:
            log.warning("the runs have no image in common, by %s", comparison.matched_by)
        facts = {
            "a": one.run.url,
            "b": other.run.url,
            "equal": tally.equal,
            "matched_by": comparison.matched_by,
            "rules": dataclasses.asdict(rules),
            "settings": comparison.settings,
            **tally.to_json(),
        }
        if target is not None:
            write_page(target, facts, draw_diffs(comparison, one, other, most))
    return facts


def _empty(output: str) -> Storage:
    target = Storage(output)
    if target.list():
        raise UsageError(f"{output} is not empty; name another directory")
    return target


def table_of(facts: Mapping[str, Any]) -> str:
    """Return what differs as a table for a terminal."""
    images = facts["images"]
    said = [
        f"{images['compared']:,} images compared by {facts['matched_by']}",
        *_if(images["changed"], "differ in their instances"),
        *_if(images["only_a"], "only in A"),
        *_if(images["only_b"], "only in B"),
        *_if(images["status_changed"], "have another status"),
        *_if(images["failed"], "not compared, since a run could not see them"),
        *_if(images["resized"], "not compared, since they have another size"),
    ]
    by_category = facts["by_category"]
    order = sorted(
        by_category, key=lambda name: (by_category[name]["same"] - sum(by_category[name].values()), name)
    )
    shown = {name: by_category[name] for name in order[:_ROWS]}
    rows = {"all": facts["instances"], **shown, **facts["by_size"]}
    width = max(len("instances"), *(len(name) for name in rows))
    lines = ["; ".join(said), f"{'instances':{width}}  " + "  ".join(f"{kind:>10}" for kind in KINDS)]
    for name, counts in rows.items():
        lines.append(f"{name:{width}}  " + "  ".join(f"{counts[kind]:>10,}" for kind in KINDS))
        if name == list(shown)[-1:] and len(order) > _ROWS:
            lines.append(f"and {len(order) - _ROWS} more categories")
    lines += [f"{row['count']:,} {row['from']} → {row['to']}" for row in facts["relabelled"][:10]]
    lines += [f"settings: {line}" for line in facts["settings"]]
    return "\n".join([*lines, "equal" if facts["equal"] else "different"])


def _if(count: int, what: str) -> list[str]:
    return [f"{count:,} {what}"] if count else []
