"""What lies in a crowd is not taught as background; without crowds nothing changes."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD, SSDHead

from maskrcnn.models.model import load_model
from maskrcnn.synthetic.scenes import render_scene
from maskrcnn.training.augmentation import apply, apply_to_boxes, draw
from maskrcnn.training.config import LOSSES
from maskrcnn.training.crowds import MIN_SHARE, lie_in_crowds
from maskrcnn.training.losses import ImageLosses, SeededSampler
from maskrcnn.training.one_stage_losses import OneStageLosses
from maskrcnn.training.train_scenes import to_target, to_tensor

SIDE = 192


def in_crowds_by_pixels(boxes, crowds):
    """Return which boxes are covered by crowds for at least a half, added up pixel by pixel."""
    left, top, right, bottom = (boxes[:, i, None] for i in range(4))
    y, x = (np.arange(size) for size in crowds.shape)
    # (N, H) and (N, W) of each box in each row and column.
    heights = np.clip(np.minimum(bottom, y + 1) - np.maximum(top, y), 0, None)
    widths = np.clip(np.minimum(right, x + 1) - np.maximum(left, x), 0, None)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    covered = ((heights @ crowds.astype(float)) * widths).sum(1)
    return (area > 0) & (covered >= MIN_SHARE * area)


@st.composite
def regions(draw):
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    pixels = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    return np.array(pixels, np.uint8).reshape(height, width)


CORNERS = st.integers(-12, 40).map(lambda n: n / 4)


@settings(deadline=None, max_examples=100)
@given(regions(), st.lists(st.tuples(CORNERS, CORNERS, CORNERS, CORNERS), max_size=8))
def test_a_box_lies_in_crowds_if_half_of_it_is_covered(crowds, corners):
    boxes = np.array([(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]).reshape(-1, 4)
    found = lie_in_crowds(torch.from_numpy(boxes).float(), torch.from_numpy(crowds))
    assert found.tolist() == in_crowds_by_pixels(boxes, crowds).tolist()


# --- the losses ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return load_model("scenes").module.train()


@pytest.fixture(scope="module")
def sample():
    """A scene, of whose objects the first is part of a crowd, which covers the left half besides."""
    scene = render_scene(5, SIDE)
    target = to_target(scene)
    crowds = target["masks"][0].clone()
    crowds[:, : SIDE // 2] = 1
    return to_tensor(scene.image), {name: t[1:] for name, t in target.items()} | {"crowds": crowds}


class Recorded(SeededSampler):
    """A sampler that keeps what it was given and what it drew, for each image."""

    def __call__(self, matched):
        drawn = super().__call__(matched)
        self.matched = [labels.numpy() for labels in matched]
        self.positive, self.negative = ([mask.bool().numpy() for mask in masks] for masks in drawn)
        return drawn


def forward(network, images, targets):
    """Run one forward pass; return the losses, and the recorded samplers of the RPN and the heads."""
    network = copy.deepcopy(network)
    losses = ImageLosses(network)
    for part in (network.rpn, network.roi_heads):
        sampler = part.fg_bg_sampler
        part.fg_bg_sampler = Recorded(sampler.batch_size_per_image, sampler.positive_fraction)
    with torch.no_grad():
        computed = losses(images, targets, range(11, 11 + len(images)))
    return computed, network.rpn.fg_bg_sampler, network.roi_heads.fg_bg_sampler


@pytest.fixture(scope="module")
def anchors(network):
    image = torch.zeros(1, 3, SIDE, SIDE)
    with torch.no_grad():
        features = list(network.backbone(image).values())
    return network.rpn.anchor_generator(ImageList(image, [(SIDE, SIDE)]), features)[0].double().numpy()


@pytest.fixture(scope="module")
def passes(network, sample):
    """A forward pass without crowds, with crowds that cover nothing, with a crowd, and with one over all."""
    image, target = sample
    plain = {name: tensor for name, tensor in target.items() if name != "crowds"}
    whole = torch.ones(SIDE, SIDE, dtype=torch.uint8)
    targets = {
        "plain": plain,
        "nowhere": plain | {"crowds": 0 * whole},
        "part": target,
        "everywhere": plain | {"crowds": whole},
    }
    return {name: forward(network, [image], [each]) for name, each in targets.items()}


def key_of(parts, seed):
    """SplitMix64 in integers."""
    key, mask = seed, 2**64 - 1
    for part in parts:
        key = (key * 0x9E3779B97F4A7C15 + part + 1) & mask
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            key = ((key ^ (key >> shift)) * factor) & mask
        key ^= key >> 31
    return key


def expected_draw(sampler, keys, in_crowds):
    """The positives and negatives with the smallest keys, one after the other, by the definition."""
    order, labels = sorted(range(len(keys)), key=lambda at: keys[at]), sampler.matched[0]
    most = int(sampler.batch_size_per_image * sampler.positive_fraction)
    positive = [at for at in order if labels[at] >= 1][:most]
    left = sampler.batch_size_per_image - len(positive)
    negative = [at for at in order if labels[at] == 0 and not in_crowds[at]][:left]
    return set(positive), set(negative)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["rpn", "heads"])
def test_negatives_are_drawn_outside_of_crowds(passes, sample, anchors, part):
    _, rpn, heads = passes["part"]
    if part == "rpn":
        sampler, boxes, names = rpn, anchors, [[at] for at in range(len(anchors))]
    else:
        sampler, boxes = heads, heads.boxes[0].double().numpy()
        names = heads.boxes[0].round().long().tolist()
    in_crowds = in_crowds_by_pixels(boxes, sample[1]["crowds"].numpy())
    keys = [key_of(parts, 11) for parts in names]
    drawn = set(np.flatnonzero(sampler.positive[0])), set(np.flatnonzero(sampler.negative[0]))
    assert drawn == expected_draw(sampler, keys, in_crowds)
    assert drawn != expected_draw(sampler, keys, np.zeros(len(keys), bool))


def test_an_object_in_a_crowd_is_trained_on(passes, anchors):
    (_, rpn, heads), (_, rpn_then, heads_then) = passes["plain"], passes["everywhere"]
    assert np.array_equal(rpn.positive, rpn_then.positive)
    assert np.array_equal(heads.positive, heads_then.positive)
    assert rpn.positive[0].any()
    assert heads.positive[0].any()
    # Proposals are within the image. Of some anchors more than a half is beyond its border.
    assert not heads_then.negative[0].any()
    inside = in_crowds_by_pixels(anchors, np.ones((SIDE, SIDE)))
    assert rpn_then.negative[0].any()
    assert not (rpn_then.negative[0] & inside).any()


def test_without_crowds_the_losses_are_the_same_to_the_last_bit(passes):
    plain, nowhere, part = (passes[name][0] for name in ("plain", "nowhere", "part"))
    assert all(torch.equal(plain[name], nowhere[name]) for name in LOSSES)
    assert not torch.equal(plain["loss_objectness"], part["loss_objectness"])


@pytest.mark.slow
def test_crowds_of_one_image_change_no_other_image_of_its_batch(network, sample, passes):
    image, target = sample
    plain = {name: tensor for name, tensor in target.items() if name != "crowds"}
    _, *with_crowds = forward(network, [image, image], [target, plain])
    _, *without = forward(network, [image, image], [plain, plain])
    for one, other, alone in zip(with_crowds, without, passes["part"][1:], strict=True):
        assert np.array_equal(one.positive[1], other.positive[1])
        assert np.array_equal(one.negative[1], other.negative[1])
        assert np.array_equal(one.negative[0], alone.negative[0])


def test_an_image_that_is_all_crowd_teaches_nothing(network, sample):
    image, target = sample
    empty = {name: target[name][:0] for name in ("boxes", "labels", "masks")}
    network = copy.deepcopy(network)
    losses = ImageLosses(network)
    # Anchors beyond the border are in no crowd; here there are none.
    generate = network.rpn.anchor_generator.forward
    network.rpn.anchor_generator.forward = lambda images, features: [
        anchors.clamp(0, SIDE) for anchors in generate(images, features)
    ]
    computed = losses([image], [empty | {"crowds": torch.ones(SIDE, SIDE, dtype=torch.uint8)}], [1])
    assert [computed[name].item() for name in LOSSES] == [0] * len(LOSSES)
    torch.stack(list(computed.values())).sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all(not gradient.any() for gradient in gradients)
    # The next image is an ordinary one.
    plain = losses([image], [empty], [1])
    assert plain["loss_objectness"].item() > 0
    assert plain["loss_classifier"].item() > 0


# --- detectors of one stage ---------------------------------------------------------------------------------


class TinyBackbone(nn.Module):
    """One feature map of 32 channels, an eighth of the image's size."""

    out_channels = 32

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 8, stride=8)

    def forward(self, images):
        return {"0": self.conv(images)}


