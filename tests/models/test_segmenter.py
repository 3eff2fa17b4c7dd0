"""The segmenter against torchvision with the same weights."""

import copy
import dataclasses
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from networks import TRAINED, spread
from pycocotools import mask as coco_mask

from maskrcnn.errors import ItemError, UsageError
from maskrcnn.models import segmenter as segmenter_module
from maskrcnn.models.architectures.torchvision_resize import shrunk
from maskrcnn.models.model import build_network, load_model, save_model
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.synthetic.scenes import render_scene
from maskrcnn.types import Category, Segmenter, detection_order

pytestmark = pytest.mark.slow

CATEGORIES = (Category(3, "cat"), Category(7, "dog"), Category(20, "horse"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small network with random weights, whose labels 1, 2, 3 are the categories 3, 7, 20."""
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    torch.manual_seed(1)
    network = build_network("maskrcnn_efficientnet_lite0_fpn", 4, 96, 160)
    spread(network)
    save_model(path, network, "maskrcnn_efficientnet_lite0_fpn", CATEGORIES, 96, 160, {})
    return load_model(str(path))


@pytest.fixture(scope="module")
def images():
    """Landscape, portrait, tiny, larger than the network's size, and one that is read-only."""
    rng = np.random.default_rng(4)
    shapes = [(90, 140), (140, 90), (7, 5), (260, 300), (64, 64)]
    made = [
        np.kron(rng.integers(0, 256, (h // 5 + 1, w // 5 + 1, 3)), np.ones((5, 5, 1)))[:h, :w].astype(
            np.uint8
        )
        for h, w in shapes
    ]
    made[-1].flags.writeable = False
    return made


def stock(model, image, min_score=0.05, max_detections=100):
    """The detections of torchvision, as (boxes, category ids, scores, RLE counts) in the order of `Detections`."""
    module = copy.deepcopy(model.module)
    module.roi_heads.score_thresh = min_score
    module.roi_heads.detections_per_img = max_detections
    with torch.inference_mode():
        (found,) = module([torch.tensor(image).permute(2, 0, 1) / 255])
    boxes, scores = found["boxes"].numpy(), found["scores"].numpy()
    labels = np.array(model.card.category_ids, np.int32)[found["labels"].numpy()]
    order = detection_order(boxes, labels, scores)
    masks = (found["masks"][:, 0] > 0.5).numpy().astype(np.uint8)[order]
    counts = tuple(coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in masks)
    return boxes[order], labels[order], scores[order], counts


def assert_equal_to_stock(found, expected):
    """Equal except for rounding, which swaps detections of almost equal scores and changes small masks by a pixel."""
    boxes, labels, scores, counts = expected
    assert len(found) == len(labels)
    sure = scores > scores[-1] + 1e-4 if len(scores) == 100 else np.ones(len(scores), np.bool_)
    size, differing = [found.height, found.width], 0
    for i in np.flatnonzero(sure):
        near = (found.labels == labels[i]) & (np.abs(found.scores - scores[i]) < 5e-4)
        (same,) = np.flatnonzero(near & (np.abs(found.boxes - boxes[i]).max(1) < 0.02))
        if found.masks[same] != counts[i]:
            differing += 1
            ours, theirs = {"size": size, "counts": found.masks[same]}, {"size": size, "counts": counts[i]}
            assert coco_mask.iou([ours], [theirs], [0])[0, 0] > 0.99
    assert differing <= max(len(counts) / 30, 1)


def test_detections_equal_torchvision_s(model, images):
    found = MaskRCNNSegmenter(model).segment(images)
    for one, image in zip(found, images, strict=True):
        assert_equal_to_stock(one, stock(model, image))
        assert (one.height, one.width) == image.shape[:2]
    assert sum(map(len, found)) > 50
    assert {int(label) for one in found for label in one.labels} == {3, 7, 20}
    assert any(one.areas.any() for one in found)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("architecture", TRAINED)
def test_detections_equal_those_of_every_network_run_directly(architecture, tmp_path, images):
    torch.manual_seed(2)
    network = build_network(architecture, 4, 64, 96)
    spread(network)
    save_model(tmp_path / "m.safetensors", network, architecture, CATEGORIES, 64, 96, {})
    model = load_model(str(tmp_path / "m.safetensors"))
    (found,) = MaskRCNNSegmenter(model, max_detections=30).segment(images[:1])
    assert_equal_to_stock(found, stock(model, images[0], max_detections=30))
    assert len(found)


def test_detections_of_the_embedded_model_equal_torchvision_s():
    model = load_model("scenes")
    image = render_scene(123_456).image
    (found,) = MaskRCNNSegmenter(model).segment([image])
    assert_equal_to_stock(found, stock(model, image))
    assert (found.scores > 0.7).sum() >= 5


@pytest.mark.parametrize(("min_score", "max_detections"), [(0.0, 7), (0.4, 100), (0.999999, 100)])
def test_minimum_score_and_limit_equal_torchvision_s(model, images, min_score, max_detections):
    segmenter = MaskRCNNSegmenter(model, min_score=min_score, max_detections=max_detections)
    (found,) = segmenter.segment(images[:1])
    assert_equal_to_stock(found, stock(model, images[0], min_score, max_detections))
    assert found.capped == (len(found) == max_detections)


def test_without_the_optimizations_only_the_last_digits_differ(model, images, monkeypatch):
    monkeypatch.setattr(segmenter_module, "fused", lambda network: copy.deepcopy(network).eval())
    monkeypatch.setattr(segmenter_module, "for_cpu", lambda network: network)
    (found,) = MaskRCNNSegmenter(model).segment(images[:1])
    boxes, labels, scores, counts = stock(model, images[0])
    assert found.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(found.boxes, boxes, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-5)
    assert found.masks == counts


def test_without_detections_the_columns_are_empty(model, images):
    (found,) = MaskRCNNSegmenter(model, min_score=0.9999999).segment(images[2:3])
    assert len(found) == 0
    assert not found.capped


def test_a_higher_limit_raises_the_number_of_proposals(model, images):
    """Above 2.5 proposals per detection torchvision's own limit is the lower one, and is raised to the same value."""
    wider = copy.deepcopy(model)
    for limits in (wider.module.rpn._pre_nms_top_n, wider.module.rpn._post_nms_top_n):
        limits["testing"] = 1500
    _, _, scores, counts = stock(wider, images[0], max_detections=600)
    _, _, of_fewer, _ = stock(model, images[0], max_detections=600)
    (found,) = MaskRCNNSegmenter(model, max_detections=600).segment(images[:1])
    np.testing.assert_allclose(np.sort(found.scores), np.sort(scores), rtol=0, atol=1e-5)
    assert len(of_fewer) < len(found) == 600
    # Random weights give neighbours almost equal scores: rounding may prefer another one.
    assert len(set(found.masks) & set(counts)) > 0.98 * len(set(counts))


def test_a_chosen_category_is_not_displaced_by_others(model, images):
    (best,) = MaskRCNNSegmenter(model, max_detections=400).segment(images[:1])
    least = float(best.scores[300])  # so that the limit has no effect
    (every,) = MaskRCNNSegmenter(model, min_score=least, max_detections=400).segment(images[:1])
    horses = every.labels == 20
    assert 0 < horses.sum() < len(every) < 400
    options = {"min_score": least, "categories": ["horse"]}
    segmenter = MaskRCNNSegmenter(model, max_detections=400, **options)
    (found,) = segmenter.segment(images[:1])
    assert set(found.labels.tolist()) == {20}
    np.testing.assert_allclose(found.boxes, every.boxes[horses], atol=1e-4)
    np.testing.assert_allclose(found.scores, every.scores[horses], atol=1e-5)
    limit = 10  # also with fewer proposals
    (limited,) = MaskRCNNSegmenter(model, max_detections=limit, **options).segment(images[:1])
    assert len(limited) == limit
    assert limited.capped
    assert segmenter.categories == CATEGORIES


def test_unused_labels_are_never_detected(model, images):
    card = dataclasses.replace(
        model.card, category_ids=(-1, 3, -1, 20), categories=(CATEGORIES[0], CATEGORIES[2])
    )
    partial = dataclasses.replace(model, card=card)
    (found,) = MaskRCNNSegmenter(partial, max_detections=1000).segment(images[:1])
    assert set(found.labels.tolist()) == {3, 20}


def test_a_category_with_the_id_0_is_not_the_background(model, images):
    zero = dataclasses.replace(CATEGORIES[0], id=0)
    card = dataclasses.replace(model.card, category_ids=(-1, 0, -1, 20), categories=(zero, CATEGORIES[2]))
    partial = dataclasses.replace(model, card=card)
    (found,) = MaskRCNNSegmenter(partial, max_detections=1000).segment(images[:1])
    assert set(found.labels.tolist()) == {0, 20}


def test_an_unknown_category_is_refused_with_the_nearest_name(model):
    with pytest.raises(UsageError, match="'hors'; did you mean 'horse'"):
        MaskRCNNSegmenter(model, categories=["hors"])


def test_the_model_is_not_changed(model, images):
    before = copy.deepcopy(model.module.state_dict())
    MaskRCNNSegmenter(model, min_score=0.5, max_detections=3).segment(images[:1])
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (model.module.roi_heads.score_thresh, model.module.roi_heads.detections_per_img) == (0.05, 100)


def test_images_of_one_padded_size_share_a_batch(model, images, monkeypatch):
    segmenter = MaskRCNNSegmenter(model, batch_size=2)
    shapes = [(90, 140), (64, 64), (91, 140), (128, 128), (45, 70)]
    picked = [np.resize(images[3], (h, w, 3)) for h, w in shapes]
    assert segmenter._batches(picked) == [[0, 2], [4], [1, 3]]
    canvases = []
    forward = segmenter.forward

    def watched(batch, sizes):
        canvases.append(tuple(batch.shape))
        return forward(batch, sizes)

    monkeypatch.setattr(segmenter, "forward", watched)
    together = segmenter.segment(picked)
    assert canvases == [(2, 3, *segmenter.canvas(90, 140)), (1, 3, 96, 160), (2, 3, 96, 96)]
    for one, image in zip(together, picked, strict=True):
        (alone,) = MaskRCNNSegmenter(model).segment([image])
        assert (one.height, one.width) == image.shape[:2]
        assert one.labels.tolist() == alone.labels.tolist()
        np.testing.assert_allclose(one.boxes, alone.boxes, atol=0.02)


def fails_above(segmenter, limit, monkeypatch):
    """Make the forward pass run out of memory for more than `limit` images; return the sizes of its batches."""
    sizes = []
    forward = segmenter.forward

    def limited(batch, image_sizes):
        sizes.append(len(batch))
        if len(batch) > limit:
            raise torch.cuda.OutOfMemoryError("no memory")
        return forward(batch, image_sizes)

    monkeypatch.setattr(segmenter, "forward", limited)
    return sizes


def test_a_batch_that_does_not_fit_is_halved(model, images, monkeypatch):
    segmenter = MaskRCNNSegmenter(model, batch_size=5)
    expected = segmenter.segment([images[0]] * 2)
    sizes = fails_above(segmenter, 2, monkeypatch)
    found = segmenter.segment([images[0]] * 5)
    assert sizes == [5, 5, 2, 3, 1, 2]  # the second attempt without another lane
    assert found[0].masks == expected[0].masks
    assert len(found) == 5
    assert segmenter.execution["halvings"] == 2


def test_an_image_that_does_not_fit_alone_is_an_item_error(model, images, monkeypatch):
    segmenter = MaskRCNNSegmenter(model)
    fails_above(segmenter, 0, monkeypatch)
    with pytest.raises(ItemError, match="out_of_memory: 90 x 140 pixels") as caught:
        segmenter.segment(images[:1])
    assert caught.value.code == "out_of_memory"
    (outcome,) = segmenter.outcomes(images[:1])
    assert isinstance(outcome, ItemError)


LAYERS = ["rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor.cls_score",
          "roi_heads.box_predictor.bbox_pred", "roi_heads.mask_predictor.mask_fcn_logits"]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_network_that_returns_nan_is_an_item_error_and_not_an_empty_image(model, images, layer, value):
    broken = copy.deepcopy(model.module)
    with torch.no_grad():
        broken.get_submodule(layer).bias[-1 if "mask" in layer else 1] = value
    segmenter = MaskRCNNSegmenter(dataclasses.replace(model, module=broken), max_detections=1000)
    if "mask" in layer and value == torch.inf:  # a probability of 1
        assert len(segmenter.segment(images[:1])[0])
        return
    with pytest.raises(ItemError, match="not_finite"):
        segmenter.segment(images[:1])


def test_nan_for_one_image_does_not_affect_the_others(model, images):
    segmenter = MaskRCNNSegmenter(model, batch_size=3)
    expected = segmenter.segment([images[0]] * 3)

    def spoil(layer, inputs, outputs):
        logits, deltas = outputs
        second = torch.arange(3).repeat_interleave(len(logits) // 3) == 1
        return logits.where(~second[:, None], torch.nan), deltas

    segmenter.forward._network.roi_heads.box_predictor.register_forward_hook(spoil)
    first, second, third = segmenter.outcomes([images[0]] * 3)
    assert isinstance(second, ItemError)
    assert second.code == "not_finite"
    assert first.masks == third.masks == expected[0].masks
    assert (first.boxes == expected[0].boxes).all()


@pytest.mark.parametrize("shape", [(261, 300), (1000, 700), (333, 2000)])
def test_a_large_image_is_resized_like_a_small_one(model, shape):
    segmenter = MaskRCNNSegmenter(model)
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8))
    size = segmenter._resized(*shape)
    image, _ = model.module.transform([pixels.permute(2, 0, 1) / 255])
    assert (size,) == tuple(image.image_sizes)
    expected = image.tensors[0, :, : size[0], : size[1]]
    # torch's own resize differs by as much between one thread and two.
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in (model.module.transform.image_mean, model.module.transform.image_std)
    )
    torch.testing.assert_close(shrunk(pixels, size, mean, std), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(segmenter._prepared(pixels, size), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 160), (160, 1), (1, 2), (3000, 20)])
def test_images_of_one_pixel_and_of_one_row_are_processed(model, shape):
    image = np.full((*shape, 3), 200, np.uint8)
    (found,) = MaskRCNNSegmenter(model).segment([image])
    assert (found.height, found.width) == shape


def test_an_image_without_pixels_after_the_resize_is_an_item_error(model, images):
    thin, sound = MaskRCNNSegmenter(model).outcomes([np.zeros((1, 10_000, 3), np.uint8), images[0]])
    assert isinstance(thin, ItemError)
    assert thin.code == "aspect"
    assert len(sound)


def test_a_batch_that_did_not_fit_next_to_another_lane_is_tried_alone(model, images, monkeypatch):
    segmenter = MaskRCNNSegmenter(model)
    segmenter._lanes = segmenter_module._Lanes(2)
    forward, lock, under_way = segmenter.forward, threading.Lock(), []

    def crowded(batch, sizes):
        with lock:
            under_way.append(batch)
            others = len(under_way) > 1
        try:
            time.sleep(0.05)
            if others or len(under_way) > 1:
                raise torch.cuda.OutOfMemoryError("no memory beside another")
            return forward(batch, sizes)
        finally:
            with lock:
                under_way.pop()

    monkeypatch.setattr(segmenter, "forward", crowded)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(segmenter.segment, [images[:1]] * 6))
    assert len({one.masks for (one,) in found}) == 1


