"""The job from Azure's and Google's stores to them, on emulators: the same rows as from local files."""

import io
from pathlib import Path

import pytest
from archives import packed
from click.testing import CliRunner
from emulators import Azurite, FakeGcs
from maskrcnn_jobs.cli import main
from packed_runs import Instances, instances_by_file
from picture_tables import parquet, table_of
from PIL import Image
from planted_images import write_planted

import maskrcnn
from maskrcnn.io.storage import Storage
from maskrcnn.models.weights.checkpoint_files import read_weights
from maskrcnn.pipeline.list_inputs import read_inputs

WEIGHTS = Path(maskrcnn.__file__).parent / "models" / "nuclei.safetensors"
SAMPLE = Path(maskrcnn.__file__).parent / "samples" / "data" / "nuclei" / "12f89395.png"

pytestmark = [pytest.mark.slow, pytest.mark.emulator]


def run(exit_code: int, *arguments: str) -> str:
    """Run a command in this process; return what it printed."""
    result = CliRunner().invoke(main, ["-q", *arguments], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result.output


def rows_of_a_run(root: str, folder: Path) -> Instances:
    """Segment loose images, one in a tar and one in a table, all below a root, and one that comes late."""
    store = Storage(root)
    write_planted(folder, 4, seed=3)
    loose, late, in_archive, in_table = (
        (path.name, path.read_bytes()) for path in sorted(folder.glob("*.png"))
    )
    store.write("in/" + loose[0], loose[1])
    store.write("in/x.tar", packed("x.tar", dict([in_archive])))
    store.write("in/t.parquet", parquet(table_of(dict([in_table]))))
    uris = read_inputs(f"{root}/in", images_root=None, limit=None).table["uri"].to_pylist()
    store.write("list.txt", "\n".join([*uris, f"{root}/in/{late[0]}"]).encode())
    run(1, "segment", f"{root}/list.txt", f"{root}/out", "--model", "planted", "--no-ray")
    [error] = maskrcnn.open_run(f"{root}/out").images()["error"].drop_null().to_pylist()
    assert error.startswith("not_found")
    store.write("in/" + late[0], late[1])
    run(0, "retry", f"{root}/out", "--no-ray")
    run(0, "verify", f"{root}/out")
    return instances_by_file(maskrcnn.open_run(f"{root}/out"))


@pytest.fixture(scope="module")
def local_rows(tmp_path_factory: pytest.TempPathFactory) -> Instances:
    """The rows of a run over local files."""
    folder = tmp_path_factory.mktemp("local")
    return rows_of_a_run(str(folder / "run"), folder / "images")


@pytest.mark.parametrize("server", ["azurite_server", "fake_gcs_server"])
def test_store_to_store_gives_the_rows_of_local_files(
    server: str, local_rows: Instances, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    emulator: Azurite | FakeGcs = request.getfixturevalue(server)
    assert rows_of_a_run(emulator.prefix(), tmp_path) == local_rows
    assert len(local_rows) == 4
    assert any(local_rows.values())


def test_weights_are_read_from_the_store(azurite_server: Azurite, fake_gcs_server: FakeGcs) -> None:
    for emulator in (fake_gcs_server, azurite_server):
        root = emulator.prefix()
        Storage(root).write("weights.safetensors", WEIGHTS.read_bytes())
        assert read_weights(f"{root}/weights.safetensors") == WEIGHTS.read_bytes()
    sink = io.BytesIO()
    Image.open(SAMPLE).crop((0, 0, 96, 96)).save(sink, "png")
    Storage(root).write("in/a.png", sink.getvalue())
    run(0, "segment", f"{root}/in", f"{root}/out", "--model", f"{root}/weights.safetensors", "--no-ray")
    assert maskrcnn.open_run(f"{root}/out").instances().num_rows > 0
