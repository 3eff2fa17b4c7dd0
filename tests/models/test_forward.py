"""The forward pass with few synchronizations, each step against torchvision's own."""

from collections import Counter

import pytest
import torch
from networks import boxes_in, maps_of, spread
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms

from maskrcnn.models import nms
from maskrcnn.models.forward import Forward
from maskrcnn.models.model import build_network

pytestmark = pytest.mark.slow


def test_suppression_equals_torchvision_s_group_by_group():
    torch.manual_seed(1)
    boxes = boxes_in((300, 300), 900)
    scores = torch.rand(900)
    group = torch.randint(0, 12, (900,)).sort().values
    counts = torch.bincount(group, minlength=15).tolist()
    expected = torch.zeros(900, dtype=torch.bool)
    expected[batched_nms(boxes, scores, group, 0.3)] = True
    for given in (counts, torch.tensor(counts)):
        assert torch.equal(nms.not_suppressed(boxes, scores, given, 0.3), expected)
    nothing = nms.not_suppressed(boxes[:0], scores[:0], [0, 0], 0.3)
    assert nothing.shape == (0,)


@pytest.mark.parametrize("factor", [1, 1e4], ids=["scores that differ", "scores of 1"])
def test_proposals_are_torchvision_s_also_where_sigmoids_are_equal(factor):
    torch.manual_seed(1)
    network = build_network("maskrcnn_resnet18_fpn", 4, 96, 128).eval()
    network.rpn._post_nms_top_n = {"training": 40, "testing": 40}
    features = maps_of((96, 128), 256, 1)
    features["pool"] = torch.randn(1, 256, 2, 2)
    with torch.inference_mode():
        for layer in (network.rpn.head.conv[0][0], network.rpn.head.cls_logits):
            layer.weight *= factor**0.5
        (expected,), _ = network.rpn(ImageList(torch.zeros(1, 3, 96, 128), [(96, 128)]), features)
        limits = torch.tensor([[128.0, 96.0, 128.0, 96.0]])
        boxes, present, _ = Forward(network, [1, 2, 3], 0.05, 10).propose(features, (96, 128), limits)
    assert present.all()
    torch.testing.assert_close(boxes[0], expected, rtol=0, atol=1e-4)


class HostWaits(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "where" and len(args) > 1:
            return func(*args, **(kwargs or {}))
        if name in ("_local_scalar_dense", "nonzero", "item", "masked_select", "unique", "_unique2", "where"):
            self.counts[name] += 1
        if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.counts["index by a mask"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("max_detections", [1, 20])
def test_the_host_waits_twice_per_batch_for_any_number_of_instances(n_images, max_detections):
    torch.manual_seed(1)
    network = build_network("maskrcnn_resnet18_fpn", 4, 64, 96)
    spread(network)
    forward = Forward(network.eval(), [1, 2, 3], 0.05, max_detections)
    batch, sizes = torch.rand(n_images, 3, 64, 96), torch.tensor([[64.0, 96.0]] * n_images)
    forward(batch, sizes)  # anchors are cached
    with HostWaits() as waits:
        found = forward(batch, sizes)
    assert len(found.labels) == n_images * max_detections
    assert waits.counts == {"nonzero": 2}


def test_torchvision_itself_waits_hundreds_of_times():
    torch.manual_seed(1)
    network = build_network("maskrcnn_resnet18_fpn", 4, 64, 96)
    spread(network)
    with torch.inference_mode(), HostWaits() as waits:
        (found,) = network.eval()([torch.rand(3, 64, 96)])
    assert waits.counts.total() > 5 * len(found["labels"]) > 100