def one_stage(name):
    torch.manual_seed(3)
    sizes = {"min_size": 64, "max_size": 64}
    if name == "retinanet":
        anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0),))
        network = RetinaNet(TinyBackbone(), 4, anchor_generator=anchors, **sizes)
    elif name == "fcos":
        anchors = AnchorGenerator(((8,),), ((1.0,),))
        network = FCOS(TinyBackbone(), 4, anchor_generator=anchors, **sizes)
    else:
        generator = DefaultBoxGenerator([[2]], scales=[0.3, 0.5])
        network = SSD(TinyBackbone(), generator, (64, 64), 4, head=SSDHead([32], [4], 4))
    return network.train()


@pytest.mark.parametrize("name", ["retinanet", "fcos", "ssd"])
def test_anchors_in_crowds_count_as_certain_background(name):
    """What a detector is certain of has no loss, and it is never among the hardest negatives."""
    network = one_stage(name)
    part = network if name == "ssd" else network.head
    stock, seen = part.compute_loss, []

    def recorded(*arguments):
        seen.append(arguments)
        return stock(*arguments)

    part.compute_loss = recorded
    losses = OneStageLosses(network)
    images = list(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    boxes = torch.tensor([[2.0, 2, 30, 28], [30, 10, 50, 44]]), torch.tensor([[10.0, 30, 40, 60]])
    plain = [{"boxes": each, "labels": torch.arange(len(each)) + 1} for each in boxes]
    crowds = torch.zeros(64, 64, dtype=torch.uint8)
    crowds[:, 20:] = 1
    targets = [plain[0] | {"crowds": crowds}, plain[1]]

    without = losses(images, plain, (0, 0))
    computed = losses(images, targets, (0, 0))
    _, outputs, anchors, matched = seen[0]
    outputs = {name: output.clone() for name, output in outputs.items()}
    in_crowds = in_crowds_by_pixels(anchors[0].double().numpy(), crowds.numpy())
    left_out = torch.from_numpy(in_crowds) & (matched[0] < 0)
    assert left_out.any()
    assert not left_out.all()
    outputs["cls_logits"][0, left_out] = torch.tensor([1e4, *[-1e4] * 3]) if name == "ssd" else -1e4
    expected = stock(plain, outputs, anchors, matched)
    for loss in losses.names:
        assert computed[loss].item() == pytest.approx(expected[loss.removeprefix("loss_")].item(), rel=1e-5)
    assert computed["loss_classification"] < without["loss_classification"]
    alone = [losses(images[1:], [each], (0,)) for each in (plain[1], plain[1] | {"crowds": 0 * crowds})]
    assert all(torch.equal(alone[0][loss], alone[1][loss]) for loss in losses.names)


@pytest.mark.parametrize("name", ["retinanet", "fcos", "ssd"])
def test_a_detector_of_one_stage_learns_nothing_from_a_crowd(name):
    network = one_stage(name)
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    far = torch.ones(64, 64, dtype=torch.uint8)
    generate = network.anchor_generator.forward
    network.anchor_generator.forward = lambda images, features: [  # none is beyond the border
        anchors.clamp(0, 64) for anchors in generate(images, features)
    ]
    computed = OneStageLosses(network)([torch.rand(3, 64, 64)], [target | {"crowds": far}], (0,))
    assert all(loss.item() == 0 for loss in computed.values())
    torch.stack(list(computed.values())).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


# --- augmentation -------------------------------------------------------------------------------------------


def encoded(mask):
    return bytes(coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"])


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32), st.sampled_from([(0.5, 0.5), (0.5, 2.0), (1.7, 1.7)]), st.sampled_from([64, 96])
)
def test_a_crowd_is_transformed_as_an_object_would_be(seed, jitter, side):
    y, x = np.mgrid[:80, :110]
    mask = (x - 50) ** 2 / 30**2 + (y - 30) ** 2 / 20**2 <= 1
    pixels = np.zeros((80, 110, 3), np.uint8)
    drawn = draw(np.random.default_rng(seed), (80, 110), side, 1.0, jitter, "both", 0.0)
    image, as_object = apply(pixels, [encoded(mask)], [1], drawn, side, (0.0,) * 3)
    same, as_crowd = apply(pixels, [], [], drawn, side, (0.0,) * 3, [encoded(mask)])
    assert torch.equal(image, same)
    assert len(as_crowd["labels"]) == len(as_crowd["masks"]) == 0
    assert as_crowd["crowds"].shape == (side, side)
    if len(as_object["masks"]):
        assert torch.equal(as_crowd["crowds"], as_object["masks"][0])
    else:
        assert as_crowd["crowds"].sum() < 0.1 * mask.sum() * drawn.scale**2 + 4
    _, without = apply(pixels, [encoded(mask)], [1], drawn, side, (0.0,) * 3)
    assert "crowds" not in without
    _, boxes = apply_to_boxes(pixels, [], [], drawn, side, (0.0,) * 3, [encoded(mask)])
    assert torch.equal(boxes["crowds"], as_crowd["crowds"])


def test_crowds_are_one_region_and_change_no_object():
    boxes = [(2, 3, 30, 40), (20, 30, 50, 60)]
    masks = [np.zeros((64, 64), bool) for _ in boxes]
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    pixels = np.zeros((64, 64, 3), np.uint8)
    drawn = draw(np.random.default_rng(0), (64, 64), 64, 1.0, (1.0, 1.0), "none", 0.0)
    _, plain = apply(pixels, [encoded(masks[0])], [4], drawn, 64, (0.0,) * 3)
    _, target = apply(
        pixels, [encoded(masks[0])], [4], drawn, 64, (0.0,) * 3, [encoded(mask) for mask in masks]
    )
    assert np.array_equal(target["crowds"].numpy().astype(bool), masks[0] | masks[1])
    assert all(torch.equal(target[name], tensor) for name, tensor in plain.items())