def test_half_precision_finds_the_same_objects():
    model = load_model("scenes")
    image = render_scene(123_456).image
    (exact,) = MaskRCNNSegmenter(model, min_score=0.7).segment([image])
    (half,) = MaskRCNNSegmenter(model, min_score=0.7, dtype="bfloat16").segment([image])
    assert sorted(half.labels.tolist()) == sorted(exact.labels.tolist())
    assert coco_mask.iou(half.rles(), exact.rles(), [0] * len(exact)).max(0).min() > 0.9
    with pytest.raises(UsageError, match="--dtype int8: give one of"):
        MaskRCNNSegmenter(model, dtype="int8")


def test_the_execution_is_described(model):
    segmenter: Segmenter = MaskRCNNSegmenter(model, threads=1)
    assert segmenter.batch_size == 1
    assert segmenter.max_side == 160
    execution = json.loads(json.dumps(segmenter.execution))
    assert execution == {
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 1,
        "halvings": 0,
        "threads": 1,
        "torch": torch.__version__,
        "torchvision": segmenter_module.torchvision.__version__,
    }
    assert segmenter.segment([]) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_refused_and_auto_uses_the_cpu(model):
    with pytest.raises(UsageError, match="no CUDA device"):
        MaskRCNNSegmenter(model, device="cuda")
    assert MaskRCNNSegmenter(model, device="auto").execution["device"] == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_detections_on_a_gpu_match_those_on_the_cpu(model, images):
    on_gpu = MaskRCNNSegmenter(model, device="cuda").segment(images)
    on_cpu = MaskRCNNSegmenter(model).segment(images)
    for a, b in zip(on_gpu, on_cpu, strict=True):
        strong = b.scores > 0.1
        np.testing.assert_allclose(a.boxes[: strong.sum()], b.boxes[strong], atol=0.5)
