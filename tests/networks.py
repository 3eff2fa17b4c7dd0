"""Networks with random weights, their inputs and feature maps."""

from collections import OrderedDict

import torch


def spread(network, factor=10):
    """Make the scores of a random network differ between proposals, and high for each label somewhere."""
    scores = network.roi_heads.box_predictor.cls_score
    seen = []
    hook = scores.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    with torch.no_grad():
        network.eval()([torch.rand(3, 90, 140)])
        scores.bias.copy_(factor * (scores.bias - seen[0].mean(0)))
        scores.weight *= factor
    hook.remove()


def maps_of(canvas, channels, n_images):
    """Random maps of strides 4 to 32."""
    return OrderedDict(
        (str(i), torch.randn(n_images, channels, canvas[0] // stride, canvas[1] // stride))
        for i, stride in enumerate((4, 8, 16, 32))
    )


def boxes_in(canvas, count):
    """Boxes inside the canvas: of all sizes, at its borders, thinner than a position of the map, of no size."""
    corners = torch.rand(count, 2) * torch.tensor([canvas[1], canvas[0]])
    sides = torch.exp(torch.rand(count, 2) * 8 - 2) * (torch.rand(count, 1) > 0.1)
    return torch.cat([corners, torch.minimum(corners + sides, torch.tensor([canvas[1], canvas[0]]))], 1)
