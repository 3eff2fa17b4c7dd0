"""Backbones take ImageNet weights, or the message says which file is missing where."""

import dataclasses
import hashlib
import io

import pytest
import torch
from torchvision.models import mobilenet_v3_large, resnet18, resnet50
from torchvision.models.vgg import cfgs, make_layers

from maskrcnn.errors import UsageError
from maskrcnn.models.model import build_network
from maskrcnn.models.networks import NETWORKS
from maskrcnn.models.weights.imagenet import load_imagenet

BUILDERS = {"maskrcnn_resnet18_fpn": resnet18, "maskrcnn_resnet50_fpn": resnet50}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch, without network access."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def publish(state, architecture, hub, monkeypatch):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    file = f"backbone-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    (hub / file).write_bytes(buffer.getvalue())
    weights = dataclasses.replace(NETWORKS[architecture].backbone_weights, file=file, member="None")
    entry = dataclasses.replace(NETWORKS[architecture], backbone_weights=weights)
    monkeypatch.setitem(NETWORKS, architecture, entry)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(BUILDERS))
def test_a_resnet_computes_the_maps_of_the_published_one(architecture, hub, monkeypatch):
    torch.manual_seed(1)
    published = BUILDERS[architecture]().eval()
    published.bn1.running_mean.normal_()
    publish(published.state_dict(), architecture, hub, monkeypatch)
    network = build_network(architecture, 3, 64, 96).eval()
    before = network.rpn.head.cls_logits.weight.clone()
    load_imagenet(network, architecture)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = published.layer1(published.maxpool(published.relu(published.bn1(published.conv1(image)))))
        assert torch.equal(network.backbone.body(image)["0"], expected)
    assert torch.equal(network.rpn.head.cls_logits.weight, before)


def test_the_light_backbone_takes_the_weights_of_its_package():
    network = build_network("maskrcnn_efficientnet_lite0_fpn", 3, 64, 96)
    stem = network.backbone.body.stem[1].weight.clone()
    load_imagenet(network, "maskrcnn_efficientnet_lite0_fpn")
    assert not torch.equal(network.backbone.body.stem[1].weight, stem)


@pytest.mark.slow
def test_a_mobilenet_computes_the_maps_of_the_published_one(hub, monkeypatch):
    architecture = "fasterrcnn_mobilenet_v3_large_fpn"
    published = mobilenet_v3_large().eval()
    for layer in published.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_var.uniform_(0.001, 0.1)  # where its epsilon, which is not the detector's, counts
    publish(published.state_dict(), architecture, hub, monkeypatch)
    network = build_network(architecture, 3, 64, 96).eval()
    load_imagenet(network, architecture)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        ours, expected = network.backbone.body(image)["1"], published.features(image)
    torch.testing.assert_close(
        ours / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-4
    )


@pytest.mark.sampled(0)
def test_an_ssd_computes_the_maps_of_the_published_vgg(hub, monkeypatch):
    published = make_layers(cfgs["D"], batch_norm=False).eval()  # VGG-16 without its classifier
    state = {f"features.{name}": tensor for name, tensor in published.state_dict().items()}
    publish(state | {"classifier.0.bias": torch.zeros(3)}, "ssd300_vgg16", hub, monkeypatch)
    network = build_network("ssd300_vgg16", 3, 300, 300).eval()
    extra = {name: tensor.clone() for name, tensor in network.backbone.extra[1].state_dict().items()}
    load_imagenet(network, "ssd300_vgg16")
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        ours = network.backbone.extra[0][:-1](network.backbone.features(image))
        torch.testing.assert_close(ours, published[:-1](image))
    assert all(
        torch.equal(extra[name], tensor) for name, tensor in network.backbone.extra[1].state_dict().items()
    )


def test_what_fits_no_published_backbone_names_what_to_start_from(hub):
    architecture = "ssdlite320_mobilenet_v3_large"
    with pytest.raises(
        UsageError,
        match=r"no ImageNet weights fit .*: start from another model, or name one of maskrcnn_resnet50_fpn, ",
    ):
        load_imagenet(build_network(architecture, 3, 320, 320), architecture)


@pytest.mark.slow
def test_a_missing_file_is_named_with_its_place(hub):
    network = build_network("maskrcnn_resnet18_fpn", 3, 64, 96)
    with pytest.raises(UsageError) as caught:
        load_imagenet(network, "maskrcnn_resnet18_fpn")
    message = str(caught.value)
    for hint in ("imagenet:maskrcnn_resnet18_fpn", "resnet18-f37072fd.pth", str(hub), "TORCH_HOME"):
        assert hint in message
    assert "\n" not in message


def test_a_file_of_another_backbone_is_refused_by_the_name_of_a_tensor(hub, monkeypatch):
    publish({"stem.weight": torch.zeros(2)}, "maskrcnn_resnet18_fpn", hub, monkeypatch)
    network = build_network("maskrcnn_resnet18_fpn", 3, 64, 96)
    with pytest.raises(
        UsageError, match=r"not a backbone of maskrcnn_resnet18_fpn: see tensor 'stem\.weight'"
    ):
        load_imagenet(network, "maskrcnn_resnet18_fpn")


def test_a_damaged_file_is_refused(hub):
    (hub / "resnet18-f37072fd.pth").write_bytes(b"half")
    network = build_network("maskrcnn_resnet18_fpn", 3, 64, 96)
    with pytest.raises(UsageError, match="is damaged: its sha256 begins"):
        load_imagenet(network, "maskrcnn_resnet18_fpn")


def test_without_fitting_weights_the_message_says_so():
    architecture = "maskrcnn_resnet50_fpn_detectron2"
    with pytest.raises(
        UsageError, match="no ImageNet weights fit the backbone of maskrcnn_resnet50_fpn_detectron2"
    ):
        load_imagenet(build_network(architecture, 3, 64, 96), architecture)
