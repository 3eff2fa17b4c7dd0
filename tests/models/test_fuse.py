"""The fused network against the original, with random weights and batch-norm statistics."""

import copy
from collections.abc import Iterator

import pytest
import torch
from networks import TRAINED
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn.models import fuse
from maskrcnn.models.fuse import for_cpu, fused
from maskrcnn.models.model import build_network

pytestmark = pytest.mark.slow

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)
CLASSES = 7
DETECTIONS = 20
COLUMNS = ("labels", "boxes", "scores", "masks")
TOLERANCE = 1e-5
"""Relative to the largest activation. An ordinary convolution is off by about 1e-6 when it sums in another order."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain(architecture: str) -> MaskRCNN:
    torch.manual_seed(3)
    network = build_network(architecture, CLASSES, 64, 96).eval()
    network.rpn._post_nms_top_n = {"training": 20, "testing": 20}
    network.roi_heads.detections_per_img = DETECTIONS
    for module in network.modules():
        if isinstance(module, NORMS):
            module.eps = 0.0 if architecture == "maskrcnn_resnet50_fpn" else module.eps
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.3, 0.9)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.requires_grad_(False)


@pytest.fixture(scope="module", params=TRAINED)
def networks(request: pytest.FixtureRequest) -> tuple[MaskRCNN, MaskRCNN, MaskRCNN]:
    """Return the original, the fused and the rearranged network."""
    network = plain(request.param)
    return network, fused(network), for_cpu(fused(network))


def off(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float((found - expected).abs().max() / expected.abs().max()) if expected.numel() else 0.0


def boxes(count: int, width: int, height: int) -> Tensor:
    """Boxes of all sizes, some of no width, some extending beyond the border."""
    corner = torch.rand(count, 2) * torch.tensor([width, height])
    sides = torch.exp(torch.rand(count, 2) * 6) - 1
    return torch.cat([corner, corner + sides], 1)


@pytest.mark.parametrize(("n", "height", "width"), [(1, 96, 160), (2, 64, 32), (1, 32, 32), (1, 224, 96)])
@torch.inference_mode()
def test_each_part_returns_the_same(
    networks: tuple[MaskRCNN, MaskRCNN, MaskRCNN], n: int, height: int, width: int
) -> None:
    network, *others = networks
    torch.manual_seed(n)
    image = torch.randn(n, 3, height, width)
    kept = image.clone()
    features = network.backbone(image)
    maps = list(features.values())
    logits, deltas = network.rpn.head(maps)
    regions = [boxes(count, width, height) for count in (9, 4)[:n]]
    sizes = [(height, width)] * n
    heads = network.roi_heads
    pooled = heads.box_roi_pool(features, regions, sizes)
    vectors = heads.box_head(pooled)
    squares = heads.mask_roi_pool(features, regions, sizes)
    hidden = heads.mask_head(squares)
    masks = heads.mask_predictor(hidden)
    for other in others:
        found = other.backbone(image)
        assert list(found) == list(features)
        pairs = list(zip(found.values(), maps, strict=True))
        other_logits, other_deltas = other.rpn.head(maps)
        pairs += zip(other_logits + other_deltas, logits + deltas, strict=True)
        roi = other.roi_heads
        pairs += [
            (roi.box_head(pooled), vectors),
            *zip(roi.box_predictor(vectors), heads.box_predictor(vectors), strict=True),
            (roi.mask_head(squares), hidden),
            (roi.mask_predictor(hidden), masks),
        ]
        assert max(off(*pair) for pair in pairs) < TOLERANCE
    assert torch.equal(image, kept)


@torch.inference_mode()
def test_the_whole_network_returns_the_same(networks: tuple[MaskRCNN, MaskRCNN, MaskRCNN]) -> None:
    network, *others = networks
    torch.manual_seed(5)
    images = [torch.rand(3, 61, 97), torch.rand(3, 120, 75)]
    expected = network(images)
    assert sum(len(one["boxes"]) for one in expected) > 0
    for other in others:
        for found, one in zip(other(images), expected, strict=True):
            assert len(found["labels"]) == len(one["labels"])
            # Rounding swaps detections of almost equal scores, also at the limit of their number.
            limit = one["scores"].min() + 1e-4 if len(one["scores"]) == DETECTIONS else 0
            both, either = 0.0, 0.0
            for label, box, score, mask in zip(
                *(one[key][one["scores"] > limit] for key in COLUMNS), strict=True
            ):
                away = (found["boxes"] - box).abs().amax(1).where(found["labels"] == label, torch.inf)
                same = int(away.argmin())
                assert away[same] < 0.02
                assert abs(found["scores"][same] - score) < 1e-4
                a, b = found["masks"][same] > 0.5, mask > 0.5
                both, either = both + float((a & b).sum()), either + float((a | b).sum())
            assert both > 0.999 * either


@torch.inference_mode()
def test_masks_of_the_own_labels_only(networks: tuple[MaskRCNN, MaskRCNN, MaskRCNN]) -> None:
    network, _, other = networks
    width = next(network.roi_heads.mask_predictor.parameters()).shape[0]
    hidden, labels = torch.rand(23, width, 14, 14), torch.arange(23) % CLASSES
    expected = network.roi_heads.mask_predictor(hidden)[torch.arange(23), labels]
    assert off(other.roi_heads.mask_predictor(hidden, labels), expected) < TOLERANCE


@torch.inference_mode()
def test_without_regions_nothing_is_returned(networks: tuple[MaskRCNN, MaskRCNN, MaskRCNN]) -> None:
    network, *others = networks
    features = network.backbone(torch.rand(1, 3, 64, 64))
    for other in others:
        roi = other.roi_heads
        pooled = roi.box_roi_pool(features, [torch.empty(0, 4)], [(64, 64)])
        assert [len(part) for part in roi.box_predictor(roi.box_head(pooled))] == [0, 0]
        hidden = roi.mask_head(roi.mask_roi_pool(features, [torch.empty(0, 4)], [(64, 64)]))
        assert roi.mask_predictor(hidden).shape == (0, CLASSES, 28, 28)
    assert roi.mask_predictor(hidden, torch.empty(0, dtype=torch.int64)).shape == (0, 28, 28)


@torch.inference_mode()
def test_chunks_of_one_region_each(monkeypatch: pytest.MonkeyPatch) -> None:
    network = plain("maskrcnn_resnet50_fpn_v2")
    heads, other = network.roi_heads, for_cpu(fused(network)).roi_heads
    monkeypatch.setattr(fuse, "_PART_BYTES", 1)
    pooled, hidden = torch.randn(3, 256, 7, 7), torch.randn(3, 256, 14, 14)
    assert off(other.box_head(pooled), heads.box_head(pooled)) < TOLERANCE
    assert off(other.mask_predictor(hidden), heads.mask_predictor(hidden)) < TOLERANCE


def test_all_norms_are_folded_and_the_original_is_unchanged() -> None:
    network = plain("maskrcnn_resnet50_fpn_v2").train()
    before = copy.deepcopy(network.state_dict())
    other = for_cpu(fused(network))
    assert not any(isinstance(module, NORMS) for module in other.modules())
    assert not any(module.training for module in other.modules())
    assert network.training
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(tensor.is_contiguous() for tensor in after.values())


def test_a_norm_without_a_convolution_before_it_is_refused() -> None:
    network = plain("maskrcnn_efficientnet_lite0_fpn")
    network.backbone.body.stem.append(nn.BatchNorm2d(32))
    with pytest.raises(ValueError, match=r"backbone\.body\.stem"):
        fused(network)


@torch.inference_mode()
def test_the_fused_network_moves_to_another_dtype() -> None:
    network = plain("maskrcnn_resnet50_fpn")
    image = torch.rand(1, 3, 32, 32)
    moved = fused(network).to(torch.bfloat16)
    found = moved.backbone(image.bfloat16())
    for name, expected in network.backbone(image).items():
        assert found[name].dtype == torch.bfloat16
        assert found[name].is_contiguous(memory_format=torch.channels_last)
        assert off(found[name].float(), expected) < 0.1


def test_a_torch_without_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    network = fused(plain("maskrcnn_efficientnet_lite0_fpn"))
    before = str(network)
    monkeypatch.setattr(fuse, "_operators_work", lambda: False)
    assert str(for_cpu(network)) == before


def test_operators_that_changed_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fuse._operators_work()
    monkeypatch.setattr(fuse._Linear, "forward", lambda self, x: x @ self.weight.T)
    assert not fuse._operators_work()
