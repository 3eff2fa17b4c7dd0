"""Fuse the layers of a network for inference: on any device, and further on the CPU.

`fused` folds batch norms, which is valid on any device. `for_cpu` then rearranges the layers for oneDNN, the library
behind torch's convolutions on the CPU: channels last throughout, with activations and residuals in the same pass as
their convolution. Results change by rounding only.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

from .architectures.torchvision_networks import Detector

__all__ = ["for_cpu", "fused"]

_PART_BYTES: Final = 4 << 20
"""The size of the chunks that a head's input is split into: the larger maps computed from a chunk stay in the last-
level cache, and are small enough for malloc to reuse memory that the kernel has already mapped."""


def fused(network: Detector) -> Detector:
    """Return a copy for inference whose batch norms are folded into the convolutions before them.

    It can be moved to any device and dtype. Weights are channels last, and make the activations so.

    Raises:
        ValueError: a norm does not follow a convolution.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(network.modules()):
        _fold_children(module)
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.Hardswish):
            module.inplace = True
    left = [name for name, module in network.named_modules() if isinstance(module, _NORMS)]
    if left:
        raise ValueError(f"norms do not follow a convolution: {', '.join(left)}")
    return cast(Detector, network.to(memory_format=torch.channels_last))


_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def _fold_children(module: nn.Module) -> None:
    """Fold each norm that is declared right after a convolution; in torchvision it is also called right after it."""
    before: nn.Module | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, _NORMS) and isinstance(before, nn.Conv2d):
            _fold(before, child)
            setattr(module, name, nn.Identity())
        before = child


def _fold(convolution: nn.Conv2d, norm: nn.Module) -> None:
    state = {name: tensor.double() for name, tensor in norm.state_dict().items()}
    scale = state["weight"] / torch.sqrt(state["running_var"] + cast(float, norm.eps))
    bias = 0.0 if convolution.bias is None else convolution.bias.double()
    weight = convolution.weight
    folded = (bias - state["running_mean"]) * scale + state["bias"]
    convolution.bias = nn.Parameter(folded.to(weight.dtype), requires_grad=False)
    weight.copy_(weight.double() * scale[:, None, None, None])


# --- on the CPU ---------------------------------------------------------------------------------------------


def for_cpu(network: Detector) -> Detector:
    """Rearrange a network of `fused` for float32 on the CPU, in place, and return it.

    Its parts are called as before; `.roi_heads.mask_predictor` also accepts labels, see there. If this version of torch
    lacks the operators, which are not public, the network is returned unchanged.
    """
    if not _operators_work():
        return network
    _convert(network.backbone)
    if not hasattr(network, "roi_heads"):
        _convert(network.head)
        return network.eval()
    heads = network.roi_heads
    network.rpn.head = _RPNHead(network.rpn.head)
    channels = network.backbone.out_channels
    if isinstance(heads.box_head, nn.ModuleList):  # of a cascade
        heads.box_head = nn.ModuleList(_BoxHead(head, channels) for head in heads.box_head)
    elif any(isinstance(layer, nn.Linear | nn.Conv2d) for layer in heads.box_head.children()):
        heads.box_head = _BoxHead(heads.box_head, channels)
    else:  # a stage of a ResNet
        _convert(heads.box_head)
    _convert(heads.box_predictor)
    if heads.has_mask():
        _convert(heads.mask_head)
        heads.mask_predictor = _MaskPredictor(heads.mask_predictor)
    return network.eval()


@torch.inference_mode()
def _operators_work() -> bool:
    """Return whether the operators exist and do what this module expects."""
    convolution, linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
    shapes = (1, 3, 5, 5), (1, 4, 5, 5)
    x, above = (torch.rand(shape).contiguous(memory_format=torch.channels_last) for shape in shapes)
    try:
        pairs = [
            (_Convolution(convolution, nn.ReLU6())(x), F.relu6(convolution(x))),
            (_Convolution(convolution, nn.Hardswish())(x), F.hardswish(convolution(x))),
            (_Convolution(convolution, nn.ReLU()).added_to(above.clone(), x), F.relu(convolution(x) + above)),
            (_Linear(linear, "relu")(above[:, :, 0].mT), F.relu(linear(above[:, :, 0].mT))),
        ]
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)


