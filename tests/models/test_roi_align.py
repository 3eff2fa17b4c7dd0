"""RoIAlign as weighted sums of rows, against torchvision's own."""

import pytest
import torch
from networks import boxes_in, maps_of
from torchvision.ops import MultiScaleRoIAlign

from maskrcnn.models.roi_align import Pyramid, pool


@pytest.mark.parametrize("output", [7, 14, (3, 5)])
@pytest.mark.parametrize("sampling_ratio", [1, 2])
@pytest.mark.parametrize("canonical", [(224, 4), (96, 4)])
def test_pooling_equals_torchvision_s(output, sampling_ratio, canonical):
    torch.manual_seed(0)
    canvas = (256, 384)
    maps = maps_of(canvas, 8, n_images=2)
    aligner = MultiScaleRoIAlign(
        ["0", "1", "2", "3"],
        output,
        sampling_ratio,
        canonical_scale=canonical[0],
        canonical_level=canonical[1],
    )
    boxes = [boxes_in(canvas, 300), boxes_in(canvas, 1)]
    image = torch.tensor([0] * 300 + [1])
    pooled = pool(Pyramid.of(maps, aligner.featmap_names, canvas[0]), aligner, torch.cat(boxes), image)
    expected = aligner(maps, boxes, [canvas, canvas])
    torch.testing.assert_close(pooled, expected, rtol=0, atol=2e-5)
    assert pooled.is_contiguous(memory_format=torch.channels_last)


def test_a_pyramid_excludes_the_maps_that_are_not_pooled():
    maps = maps_of((64, 64), 4, n_images=1)
    maps["pool"] = torch.randn(1, 4, 1, 1)
    pyramid = Pyramid.of(maps, ["0", "1", "2", "3"], 64)
    assert pyramid.rows.shape == (16 * 16 + 8 * 8 + 4 * 4 + 2 * 2, 4)
    assert pyramid.starts.tolist() == [0, 256, 320, 336]
    assert pyramid.strides == (4, 32)
