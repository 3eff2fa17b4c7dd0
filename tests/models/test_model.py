"""Models are loaded completely, as torchvision networks, or refused in one line; no code in them is run."""

import argparse
import contextlib
import copy
import hashlib
import io
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn.errors import UsageError
from maskrcnn.models.model import _fill, build_network, load_model, save_model, tensors_of
from maskrcnn.models.weights import published_weights
from maskrcnn.models.weights.checkpoint_files import read_checkpoint
from maskrcnn.models.weights.published_weights import PublishedWeights
from maskrcnn.types import Category

LITE = "maskrcnn_efficientnet_lite0_fpn"
CATEGORIES = (Category(4, "cat"), Category(9, "dog"))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    return build_network(LITE, 3, 96, 160).eval()


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "pets.safetensors"
    save_model(path, network, LITE, CATEGORIES, 96, 160, {"steps": 0})
    return path


# --- safetensors ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_saved_model_is_loaded_in_float32_and_eval_mode(network, saved):
    model = load_model(str(saved))
    assert type(model.module) is MaskRCNN
    assert not model.module.training
    assert model.categories == CATEGORIES
    assert repr(model) == f"<Model {saved.name!r}: {LITE}, {len(CATEGORIES)} categories>"
    assert model.card.category_ids == (-1, 4, 9)
    assert model.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert model.module.transform.min_size == (96,)
    assert model.module.transform.max_size == 160
    loaded = model.module.state_dict()
    for name, tensor in network.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor.half().float())  # as they were stored


def test_the_expected_digest_is_checked(saved):
    digest = load_model(str(saved)).sha256
    assert load_model(str(saved), expected_sha256=digest).sha256 == digest
    with pytest.raises(UsageError, match=f"has changed: its sha256 is {digest}, not 0000"):
        load_model(str(saved), expected_sha256="0000")


def drop(tensors):
    del tensors["rpn.head.bbox_pred.bias"], tensors["rpn.head.bbox_pred.weight"]


def add(tensors):
    tensors["extra.weight"] = torch.zeros(2)


def reshape(tensors):
    tensors["rpn.head.bbox_pred.bias"] = torch.zeros(5)


def diverge(tensors):
    tensors["rpn.head.bbox_pred.bias"][1] = torch.nan


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (drop, r"lacks tensor 'rpn\.head\.bbox_pred\.\w+' and 1 more"),
        (add, r"has the unknown tensor 'extra\.weight'"),
        (reshape, r"rpn\.head\.bbox_pred\.bias has the shape \(5,\), not \(12,\)"),
        (diverge, r"rpn\.head\.bbox_pred\.bias is not finite"),
    ],
)
def test_a_wrong_tensor_is_named(fault, complaint, saved, tmp_path):
    tensors = load_file(saved)
    fault(tensors)
    with safe_open(saved, "pt") as opened:
        metadata = opened.metadata()
    path = tmp_path / "broken.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(UsageError, match=complaint) as caught:
        load_model(str(path))
    assert str(path) in str(caught.value)


def test_planted_cannot_be_loaded_as_a_network():
    with pytest.raises(UsageError, match="is not a network; use PlantedSegmenter"):
        load_model("planted")


# --- .pth -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet():
    """A network built by torchvision itself."""
    torch.manual_seed(4)
    return maskrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=4, box_detections_per_img=5
    )


def as_reference_scripts(state):
    """As torchvision's training scripts save it, from several GPUs."""
    arguments = argparse.Namespace(lr=0.02, dataset="coco")
    return {
        "model": {"module." + name: tensor for name, tensor in state.items()},
        "args": arguments,
        "epoch": 25,
    }


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda state: state, as_reference_scripts], ids=["plain", "wrapped"])
def test_a_state_dict_of_torchvision_is_loaded(wrap, resnet, tmp_path):
    expected = half(resnet)
    torch.save(wrap(expected), tmp_path / "m.pth")
    (tmp_path / "labels.txt").write_text("cat\nN/A\ndog\n")
    model = load_model(str(tmp_path / "m.pth"), str(tmp_path / "labels.txt"))
    assert model.categories == (Category(1, "cat"), Category(3, "dog"))
    assert model.card.architecture == "maskrcnn_resnet50_fpn_v2"
    assert not model.module.training
    loaded = model.module.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor.to(loaded[name].dtype)) for name, tensor in expected.items())


def half(network):
    """Half precision keeps the files small."""
    return {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}


@pytest.fixture
def load(tmp_path):
    def load(content, labels):
        torch.save(content, tmp_path / "m.pth")
        (tmp_path / "labels.txt").write_text(labels)
        return load_model(str(tmp_path / "m.pth"), str(tmp_path / "labels.txt"))

    return load


