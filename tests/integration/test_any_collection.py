"""200 pictures as people keep them, here and on an S3 server: the same instances, whatever holds them."""

import pytest
from archives import packed
from packed_runs import finish, instances_by_file, plan
from picture_tables import arrow_stream, parquet, table_of
from planted_images import write_planted

from maskrcnn.io.storage import Storage
from maskrcnn.results.verify import verify_run

pytestmark = pytest.mark.s3

PICTURES = 200


def loose(store: Storage, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        store.write(f"photos/{name}", data)
    return "photos"


def one_tar(store: Storage, files: dict[str, bytes]) -> str:
    store.write("photos.tar", packed("photos.tar", files))
    return "photos.tar"


def seven_tars(store: Storage, files: dict[str, bytes]) -> str:
    for number in range(7):
        some = dict(list(files.items())[number::7])
        store.write(f"train/{number:05d}.tar", packed("x.tar", some))
    return "train/*.tar"


def one_zip(store: Storage, files: dict[str, bytes]) -> str:
    store.write("photos.zip", packed("photos.zip", files))
    return "photos.zip"


def tables_of_hugging_face(store: Storage, files: dict[str, bytes]) -> str:
    names = list(files)
    for number in range(2):
        some = {name: files[name] for name in names[number::2]}
        store.write(f"data/train-{number:05d}-of-00002.parquet", parquet(table_of(some), 30))
    return "data"


def all_of_them(store: Storage, files: dict[str, bytes]) -> str:
    names = list(files)
    store = Storage(f"{store.url}/mixed")
    loose(store, {name: files[name] for name in names[:40]})
    one_tar(store, {name: files[name] for name in names[40:80]})
    seven_tars(store, {name: files[name] for name in names[80:120]})
    one_zip(store, {name: files[name] for name in names[120:160]})
    tables_of_hugging_face(store, {name: files[name] for name in names[160:180]})
    store.write("saved/data.arrow", arrow_stream(table_of({name: files[name] for name in names[180:]})))
    return "mixed"


FORMS = {
    ("loose", "weed"): loose,
    ("tar", "local"): one_tar,
    ("7 tars", "weed"): seven_tars,
    ("zip", "local"): one_zip,
    ("Parquet", "weed"): tables_of_hugging_face,
    ("all", "local"): all_of_them,
    ("all", "weed"): all_of_them,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """The pictures, by name."""
    folder = tmp_path_factory.mktemp("pictures")
    write_planted(folder, PICTURES, seed=16)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_instances_do_not_depend_on_what_holds_the_pictures(files, weed_server, tmp_path, monkeypatch):
    monkeypatch.setattr("maskrcnn.visualization.run_report.GALLERY_IMAGES", 0)
    found = {}
    for form, write in FORMS.items():
        root = weed_server.prefix() if form[1] == "weed" else str(tmp_path / form[0])
        source = write(Storage(root), files)
        run = finish(plan(f"{root}/{source}", f"{root}/out", shard_images=67))
        assert run.images().num_rows == PICTURES, form
        assert verify_run(f"{root}/out").proven, form
        found[form] = instances_by_file(run)
    expected = found.pop(("loose", "weed"))
    assert sum(map(len, expected.values())) > PICTURES
    for form, instances in found.items():
        assert instances == expected, form
