"""`verify` proves an intact run, and finds each single change by the check that is responsible for it.
A finished run of planted images is copied and tampered with. Where rows are changed, the part's entry in `_SUCCESS`
is corrected, so that it is not the digest that gives it away.
"""

import dataclasses
import doctest
import functools
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from fault_proxy import FaultProxy, answer, refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.driver.planning import Request, prepare
from planted_images import write_planted
from s3_servers import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server

from maskrcnn.config import InferenceConfig
from maskrcnn.errors import RunError, UsageError
from maskrcnn.imaging.decode import Limits
from maskrcnn.io.parquet import write_tables
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.merge_generations import group_shards
from maskrcnn.pipeline.plan import Plan, read_plans
from maskrcnn.pipeline.plan_retry import plan_retry
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.results import invariants, verify, verify_loading
from maskrcnn.results.verify import VerificationReport, verify_run
from maskrcnn.results.verify_loading import digest_and_size, row_groups
from maskrcnn.schema import INSTANCES
from maskrcnn.synthetic.planted import PlantedSegmenter
from maskrcnn.visualization.run_report import write_report

ROWS = 25
PARTS = 5


def write_inputs(folder: Path) -> str:
    """Write 22 planted images, three inputs that fail, and a manifest with NaN in some columns."""
    write_planted(folder, ROWS - 3, seed=11)
    (folder / "a-empty.png").write_bytes(b"")
    (folder / "q-page.png").write_text("<html>not found</html>")
    names = [*(path.name for path in sorted(folder.glob("*.png"))), "planted-000003-gone.png"]
    manifest = {
        "uri": names,
        "weight": [float("nan") if i % 3 else i / 2 for i in range(ROWS)],
        "tags": [[float("nan"), i] if i % 2 else None for i in range(ROWS)],
        "split": ["train" if i % 2 else None for i in range(ROWS)],
    }
    pq.write_table(pa.table(manifest), folder / "manifest.parquet")
    return str(folder / "manifest.parquet")


def run_shards(storage: Storage, plan: Plan) -> None:
    worker = ShardWorker(storage, PlantedSegmenter(), Limits(10**7, 10**7, 1333.0), {"node": "here"})
    for shard in plan:
        worker.run_shard(shard)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 25 inputs in five parts of each table."""
    folder = tmp_path_factory.mktemp("whole")
    source, output = write_inputs(folder / "images"), folder / "run"
    plan = prepare(Request(source, str(output), InferenceConfig("planted"), shard_images=5))
    run_shards(Storage(str(output)), plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskrcnn.pipeline.reduce.group_shards", functools.partial(group_shards, part_bytes=1))
        reduce_run(str(output), write_report=write_report)
    return output


@dataclass(frozen=True)
class Output:
    """A copy of the run, which may be changed."""

    path: Path

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def write_json(self, name: str, content: Any) -> None:
        (self.path / name).write_text(json.dumps(content))

    def part(self, table: str, number: int = 1) -> Path:
        return self.path / self.json("_SUCCESS")["parts"][table][number]["path"]

    def coco(self, number: int = 0) -> Path:
        return self.path / self.json("_SUCCESS")["coco"][number]

    def list_again(self, table: str, number: int = 1, rows: int | None = None) -> None:
        """Correct a part's entry in `_SUCCESS`."""
        success = self.json("_SUCCESS")
        entry = success["parts"][table][number]
        data = (self.path / entry["path"]).read_bytes()
        entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        entry["rows"] = entry["rows"] if rows is None else rows
        self.write_json("_SUCCESS", success)

    def change(self, table: str, change: Callable[[pa.Table], pa.Table], number: int = 1) -> None:
        """Write a part anew, and correct its entry."""
        path = self.part(table, number)
        rows = change(pq.read_table(path).combine_chunks())
        write_tables(Storage(str(path.parent)), path.name, rows.schema, [rows])
        self.list_again(table, number, len(rows))


@pytest.fixture
def output(whole: Path, tmp_path: Path) -> Output:
    shutil.copytree(whole, tmp_path / "run")
    return Output(tmp_path / "run")


def found_by(report: VerificationReport) -> list[str]:
    """Return the names of the checks with findings."""
    assert {finding.check for finding in report.findings} == {o.check for o in report.outcomes if o.findings}
    return [outcome.check for outcome in report.outcomes if outcome.findings]