@pytest.mark.slow
def test_the_number_of_labels_must_be_that_of_the_classes(resnet, load):
    with pytest.raises(UsageError, match="a network of 3 categories, but its labels file names 2"):
        load(half(resnet), "cat\ndog\n")


class Owner:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def file_of(content, *, legacy=False):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def read(data):
    return tensors_of("m.pth", read_checkpoint("m.pth", data), data)


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int16,
          torch.int32, torch.int64, torch.bool)  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
def test_the_tensors_of_a_file_are_those_that_torch_loads(legacy):
    base = torch.arange(-60, 60).reshape(2, 3, 4, 5)
    state = {str(dtype): base.to(dtype) for dtype in DTYPES}
    state |= {
        "a view": base.float()[1, :, 1:3].permute(2, 1, 0),
        "an expanded number": torch.tensor(2.5).expand(3, 4),
        "a parameter": torch.nn.Parameter(base.float()),
        "no dimension": torch.tensor(7),
        "no number": torch.empty(0, 4),
        "a shared storage": base,
    }
    tensors = read(file_of(state, legacy=legacy))
    assert list(tensors) == list(state)
    for name, tensor in state.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_is_cut_or_changed_is_refused_or_gives_tensors(legacy):
    data = file_of({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3)}, legacy=legacy)
    assert sum(tensor.numel() for tensor in read(data).values()) == 9
    for at in range(0, len(data), 7):
        with pytest.raises(UsageError):
            read(data[:at])
        with contextlib.suppress(UsageError):
            changed = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
            assert sum(tensor.numel() for tensor in read(changed).values()) < 100


def test_errors_of_files_are_reported_in_one_line(tmp_path):
    data = file_of({"x": Owner(tmp_path / "owned")})
    with pytest.raises(UsageError, match="contains more than weights: its pickle names"):
        read(data)
    assert not (tmp_path / "owned").exists()
    with pytest.raises(UsageError, match="is truncated or damaged: "):
        read(data[:-50])
    with pytest.raises(UsageError, match="does not fit its network: "):
        _fill("m.pth", build_network(LITE, 3, 96, 160), {})


def older(name):
    name = re.sub(r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}.", name)
    return re.sub(r"(_blocks\.\d)\.0\.", r"\1.", name.replace("rpn.head.conv.0.0.", "rpn.head.conv."))


@pytest.mark.slow
def test_names_before_torchvision_0_13_are_accepted(resnet, tmp_path):
    # Before torchvision 0.13 the convolutions of the first network's heads and pyramid were not numbered.
    torch.manual_seed(5)
    network = build_network("maskrcnn_resnet50_fpn", 3, 96, 160)
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    old = {older(name): tensor for name, tensor in state.items()}
    assert len(old.keys() - state.keys()) == 2 * (1 + 8 + 4)
    torch.save(old, tmp_path / "m.pt")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    loaded = load_model(str(tmp_path / "m.pt"), str(tmp_path / "labels.txt")).module.state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in state.items())


# --- models by name -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_coco_model_equals_torchvision_s_with_frozen_norms(tmp_path, monkeypatch):
    # The network that torchvision builds for these weights, here with random ones.
    torch.manual_seed(6)
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    stock = MaskRCNN(_resnet_fpn_extractor(body, 3), num_classes=91).eval()
    overwrite_eps(stock, 0.0)
    for layer in stock.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            layer.running_var.uniform_(1e-5, 1e-4)
            layer.running_mean.normal_(0, 1e-3)
            layer.weight.fill_(0.005)
    buffer = io.BytesIO()
    torch.save(stock.state_dict(), buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / f"v1-{digest[:8]}.pth").write_bytes(buffer.getvalue())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = published_weights.PublishedModel(
        "coco-v1",
        "maskrcnn_resnet50_fpn",
        PublishedWeights(f"v1-{digest[:8]}.pth", "None"),
        batch_norm_eps=0.0,
    )
    monkeypatch.setitem(published_weights.PUBLISHED, "coco-v1", published)

    model = load_model("coco-v1")
    assert len(model.categories) == 80
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = stock.backbone(image), model.module.backbone(image)
    for level, features in expected.items():
        torch.testing.assert_close(found[level], features, rtol=1e-3, atol=1e-4 * float(features.abs().max()))


def test_the_embedded_model_is_loaded():
    try:
        model = load_model("scenes")
    except UsageError as error:
        pytest.skip(str(error))
    assert "car" in {category.name for category in model.categories}
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert copy.deepcopy(model.module).load_state_dict(model.module.state_dict())
