"""Whole runs of the embedded model over real files, where they are at hand: one row an input, whatever it is."""

from pathlib import Path

import pytest
from chaos.chance import SIZE, chance
from commandline import maskrcnn_command

import maskrcnn
from maskrcnn.errors import ERROR_CODES

pytestmark = pytest.mark.slow

FEW = 40
DATA = Path(__file__).parents[3] / "shared" / "data"


def run(source: Path, output: Path, *options: str) -> maskrcnn.Run:
    done = maskrcnn_command("segment", str(source), str(output), "--model", "scenes", "--no-ray", *options)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return maskrcnn.open_run(str(output))


@pytest.mark.parametrize("folder", ["nuclei/val", "coco_sample/images"])
def test_pictures_of_a_collection_have_a_row_each(folder: str, tmp_path: Path) -> None:
    if not (DATA / folder).is_dir():
        pytest.skip(f"{folder} is not at hand")
    found = run(DATA / folder, tmp_path / "run", "--limit", "4")
    assert found.images().num_rows == 4
    assert set(found.images()["status"].to_pylist()) <= {"ok", "empty"}


def test_every_odd_file_has_a_row_and_a_code(tmp_path: Path) -> None:
    files = [path for path in sorted((DATA / "odd_images").rglob("*")) if path.is_file()]
    if not files:
        pytest.skip("odd_images are not at hand")
    # Each of them is decoded in `tests/imaging`.
    files = files if SIZE > 1 else sorted(chance("odd images").sample(files, min(FEW, len(files))))
    (tmp_path / "odd.txt").write_text("".join(f"{path}\n" for path in files))
    rows = run(tmp_path / "odd.txt", tmp_path / "run").images().to_pylist()
    assert sorted(row["uri"] for row in rows) == sorted(map(str, files))
    for row in rows:
        assert (row["status"] == "failed") == (row["error"] is not None)
        assert row["error"] is None or (row["error"] in ERROR_CODES and row["message"])
