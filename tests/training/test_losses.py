"""Each loss equals a second computation from the equation in the module's docstring, without torchvision's losses."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from maskrcnn.models.model import load_model
from maskrcnn.synthetic.scenes import render_scene
from maskrcnn.training.config import LOSSES
from maskrcnn.training.losses import ImageLosses, SeededSampler
from maskrcnn.training.train_scenes import to_target, to_tensor

SIDE = 192


@pytest.fixture(scope="module")
def network():
    return load_model("scenes").module.train()


@pytest.fixture(scope="module")
def sample():
    scene = render_scene(5, SIDE)
    assert len(scene.category_ids) >= 3
    return to_tensor(scene.image), to_target(scene)


class Witness:
    """Records which candidates the samplers of a network draw, and the training samples of its heads."""

    def __init__(self, network):
        self.drawn = {}
        for name, part in (("rpn", network.rpn), ("heads", network.roi_heads)):
            sampler = part.fg_bg_sampler
            part.fg_bg_sampler = self._watched(name, sampler)
        choose = network.roi_heads.select_training_samples

        def chosen(proposals, targets):
            self.chosen = choose(proposals, targets)
            return self.chosen

        network.roi_heads.select_training_samples = chosen

    def _watched(self, name, sampler):
        witness = self

        class Watched(SeededSampler):
            def __call__(self, matched):
                positive, negative = super().__call__(matched)
                witness.drawn[name] = (positive[0].bool().numpy(), negative[0].bool().numpy())
                return positive, negative

        return Watched(sampler.batch_size_per_image, sampler.positive_fraction)


def iou_of(boxes, others):
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    areas = [np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def encoded(ground_truth, boxes):
    """Faster R-CNN, equation 2."""
    size, true_size = boxes[:, 2:] - boxes[:, :2], ground_truth[:, 2:] - ground_truth[:, :2]
    center, true_center = boxes[:, :2] + size / 2, ground_truth[:, :2] + true_size / 2
    return np.concatenate([(true_center - center) / size, np.log(true_size / size)], axis=1)


def smooth(x, beta=1 / 9):
    x = np.abs(x)
    return np.where(x < beta, x**2 / (2 * beta), x - beta / 2)


def cross_entropy(logits, ground_truth):
    p = 1 / (1 + np.exp(-logits))
    return -(ground_truth * np.log(p) + (1 - ground_truth) * np.log1p(-p))


@pytest.fixture(scope="module")
def witnessed(network, sample):
    """One forward pass: the losses, the network, its witness, and its features."""
    network = copy.deepcopy(network)
    image, target = sample
    losses = ImageLosses(network)
    witness = Witness(network)
    with torch.no_grad():
        computed = {name: float(loss) for name, loss in losses([image], [target], [11]).items()}
        features = network.backbone(network.transform.normalize(image)[None])
    return computed, network, witness, features


def test_the_losses_of_the_rpn_match_their_equations(witnessed, sample):
    computed, network, witness, features = witnessed
    image, target = sample
    ground_truth = target["boxes"].double().numpy()
    with torch.no_grad():
        objectness, deltas = network.rpn.head(list(features.values()))
    batch = ImageList(image[None], [(SIDE, SIDE)])
    anchors = network.rpn.anchor_generator(batch, list(features.values()))[0].double().numpy()
    logits = np.concatenate([m[0].permute(1, 2, 0).flatten().double().numpy() for m in objectness])
    offsets = [
        m[0].view(-1, 4, *m.shape[-2:]).permute(2, 3, 0, 1).reshape(-1, 4).double().numpy() for m in deltas
    ]

    # Anchors are labelled by IoU, and some are drawn.
    iou = iou_of(anchors, ground_truth)
    positive, negative = witness.drawn["rpn"]
    best_of_an_object = (iou == iou.max(0)).any(1)
    assert ((iou.max(1) >= 0.7) | best_of_an_object)[positive].all()
    assert (iou.max(1) < 0.3)[negative].all()
    drawn = positive | negative
    assert drawn.sum() == 128  # rpn.batch_size_per_image of the light network

    expected = cross_entropy(logits[drawn], positive[drawn]).sum() / drawn.sum()
    assert computed["loss_objectness"] == pytest.approx(expected, rel=1e-4)
    goals = encoded(ground_truth[iou.argmax(1)], anchors)
    expected = smooth(np.concatenate(offsets)[positive] - goals[positive]).sum() / drawn.sum()
    assert computed["loss_rpn_box_reg"] == pytest.approx(expected, rel=1e-4)


def test_the_losses_of_the_heads_match_their_equations(witnessed, sample):
    computed, network, witness, features = witnessed
    ground_truth = sample[1]["boxes"].double().numpy()
    boxes, matched, labels, _ = (values[0] for values in witness.chosen)
    heads = network.roi_heads
    with torch.no_grad():
        pooled = heads.box_head(heads.box_roi_pool(features, [boxes], [(SIDE, SIDE)]))
        scores, regression = (t.double().numpy() for t in heads.box_predictor(pooled))
    boxes, labels, matched = boxes.double().numpy(), labels.numpy(), matched.numpy()

    # The classes of the drawn boxes follow from IoU.
    iou = iou_of(boxes, ground_truth)
    assert ((iou.max(1) >= 0.5) == (labels > 0)).all()
    assert (labels[labels > 0] == sample[1]["labels"].numpy()[iou.argmax(1)][labels > 0]).all()

    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = -np.log(probabilities[np.arange(len(labels)), labels]).sum() / len(labels)
    assert computed["loss_classifier"] == pytest.approx(expected, rel=1e-4)
    front = np.flatnonzero(labels)
    own = regression.reshape(len(labels), -1, 4)[front, labels[front]]
    goals = encoded(ground_truth[matched[front]], boxes[front]) * (10, 10, 5, 5)
    assert computed["loss_box_reg"] == pytest.approx(smooth(own - goals).sum() / len(labels), rel=1e-4)


def test_the_loss_of_the_masks_matches_its_equation(witnessed, sample):
    """The loss covers the positive boxes, and for each only the mask of its own class."""
    computed, network, witness, features = witnessed
    boxes, matched, labels, _ = (values[0] for values in witness.chosen)
    front = torch.where(labels > 0)[0]
    heads = network.roi_heads
    with torch.no_grad():
        pooled = heads.mask_roi_pool(features, [boxes[front]], [(SIDE, SIDE)])
        logits = heads.mask_predictor(heads.mask_head(pooled)).double().numpy()
        side = logits.shape[-1]
        whole = sample[1]["masks"][matched[front]][:, None].float()
        rois = torch.cat([torch.arange(len(front))[:, None], boxes[front]], dim=1)
        goals = roi_align(whole, rois, (side, side), 1.0)[:, 0].double().numpy()
    own = logits[np.arange(len(front)), labels[front].numpy()]
    expected = cross_entropy(own, goals).sum() / (len(front) * side**2)
    assert computed["loss_mask"] == pytest.approx(expected, rel=1e-4)


def test_the_losses_equal_torchvisions(network, sample):
    """For one image and the same draw, the network called as torchvision documents it returns the same losses."""
    image, target = sample
    copied = copy.deepcopy(network)
    losses = ImageLosses(copied)
    computed = losses([image], [target], [3])
    copied.rpn.fg_bg_sampler.seeds = copied.roi_heads.fg_bg_sampler.seeds = (3,)  # the boxes are still set
    copied.transform.min_size, copied.transform.max_size = (SIDE,), SIDE
    stock = copied([image], [target])
    assert set(stock) == set(LOSSES)
    for name in LOSSES:
        assert computed[name].item() == pytest.approx(stock[name].item(), rel=1e-5)


def test_the_draw_depends_on_the_seed_alone():
    sampler = SeededSampler(8, 0.5)
    labels = torch.tensor([1, 0, -1, 0, 2, 0, 0, 1, 3, 0, -1, 0])
    sampler.seeds = (7, 7, 8)
    positive, negative = sampler([labels, labels, labels])
    assert positive[0].tolist() == positive[1].tolist()
    assert negative[0].tolist() == negative[1].tolist()
    assert (positive[2].tolist(), negative[2].tolist()) != (positive[0].tolist(), negative[0].tolist())
    sampler.seeds = (7,)
    alone, _ = sampler([labels])
    assert alone[0].tolist() == positive[0].tolist()


@pytest.mark.parametrize(("positives", "negatives"), [(0, 0), (0, 3), (3, 0), (20, 20), (2, 20), (20, 2)])
def test_the_number_drawn_is_torchvisions(positives, negatives):
    labels = torch.cat([torch.ones(positives), torch.zeros(negatives), -torch.ones(3)]).long()
    sampler = SeededSampler(8, 0.25)
    sampler.seeds = (0,)
    theirs = BalancedPositiveNegativeSampler(8, 0.25)([labels])
    for ours, stock in zip(sampler([labels]), theirs, strict=True):
        assert ours[0].sum() == stock[0].sum()
        assert ours[0].dtype == stock[0].dtype


def test_an_additional_candidate_displaces_at_most_one_other():
    boxes = torch.rand(300, 4) * 200
    labels = (torch.arange(300) % 3 == 0).long()
    drawn = []
    for keep in (slice(0, 300), slice(1, 300)):
        sampler = SeededSampler(64, 0.25)
        sampler.seeds, sampler.boxes = (5,), [boxes[keep]]
        positive, negative = sampler([labels[keep]])
        drawn.append({tuple(box) for box in boxes[keep][(positive[0] | negative[0]).bool()].tolist()})
    assert len(drawn[0] & drawn[1]) >= 63


@settings(max_examples=50)
@given(st.integers(0, 2**62))
def test_candidates_are_drawn_equally_often(seed):
    sampler = SeededSampler(50, 1.0)
    sampler.seeds = tuple(seed + i for i in range(200))
    positive, _ = sampler([torch.ones(100, dtype=torch.long)] * 200)
    times = torch.stack(positive).long().sum(0)  # expected 100, with a standard deviation of 7
    assert int(times.min()) > 60
    assert int(times.max()) < 140


def test_an_image_without_objects_is_trained_on_as_background(network, sample):
    image, target = sample
    empty = {"boxes": target["boxes"][:0], "labels": target["labels"][:0], "masks": target["masks"][:0]}
    computed = ImageLosses(copy.deepcopy(network))([image], [empty], [1])
    assert (
        computed["loss_mask"].item()
        == computed["loss_box_reg"].item()
        == computed["loss_rpn_box_reg"].item()
        == 0
    )
    assert computed["loss_classifier"].item() > 0
    torch.stack(list(computed.values())).sum().backward()