def command(output: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["-q", "verify", str(output), *options])


# What is whole


def test_a_finished_run_is_proven(whole: Path) -> None:
    report = verify_run(str(whole))
    assert report.proven
    assert report.findings == ()
    assert [outcome.check for outcome in report.outcomes] == [name for name, _, _ in verify.CHECKS]
    counts = Output(whole).json("_SUCCESS")["counts"]
    assert counts["failed"] == 3
    line = next(outcome.line for outcome in report.outcomes if outcome.check == "images")
    by_status = f"{counts['ok']} ok, {counts['empty']} empty, 3 failed"
    assert line == f"25 rows, each manifest row exactly once and in order: {by_status}"


def test_it_needs_neither_shards_nor_receipts(output: Output) -> None:
    shutil.rmtree(output.path / "shards")
    shutil.rmtree(output.path / "receipts")
    assert verify_run(str(output.path)).proven


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_the_grouping_of_rows_does_not_matter(
    output: Output, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_loading, "CHUNK_INSTANCES", rows)
    for table in ("images", "instances"):
        for number in range(PARTS):
            path = output.part(table, number)
            pq.write_table(pq.read_table(path), path, row_group_size=rows)
            output.list_again(table, number)
    assert verify_run(str(output.path)).proven


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_each_form_of_coco_is_proven(output: Output, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.formats.coco_writer.MAX_ANNOTATIONS", 20)
    monkeypatch.setattr(
        "maskrcnn.pipeline.reduce.group_shards", functools.partial(group_shards, part_bytes=1)
    )
    success = reduce_run(str(output.path), coco_mode=mode, write_report=write_report)
    assert len(success["coco"]) == {"auto": 15, "always": 3, "never": 0}[mode]
    assert verify_run(str(output.path)).proven


def test_a_retry_is_proven_and_until_then_the_run_is_unfinished(output: Output) -> None:
    storage = Storage(str(output.path))
    plan = plan_retry(storage, read_plans(storage))
    assert plan is not None
    assert "generation 2" in (verify_run(storage.url).unfinished or "")
    run_shards(storage, plan)
    reduce_run(storage.url, write_report=write_report)
    assert verify_run(storage.url).proven
    assert plan.rows_file is not None
    rows = output.path / plan.rows_file
    rows.write_bytes(rows.read_bytes()[::-1])
    assert found_by(verify_run(storage.url)) == ["records"]


# The command


def test_the_command_prints_what_was_proven(whole: Path) -> None:
    result = command(whole)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [*(name for name, _, _ in verify.CHECKS), "proven"]
    facts = json.loads(command(whole, "--json").stdout)
    assert facts["proven"] is True
    assert facts["findings"] == []
    assert all(check["passed"] for check in facts["checks"])


def test_the_command_prints_what_was_found(output: Output) -> None:
    (output.path / "images" / "part-1-00099.parquet").write_bytes(b"left behind")
    result = command(output.path)
    assert result.exit_code == 1
    assert "listing: 1 finding" in result.stdout
    assert "images/part-1-00099.parquet: is not listed in _SUCCESS" in result.stdout
    assert result.stdout.splitlines()[-1] == f"not proven: {output.path}"
    facts = json.loads(command(output.path, "--json").stdout)
    assert facts["proven"] is False
    assert [(f["check"], f["where"]) for f in facts["findings"]] == [
        ("listing", "images/part-1-00099.parquet")
    ]


def test_an_unfinished_run_is_distinguished_from_a_broken_one(output: Output) -> None:
    for name, words in (("_SUCCESS", "segment"), ("plan.json", "planning did not finish")):
        (output.path / name).unlink()
        result = command(output.path, "--json")
        assert result.exit_code == 3
        facts = json.loads(result.stdout)
        assert words in facts["unfinished"]
        assert facts["proven"] is False
    assert "unfinished:" in command(output.path).stdout


def test_without_a_run_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        verify_run(str(tmp_path))
    assert command(tmp_path / "none").exit_code == 2


def test_only_the_first_findings_are_kept_and_all_are_counted(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "KEPT_FINDINGS", 2)
    for number in range(5):
        (output.path / "images" / f"stray-{number}").write_bytes(b"")
    report = verify_run(str(output.path))
    assert [finding.where for finding in report.findings] == ["images/stray-0", "images/stray-1"]
    assert [outcome.findings for outcome in report.outcomes if outcome.findings] == [5]
    assert "and 3 more" in command(output.path).stdout


def elsewhere(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """Apply a function to all arguments, each as another process would: what goes there and comes back is pickled."""
    sent = pickle.dumps(function)
    return [pickle.loads(pickle.dumps(pickle.loads(sent)(argument))) for argument in arguments]


def other_scores(table: pa.Table) -> pa.Table:
    field = table.schema.field("score")
    scores = pa.array([1.5] * len(table), field.type)
    return table.set_column(table.schema.get_field_index("score"), field, scores)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tamper",
    [
        lambda _: None,
        lambda output: [output.change("instances", other_scores, number=number) for number in (1, 3)],
        lambda output: [output.change("instances", lambda table: table.slice(1), number=n) for n in (0, 2)],
        lambda output: output.part("instances", 2).unlink(),
        lambda output: output.part("images", 2).write_bytes(b"PAR1"),
        lambda output: output.coco(1).write_bytes(b"[]"),
    ],
    ids=["whole", "many findings", "lost rows", "lost part", "damaged part", "other coco"],
)
def test_parts_that_are_verified_elsewhere_give_the_same_report(
    output: Output, tamper: Callable[[Output], object]
) -> None:
    tamper(output)
    report = verify_run(str(output.path))
    assert verify_run(str(output.path), elsewhere) == report


def test_a_check_that_was_not_run_is_not_passed(output: Output) -> None:
    output.part("images").unlink()
    report = verify_run(str(output.path))
    undone = [outcome.check for outcome in report.outcomes if outcome.line.startswith("not run")]
    assert undone == ["images", "instances", "statistics", "windows", "coco"]
    assert not any(outcome.passed for outcome in report.outcomes if outcome.check in undone)


# Files that are tampered with

Tampering = Callable[[Output], None]


def edited(name: str, edit: Callable[[Any], object]) -> Tampering:
    """Change a JSON file in place."""

    def tamper(output: Output) -> None:
        content = output.json(name)
        edit(content)
        output.write_json(name, content)

    return tamper


def replaced(path: Callable[[Output], Path], change: Callable[[bytes], bytes]) -> Tampering:
    return lambda output: (path(output).write_bytes(change(path(output).read_bytes())), None)[1]


def removed(path: Callable[[Output], Path]) -> Tampering:
    return lambda output: path(output).unlink()


def stray(name: str) -> Tampering:
    def tamper(output: Output) -> None:
        (output.path / name).parent.mkdir(exist_ok=True)
        (output.path / name).write_bytes(b"")

    return tamper


def at(name: str) -> Callable[[Output], Path]:
    return lambda output: output.path / name


def a_part(output: Output) -> Path:
    return output.part("instances")


def another_part_in_its_place(output: Output) -> None:
    output.part("images", 1).write_bytes(output.part("images", 2).read_bytes())


def a_digit_of_an_annotation(data: bytes) -> bytes:
    start = data.index(b'"area":') + len(b'"area":')
    return data[:start] + (b"2" if data[start : start + 1] == b"1" else b"1") + data[start + 1 :]


FILES: list[tuple[str, Tampering, str]] = [
    ("a part is missing", removed(a_part), "parts"),
    ("a part is cut off", replaced(a_part, lambda data: data[:-9]), "parts"),
    ("a part is empty", replaced(a_part, lambda _: b""), "parts"),
    ("a part is another", another_part_in_its_place, "parts"),
    ("a part is listed twice", edited("_SUCCESS", lambda s: [f.append(f[-1]) for f in s["parts"].values()]), "parts"),
    ("the rows of a part", edited("_SUCCESS", lambda s: s["parts"]["images"][0].update(rows=6)), "parts"),
    ("a stray part", stray("images/part-1-00099.parquet"), "listing"),
    ("a stray table", stray("geo/part-1-00000.parquet"), "listing"),
    ("a stray COCO file", stray("coco/instances-00007.json"), "listing"),
    ("a part of a folder below", stray("instances/old/part-0-00000.parquet"), "listing"),
    ("another manifest", replaced(at("manifest.parquet"), lambda data: data + b" "), "manifest"),
    ("no manifest", removed(at("manifest.parquet")), "manifest"),
    ("no run.json", removed(at("run.json")), "records"),
    ("run.json is no JSON", replaced(at("run.json"), lambda data: data[:-5]), "records"),
    ("run.json is a list", replaced(at("run.json"), lambda _: b"[1]"), "records"),
    ("run.json nests without end", replaced(at("run.json"), lambda _: b"[" * 10**5), "records"),
    ("run.json has no digest", edited("run.json", lambda r: r.pop("digest")), "records"),
    ("run.json has no settings", edited("run.json", lambda r: r.update(settings=None)), "records"),
    ("run.json has no categories", edited("run.json", lambda r: r["model"].update(categories=[])), "records"),
    ("another digest", edited("run.json", lambda r: r.update(digest="0" * 64)), "records"),
    ("another setting", edited("run.json", lambda r: r["settings"].update(min_score=0.01)), "records"),
    ("another model", edited("run.json", lambda r: r["model"].update(sha256="1" * 64)), "records"),
    ("other inputs", edited("run.json", lambda r: r["inputs"].update(rows=26)), "records"),
    ("plan.json is no JSON", replaced(at("plan.json"), lambda _: b"{"), "records"),
    ("plan.json is no plan", edited("plan.json", lambda p: p.pop("rows")), "records"),
    ("plan.json has text for a number", edited("plan.json", lambda p: p.update(rows="25")), "records"),
    ("plan.json is of another manifest", edited("plan.json", lambda p: p.update(manifest_sha256="0")), "manifest"),
    ("plan.json has more rows", edited("plan.json", lambda p: p.update(rows=26)), "manifest"),
    ("no plan.json", removed(at("plan.json")), "records"),
    ("_SUCCESS is no JSON", replaced(at("_SUCCESS"), lambda data: data[1:]), "records"),
    ("_SUCCESS has no parts", edited("_SUCCESS", lambda s: s.pop("parts")), "records"),
    ("_SUCCESS has one table", edited("_SUCCESS", lambda s: s["parts"].pop("instances")), "records"),
    ("_SUCCESS lists fewer parts", edited("_SUCCESS", lambda s: s["parts"]["instances"].pop()), "records"),
    ("_SUCCESS points elsewhere", edited("_SUCCESS", lambda s: s["parts"]["images"][0].update(path="../a")), "records"),
    ("_SUCCESS has odd entries", edited("_SUCCESS", lambda s: s["parts"].update(images=[1])), "records"),
    ("_SUCCESS has text for rows", edited("_SUCCESS", lambda s: s["parts"]["images"][0].update(rows="5")), "records"),
    ("_SUCCESS is of a generation to come", edited("_SUCCESS", lambda s: s.update(generation=2)), "records"),
    ("_SUCCESS is of another schema", edited("_SUCCESS", lambda s: s.update(schema_version=1)), "records"),
    ("a count of _SUCCESS", edited("_SUCCESS", lambda s: s["counts"].update(ok=s["counts"]["ok"] + 1)), "statistics"),
    ("a count of _SUCCESS is missing", edited("_SUCCESS", lambda s: s["counts"].pop("empty")), "statistics"),
    ("_SUCCESS counts what is not there", edited("_SUCCESS", lambda s: s["counts"].update(lost=0)), "statistics"),
    ("stats.json by one", edited("stats.json", lambda s: s["position"]["counts"][3].__setitem__(2, 77)), "statistics"),
    ("stats.json has no categories", edited("stats.json", lambda s: s.pop("categories")), "statistics"),
    ("stats.json is no JSON", replaced(at("stats.json"), lambda data: data[: len(data) // 2]), "statistics"),
    ("no stats.json", removed(at("stats.json")), "statistics"),
    ("a digit of COCO", replaced(Output.coco, a_digit_of_an_annotation), "coco"),
    ("a COCO file is missing", removed(lambda output: output.coco(1)), "coco"),
    ("a COCO file is cut off", replaced(Output.coco, lambda data: data[:-1]), "coco"),
    ("a COCO file goes on", replaced(lambda output: output.coco(1), lambda data: data + b"\n"), "coco"),
    ("COCO that nobody writes", edited("_SUCCESS", lambda s: s["coco"].append("coco/more.json")), "coco"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("tamper", "check"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_a_file_that_is_tampered_with_is_found(output: Output, tamper: Tampering, check: str) -> None:
    tamper(output)
    report = verify_run(str(output.path))
    assert not report.proven
    assert report.unfinished is None
    assert check in found_by(report)
    assert command(output.path).exit_code == 1


@pytest.fixture(scope="module")
def flipped(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Output:
    folder = tmp_path_factory.mktemp("flipped") / "run"
    shutil.copytree(whole, folder)
    return Output(folder)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=60)
def test_a_byte_flipped_in_any_listed_file_is_found(flipped: Output, data: st.DataObject) -> None:
    success = flipped.json("_SUCCESS")
    parts = [entry["path"] for entries in success["parts"].values() for entry in entries]
    path = flipped.path / data.draw(st.sampled_from([*parts, *success["coco"], "manifest.parquet"]))
    before = path.read_bytes()
    changed = bytearray(before)
    changed[data.draw(st.integers(0, len(before) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        report = verify_run(str(flipped.path))
    finally:
        path.write_bytes(before)
    assert not report.proven
    assert str(path.relative_to(flipped.path)) in {finding.where for finding in report.findings}


# Rows that are tampered with


def set_value(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    """Change one value: to a given one, or by a function of it."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        field = table.schema.field(column)
        return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))

    return change


def set_values(row: int, **values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: functools.reduce(
        lambda t, item: set_value(item[0], row, item[1])(t), values.items(), table
    )


def in_order(*rows: int) -> Callable[[pa.Table], pa.Table]:
    """Take these rows, then those after the highest."""
    return lambda table: table.take(pa.array([*rows, *range(max(rows) + 1, len(table))]))


def all_but(row: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: pa.concat_tables(
        [table.slice(0, row % len(table)), table.slice(row % len(table) + 1)]
    )


def again(row: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: pa.concat_tables([table.slice(0, row + 1), table.slice(row)])


def added_to_category(value: Any) -> Callable[[pa.Table], pa.Table]:
    """Change the first row's category name."""

    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field("category")
        names = pa.array([value, *table["category"].to_pylist()[1:]]).dictionary_encode()
        return table.set_column(table.schema.get_field_index("category"), field, names.cast(field.type))

    return change


IMAGES_ROWS: list[tuple[str, Callable[[pa.Table], pa.Table], str]] = [
    ("the first row is lost", all_but(0), "is missing"),
    ("a row is lost", all_but(2), "is missing"),
    ("the last row is lost", all_but(-1), "is missing"),
    ("all rows are lost", lambda table: table.slice(0, 0), "is missing"),
    ("a row is doubled", again(2), "occurs twice"),
    ("the last row is doubled", again(4), "occurs twice"),
    ("rows are swapped", in_order(0, 2, 1), "is not in the order of the manifest"),
    ("a row of another run", set_value("image_id", 1, 777), "the manifest has no such row"),
    ("another name", set_value("name", 1, "other.png"), "name is 'other.png', in the manifest"),
    ("another uri", set_value("uri", 1, "s3://other"), "uri is"),
    ("another weight", set_value("weight", 1, -7.5), "weight is -7.5, in the manifest"),
    ("no tags", set_value("tags", 1, [0.5]), "tags is [0.5], in the manifest"),
    ("another split", set_value("split", 1, "test"), "split is 'test', in the manifest"),
    ("an unknown status", set_value("status", 1, "done"), "the status is 'done'"),
    ("failed without an error", set_values(1, status="failed", n_instances=0), "failed without an error"),
    ("failed in part", set_values(1, status="failed", n_instances=0, error="partial"), "the error 'partial'"),
    ("ok with an error", set_value("error", 1, "corrupt"), "with the error 'corrupt'"),
    ("an error that is no code", set_values(1, status="failed", n_instances=0, error="oops"), "unknown error code"),
    ("failed with instances", set_values(1, status="failed", error="corrupt", n_instances=2), "failed with n_"),
    ("ok without instances", set_values(1, status="ok", n_instances=0), "ok with n_instances 0"),
    ("empty with instances", set_values(1, status="empty", n_instances=1), "empty with n_instances 1"),
    ("without a width", set_value("width", 1, None), "without a width and a height"),
    ("of no height", set_value("height", 1, 0), "without a width and a height"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "line"), [case[1:] for case in IMAGES_ROWS], ids=[case[0] for case in IMAGES_ROWS]
)
def test_a_row_of_images_that_is_tampered_with_is_found(
    output: Output, change: Callable[[pa.Table], pa.Table], line: str
) -> None:
    output.change("images", change, number=2)
    report = verify_run(str(output.path))
    assert found_by(report) == ["images"]
    assert line in "; ".join(finding.line for finding in report.findings)


@pytest.mark.parametrize(("number", "change"), [(0, all_but(0)), (2, all_but(3)), (PARTS - 1, all_but(-1))])
def test_one_lost_image_is_one_finding(
    output: Output, number: int, change: Callable[[pa.Table], pa.Table]
) -> None:
    expected = set(range(1, ROWS + 1))
    output.change("images", change, number)
    for part in range(PARTS):
        expected -= set(pq.read_table(output.part("images", part))["image_id"].to_pylist())
    report = verify_run(str(output.path))
    [lost] = expected
    assert [(f.check, f.where, f.line) for f in report.findings] == [
        ("images", f"image {lost}", "is missing")
    ]


def test_the_examples_hold() -> None:
    assert doctest.testmod(invariants).failed == 0


@given(
    st.sets(st.integers(0, 2**40), min_size=1, max_size=30).flatmap(lambda ids: st.permutations(sorted(ids))),
    st.data(),
)
def test_every_lost_row_is_named_or_still_expected(ids: list[int], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    expected, found = np.array(ids), np.array(ids)[np.array(kept)]
    placed = invariants.place(found, expected)
    faults = list(invariants.place_faults(found, expected, placed))
    assert all(fault.line == "is missing" for fault in faults)
    named = {fault.where for fault in faults}
    expected_next = {f"image {i}" for i in ids[placed.passed :]}
    assert named | expected_next == {f"image {i}" for i, keep in zip(ids, kept, strict=True) if not keep}
    assert placed.positions.tolist() == np.flatnonzero(kept).tolist()


def test_parts_in_another_order_are_found(output: Output) -> None:
    success = output.json("_SUCCESS")
    for entries in success["parts"].values():
        entries[1], entries[2] = entries[2], entries[1]
    output.write_json("_SUCCESS", success)
    assert found_by(verify_run(str(output.path))) == ["images"]


def moved(field: str, by: float) -> Callable[[dict[str, float]], dict[str, float]]:
    return lambda box: box | {field: box[field] + by}


INSTANCES_ROWS: list[tuple[str, Callable[[pa.Table], pa.Table], str]] = [
    ("a row is lost", all_but(1), "but instances has"),
    ("the last row is lost", all_but(-1), "but instances has"),
    ("all rows are lost", lambda table: table.slice(0, 0), "but instances has 0 rows"),
    ("a row is doubled", again(1), "duplicate, or out of order"),
    ("rows are swapped", in_order(1, 0), "duplicate, or out of order"),
    ("an id is doubled", lambda t: set_value("id", 1, t["id"][0].as_py())(t), "duplicate, or out of order"),
    ("an id of no image", set_value("id", -1, 2**20 * 500 + 1), "belongs to no image of this part"),
    ("an id of an earlier part", set_value("id", 0, 1), "belongs to no image of this part"),
    ("an id of nothing", set_value("id", 0, -(2**63)), "belongs to no image of this part"),
    ("an id further on", set_value("id", 0, lambda i: i + 1), "by its id 1; preceded by 0 of its image"),
    ("another image", set_value("image_id", 0, 99), "image_id is 99, by its id it belongs to image"),
    ("another number", set_value("instance", 0, 5), "instance is 5, by its id 0"),
    ("no such category", set_value("category_id", 0, 3), "no category 3"),
    ("another name of a category", added_to_category("crumb"), "'crumb'"),
    ("a score above one", set_value("score", 0, 1.5), "score is 1.5"),
    ("a score below the least", set_value("score", 0, 0.01), "not between the minimum score 0.05 and 1"),
    ("a score of NaN", set_value("score", 0, float("nan")), "score is nan"),
    ("a box of NaN", set_value("box", 0, lambda b: b | {"xmax": float("nan")}), "box is ["),
    ("a box without end", set_value("box", 0, lambda b: b | {"xmax": float("inf")}), "box is ["),
    ("a box turned inside out", set_value("box", 0, lambda b: b | {"ymax": -5.0}), "box is ["),
    ("a lower score first", set_value("score", 0, 0.06), "by score, category and box"),
    ("an area", set_value("area", 0, lambda area: area + 1), "by the mask"),
    ("a box of a mask", set_value("mask_box", 0, moved("xmin", 1)), "mask_box is"),
    ("the edge", set_value("touches_border", 0, lambda touches: not touches), "touches_border is"),
    ("another size", set_value("segmentation", 0, lambda s: s | {"size": [s["size"][0], 7]}), "segmentation.size is"),
    ("no size", set_value("segmentation", 0, lambda s: s | {"size": []}), "segmentation.size is []"),
    ("a size of none", set_value("segmentation", 0, lambda s: s | {"size": [0, 0]}), "segmentation.size is [0, 0]"),
    ("a mask cut off", set_value("segmentation", 0, lambda s: s | {"counts": s["counts"][:-1]}), "not a valid mask"),
    ("a mask of nothing", set_value("segmentation", 0, lambda s: s | {"counts": ""}), "not a valid mask"),
    ("a mask of other signs", set_value("segmentation", 0, lambda s: s | {"counts": "\xe9\u2603"}), "not a valid mask"),
    ("a mask that does not end", set_value("segmentation", 0, lambda s: s | {"counts": "P" * 99}), "not a valid mask"),
    ("a frame", set_value("frame", 0, {"col_off": 0, "row_off": 0, "width": 1, "height": 1}), "has a frame"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "line"), [case[1:] for case in INSTANCES_ROWS], ids=[case[0] for case in INSTANCES_ROWS]
)
def test_a_row_of_instances_that_is_tampered_with_is_found(
    output: Output, change: Callable[[pa.Table], pa.Table], line: str
) -> None:
    rows = pq.read_table(output.part("instances", 2))
    assert rows["instance"].to_pylist()[:2] == [0, 1]
    output.change("instances", change, number=2)
    report = verify_run(str(output.path))
    assert found_by(report) == ["instances"]
    assert line in "; ".join(finding.line for finding in report.findings)


def test_an_instance_of_a_failed_image_is_found(output: Output) -> None:
    images = [pq.read_table(output.part("images", number)).to_pylist() for number in range(PARTS)]
    number, position = next(
        (n, i)
        for n, part in enumerate(images)
        for i, row in enumerate(part)
        if row["status"] == "failed" and i
    )
    row = sum(map(len, images[:number])) + position
    image_id = images[number][position]["image_id"]

    def insert(table: pa.Table) -> pa.Table:
        new = set_values(0, id=row * 2**20 + 1, image_id=image_id, instance=0)(table.slice(0, 1))
        before = int(np.searchsorted(table["id"].to_numpy(), row * 2**20 + 1))
        return pa.concat_tables([table.slice(0, before), new, table.slice(before)])

    output.change("instances", insert, number)
    report = verify_run(str(output.path))
    assert found_by(report) == ["instances"]
    assert (f"image {image_id}", "n_instances is 0, but instances has 1 row of it") in {
        (finding.where, finding.line) for finding in report.findings
    }


def test_instances_among_those_of_another_part_are_found(output: Output) -> None:
    last = pq.read_table(output.part("instances", 1)).slice(0, 0)
    rows = pq.read_table(output.part("instances", 1))
    output.change("instances", lambda _: last, number=1)
    output.change("instances", lambda table: pa.concat_tables([rows, table]), number=2)
    assert found_by(verify_run(str(output.path))) == ["instances"]


@pytest.mark.parametrize(
    "change", [{"n_instances": lambda n: n + 1}, {"width": 500, "height": 500}], ids=["count", "size"]
)
def test_an_image_that_contradicts_its_instances_is_found(output: Output, change: dict[str, Any]) -> None:
    row = pq.read_table(output.part("images", 2))["status"].to_pylist().index("ok")
    output.change("images", set_values(row, **change), number=2)
    assert found_by(verify_run(str(output.path))) == ["instances"]


@pytest.mark.parametrize(
    "change", [set_value("score", 0, 1.0), set_value("box", 0, moved("xmax", 0.25))], ids=["score", "box"]
)
def test_what_only_the_sums_can_show_is_found(output: Output, change: Callable[[pa.Table], pa.Table]) -> None:
    output.change("instances", change, number=2)
    assert set(found_by(verify_run(str(output.path)))) & {"statistics", "coco"}


def widened(table: pa.Table) -> pa.Table:
    field = pa.field("instance", pa.int64(), nullable=False)
    return table.set_column(
        table.schema.get_field_index("instance"), field, table["instance"].cast(pa.int64())
    )


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (widened, "instances"),
        (lambda table: table.drop_columns(["touches_border"]), "instances"),
        (lambda table: table.append_column("more", pa.array(range(len(table)))), "instances"),
        (lambda table: table.replace_schema_metadata({b"maskrcnn.schema_version": b"1"}), "parts"),
        (lambda table: table.replace_schema_metadata(None), "parts"),
    ],
    ids=["another type", "a column less", "a column more", "another version", "no version"],
)
def test_another_schema_is_found(output: Output, change: Callable[[pa.Table], pa.Table], check: str) -> None:
    path = output.part("instances")
    pq.write_table(change(pq.read_table(path)), path)
    output.list_again("instances")
    assert found_by(verify_run(str(output.path))) == [check]


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-9], lambda _: b"", lambda _: b"PAR1 and so on PAR1", lambda data: data[:4] + data],
)
def test_a_file_that_is_no_parquet_is_found_though_it_is_listed_so(
    output: Output, change: Callable[[bytes], bytes]
) -> None:
    path = output.part("instances")
    path.write_bytes(change(path.read_bytes()))
    output.list_again("instances")
    report = verify_run(str(output.path))
    assert set(found_by(report)) <= {"parts", "instances"}
    assert not report.proven


def test_text_that_is_not_utf8_is_found(output: Output) -> None:
    def change(table: pa.Table) -> pa.Table:
        uris = pa.array([b"\xff\xfe", *table["uri"].cast(pa.binary()).to_pylist()[1:]], pa.binary())
        field = table.schema.field("uri")
        broken = pa.Array.from_buffers(pa.string(), len(uris), uris.buffers())
        return table.set_column(table.schema.get_field_index("uri"), field, broken)

    path = output.part("images")
    pq.write_table(change(pq.read_table(path)), path)
    output.list_again("images")
    assert found_by(verify_run(str(output.path))) == ["images"]


# Elsewhere


@pytest.mark.s3
def test_it_is_the_same_on_s3(whole: Path, moto_server: S3Server) -> None:
    url = moto_server.prefix()
    client, prefix = moto_server.client(), url.partition(f"{BUCKET}/")[2]
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{path.relative_to(whole)}", Body=path.read_bytes())
    assert verify_run(url) == verify_run(str(whole))
    part = Output(whole).part("instances").relative_to(whole)
    client.delete_object(Bucket=BUCKET, Key=f"{prefix}/{part}")
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/coco/results_segm.json", Body=b"[]\n")
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/images/stray.parquet", Body=b"")
    report = verify_run(url)
    assert [(finding.check, finding.where) for finding in report.findings] == [
        ("listing", "images/stray.parquet"),
        ("parts", str(part)),
    ]


@pytest.mark.s3
def test_a_store_that_fails_is_no_finding(whole: Path, moto_process: S3Server) -> None:
    """Whichever request for a part it refuses, the run stops there: nothing is said of the part."""
    path = str(Output(whole).part("instances").relative_to(whole))
    proxy = FaultProxy(moto_process.endpoint, ACCESS_KEY, SECRET_KEY)
    with dataclasses.replace(moto_process, endpoint=proxy.endpoint).environment():
        storage = Storage(moto_process.prefix())
        storage.write(path, (whole / path).read_bytes())
        for read in (
            lambda: digest_and_size(storage, path),
            lambda: list(row_groups(storage, path, INSTANCES)),
        ):
            proxy.clear()
            read()
            requests = proxy.seen("GET")
            assert requests
            for n in range(requests):
                proxy.clear()
                proxy.on("GET", answer, times=n)
                proxy.on("GET", refuse(403, "AccessDenied"), times=None)
                with pytest.raises(RunError, match="cannot read"):
                    read()
    proxy.stop()


def test_the_columns_are_those_of_the_schema(whole: Path) -> None:
    """What the tamperings rest on."""
    assert pq.read_table(Output(whole).part("instances")).schema.equals(INSTANCES)
