"""Descriptions of models, and the messages about files that are not models."""

import argparse
import hashlib
import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import save
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights

from maskrcnn.errors import UsageError
from maskrcnn.models import model, registry
from maskrcnn.models.architectures.matterport_config import MatterportConfig
from maskrcnn.models.network_entry import ClassScores
from maskrcnn.models.networks import ARCHITECTURES, NETWORKS
from maskrcnn.models.registry import category_ids_named, describe_model
from maskrcnn.models.weights import published_weights
from maskrcnn.models.weights.checkpoint_files import read_checkpoint, read_weights
from maskrcnn.models.weights.embedded_models import EMBEDDED
from maskrcnn.models.weights.published_weights import PublishedWeights, torch_hub
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES
from maskrcnn.training.initialization import start
from maskrcnn.types import Category

LITE = "maskrcnn_efficientnet_lite0_fpn"
METADATA = {
    "format": "maskrcnn-ray",
    "version": "1",
    "architecture": LITE,
    "categories": json.dumps([{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]),
    "min_size": "96",
    "max_size": "160",
    "provenance": "{}",
}


def safetensors(labels=3, fault=lambda tensors: None, **metadata):
    """The bytes of a file with all tensors and metadata, except for a fault."""
    known = {key: value for key, value in (METADATA | metadata).items() if value is not None}
    architecture = known.get("architecture")
    shapes = NETWORKS.get(architecture, NETWORKS[LITE]).shapes(labels)
    tensors = {name: torch.zeros(shape, dtype=torch.int8) for name, shape in shapes.items()}
    fault(tensors)
    return save(tensors, metadata=known)


def state_dict(version=1, prefix="", labels=3):
    """All tensors of a network, each of which repeats one number in the file."""
    shapes = NETWORKS[f"maskrcnn_resnet50_fpn{'_v2' if version == 2 else ''}"].shapes(labels)
    return {prefix + name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


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
    assert list(registry.COCO_CATEGORIES) == used
    assert len(used) == 80
    assert used[-1] == Category(90, "toothbrush")


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_model_is_described_with_its_limits(name):
    card = describe_model(name)
    assert name in card.notice
    assert "knows only" in card.notice
    assert card.uri is None
    assert card.category_ids == (-1, *(category.id for category in card.categories))
    assert card.sha256 == hashlib.sha256(EMBEDDED[name].path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_model_takes_at_most_10_megabytes(name):
    assert EMBEDDED[name].path.stat().st_size <= 10_000_000


@pytest.mark.parametrize("name", ["planted", "planted:0.5"])
def test_planted_is_described_as_not_a_model(name):
    card = describe_model(name)
    assert card.categories == PLANTED_CATEGORIES
    assert card.architecture == "planted"
    assert "not a model" in card.notice
    assert card.sha256 == describe_model("planted").sha256


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch, without network access."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.slow
def test_without_network_access_the_alternatives_are_named(hub):
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
    weights = PublishedWeights(f"weights-{digest[:8]}.pth", "None")
    published = published_weights.PublishedModel("coco", "maskrcnn_resnet50_fpn_v2", weights)
    monkeypatch.setitem(published_weights.PUBLISHED, "coco", published)
    card = describe_model("coco")
    assert card.sha256 == digest
    assert card.categories == registry.COCO_CATEGORIES
    assert len(card.category_ids) == 91
    assert [card.category_ids[label] for label in (0, 1, 12, 90)] == [-1, 1, -1, 90]
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
    assert str(torch_hub()) == expected == torch.hub.get_dir()


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME"])
def test_a_cache_in_the_home_of_nobody_is_refused_in_one_line(variable, monkeypatch):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "~nobody-has-this-name/x")
    with pytest.raises(
        UsageError, match=rf"'~nobody-has-this-name/x.*: set {variable} to a folder"
    ) as refused:
        describe_model("coco")
    assert "\n" not in str(refused.value)


def test_a_folder_in_place_of_the_weights_is_named(hub):
    (hub / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth").mkdir()
    with pytest.raises(UsageError, match=r"bf2d0c1e\.pth cannot be read: Is a directory: delete"):
        describe_model("coco-v1")


@pytest.mark.parametrize(
    "secret",
    [
        "https://host/m.pth?token=SECRET",
        "https://me:SECRET@host/m.pth",
        "https:/host/m.pth?token=SECRET",
        "s3://me:SECRET@bucket/m.pth",
        "s3:/me:SECRET@bucket/m.pth",
        "s3://bucket/m.pth?X-Amz-Signature=SECRET",
        "s3://bucket/m?X-Amz-Signature=SECRET&name=m.pth",
        "gs://bucket/m.txt?token=SECRET",
        "ftp://me:SECRET@host/m.pth",
        "memory://bucket/m.safetensors?token=SECRET",
        "file:///m.pth?token=SECRET",
        "imagenet:https://me:SECRET@host/m.pth",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(secret, write):
    for refuse in (
        lambda: describe_model(secret),
        lambda: describe_model(write("m.pth", pth(state_dict() | {"model": "x"})), secret),
        lambda: read_weights(secret),
        lambda: start(secret, [Category(1, "a")]),
    ):
        with pytest.raises(UsageError) as refused:
            refuse()
        assert "SECRET" not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_an_object_with_a_question_mark_in_its_name_is_a_file(write):
    MemoryFileSystem().pipe("/models/what?.safetensors", safetensors())
    card = describe_model("memory://models/what?.safetensors")
    assert (card.name, card.uri) == ("what?.safetensors", "memory://models/what?.safetensors")


# --- safetensors ----------------------------------------------------------------------------------------------


def test_a_safetensors_file_describes_itself(write):
    path = write("pets.safetensors", safetensors())
    card = describe_model(path)
    assert card.name == "pets.safetensors"
    assert card.uri == path
    assert card.architecture == "maskrcnn_efficientnet_lite0_fpn"
    assert card.categories == (Category(4, "cat"), Category(9, "dog"))
    assert card.category_ids == (-1, 4, 9)
    assert (card.min_size, card.max_size, card.notice) == (96, 160, None)


def test_category_ids_may_begin_at_zero_but_not_where_they_are_labels(write):
    pets = json.dumps([{"id": 0, "name": "cat"}, {"id": 9, "name": "dog"}])
    card = describe_model(write("pets.safetensors", safetensors(categories=pets)))
    assert card.category_ids == (-1, 0, 9)
    with pytest.raises(UsageError, match="names 2 categories for a network of 9"):
        describe_model(write("pets.safetensors", safetensors(labels=10, categories=pets)))


def test_in_a_network_with_more_labels_than_categories_the_ids_are_the_labels(write):
    card = describe_model(write("pets.safetensors", safetensors(labels=10)))
    assert card.category_ids == (-1, -1, -1, -1, 4, -1, -1, -1, -1, 9)


@pytest.mark.slow
@pytest.mark.sampled(4)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture_can_be_described(architecture, write):
    resize = NETWORKS[architecture].resize
    own = {"min_size": str(resize.min_size), "max_size": str(resize.max_size)}
    if "matterport" in architecture:
        own |= {"config": MatterportConfig().to_json()}
    path = write(f"{architecture}.safetensors", safetensors(architecture=architecture, **own))
    assert describe_model(path).architecture == architecture


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tensors_of_a_network_are_known_without_torch(architecture):
    with torch.device("meta"):
        network = model.build_network(architecture, 7, 96, 192)
    assert NETWORKS[architecture].shapes(7) == {k: tuple(t.shape) for k, t in network.state_dict().items()}


def named(*categories):
    return json.dumps([{"id": number, "name": name} for number, name in categories])


def drop(tensors):
    del tensors["rpn.head.bbox_pred.bias"], tensors["rpn.head.bbox_pred.weight"]


def add(tensors):
    tensors["extra.weight"] = torch.zeros(2)


def reshape(tensors):
    tensors["roi_heads.mask_predictor.mask_fcn_logits.bias"] = torch.zeros(5)


def unscored(tensors):
    del tensors[ClassScores().tensor]


def overlapping(data):
    """The file with two tensors at the same offset."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    bias, weight = (header[f"roi_heads.box_predictor.{name}.bias"] for name in ("cls_score", "bbox_pred"))
    bias["data_offsets"] = [weight["data_offsets"][0]] * 2
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + data[8 + length :]


WHOLE = safetensors()
FOREIGN = save({"x": torch.zeros(1)})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "zero bytes"),
        (b"1234", "truncated: 4 bytes"),
        (WHOLE[:20], "its header is longer than the file"),
        (WHOLE[:-1], rf"truncated: it has {len(WHOLE) - 1} bytes, its header says {len(WHOLE)}"),
        (WHOLE + b"x", rf"safetensors has {len(WHOLE) + 1} bytes, its header says {len(WHOLE)}"),
        (WHOLE.replace(b'"I8"', b'"F4"', 1), "tensors of the unknown type 'F4'"),
        (overlapping(WHOLE), "is not a valid safetensors file"),
        (safetensors(fault=drop), r"lacks tensor 'rpn\.head\.bbox_pred\.bias' and 1 more"),
        (safetensors(fault=unscored), "lacks tensor 'roi_heads.box_predictor.cls_score.weight'"),
        (safetensors(fault=add), r"has the unknown tensor 'extra\.weight'"),
        (safetensors(fault=reshape), r"mask_fcn_logits\.bias has the shape \(5,\), not \(3,\)"),
        (struct.pack("<Q", 2**60) + WHOLE[8:], "its header is longer than the file"),
        (struct.pack("<Q", 4) + b"{]{]", "its header cannot be read"),
        (struct.pack("<Q", 2) + b"[]", "its header cannot be read"),
        (struct.pack("<Q", 2) + b"{}", "its header cannot be read"),
        (b"<!DOCTYPE html><html>" + b" " * 99, "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (FOREIGN, "has no weights of torchvision's detectors: convert others"),
        (safetensors(format="pt"), "has no weights of torchvision's detectors"),
        (safetensors(version="2"), "has version 2 of the format, and this program reads version 1"),
        (safetensors(categories="[1]"), "has damaged metadata"),
        (safetensors(categories=None), "has damaged metadata: KeyError: 'categories'"),
        (safetensors(min_size="wide"), "has damaged metadata"),
        (safetensors(min_size="0"), "has damaged metadata: sizes 0 and 160"),
        (safetensors(architecture="yolo"), "unknown architecture 'yolo'"),
        (safetensors(labels=2), "names 2 categories for a network of 1"),
        (safetensors(labels=6), "names 2 categories for a network of 5"),
        (
            safetensors(categories=named((4, "a"), (4, "b"))),
            "names the category 4 twice",
        ),
        (safetensors(categories=named((4, "a"), (5, "a"))), "names the category 'a' twice"),
        (safetensors(categories=named((4, "a"), (5, " "))), "the category 5 has an empty name"),
        (safetensors(categories=named((4, "a"), (5, None))), "the category 5 is named None"),
        (safetensors(categories=named((4, "a"), ("5", "b"))), "the category '5' is named 'b'"),
        (safetensors(categories=named((4, "a"), (2**31, "b"))), "from 0 to 2147483647, not 2147483648"),
        (safetensors(categories=named((4, "a"), (5, "\ud800"))), "has damaged metadata: UnicodeEncodeError"),
        (safetensors(categories="[]"), "names no category"),
        (safetensors(categories=named((1, "a")), labels=8), "names 1 category for a network of 7"),
    ],
)
def test_an_invalid_safetensors_model_is_refused_in_one_line(content, complaint, write):
    path = write("m.safetensors", content)
    with pytest.raises(UsageError, match=complaint) as caught:
        describe_model(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


# --- .pth -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("wrap", [dict, lambda state: {"model": state, "epoch": 3}])
def test_a_state_dict_is_recognized_by_its_tensors(legacy, version, wrap, write, tmp_path):
    path = tmp_path / "m.pth"
    torch.save(wrap(state_dict(version, "module.", 5)), path, _use_new_zipfile_serialization=not legacy)
    card = describe_model(str(path), write("labels.txt", "cat\n\nN/A\ndog, wild\n\n"))
    assert card.architecture == "maskrcnn_resnet50_fpn" + ("_v2" if version == 2 else "")
    assert card.categories == (Category(1, "cat"), Category(4, "dog, wild"))
    assert card.category_ids == (-1, 1, -1, -1, 4)
    assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def pth(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def zipped(content, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "zero bytes"),
        (pth(state_dict())[:-100], "is truncated"),
        (b"some text", "is text, not weights"),
        (b"<html>404</html>", "is a web page"),
        (pickle.dumps([1, 2]), "is truncated, or not a file of torch.save"),
        (pth([1, 2, 3]), "contains a list, not a state dict"),
        (pth(torch.Size([1])), "contains a torch.Size, not a state dict"),
        (pth({"a": torch.zeros(1)}), "has no weights of torchvision's detectors"),
        (pth(state_dict() | {"epoch": 3}), "is not a state dict: it contains a int at 'epoch'"),
        (pth({"epoch": 3}), "is not a state dict: it contains a int at 'epoch'"),
        (
            pth({"a": state_dict(), "b": state_dict(labels=4)}),
            r"several networks \(a, b\): save the state dict of one",
        ),
        (pth(state_dict() | {"extra": torch.zeros(1)}), "has the unknown tensor 'extra'"),
        (
            pth(state_dict(labels=2) | {"rpn.head.bbox_pred.bias": torch.full((12,), torch.inf)}),
            r"rpn\.head\.bbox_pred\.bias is not finite: the training diverged",
        ),
        (pth({k: v for k, v in state_dict().items() if k != "rpn.head.conv.0.0.bias"}), "lacks tensor 'rpn"),
        (
            pth(state_dict() | {ClassScores().tensor: torch.zeros(3, 2)}),
            r"has the shape \(3, 2\), not \(3, 1024\)",
        ),
        (pth(state_dict(labels=3)), "is a network of 2 categories, but its labels file names 1"),
        (zipped(b"\x80\x02" + b"N0" * 999 + b"}."), "its pickle is compressed"),
        (zipped(b"\x80\x02}q", zipfile.ZIP_STORED), "is truncated or damaged"),
        (zipped(b"\x80\x02)\x85R.", zipfile.ZIP_STORED), "is truncated or damaged"),
        (zipped(pickle.dumps([1], 4), zipfile.ZIP_STORED), "uses the pickle operation FRAME"),
    ],
)
def test_an_invalid_state_dict_is_refused_in_one_line(content, complaint, write):
    path = write("m.pth", content)
    with pytest.raises(UsageError, match=complaint) as caught:
        describe_model(path, write("labels.txt", "cat\n"))
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


class Owner:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(legacy, write, tmp_path):
    path, owned = tmp_path / "m.pth", tmp_path / "owned"
    content = state_dict() | {"x": Owner(owned)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        UsageError, match=r"names '(_?io|builtins)\.open', .* not allowed; .* safetensors"
    ) as caught:
        describe_model(str(path), write("labels.txt", "cat\ndog\n"))
    assert "weights_only" not in str(caught.value)
    assert not owned.exists()


def test_what_training_scripts_store_with_the_weights_is_accepted(write):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2])
    (parameter * 2).sum().backward()
    optimizer.step()
    beside = {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "args": argparse.Namespace(device=torch.device("cpu"), aspect=2.5, resume=None, test=True),
        "seen": [
            {1},
            b"bytes",
            bytearray(b"x"),
            torch.float16,
            1j,
            2**40,
            (),
            (1, 2),
            (1, 2, 3, 4),
            parameter,
        ],
    }
    path = write("m.pth", {"model": state_dict()} | beside)
    assert len(describe_model(path, write("labels.txt", "cat\ndog\n")).categories) == 2


def frozen_state():
    return {
        name: tensor for name, tensor in state_dict(1).items() if not name.endswith("num_batches_tracked")
    }


COUNTING = {"backbone.body.bn1.num_batches_tracked": torch.tensor(7)}


@pytest.mark.parametrize(
    ("content", "eps"),
    [
        (frozen_state, None),
        (lambda: {"model": frozen_state(), "args": argparse.Namespace(weights="mine.pth")}, None),
        (lambda: frozen_state() | COUNTING, 1e-5),
        (lambda: state_dict(2), 1e-5),
        (
            lambda: {
                "model": frozen_state(),
                "args": argparse.Namespace(
                    weights="MaskRCNN_ResNet50_FPN_Weights.COCO_V1", weights_backbone=None
                ),
            },
            0.0,
        ),
        (
            lambda: {
                "model": frozen_state(),
                "args": argparse.Namespace(weights=None, weights_backbone="ResNet50_Weights.IMAGENET1K_V1"),
            },
            1e-5,
        ),
    ],
)
def test_the_epsilon_of_frozen_norms_is_known_or_asked_for(content, eps, write):
    path, labels = write("m.pth", content()), write("labels.txt", "cat\ndog\n")
    if eps is None:
        with pytest.raises(
            UsageError, match=r"does not say .*: convert it, with `maskrcnn convert --norm-eps 0` if"
        ):
            describe_model(path, labels)
        return
    card = describe_model(path, labels)
    data = Path(path).read_bytes()
    assert published_weights.norm_eps_of(card.architecture, read_checkpoint(path, data), card.sha256) == eps


def test_the_published_file_has_its_epsilon_under_any_name(write, monkeypatch):
    path = write("mine.pth", frozen_state())
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    weights = PublishedWeights(f"v1-{digest[:8]}.pth", "None")
    published = published_weights.PublishedModel(
        "coco-v1", "maskrcnn_resnet50_fpn", weights, batch_norm_eps=0.0
    )
    monkeypatch.setitem(published_weights.PUBLISHED, "coco-v1", published)
    norms = model.load_model(path, write("labels.txt", "cat\ndog\n")).module.backbone.body.modules()
    assert {layer.eps for layer in norms if isinstance(layer, torch.nn.BatchNorm2d)} == {0.0}


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ("", "is empty: give a text file with one category name per line, from label 1$"),
        (
            "cat\n" * 300_000,
            "has more than 1,048,576 bytes: give a text file with one category name per line",
        ),
        ("\n \n", "names no category"),
        ("__background__\ncat\n", "begins with the background"),
        ("cat\ndog\ncat\n", "names 'cat' twice, the second time on line 3"),
        (
            b"\xff\xfe\xff",
            "is not UTF-8 text: give a text file with one category name per line, .* saved as UTF-8",
        ),
    ],
)
def test_invalid_labels_are_refused(labels, complaint, write):
    with pytest.raises(UsageError, match=complaint):
        describe_model(write("m.pth", state_dict()), write("labels.txt", labels))


def test_labels_are_required_only_for_files_without_categories(write):
    path = write("m.pth", state_dict())
    with pytest.raises(UsageError, match="give --labels FILE with one name per line"):
        describe_model(path)
    with pytest.raises(UsageError, match="the name of the labels file is empty: give a text file"):
        describe_model(path, " ")
    with pytest.raises(UsageError, match=r"labels file .*nowhere\.txt cannot be read: it does not exist"):
        describe_model(path, "nowhere.txt")
    with pytest.raises(UsageError, match="the labels cannot be read: https:// is not a supported store"):
        describe_model(path, "https://host/labels.txt")
    with pytest.raises(UsageError, match="has its own categories"):
        describe_model(write("m.safetensors", safetensors()), "labels.txt")


# --- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "--model is empty: give one of coco"),
        ("COCO", "did you mean 'coco'"),
        ("planted:abc", "give the seconds to sleep"),
        ("planted:-1", "give the seconds to sleep"),
        ("planted:nan", "give the seconds to sleep"),
        (
            "https://host/m.pth?download=1",
            "https:// is not a supported store: use a local path, s3://, gs:// or az://",
        ),
        ("cocco", "did you mean 'coco'.*coco, coco-v1, scenes, .*, or the path or URL"),
        ("something", "unknown model 'something'. Known are coco"),
        ("./weights/none.pth", r"none\.pth cannot be read: it does not exist"),
        ("model.onnx", r"is a \.onnx file: give the path or URL of a \.safetensors"),
        ("s3://bucket/model", "has no suffix: give"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(name, complaint):
    with pytest.raises(UsageError, match=complaint):
        describe_model(name)


@pytest.mark.parametrize("name", ["folder", "folder.pth"])
def test_a_directory_is_refused(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        describe_model(str(tmp_path / name))


def test_categories_are_chosen_by_name():
    assert category_ids_named(registry.COCO_CATEGORIES, ["toothbrush", "person"]) == {90, 1}
    with pytest.raises(UsageError, match="no category 'prson'; did you mean 'person'"):
        category_ids_named(registry.COCO_CATEGORIES, ["prson"])


@pytest.mark.slow
def test_torch_is_not_imported():
    code = "import sys, maskrcnn.models.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
