"""Any module with the interface of torchvision's detectors: what it returns becomes detections, or is refused."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import spread
from pycocotools import mask as coco_mask

import maskrcnn
from maskrcnn.errors import UsageError
from maskrcnn.models.own.own_segmenter import SegmenterOptions, problem_of
from maskrcnn.models.torchvision_segmenter import TorchvisionSegmenter
from maskrcnn.types import Category, detection_order

NAMES = ("cat", "dog")


def found(boxes, labels, scores, masks=None):
    """What a detector returns for one image."""
    result = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }
    return result if masks is None else result | {"masks": masks}


def segment(result, size=(40, 60), options=None, *, has_masks=False, categories=NAMES):
    """Return the outcome of one image for which the module returns `result`."""
    segmenter = TorchvisionSegmenter(lambda images: [result], categories, options, has_masks=has_masks)
    [outcome] = segmenter.outcomes([np.zeros((*size, 3), np.uint8)])
    return outcome


SIDES = st.floats(-20, 80, width=32)
ROWS = st.lists(
    st.tuples(SIDES, SIDES, SIDES, SIDES, st.sampled_from([1, 2]), st.floats(0, 1, width=32)), max_size=12
)


@given(ROWS, st.floats(0, 0.9), st.integers(1, 6), st.sampled_from([(), ("cat",), ("dog", "cat")]))
def test_filters_orders_limits_and_clips(rows, min_score, most, names):
    """The oracle is a loop over the rows."""
    rows = [(min(a, c), min(b, d), max(a, c), max(b, d), label, score) for a, b, c, d, label, score in rows]
    result = found([row[:4] for row in rows], [row[4] for row in rows], [row[5] for row in rows])
    outcome = segment(result, options=SegmenterOptions(min_score, most, names))
    kept = [
        row for row in rows if row[5] > np.float32(min_score) and (not names or NAMES[row[4] - 1] in names)
    ]
    clipped = [(*np.clip(row[:4], 0, [60, 40, 60, 40]).astype(np.float32).tolist(), *row[4:]) for row in kept]
    expected = sorted(clipped, key=lambda row: (-row[5], row[4], row[:4]))[:most]
    columns = zip(*(column.tolist() for column in (outcome.labels, outcome.scores)), strict=True)
    assert [(*box, *rest) for box, rest in zip(outcome.boxes.tolist(), columns, strict=True)] == expected
    assert outcome.capped == (len(kept) >= most)
    assert problem_of(outcome, 40, 60, {1, 2}, has_masks=False) is None


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bool, torch.uint8])
@pytest.mark.parametrize("squeezed", [False, True])
def test_masks_of_each_form_are_encoded(kind, squeezed):
    torch.manual_seed(0)
    pixels = torch.rand(3, 40, 60) > 0.6
    masks = (pixels * 0.9).to(kind) if kind.is_floating_point else pixels.to(kind)
    result = found([[0, 0, 9, 9]] * 3, [1, 2, 1], [0.2, 0.9, 0.5], masks if squeezed else masks[:, None])
    outcome = segment(result, has_masks=True)
    for rle, index in zip(outcome.rles(), (1, 2, 0), strict=True):
        assert np.array_equal(coco_mask.decode(rle).astype(bool), pixels[index].numpy())
    assert problem_of(outcome, 40, 60, {1, 2}, has_masks=True) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["boxes", "scores", "masks"])
def test_numbers_that_are_not_finite_fail_the_image(name, value):
    result = found([[0, 0, 9, 9]], [1], [0.5], torch.zeros(1, 1, 40, 60))
    result[name].view(-1)[-1] = value
    assert segment(result, has_masks=True).code == "not_finite"


ONE = found([[0, 0, 9, 9]], [1], [0.5])
WRONG = {
    "a list": ([1], "returned a list of length 1 for an image: a dict is needed"),
    "no scores": ({"boxes": ONE["boxes"], "labels": ONE["labels"]}, "must have a tensor `scores`: it is missing"),
    "an array": (ONE | {"labels": np.ones(1)}, r"must have a tensor `labels`: it is an array of float64 \(1,\)"),
    "flat boxes": (ONE | {"boxes": torch.zeros(4)}, r"`boxes` of the shape \(4,\): \(N, 4\) is needed"),
    "more labels": (ONE | {"labels": torch.ones(2, dtype=torch.int64)}, r"`labels` of the shape \(2,\)"),
    "scores of each class": (ONE | {"scores": torch.zeros(1, 2)}, r"`scores` of the shape \(1, 2\)"),
    "one score": (ONE | {"scores": torch.tensor(0.5)}, r"`scores` of the shape \(\)"),
    "complex boxes": (ONE | {"boxes": ONE["boxes"].to(torch.complex64)}, "`boxes` of the dtype torch.complex64"),
    "labels as numbers": (ONE | {"labels": torch.ones(1)}, "`labels` of the dtype torch.float32"),
    "an unknown label": (found([[0, 0, 9, 9]], [3], [0.5]), "the label 3, for which its categories have no name"),
    "a negative label": (found([[0, 0, 9, 9]], [-1], [0.5]), "the label -1"),
    "a large label": (found([[0, 0, 9, 9]], [2**40], [0.5]), "the label 1099511627776"),
    "logits": (found([[0, 0, 9, 9]], [1], [3.5]), r"the score 3\.5: scores are from 0 to 1"),
    "centres": (found([[30, 20, 8, 4]], [1], [0.5]), r"the box \(30, 20, 8, 4\): boxes are xmin, ymin, xmax"),
    "no masks": (ONE, "must have a tensor `masks`, or has_masks=False"),
    "small masks": (ONE | {"masks": torch.zeros(1, 1, 28, 28)}, r"`masks` of the shape \(1, 28, 28\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_detection_is_refused(case):
    result, message = WRONG[case]
    with pytest.raises(UsageError, match=message):
        segment(result, has_masks="masks" in case)


@pytest.mark.parametrize("returned", [None, [], {}, [ONE, ONE]])
def test_a_module_must_return_one_result_per_image(returned):
    segmenter = TorchvisionSegmenter(lambda images: returned, NAMES, has_masks=False)
    with pytest.raises(UsageError, match="for 1 image: a list of dicts is needed"):
        segmenter.outcomes([np.zeros((8, 8, 3), np.uint8)])


def test_labels_that_are_no_category_are_dropped():
    names = ["__background__", "person", "N/A", "boat"]
    result = found([[0, 0, 9, 9]] * 4, [0, 1, 2, 3], [0.9, 0.8, 0.7, 0.6])
    segmenter = TorchvisionSegmenter(lambda images: [result], names, has_masks=False)
    assert segmenter.categories == (Category(1, "person"), Category(3, "boat"))
    assert segment(result, categories=names).labels.tolist() == [1, 3]
    assert segment(found([[0, 0, 9, 9]], [7], [0.9]), categories=[Category(7, "boat")]).labels.tolist() == [7]


@pytest.mark.parametrize(
    "names", ["cat", [], ["cat", "cat"], [3], ["N/A"], None, [Category(1, "a"), "b", "a"]]
)
def test_categories_must_be_names(names):
    with pytest.raises(UsageError):
        TorchvisionSegmenter(lambda images: [], names, has_masks=False)


@settings(max_examples=20)
@given(st.lists(st.sampled_from([(8, 8), (8, 12), (20, 8)]), max_size=9), st.integers(1, 4))
def test_images_of_one_size_share_a_batch_and_keep_their_order(sizes, batch_size):
    seen = []

    def module(images):
        seen.append([tuple(image.shape) for image in images])
        return [found([[0, 0, 1, 1]], [1], [float(image[0, 0, 0])]) for image in images]

    segmenter = TorchvisionSegmenter(
        module, NAMES, SegmenterOptions(0.0, batch_size=batch_size), has_masks=False
    )
    images = [np.full((*size, 3), number + 1, np.uint8) for number, size in enumerate(sizes)]
    scores = [outcome.scores[0] for outcome in segmenter.outcomes(images)]
    assert scores == [np.float32(number + 1) / np.float32(255) for number in range(len(sizes))]
    assert all(len(set(batch)) == 1 and len(batch) <= batch_size for batch in seen)


@pytest.mark.slow
def test_a_network_of_torchvision_gives_its_own_detections():
    torch.manual_seed(0)
    network = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=96,
        max_size=160,
        box_detections_per_img=10,
    )
    spread(network)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)
    segmenter = maskrcnn.TorchvisionSegmenter(
        network, NAMES, maskrcnn.SegmenterOptions(min_score=0.0), has_masks=True
    )
    [outcome] = segmenter.outcomes([pixels])
    with torch.no_grad():
        [stock] = network([torch.from_numpy(pixels).permute(2, 0, 1) / 255])
    order = detection_order(*(stock[name].numpy() for name in ("boxes", "labels", "scores")))
    assert len(outcome) == len(stock["scores"]) == 10
    assert np.array_equal(outcome.boxes, stock["boxes"].numpy()[order])
    assert np.array_equal(outcome.scores, stock["scores"].numpy()[order])
    expected = (stock["masks"][:, 0] > 0.5).numpy()[order]
    assert np.array_equal(np.stack([coco_mask.decode(rle) for rle in outcome.rles()]), expected)
    assert segmenter.max_side == 160
