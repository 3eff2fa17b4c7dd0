"""Networks with random weights, their inputs and feature maps."""

from collections import OrderedDict

import torch
from torch import nn

TRAINED = (
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet18_fpn",
    "maskrcnn_efficientnet_lite0_fpn",
    "maskrcnn_resnet50_fpn_detectron2",
)
"""Networks that differ in more than their depth."""


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


def settle(network, images):
    """Give a random detector of torchvision outputs as a trained one has: scores that are apart, boxes near anchors.

    The statistics of norms become those of the images; the outputs of the last layers get a mean and a deviation.

    Args:
        network: of any class.
        images: (3, H, W) from 0 to 1.
    """
    with torch.no_grad():
        norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None
            norm.train()
        # Maps of one position have no deviation in a single image.
        together = [images] if network.transform.fixed_size else [[image] for image in images]
        for several in together:
            network.backbone(network.transform(several)[0].tensors)
        network.eval()
        for layers in _last_layers(network):
            _standardise(network, layers, images)


def _last_layers(network):
    """The layers that return scores and boxes, with the mean and the deviation of what each shall return, in stages."""
    if hasattr(network, "roi_heads"):
        head, predictor = network.rpn.head, network.roi_heads.box_predictor
        masks = network.roi_heads.mask_predictor
        return [
            [(head.cls_logits, 0.0, 1.0), (head.bbox_pred, 0.0, 0.1)],
            [(predictor.cls_score, 0.0, 1.2), (predictor.bbox_pred, 0.0, 0.3)],
            *([[(masks.mask_fcn_logits, 0.0, 2.0)]] if masks is not None else []),
        ]
    classes, boxes = network.head.classification_head, network.head.regression_head
    if hasattr(classes, "module_list"):
        return [
            [
                (each[-1] if isinstance(each, nn.Sequential) else each, 0.0, deviation)
                for head, deviation in ((classes, 2.0), (boxes, 0.5))
                for each in head.module_list
            ]
        ]
    if hasattr(boxes, "bbox_ctrness"):
        return [[(classes.cls_logits, -5.0, 1.8), (boxes.bbox_reg, 3.0, 0.5), (boxes.bbox_ctrness, 1.0, 1.0)]]
    return [[(classes.cls_logits, -7.0, 1.5), (boxes.bbox_reg, 0.0, 0.1)]]


def _standardise(network, layers, images):
    seen = {layer: [] for layer, _, _ in layers}

    def keep(layer, inputs, output):
        seen[layer].append(output if output.dim() == 2 else output.transpose(0, 1).flatten(1).T)

    hooks = [layer.register_forward_hook(keep) for layer in seen]
    for image in images:
        network([image])
    for hook in hooks:
        hook.remove()
    for layer, mean, deviation in layers:
        outputs = torch.cat(seen[layer])
        factor = deviation / outputs.std(0).clamp(min=1e-6)
        layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.copy_((layer.bias - outputs.mean(0)) * factor + mean)
