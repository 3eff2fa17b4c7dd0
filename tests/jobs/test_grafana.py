"""`cluster/grafana.json`: a board that shows every metric of a run, by queries that Prometheus can answer."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from maskrcnn_jobs.driver.metrics import METRICS, exported_name

BOARD = json.loads((Path(__file__).parents[2] / "cluster" / "grafana.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]
TAGS = {exported_name(name): {"output", metric.tag} - {None} for name, metric in METRICS.items()}


def parsed(query: str) -> Any:
    """Read a query by Prometheus's grammar, with a value in place of Grafana's own variables."""
    return promql_parser.parse(query.replace("$__rate_interval", "2m"))


def nodes(tree: Any) -> Iterator[Any]:
    """Yield an expression and all that it consists of."""
    yield tree
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if (child := getattr(tree, name, None)) is not None:
            yield from nodes(child)
    for argument in getattr(tree, "args", ()):
        yield from nodes(argument)


def selectors(query: str) -> list[Any]:
    return [node for node in nodes(parsed(query)) if isinstance(node, promql_parser.VectorSelector)]


def labels(query: str) -> set[str]:
    """Return the labels by which a query selects and adds up."""
    found = {matcher.name for selector in selectors(query) for matcher in selector.matchers.matchers}
    sums = [node for node in nodes(parsed(query)) if isinstance(node, promql_parser.AggregateExpr)]
    return found.union(*(node.modifier.labels for node in sums))


def test_the_board_shows_every_metric_and_no_other() -> None:
    shown = {selector.name for target in TARGETS for selector in selectors(target["expr"])}
    assert shown == set(map(exported_name, METRICS))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target["expr"][:60])
def test_a_query_selects_by_tags_that_its_metrics_have(target: dict[str, Any]) -> None:
    assert labels(target["expr"]) <= set.union(*(TAGS[one.name] for one in selectors(target["expr"])))
    for selector in selectors(target["expr"]):
        [run] = [matcher for matcher in selector.matchers.matchers if matcher.name == "output"]
        assert run.value == "$output", "the variable chooses the runs"
    [legend] = [part.partition("}}")[0] for part in target["legendFormat"].split("{{")[1:]]
    assert legend in labels(target["expr"]), "what a line is called is what distinguishes it"


def test_counters_are_read_as_counters_and_gauges_as_gauges() -> None:
    """A rate of a gauge, or a counter's rate over a fixed time, would be a wrong curve without an error."""
    kinds = {exported_name(name): metric.kind for name, metric in METRICS.items()}
    for target in TARGETS:
        for node in nodes(parsed(target["expr"])):
            if isinstance(node, promql_parser.Call):
                [argument] = node.args
                kind = {"rate": "counter", "deriv": "gauge"}[node.func.name]
                assert kinds[argument.vector_selector.name] == kind


def test_a_query_that_is_wrong_is_noticed() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        parsed("sum by (output (ray_maskrcnn_cost)")


def test_the_data_source_and_the_run_are_chosen_in_the_board() -> None:
    sources, runs = BOARD["templating"]["list"]
    assert (sources["name"], sources["type"], sources["query"]) == ("datasource", "datasource", "prometheus")
    assert (runs["name"], runs["type"], runs["multi"]) == ("output", "query", True)
    assert runs["query"]["query"] == "label_values(ray_maskrcnn_images_left, output)"
    for holder in (runs, *PANELS, *TARGETS):
        assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert BOARD["id"] is None, "a number would name a board of another Grafana"


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart = [
            one[at] + one[by] <= other[at] or other[at] + other[by] <= one[at] for at, by in ("xw", "yh")
        ]
        assert any(apart), (one, other)


def test_every_panel_says_what_it_shows() -> None:
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")


EACH_MINUTE = {
    'images_total{output="RUN", status="ok", WorkerId="w"}': "0+60x10",
    'images_total{output="RUN", status="failed", WorkerId="w"}': "0+6x10",
    'failures_total{output="RUN", code="not_an_image", WorkerId="w"}': "0+6x10",
    'stage_seconds_total{output="RUN", stage="wait", WorkerId="w"}': "0+12x10",
    'stage_seconds_total{output="RUN", stage="model", WorkerId="w"}': "0+48x10",
    'stage_seconds_total{output="RUN", stage="wall", WorkerId="w"}': "0+60x10",
    'images_left{output="RUN", WorkerId="w"}': "660-66x10",
    'eta_seconds{output="RUN", WorkerId="w"}': "600-60x10",
    'cost{output="RUN", WorkerId="w"}': "0+3x10",
}
"""Metrics of a run of 660 images that takes ten minutes and costs 30, with a label of Ray's."""
AFTER_FIVE_MINUTES = {
    "Done": {'{output="RUN"}': 0.5},
    "Time left": {'{output="RUN"}': 300},
    "Cost so far": {'{output="RUN"}': 15},
    "Cost at the end": {'{output="RUN"}': 30},
    "Failed": {'{output="RUN"}': 1 / 11},
    "Images by status": {'{status="ok"}': 1, '{status="failed"}': 0.1},
    "Time by stage": {'{stage="wait"}': 0.2, '{stage="model"}': 0.8},
    "The network waits for inputs": {'{output="RUN"}': 0.2},
    "Failures by code": {'{code="not_an_image"}': 30},
    "Repeated requests": {},
}
"""What panels show of it."""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Prometheus, is not installed")
def test_panels_show_what_is_true_of_the_chosen_run(tmp_path: Path) -> None:
    """Prometheus's own evaluation, with a second run that is not chosen."""
    series = [
        {"series": f"ray_maskrcnn_{name}".replace("RUN", run), "values": values}
        for run in ("chosen", "other")
        for name, values in EACH_MINUTE.items()
    ]
    queries = {panel["title"]: panel["targets"][0]["expr"] for panel in PANELS}
    expected = [
        {
            "expr": queries[title].replace("$output", "chosen").replace("$__rate_interval", "2m"),
            "eval_time": "5m",
            "exp_samples": [
                {"labels": labels.replace("RUN", "chosen"), "value": value} for labels, value in shown.items()
            ],
        }
        for title, shown in AFTER_FIVE_MINUTES.items()
    ]
    test = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": expected}]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    run = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
