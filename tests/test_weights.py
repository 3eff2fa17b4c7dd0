"""What a model is said to be, and what is said where it is none."""

import hashlib
import io
import json
import pickle
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights

from maskrcnn import model, weights
from maskrcnn.errors import UsageError
from maskrcnn.planted import PLANTED_CATEGORIES
from maskrcnn.types import Category
from maskrcnn.weights import CLASS_SCORES, category_ids_named, describe_model

METADATA = {
    "format": "maskrcnn-ray",
    "version": "1",
    "architecture": "maskrcnn_efficientnet_lite0_fpn",
    "categories": json.dumps([{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]),
    "min_size": "96",
    "max_size": "160",
    "provenance": "{}",
}


def safetensors(labels=3, **metadata):
    """The bytes of a file with one tensor, but all of the metadata."""
    known = {key: value for key, value in (METADATA | metadata).items() if value is not None}
    return save({CLASS_SCORES: torch.zeros(labels, 2)}, metadata=known)


def state_dict(version=1, prefix=""):
    """The names by which a network is told, with hardly a tensor."""
    head = "roi_heads.box_head.fc6.weight" if version == 1 else "roi_heads.box_head.0.0.weight"
    names = ["backbone.body.layer1.0.conv1.weight", head, CLASS_SCORES]
    return {prefix + name: torch.zeros(3, 2) for name in names}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            torch.save(content, path)
        return str(path)

    return write


# --- models without a file ------------------------------------------------------------------------------------


def test_coco_s_categories_are_those_of_torchvision_s_weights():
    names = MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta["categories"]
    used = [Category(label, name) for label, name in enumerate(names) if label and name != "N/A"]
    assert list(weights.COCO_CATEGORIES) == used
    assert len(used) == 80
    assert used[-1] == Category(90, "toothbrush")


def test_the_embedded_model_says_what_it_knows():
    if not weights._EMBEDDED.exists():
        pytest.skip("the embedded model was not trained yet")
    card = describe_model("scenes")
    assert "only generated" in card.notice
    assert card.uri is None
    assert card.category_ids == (0, *(category.id for category in card.categories))
    assert card.sha256 == hashlib.sha256(weights._EMBEDDED.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["planted", "planted:0.5"])
def test_planted_is_described_as_no_model(name):
    card = describe_model(name)
    assert card.categories == PLANTED_CATEGORIES
    assert card.architecture == "planted"
    assert "no model" in card.notice
    assert card.sha256 == describe_model("planted").sha256


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch's, and no way to the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_without_a_network_the_way_out_is_said(hub):
    with pytest.raises(UsageError) as caught:
        describe_model("coco")
    message = str(caught.value)
    for hint in ("maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", str(hub), "--model scenes", "TORCH_HOME"):
        assert hint in message
    assert "\n" not in message


def test_a_cached_file_is_described_and_not_opened(hub, monkeypatch):
    content = b"no pickle at all"
    digest = hashlib.sha256(content).hexdigest()
    (hub / f"weights-{digest[:8]}.pth").write_bytes(content)
    published = weights._Published(f"weights-{digest[:8]}.pth", "None", "maskrcnn_resnet50_fpn_v2")
    monkeypatch.setitem(weights._PUBLISHED, "coco", published)
    card = describe_model("coco")
    assert card.sha256 == digest
    assert card.categories == weights.COCO_CATEGORIES
    assert len(card.category_ids) == 91
    assert [card.category_ids[label] for label in (0, 1, 12, 90)] == [0, 1, 0, 90]
    assert (card.min_size, card.max_size) == (800, 1333)


def test_a_damaged_file_in_the_cache_is_named(hub):
    path = hub / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    path.write_bytes(b"half a download")
    with pytest.raises(UsageError, match="is damaged: its sha256 begins") as caught:
        describe_model("coco-v1")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TORCH_HOME": "/a/b"}, "/a/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/torch/hub"),
        ({"TORCH_HOME": "~/t"}, "/home/x/t/hub"),
        ({}, "/home/x/.cache/torch/hub"),
    ],
)
def test_the_cache_is_where_torch_has_it(environment, expected, monkeypatch):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/x")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(weights._torch_hub()) == expected == torch.hub.get_dir()


# --- safetensors ----------------------------------------------------------------------------------------------


def test_a_safetensors_file_describes_itself(write):
    path = write("pets.safetensors", safetensors())
    card = describe_model(path)
    assert card.name == "pets.safetensors"
    assert card.uri == path
    assert card.architecture == "maskrcnn_efficientnet_lite0_fpn"
    assert card.categories == (Category(4, "cat"), Category(9, "dog"))
    assert card.category_ids == (0, 4, 9)
    assert (card.min_size, card.max_size, card.notice) == (96, 160, None)


def test_where_a_network_has_more_labels_the_ids_are_the_labels(write):
    card = describe_model(write("pets.safetensors", safetensors(labels=11)))
    assert card.category_ids == (0, 0, 0, 0, 4, 0, 0, 0, 0, 9, 0)


def test_each_architecture_can_be_described(write):
    assert weights.ARCHITECTURES == model.ARCHITECTURES
    for architecture in weights.ARCHITECTURES:
        path = write(f"{architecture}.safetensors", safetensors(architecture=architecture))
        assert describe_model(path).architecture == architecture


