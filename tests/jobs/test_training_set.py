"""The data of a training: several datasets as one, what is recorded of them, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from labelled import write_labels
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.driver.training_set import TrainingRequest, check_datasets, prepare_training

from maskrcnn.errors import UsageError
from maskrcnn.training.config import TrainingConfig
from maskrcnn.training.dataset import SCHEMA, read_dataset

SIDE = 64
CONFIG = TrainingConfig(model="random:maskrcnn_efficientnet_lite0_fpn", crop=SIDE)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three datasets, whose image ids collide."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two", "val")]
    return [str(write_labels(folder, range(10 * at, 10 * at + 3), SIDE)) for at, folder in enumerate(folders)]


def request_of(sources, output, **options):
    return TrainingRequest(
        source=sources[0], output=str(output), config=CONFIG, also=tuple(sources[1:2]), also_roots=(None,),
        **options,
    )  # fmt: skip


def test_several_datasets_are_stored_as_one_and_recorded(sources, tmp_path):
    request = request_of(sources, tmp_path, share=0.34)
    facts = prepare_training(request)
    assert facts["request"]["also"] == [sources[1]]
    assert facts["images"] == {"train": 4, "validation": 2}
    tables = [pq.read_table(tmp_path / name) for name in ("train.parquet", "validation.parquet")]
    assert all(table.schema.equals(SCHEMA) for table in tables)
    ids = [id_ for table in tables for id_ in table["image_id"].to_pylist()]
    assert sorted(ids) == [1, 2, 3, 4, 5, 6]
    objects = sum(len(labels) for table in tables for labels in table["labels"].to_pylist())
    assert objects == sum(read_dataset(source).n_objects for source in sources[:2])
    assert all(finding.startswith((f"{sources[0]}: ", f"{sources[1]}: ")) for finding in facts["findings"])
    assert prepare_training(request) == facts


def test_the_datasets_belong_to_the_settings_of_a_training(sources, tmp_path):
    prepare_training(request_of(sources, tmp_path))
    with pytest.raises(UsageError, match=r"was begun with also .*, now \[\]"):
        prepare_training(dataclasses.replace(request_of(sources, tmp_path), also=(), also_roots=()))
    with pytest.raises(UsageError, match="was begun with also"):
        prepare_training(request_of([sources[0], sources[2]], tmp_path))


def test_a_training_that_version_02_began_is_continued(sources, tmp_path):
    request = dataclasses.replace(request_of(sources, tmp_path), also=(), also_roots=())
    facts = prepare_training(request)
    del facts["request"]["also"], facts["request"]["also_roots"]
    (tmp_path / "training.json").write_text(json.dumps(facts))
    assert prepare_training(request) == facts
    with pytest.raises(UsageError, match="also"):
        prepare_training(request_of(sources, tmp_path))


def test_one_dataset_twice_is_refused(sources, tmp_path):
    with pytest.raises(UsageError, match="name each dataset once"):
        check_datasets(request_of([sources[0], sources[0]], tmp_path))


def test_an_error_names_its_dataset(sources, tmp_path, caplog):
    content = json.loads(Path(sources[1]).read_text())
    content["annotations"][0]["category_id"] = 99
    broken = sources[1].replace("labels.json", "broken.json")
    Path(broken).write_text(json.dumps(content))
    with pytest.raises(UsageError, match="1 kind of error, listed above"):
        check_datasets(request_of([sources[0], broken], tmp_path))
    (line,) = [record.message for record in caplog.records if "unknown category" in record.message]
    assert line.startswith(f"{broken}: error: ")
    data = check_datasets(request_of([sources[0], broken], tmp_path, skip_invalid=True))
    assert [part.source for part in data.parts] == [sources[0], broken]
    with pytest.raises(UsageError, match=r"nowhere\.json"):
        check_datasets(request_of([sources[0], "nowhere.json"], tmp_path))


def test_a_validation_set_is_matched_by_name(sources, tmp_path):
    content = json.loads(Path(sources[2]).read_text())
    names = [category["name"] for category in content["categories"]]
    ids = {category["id"]: 50 - category["id"] for category in content["categories"]}
    for category in content["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    content["categories"].append({"id": 99, "name": "zebra"})
    other = sources[2].replace("labels.json", "other.json")
    Path(other).write_text(json.dumps(content))
    data, expected = (
        check_datasets(request_of(sources, tmp_path, validation=source)) for source in (other, sources[2])
    )
    assert [category.name for category in data.training.categories] == names
    assert data.images.equals(expected.images)
    columns = [name for name in SCHEMA.names if name != "dataset"]
    assert data.validation_images.select(columns).equals(expected.validation_images.select(columns))
    assert any("zebra (0 objects)" in finding for finding in data.findings)
    assert not any("zebra" in finding for finding in expected.findings)


def checked(*arguments):
    """Run `train … --check --json`; return its exit code, what it found, and its messages."""
    result = CliRunner().invoke(main, ["train", *arguments, "--check", "--json", "--model", CONFIG.model])
    return result.exit_code, json.loads(result.stdout or "{}"), result.stderr


def test_the_check_lists_each_dataset(sources, caplog):
    caplog.set_level("INFO", "maskrcnn")
    code, facts, err = checked(sources[0], "--also", sources[1], "--val", sources[2])
    assert code == 0, err
    assert [part["dataset"] for part in facts["datasets"]] == sources
    assert [part["images"] for part in facts["datasets"]] == [3, 3, 3]
    assert (facts["images"], facts["validation_images"]) == (6, 3)
    assert facts["objects"] == sum(part["objects"] for part in facts["datasets"][:2])
    assert [source for source in sources if f"{source}: 3 images, " in caplog.text] == sources


def test_folders_of_images_are_for_all_datasets_or_for_each(sources, tmp_path):
    folders, moved, together = [Path(source).parent for source in sources[:2]], [], tmp_path / "all"
    together.mkdir()
    for number, source in enumerate(sources[:2]):
        (tmp_path / str(number)).mkdir()
        moved.append(str(tmp_path / str(number) / "labels.json"))
        names_of_its_own = Path(source).read_text().replace("scene-", f"{number}-")
        Path(moved[-1]).write_text(names_of_its_own)
        for image in folders[number].glob("scene-*.png"):
            copied = image.read_bytes()
            (folders[number] / image.name.replace("scene-", f"{number}-")).write_bytes(copied)
            (together / image.name.replace("scene-", f"{number}-")).write_bytes(copied)
    one, also = moved[0], ["--also", moved[1]]
    code, _, err = checked(one, *also)
    assert code == 2
    assert "--images-root" in err
    each = ["--images-root", str(folders[0]), "--images-root", str(folders[1])]
    assert checked(one, *also, *each)[0] == 0
    assert checked(one, *also, "--images-root", str(together))[0] == 0
    code, _, err = checked(one, *also, *each, "--images-root", str(together))
    assert code == 2
    assert "give one folder for all datasets, or 2, one for each" in err
