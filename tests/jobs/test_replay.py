"""`maskrcnn replay`: a shard that is computed again has the rows that are stored, or it is said which differ."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from maskrcnn_jobs.cli import main
from planted_images import write_planted

from maskrcnn.synthetic.scenes import write_scenes


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def files_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two shards, one of whose images is broken."""
    folder = tmp_path_factory.mktemp("replay")
    write_planted(folder / "photos", 19, seed=4)
    (folder / "photos" / "broken.png").write_text("<html>")
    options = ["--model", "planted", "--no-ray", "--shard-images", 10, "--max-failure-rate", 1]
    assert command("segment", folder / "photos", folder / "out", *options).exit_code == 0
    return folder / "out"


@pytest.mark.parametrize("shard", ["0", "1", "1-00000001"])
def test_a_shard_is_equal_and_the_run_is_as_it_was(run, shard):
    before = files_of(run)
    result = command("replay", run, "--shard", shard)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].endswith(": equal")
    assert files_of(run) == before


@pytest.mark.slow
def test_the_networks_rows_are_equal_in_windows_and_in_whole_images(tmp_path):
    write_scenes(tmp_path / "scenes", 2, seed=7, size=160)
    for name, options in {"whole": [], "windows": ["--window", 96, "--overlap", 32]}.items():
        output = tmp_path / name
        done = command("segment", tmp_path / "scenes", output, "--model", "scenes", "--no-ray", *options)
        assert done.exit_code == 0, done.output
        result = command("replay", output, "--shard", 0, "--json")
        facts = json.loads(result.stdout)
        assert facts["equal"], facts
        assert facts["instances"] > 0
        assert facts["environment"] == []


def changed(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    at = table.schema.get_field_index(column)
    return table.set_column(at, table.schema.field(column), pa.array(values, table.schema.field(column).type))


@pytest.mark.parametrize(
    ("table", "column", "row", "value"),
    [("instances", "score", 2, 0.125), ("images", "width", 0, 7), ("images", "error", 3, "corrupt")],
)
def test_a_stored_value_that_differs_is_named(run, tmp_path, table, column, row, value):
    copy = tmp_path / "copy"
    for name, data in files_of(run).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    [file] = (copy / "shards" / "1-00000001").glob(f"*/{table}.parquet")
    stored = pq.read_table(file)
    pq.write_table(changed(stored, column, row, value), file)
    result = command("replay", copy, "--shard", 1, "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    image_id = stored["image_id"][row].as_py()
    [difference] = facts["differences"]
    assert difference.startswith(f"{table}, image {image_id}: {column} was {value}, and is ")


def test_a_picture_that_was_replaced_has_a_row_that_differs(tmp_path):
    write_planted(tmp_path / "photos", 3, seed=4)
    run = tmp_path / "out"
    assert command("segment", tmp_path / "photos", run, "--model", "planted", "--no-ray").exit_code == 0
    picture = next((tmp_path / "photos").glob("*.png"))
    picture.write_bytes(picture.read_bytes() + b" ")
    result = command("replay", run, "--shard", 0)
    assert result.exit_code == 1
    assert "error was missing, and is changed" in result.stdout


def test_rows_that_an_update_retired_are_not_compared(tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    write_planted(photos, 4, seed=4)
    options = ["--model", "planted", "--no-ray"]
    assert command("segment", photos, output, *options).exit_code == 0
    (photos / "planted-000001.png").unlink()
    assert command("segment", photos, output, "--update", *options).exit_code == 0
    result = command("replay", output, "--shard", 0)
    assert result.exit_code == 0, result.output
    assert "1 row not compared since an update retired them: equal" in result.stdout
    missing = command("replay", output, "--shard", 99)
    assert missing.exit_code == 2
    assert "has no shard 99: it has 1-0 to 1-0" in missing.stderr


def test_what_cannot_be_replayed_is_refused_in_one_line(run, tmp_path):
    for shard in ("2", "-1", "7-0", "first"):
        refused = command("replay", run, "--shard", shard)
        assert refused.exit_code == 2
        assert refused.output.splitlines()[-1].endswith("it has 1-0 to 1-1")
    assert command("replay", tmp_path, "--shard", 0).exit_code == 2


@pytest.mark.slow
def test_after_gc_there_is_nothing_to_compare_with(tmp_path):
    write_planted(tmp_path / "photos", 3, seed=4)
    run = tmp_path / "out"
    assert command("segment", tmp_path / "photos", run, "--model", "planted", "--no-ray").exit_code == 0
    assert command("gc", run).exit_code == 0
    refused = command("replay", run, "--shard", 0)
    assert refused.exit_code == 2
    assert "`maskrcnn gc` removed" in refused.output.splitlines()[-1]