def _converted(module: nn.Module) -> nn.Module:
    """Return the counterpart of a module, or the module itself with its children replaced."""
    counterparts: dict[type, Callable[[Any], nn.Module]] = {
        nn.Conv2d: _Convolution,
        nn.Linear: _Linear,
        BasicBlock: _Block,
        Bottleneck: _Block,
        FeaturePyramidNetwork: _FeaturePyramid,
    }
    counterpart = counterparts.get(type(module))
    if counterpart is not None:
        return counterpart(module)
    _convert(module)
    return module


def _convert(module: nn.Module) -> None:
    if isinstance(module, nn.Sequential | IntermediateLayerGetter):
        _join_activations(module)
    for name, child in list(module.named_children()):
        setattr(module, name, _converted(child))


def _join_activations(module: nn.Module) -> None:
    """Move each activation of a sequence into the convolution before it."""
    before: nn.Module | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.ReLU | nn.ReLU6 | nn.Hardswish) and isinstance(before, nn.Conv2d):
            before.register_module("activation", child)
            setattr(module, name, nn.Identity())
        if not isinstance(child, nn.Identity):
            before = child


class _Convolution(nn.Module):
    """A convolution together with its activation or residual, in one pass over memory.

    The operator is the one that torch's own compiler calls. Calling it directly is also faster: for kernels of size 1
    on one thread torch would not use oneDNN, which is twice as fast.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias = convolution.bias
        self.options = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        activation = activation or getattr(convolution, "activation", None)
        names: dict[type, tuple[str | None, list[float]]] = {
            nn.ReLU: ("relu", []),
            nn.ReLU6: ("hardtanh", [0.0, 6.0]),
            nn.Hardswish: ("hardswish", []),
        }
        self.activation = (None, []) if activation is None else names[type(activation)]

    def forward(self, x: Tensor) -> Tensor:
        name, limits = self.activation
        out = torch.ops.mkldnn._convolution_pointwise(  # noqa: SLF001
            x, self.weight, self.bias, *self.options, name or "none", limits, ""
        )
        return cast(Tensor, out)

    def added_to(self, sink: Tensor, x: Tensor) -> Tensor:
        """Add the convolution of `x` to `sink`, in place, before the activation."""
        name, limits = self.activation
        out = torch.ops.mkldnn._convolution_pointwise_.binary(
            sink, x, self.weight, self.bias, *self.options, "add", 1.0, name, limits, ""
        )
        return cast(Tensor, out)


class _Linear(nn.Module):
    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.weight, self.bias, self.activation = linear.weight, linear.bias, activation

    def forward(self, x: Tensor) -> Tensor:
        operator = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
        return cast(Tensor, operator(x, self.weight, self.bias, self.activation, [], ""))


class _Block(nn.Module):
    """A block of a ResNet. Without downsampling the sum overwrites the input, which is not read again."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        convolutions = [child for child in block.children() if isinstance(child, nn.Conv2d)]
        *before, self.last = (_Convolution(convolution, block.relu) for convolution in convolutions)
        self.before = nn.Sequential(*before)
        self.downsample = None if block.downsample is None else _converted(block.downsample)

    def forward(self, x: Tensor) -> Tensor:
        out = self.before(x)
        return self.last.added_to(x if self.downsample is None else self.downsample(x), out)


class _FeaturePyramid(nn.Module):
    """`FeaturePyramidNetwork` whose lateral convolutions add their result to the upsampled map in place."""

    def __init__(self, pyramid: FeaturePyramidNetwork) -> None:
        super().__init__()
        _convert(pyramid)
        self.inner_blocks, self.layer_blocks = pyramid.inner_blocks, pyramid.layer_blocks
        self.extra_blocks = pyramid.extra_blocks

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        names, maps = list(x), list(x.values())
        inner = self.inner_blocks[-1](maps[-1])
        results = [self.layer_blocks[-1](inner)]
        for i in reversed(range(len(maps) - 1)):
            above = F.interpolate(inner, size=maps[i].shape[-2:], mode="nearest")
            lateral = cast(nn.Sequential, self.inner_blocks[i])[0]
            inner = cast(_Convolution, lateral).added_to(above, maps[i])
            results.insert(0, self.layer_blocks[i](inner))
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, maps, names)
        return OrderedDict(zip(names, results, strict=True))


