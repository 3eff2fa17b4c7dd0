"""The data of a training: several datasets as one, what is recorded of them, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from labelled import write_labels
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.driver.training_set import TrainingRequest, check_datasets, prepare_training

from maskrcnn.errors import UsageError
from maskrcnn.models.networks import NETWORKS
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


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """An empty cache of torch, without network access; return the folder of its files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def refused(source, model):
    """Run `train … --check` with a model; return the one line that refuses it."""
    result = CliRunner().invoke(main, ["-q", "train", source, "--check", "--model", model])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_backbone_without_imagenet_weights_is_refused_by_the_check(sources, no_network):
    said = refused(sources[0], "imagenet:ssdlite320_mobilenet_v3_large")
    assert "start from --model ssdlite320_mobilenet_v3_large, or name one of maskrcnn_resnet50_fpn, " in said
    (no_network / "resnet18-f37072fd.pth").write_bytes(b"half")
    assert "is damaged" in refused(sources[0], "imagenet:maskrcnn_resnet18_fpn")
    assert "nowhere.json" in refused("nowhere.json", "imagenet:maskrcnn_resnet34_fpn")  # before a download


@pytest.mark.slow
def test_imagenet_weights_that_cannot_be_downloaded_are_refused_by_the_check(sources, no_network):
    said = refused(sources[0], "imagenet:maskrcnn_resnet34_fpn")
    assert "put resnet34-b627a593.pth there" in said
    assert str(no_network) in said


def test_weights_without_the_names_of_their_categories_must_be_converted(sources, tmp_path):
    shapes = NETWORKS["ssdlite320_mobilenet_v3_large"].shapes(3)
    numbers = {name: torch.zeros(shape) for name, shape in shapes.items()}
    torch.save(numbers, tmp_path / "mine.pth")
    said = refused(sources[0], f"{tmp_path}/mine.pth")
    assert f"convert it with `maskrcnn convert {tmp_path}/mine.pth MODEL.safetensors --labels FILE`" in said
    assert "train with --model MODEL.safetensors" in said


def test_an_unknown_model_lists_what_a_training_can_start_from(sources):
    said = refused(sources[0], "cocco")
    assert "did you mean 'coco'" in said
    assert "or imagenet:ARCHITECTURE or random:ARCHITECTURE" in said
    assert "factory" not in said


@pytest.mark.parametrize("options", [["--also", ""], ["--val", " "]], ids=str)
def test_an_empty_name_is_refused_with_an_example(sources, options):
    result = CliRunner().invoke(main, ["train", sources[0], "model", *options, "--check"])
    assert result.exit_code == 2
    assert (
        f"{options[0]} is empty (a variable that is not set?): name a COCO JSON, as in train.json"
        in result.stderr
    )


def test_the_check_says_what_it_left_out_of_the_file(sources, caplog):
    caplog.set_level("INFO", "maskrcnn")
    content = json.loads(Path(sources[0]).read_text())
    content["annotations"][0]["category_id"] = 99
    content["images"].append({"id": 99, "file_name": "none.png", "height": 9, "width": 9})
    broken = sources[0].replace("labels.json", "left-out.json")
    Path(broken).write_text(json.dumps(content))
    code, facts, err = checked(broken, "--skip-invalid")
    assert code == 0, err
    objects = len(content["annotations"]) - 1
    assert f"{broken}: 3 images, {objects} objects, " in caplog.text
    assert "after leaving out 1 image and 1 annotation" in caplog.text
    (part,) = facts["datasets"]
    assert (part["images"], part["images_left_out"], part["annotations_left_out"]) == (3, 1, 1)
    result = CliRunner().invoke(main, ["train", broken, "--check", "--skip-invalid", "--model", CONFIG.model])
    assert "with --skip-invalid the rest of the data can be trained on" in result.stdout
    caplog.clear()
    checked(sources[0])
    assert "leaving out" not in caplog.text
