"""Sidecars: what is beside the pictures of an archive, as columns of theirs."""

import json

import pytest
from archives import KINDS, packed
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from maskrcnn_jobs.cli import main

from maskrcnn.errors import UsageError
from maskrcnn.io.archives.sidecars import check_suffixes, sample_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores.s3_store import S3Store
from maskrcnn.pipeline.list_inputs import Inputs, read_inputs

CAPTIONS = [{"caption": f"picture {number}", "tags": [number]} for number in range(5)]


def dataset() -> dict[str, bytes]:
    """Return the files of a WebDataset: pictures, of which one has no caption and one is in a folder of its own."""
    files = {}
    for number, caption in enumerate(CAPTIONS):
        key = f"deep/{number:05d}" if number == 4 else f"{number:05d}"
        files[f"{key}.cls"] = f"{number % 3}\n".encode()
        files[f"{key}.jpg"] = bytes([number]) * 1000
        if number != 1:
            files[f"{key}.json"] = json.dumps(caption).encode()
    return files


def inputs_of(folder, kind: str, files: dict[str, bytes], *suffixes: str) -> Inputs:
    (folder / kind).write_bytes(packed(kind, files))
    return read_inputs(str(folder / kind), images_root=None, limit=None, sidecars=suffixes)


@pytest.mark.parametrize("kind", KINDS)
def test_sidecars_become_columns_of_the_pictures_beside_them(tmp_path, kind):
    inputs = inputs_of(tmp_path, kind, dataset(), "json", "cls")
    rows = inputs.table.select(["name", "cls", "json"]).to_pylist()
    assert [row["name"] for row in rows] == [*(f"{number:05d}.jpg" for number in range(4)), "deep/00004.jpg"]
    assert [row["cls"] for row in rows] == [0, 1, 2, 0, 1]
    captions = [row["json"] and json.loads(row["json"]) for row in rows]
    assert captions == [CAPTIONS[0], None, *CAPTIONS[2:]]
    assert not inputs.skipped.num_rows


def test_files_that_were_not_asked_for_are_skipped_as_before(tmp_path):
    inputs = inputs_of(tmp_path, "photos.tar", dataset(), "cls")
    assert inputs.skipped["kind"].to_pylist() == [".json"] * 4
    assert "json" not in inputs.table.column_names


def test_a_sidecar_of_no_picture_and_one_that_is_no_text_are_skipped_by_name(tmp_path):
    files = dataset() | {
        "lonely.cls": b"1",
        "00001.json": b"\xff\xfe\xfd",
        "00009.JPG": b"x",
        "00009.CLS": b"7",
    }
    inputs = inputs_of(tmp_path, "photos.zip", files, "json", "cls")
    assert set(inputs.skipped["name"].to_pylist()) == {"lonely.cls", "00001.json"}
    rows = {row["name"]: row for row in inputs.table.to_pylist()}
    assert rows["00001.jpg"]["json"] is None
    assert rows["00009.JPG"]["cls"] == 7


def test_each_archive_has_its_own_samples(tmp_path):
    for number in range(2):
        files = {"a.jpg": bytes(700), "a.txt": f"of archive {number}".encode()}
        (tmp_path / f"{number}.tar").write_bytes(packed("x.tar", files))
    inputs = read_inputs(str(tmp_path), images_root=None, limit=None, sidecars=["txt"])
    assert inputs.table.select(["name", "txt"]).to_pylist() == [
        {"name": "0.tar!/a.jpg", "txt": "of archive 0"},
        {"name": "1.tar!/a.jpg", "txt": "of archive 1"},
    ]


def test_a_torn_archive_keeps_what_lies_before_the_damage(tmp_path):
    data = packed("photos.tar", dataset())
    (tmp_path / "photos.tar").write_bytes(data[:4000])
    inputs = read_inputs(str(tmp_path / "photos.tar"), images_root=None, limit=None, sidecars=["cls"])
    rows = {row["name"]: row["cls"] for row in inputs.table.to_pylist()}
    assert rows["00000.jpg"] == 0
    assert len(rows) < len(CAPTIONS) + 1


@pytest.mark.s3
def test_sidecars_cost_no_request_beyond_those_of_the_index(moto_server, monkeypatch):
    prefix, requests = moto_server.prefix(), []
    read_range = S3Store.read_range

    def counted(*arguments, **options):
        requests.append(arguments)
        return read_range(*arguments, **options)

    monkeypatch.setattr(S3Store, "read_range", counted)
    Storage(prefix).write("photos.tar", packed("photos.tar", dataset()))
    counts = []
    for sidecars in ([], ["json", "cls"]):
        requests.clear()
        read_inputs(f"{prefix}/photos.tar", images_root=None, limit=None, sidecars=sidecars)
        counts.append(len(requests))
    assert counts[0] == counts[1] == 1


@given(
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
    st.text("ab", min_size=1, max_size=3),
    st.text("ab.", max_size=5),
)
def test_a_sample_and_its_suffix_spell_the_name(folders, stem, suffix):
    name = "/".join([*folders, f"{stem}.{suffix}"])
    sample, found = sample_of(name)
    assert f"{sample}.{found}" == name
    assert sample == "/".join([*folders, stem])


@pytest.mark.parametrize(
    ("sidecars", "why"),
    [("txt", "no picture in an archive has a readable .txt beside it"), ("name", "column of this name")],
)
def test_suffixes_that_cannot_become_columns_are_refused_in_one_line(tmp_path, sidecars, why):
    (tmp_path / "photos.tar").write_bytes(packed("photos.tar", dataset()))
    arguments = ["segment", str(tmp_path / "photos.tar"), str(tmp_path / "out"), "--sidecars", sidecars]
    result = CliRunner().invoke(main, [*arguments, "--model", "scenes", "--no-ray"])
    assert result.exit_code == 2
    assert why in result.output.splitlines()[-1]


def test_sidecars_of_loose_files_and_of_manifests_are_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("a.jpg\n")
    for source, why in ((tmp_path, "there are none"), (tmp_path / "list.txt", "columns of a manifest")):
        with pytest.raises(UsageError, match=why):
            read_inputs(str(source), images_root=None, limit=None, sidecars=["txt"])


def test_suffixes_are_read_with_and_without_their_dot():
    assert check_suffixes([".JSON", "json", "cls "]) == ("json", "cls")