WHOLE = safetensors()
FOREIGN = save({"x": torch.zeros(1)})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "zero bytes"),
        (b"1234", "truncated: 4 bytes"),
        (WHOLE[:20], "its header is longer than the file"),
        (WHOLE[:-1], rf"truncated: {len(WHOLE) - 1} bytes of {len(WHOLE)}"),
        (WHOLE + b"x", "truncated"),
        (struct.pack("<Q", 2**60) + WHOLE[8:], "its header is longer than the file"),
        (struct.pack("<Q", 4) + b"{]{]", "its header cannot be read"),
        (struct.pack("<Q", 2) + b"[]", "its header cannot be read"),
        (struct.pack("<Q", 2) + b"{}", "its header cannot be read"),
        (b"<!DOCTYPE html><html>" + b" " * 99, "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (FOREIGN, "does not say what its labels mean"),
        (safetensors(format="pt"), "does not say what its labels mean"),
        (safetensors(version="2"), "has version 2 of the format"),
        (safetensors(categories="[1]"), "has damaged metadata"),
        (safetensors(categories=None), "has damaged metadata: KeyError: 'categories'"),
        (safetensors(min_size="wide"), "has damaged metadata"),
        (safetensors(min_size="0"), "has damaged metadata: sizes 0 and 160"),
        (safetensors(architecture="yolo"), "unknown architecture 'yolo'"),
        (safetensors(labels=2), "names 2 categories for a network of 1"),
        (safetensors(labels=6), "names 2 categories for a network of 5"),
        (
            safetensors(categories='[{"id": 4, "name": "a"}, {"id": 4, "name": "b"}]'),
            "names a category id twice",
        ),
    ],
)
def test_what_is_no_safetensors_model_is_refused_in_one_line(content, complaint, write):
    path = write("m.safetensors", content)
    with pytest.raises(UsageError, match=complaint) as caught:
        describe_model(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


# --- .pth -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("wrap", [dict, lambda state: {"model": state, "epoch": 3}])
def test_a_state_dict_is_told_by_its_names(legacy, version, wrap, write, tmp_path):
    path = tmp_path / "m.pth"
    torch.save(wrap(state_dict(version, "module.")), path, _use_new_zipfile_serialization=not legacy)
    card = describe_model(str(path), write("labels.txt", "cat\n\nN/A\ndog, wild\n\n"))
    assert card.architecture == "maskrcnn_resnet50_fpn" + ("_v2" if version == 2 else "")
    assert card.categories == (Category(1, "cat"), Category(4, "dog, wild"))
    assert card.category_ids == (0, 1, 0, 0, 4)
    assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def pth(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "zero bytes"),
        (pth(state_dict())[:-100], "is truncated"),
        (b"some text", "is truncated, or no file of torch.save"),
        (b"<html>404</html>", "is a web page"),
        (pickle.dumps([1, 2]), "is truncated, or no file of torch.save"),
        (pth([1, 2, 3]), "holds no weights of torchvision's Mask R-CNN"),
        (pth({"a": torch.zeros(1)}), "holds no weights of torchvision's Mask R-CNN"),
    ],
)
def test_what_is_no_state_dict_is_refused_in_one_line(content, complaint, write):
    path = write("m.pth", content)
    with pytest.raises(UsageError, match=complaint) as caught:
        describe_model(path, write("labels.txt", "cat\n"))
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(write, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    path = write("m.pth", state_dict() | {"x": Evil()})
    describe_model(path, write("labels.txt", "cat\n"))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ("", "zero bytes"),
        ("\n \n", "names no category"),
        ("__background__\ncat\n", "begins with the background"),
        ("cat\ndog\ncat\n", "names 'cat' twice, the second time on line 3"),
        (b"\xff\xfe\xff", "is no UTF-8 text"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(labels, complaint, write):
    with pytest.raises(UsageError, match=complaint):
        describe_model(write("m.pth", state_dict()), write("labels.txt", labels))


def test_labels_are_asked_for_where_they_are_needed_and_only_there(write):
    path = write("m.pth", state_dict())
    with pytest.raises(UsageError, match="name them with --labels FILE"):
        describe_model(path)
    with pytest.raises(UsageError, match=r"labels file .*nowhere\.txt cannot be read: it does not exist"):
        describe_model(path, "nowhere.txt")
    with pytest.raises(UsageError, match="has its own categories"):
        describe_model(write("m.safetensors", safetensors()), "labels.txt")


# --- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("cocco", "did you mean 'coco'.*coco, coco-v1, scenes, planted"),
        ("something", "unknown model 'something'. Known are coco"),
        ("./weights/none.pth", r"none\.pth cannot be read: it does not exist"),
        ("model.onnx", r"is a \.onnx file; weights are the path or URL of a \.safetensors"),
        ("s3://bucket/model", "is without a suffix"),
    ],
)
def test_an_unknown_name_is_refused_with_what_is_known(name, complaint):
    with pytest.raises(UsageError, match=complaint):
        describe_model(name)


@pytest.mark.parametrize("name", ["folder", "folder.pth"])
def test_a_directory_is_refused(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        describe_model(str(tmp_path / name))


def test_categories_are_chosen_by_name():
    assert category_ids_named(weights.COCO_CATEGORIES, ["toothbrush", "person"]) == {90, 1}
    with pytest.raises(UsageError, match="no category 'prson'; did you mean 'person'"):
        category_ids_named(weights.COCO_CATEGORIES, ["prson"])


def test_torch_is_not_imported():
    code = "import sys, maskrcnn.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