class _RPNHead(nn.Module):
    """`RPNHead` whose two outputs are computed by one convolution."""

    def __init__(self, head: RPNHead) -> None:
        super().__init__()
        self.conv = cast(nn.Sequential, _converted(head.conv))
        self.scores = head.cls_logits.out_channels
        joint = nn.Conv2d(head.cls_logits.in_channels, self.scores + head.bbox_pred.out_channels, 1)
        joint.weight = _parameter(head.cls_logits.weight, head.bbox_pred.weight)
        joint.bias = _parameter(head.cls_logits.bias, head.bbox_pred.bias)
        self.joint = _Convolution(joint)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        maps = [self.joint(self.conv(feature)) for feature in x]
        return [m[:, : self.scores] for m in maps], [m[:, self.scores :] for m in maps]


def _parameter(*tensors: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.cat(tensors), requires_grad=False)


def _parts(x: Tensor) -> Sequence[Tensor]:
    """Split a batch of regions, which a head processes independently of each other."""
    return torch.split(x, max(_PART_BYTES // (4 * x[0].numel()), 1)) if len(x) else (x,)


class _BoxHead(nn.Module):
    """`TwoMLPHead`, `FastRCNNConvFCHead`, or `matterport.ClassHead`, whose convolutions have one output each."""

    def __init__(self, head: nn.Module, channels: int) -> None:
        super().__init__()
        layers = list(head.children())
        convolutions = [layer for layer in layers if isinstance(layer, nn.Sequential)]
        self.convolutions = cast(nn.Sequential, _converted(nn.Sequential(*convolutions)))
        first, *others = [_linear(layer) for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
        # The columns of its weight are in the order of maps flattened with channels first.
        columns = first.weight.view(first.out_features, channels, -1).transpose(1, 2).flatten(1)
        first.weight = _parameter(columns)
        self.linears = nn.Sequential(*(_Linear(linear, "relu") for linear in [first, *others]))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.convolutions):
            x = torch.cat([self.convolutions(part) for part in _parts(x)])
        return cast(Tensor, self.linears(x.permute(0, 2, 3, 1).flatten(1)))


def _linear(layer: nn.Linear | nn.Conv2d) -> nn.Linear:
    """Return the linear layer that a convolution is whose kernel covers its whole input."""
    if isinstance(layer, nn.Linear):
        return layer
    weight = layer.weight.flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = _parameter(weight), cast(nn.Parameter, layer.bias)
    return linear


class _MaskPredictor(nn.Module):
    """`MaskRCNNPredictor` as two matrix products: with kernel and stride 2 the deconvolution's outputs do not overlap.

    Called with labels, (n,), it computes for each region only the map of its own label: (n, 2 * h, 2 * w).
    """

    def __init__(self, predictor: MaskRCNNPredictor) -> None:
        super().__init__()
        up = predictor.conv5_mask
        spread = nn.Conv2d(up.in_channels, 4 * up.out_channels, 1)
        weight = up.weight.permute(2, 3, 1, 0).reshape(-1, up.in_channels, 1, 1)  # (2 * 2 * out, in, 1, 1)
        spread.weight, spread.bias = _parameter(weight), _parameter(up.bias.repeat(4))
        self.spread = _Convolution(spread, predictor.relu)
        last = predictor.mask_fcn_logits
        logits = nn.Linear(last.in_channels, last.out_channels)
        logits.weight, logits.bias = _parameter(last.weight.flatten(1)), _parameter(last.bias)
        self.logits = _Linear(logits)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        parts = _parts(x)
        if labels is None:
            return torch.cat([self._maps(part, None) for part in parts])
        own = torch.split(labels, len(parts[0]) or 1)
        return torch.cat([self._maps(part, its)[:, 0] for part, its in zip(parts, own, strict=True)])

    def _maps(self, x: Tensor, labels: Tensor | None) -> Tensor:
        weight, bias = self.logits.weight, self.logits.bias  # (labels, c), (labels,)
        n, _, height, width = x.shape
        rows = self.spread(x).permute(0, 2, 3, 1).reshape(n, height * width * 4, weight.shape[1])
        out: Tensor
        if labels is None:
            out = self.logits(rows)
        else:
            out = torch.baddbmm(bias[labels, None, None], rows, weight[labels, :, None])
        out = out.view(n, height, width, 2, 2, out.shape[2]).permute(0, 5, 1, 3, 2, 4)
        return out.reshape(n, out.shape[1], 2 * height, 2 * width)
