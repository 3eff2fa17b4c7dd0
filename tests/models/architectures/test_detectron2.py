"""The parts of detectron2's network that torchvision does not have, each against another implementation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import boxes_in, maps_of
from PIL import Image
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from maskrcnn.models.architectures.detectron2 import AdaptiveRoIAlign, CellAnchors, ShortestEdgeTransform
from maskrcnn.models.conversion.reference_detectron2 import _anchors, _pooled
from maskrcnn.models.forward import Forward
from maskrcnn.models.model import build_network
from maskrcnn.models.roi_align import pool, pyramid_of


@given(height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_the_shorter_side_is_800_or_the_longer_one_1333(height, width):
    resized = ShortestEdgeTransform(800, 1333).resized(height, width)
    assert min(resized) == 800 or max(resized) == 1333
    assert max(resized) <= 1333
    assert abs(resized[0] / height - resized[1] / width) <= 0.5 / min(height, width) + 1e-9


@pytest.mark.parametrize("shape", [(480, 640), (1200, 900), (37, 50)])
def test_bytes_are_resized_as_by_pillow_except_for_one_in_some_hundreds(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    transform = ShortestEdgeTransform(200, 333)
    size = transform.resized(*shape)
    found = transform.prepared(torch.from_numpy(image), size).permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(
        np.float32
    )
    away = np.abs(found + np.array([123.675, 116.28, 103.53], np.float32) - expected)
    assert away.max() <= 1.001
    assert (away > 0.5).mean() < 0.005


def test_an_image_of_the_right_size_is_not_resized():
    pixels = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8)
    prepared = ShortestEdgeTransform(64, 96).prepared(pixels, (64, 96))
    assert float(prepared[0, 3, 4]) == pytest.approx(int(pixels[3, 4, 0]) - 123.675, abs=1e-4)


def test_anchors_are_exact_and_as_far_apart_as_the_strides():
    grids = [(40, 56), (20, 28), (10, 14), (5, 7), (3, 4)]
    images = ImageList(torch.empty(2, 3, 160, 224), [(160, 224)] * 2)
    first, second = CellAnchors()(images, [torch.empty(2, 1, *grid) for grid in grids])
    expected = torch.cat(
        [_anchors(4 * 2**level, *grid, [32.0 * 2**level]) for level, grid in enumerate(grids)]
    )
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-4)
    assert torch.equal(first, second)
    assert first[0].tolist() == pytest.approx([-22.627417, -11.313708, 22.627417, 11.313708])


@pytest.mark.parametrize("bins", [7, 14])
def test_pooling_equals_the_reference_implementation(bins):
    torch.manual_seed(0)
    maps = maps_of((256, 384), 3, n_images=1)
    boxes = boxes_in((256, 384), 60)
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    found = AdaptiveRoIAlign(list(maps), bins)(maps, [boxes], [(256, 384)])
    torch.testing.assert_close(found, _pooled(maps, boxes, bins), rtol=0, atol=1e-3)


def test_pooling_of_a_batch_equals_that_of_each_level_and_image_alone():
    torch.manual_seed(1)
    maps, canvas = maps_of((256, 384), 8, n_images=2), (256, 384)
    aligner = AdaptiveRoIAlign(["0", "1", "2", "3"], 7)
    boxes = [boxes_in(canvas, 50), boxes_in(canvas, 3)]
    image = torch.tensor([0] * 50 + [1] * 3)
    pooled = pool(pyramid_of(maps, aligner, 256), aligner, torch.cat(boxes), image)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pooled, aligner(maps, boxes, [canvas] * 2))
    for nth, box in enumerate(torch.cat(boxes)):
        level = int((4 + torch.log2((box[2:] - box[:2]).prod().sqrt() / 224 + 1e-8)).floor().clamp(2, 5)) - 2
        region = torch.cat([image[nth, None].float(), box])[None]
        alone = roi_align(maps[str(level)], region, 7, 1 / (4 * 2**level), 0, aligned=True)
        assert torch.equal(pooled[nth], alone[0])


def test_pooling_has_gradients():
    maps = {name: m.requires_grad_() for name, m in maps_of((64, 64), 2, n_images=1).items()}
    boxes = torch.tensor([[2.0, 3.0, 40.0, 50.0]])
    AdaptiveRoIAlign(list(maps), 7)(maps, [boxes], [(64, 64)]).sum().backward()
    assert float(maps["0"].grad.abs().sum()) > 0


def test_an_empty_box_counts_among_the_best_and_is_then_dropped():
    network = build_network("maskrcnn_resnet50_fpn_detectron2", 2, 64, 96).eval()
    forward = Forward(network, [1], 0.05, 2)
    logits = torch.tensor([[[0.0, 3.0], [0.0, 2.0], [0.0, 1.0]]])
    deltas = torch.zeros(1, 3, 8)
    proposals = torch.tensor([[[10.0, 10, 10, 30], [40, 10, 60, 30], [10, 40, 30, 60]]])
    limits = torch.tensor([[96.0, 64, 96, 64]])
    _, boxes, _, scores = forward.choose(
        logits, deltas, proposals, torch.ones(1, 3, dtype=torch.bool), limits
    )
    assert boxes.tolist() == [[40, 10, 60, 30]]
    assert scores[0] == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item())


@pytest.mark.slow
def test_it_can_be_trained_for_a_step():
    torch.manual_seed(0)
    network = build_network("maskrcnn_resnet50_fpn_detectron2", 2, 64, 96).train()
    masks = torch.zeros(1, 70, 90, dtype=torch.uint8)
    masks[0, 10:40, 20:60] = 1
    target = {"boxes": torch.tensor([[20.0, 10, 60, 40]]), "labels": torch.tensor([1]), "masks": masks}
    losses = network([torch.rand(3, 70, 90)], [target])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert len(losses) == 5


@settings(max_examples=20)
@given(side=st.integers(1, 40))
def test_pooling_no_proposals_returns_no_features(side):
    maps = maps_of((64, 64), side, n_images=1)
    pooled = AdaptiveRoIAlign(list(maps), 7)(maps, [torch.empty(0, 4)], [(64, 64)])
    assert pooled.shape == (0, side, 7, 7)
