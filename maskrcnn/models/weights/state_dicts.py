"""Find the weights of one network in a checkpoint, as training scripts save them, and name networks by their tensors.

State dicts are saved as they are, or in dictionaries of other things (`model`, `state_dict`, `model_state_dict`, …),
and their names may begin with those of wrappers: `module.` of DataParallel, `_orig_mod.` of torch.compile, `model.` or
`net.` of a LightningModule. Nothing here imports torch.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...errors import UsageError
from ..architectures.network_shapes import Shape
from .restricted_pickle import kind_of

__all__ = ["StateDict", "find_state_dict", "unsupported_network"]

_ROOTS: Final = frozenset(("backbone", "rpn", "roi_heads", "proposal_generator"))
"""What the tensors of detectors begin with, in torchvision and detectron2."""
_WRAPPERS: Final = frozenset(("module", "_orig_mod"))
"""Names that wrappers insert wherever a part of a network was wrapped."""
_COUNTERS: Final = ("n_averaged", "_extra_state")
"""What wrappers store beside the weights."""
_AVERAGED: Final = re.compile(r"(^|[._])(ema|swa|averaged)($|[._])")
_MAX_DEPTH: Final = 5


@dataclass(frozen=True, slots=True)
class StateDict:
    """The tensors of one network in a checkpoint."""

    names: Mapping[str, str]
    """The name in the checkpoint's dictionary by the name in the network."""
    tensors: Mapping[str, Any]
    """The checkpoint's dictionary."""
    place: str
    """The keys and prefixes under which they are, such as `ema.model`; empty: they are the whole file."""
    others: tuple[str, ...]
    """The places of other networks: averages of these weights."""

    @property
    def notice(self) -> str | None:
        """What a user should know of the choice, or None."""
        if not self.others:
            return None
        others = ", ".join(map(repr, self.others))
        return f"the weights under {self.place or 'no key'!r} are read, not those under {others}"


@dataclass(frozen=True, slots=True)
class _Candidate:
    place: str
    prefix: str
    mapping: Mapping[str, Any]
    names: dict[str, str]

    @property
    def values(self) -> dict[str, Any]:
        return {name: self.mapping[key] for name, key in self.names.items()}

    @property
    def rank(self) -> tuple[bool, bool, bool, int]:
        heads = any(name.startswith("roi_heads.") for name in self.names)
        return heads, self.rooted, not self.averaged, len(self.names)

    @property
    def rooted(self) -> bool:
        return any(name.partition(".")[0] in _ROOTS for name in self.names)

    @property
    def averaged(self) -> bool:
        return bool(_AVERAGED.search(self.place))


def find_state_dict(uri: str, content: Any, is_tensor: Callable[[Any], bool]) -> StateDict:
    """Return the weights of the one network that a checkpoint contains.

    Where it also contains an average of them (EMA), the weights themselves are taken, and `StateDict.others` says so.

    Args:
        uri: the file's name in messages.
        content: dictionaries in dictionaries, with tensors in some of them.
        is_tensor: returns whether a value is a tensor.

    Raises:
        UsageError: there are no tensors in it, or something else among them, or several networks.
    """
    candidates = _candidates(content, is_tensor)
    if not candidates:
        if isinstance(content, Mapping) and content:
            key, value = next(iter(content.items()))
            raise UsageError(
                f"{uri} is not a state dict: it contains a {kind_of(value)} at {str(key)[:120]!r}"
            )
        raise UsageError(f"{uri} contains a {kind_of(content)}, not a state dict")
    best = max(candidates, key=lambda candidate: candidate.rank)
    rivals = [
        each
        for each in candidates
        if best.rooted and each.rank[:2] == best.rank[:2] and each.values != best.values
    ]
    same = [each.place or "no key" for each in rivals if each.averaged == best.averaged]
    if same:
        raise UsageError(
            f"{uri} contains several networks ({', '.join([best.place or 'no key', *same][:4])}): save the state dict "
            "of one alone"
        )
    for key, value in best.mapping.items():
        if best.rooted and not best.prefix and not is_tensor(value) and not _is_counter(key):
            raise UsageError(
                f"{uri} is not a state dict: it contains a {kind_of(value)} at {str(key)[:120]!r}"
            )
    return StateDict(best.names, best.mapping, best.place, tuple(each.place for each in rivals))


def _is_counter(key: object) -> bool:
    return isinstance(key, str) and key.rpartition(".")[2] in _COUNTERS


def _candidates(content: Any, is_tensor: Callable[[Any], bool]) -> list[_Candidate]:
    """Return the networks in all dictionaries, each dictionary once, the outer ones first."""
    found: list[_Candidate] = []
    seen: set[int] = set()
    level: list[tuple[str, Any]] = [("", content)]
    for _ in range(_MAX_DEPTH):
        below: list[tuple[str, Any]] = []
        for place, mapping in level:
            if not isinstance(mapping, Mapping) or id(mapping) in seen:
                continue
            seen.add(id(mapping))
            found += _networks(place, mapping, is_tensor)
            below += [
                (f"{place}.{key}" if place else key, value)
                for key, value in mapping.items()
                if isinstance(key, str)
            ]
        level = below
    return found


def _networks(place: str, mapping: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> list[_Candidate]:
    """Return the networks in one dictionary, which differ in what their names begin with."""
    names = {
        ".".join(part for part in key.split(".") if part not in _WRAPPERS): key
        for key, value in mapping.items()
        if isinstance(key, str) and is_tensor(value) and not _is_counter(key)
    }
    if not names:
        return []
    prefixes = {_prefix(name) for name in names} - {None}
    if not prefixes:
        return [_Candidate(place, "", mapping, names)]
    networks = []
    for prefix in sorted(str(prefix) for prefix in prefixes):
        others = tuple(str(other) for other in prefixes if other != prefix and str(other).startswith(prefix))
        own = {
            name.removeprefix(prefix): key
            for name, key in names.items()
            if name.startswith(prefix) and not (others and name.startswith(others))
        }
        at = ".".join(part for part in (place, prefix.rstrip(".")) if part)
        networks.append(_Candidate(at, prefix, mapping, own))
    return networks


def _prefix(name: str) -> str | None:
    """Return what stands before the first part of a name that is a detector's; None if there is none."""
    parts = name.split(".")
    at = next((k for k, part in enumerate(parts[:-1]) if part in _ROOTS), None)
    return None if at is None else "".join(f"{part}." for part in parts[:at])


# --- networks that are not supported --------------------------------------------------------------------------

_SUPPORTED: Final = (
    "supported are torchvision's detectors, its Mask R-CNN with other ResNets and FPN, detectron2's and MMDetection's "
    "Mask R-CNN and Faster R-CNN with ResNet-50 or ResNet-101 and FPN, detectron2's also C4, DC5, with a "
    "cascade and with ResNeXt-101 32x8d, and matterport's Mask_RCNN"
)

_BY_NAME: Final = (
    (r"roi_heads\.keypoint_", "a Keypoint R-CNN"),
    (r"roi_heads\.densepose_", "a DensePose R-CNN"),
    (
        r"roi_heads\.(mask_coarse_head|mask_point_head|mask_head\.(point_head|coarse_head))",
        "a PointRend of detectron2",
    ),
    (r"roi_heads\.(maskiou|mask_iou)", "a Mask Scoring R-CNN"),
    (r"^roi_head\.bbox_head\.\d+\.", "a Cascade R-CNN of MMDetection"),
    (r"^roi_heads\.(box|mask)\.feature_extractor\.", "a Mask R-CNN of maskrcnn-benchmark"),
    (r"^roi_head\.point_head\.", "a PointRend of MMDetection"),
    (r"^roi_head\.mask_iou_head\.", "a Mask Scoring R-CNN"),
    (r"^roi_head\.grid_head\.", "a Grid R-CNN"),
    (r"^roi_head\.shared_head\.", "a Mask R-CNN or Faster R-CNN C4 of MMDetection, which has no FPN"),
    (r"^bbox_head\.(shared_fcs|fc_cls)\.", "a Mask R-CNN or Faster R-CNN of MMDetection 1"),
    (r"^(bbox_head|mask_head|panoptic_head|query_head)\.", "a network of MMDetection"),
    (
        r"^sem_seg_head\.(pixel_decoder|predictor)\.|^(model\.)?pixel_level_module\.",
        "a Mask2Former or MaskFormer",
    ),
    (r"^sem_seg_head\.", "a Panoptic FPN of detectron2"),
    (
        r"(^|\.)transformer\.(encoder|decoder)\.|(^|\.)query_embed\.|class_labels_classifier\.|^backbone\.conv_encoder\.",
        "a DETR",
    ),
    (r"^(sam\.)?(image_encoder|mask_decoder|prompt_encoder)\.", "a Segment Anything model"),
    (r"fcos_head\.|^proposal_generator\.fcos", "an FCOS of another project"),
    (r"^(vgg|extras|loc|conf)\.\d", "an SSD of another project"),
    (
        r"^head\.(cls_score|cls_subnet|bbox_subnet)\.",
        "a RetinaNet of detectron2",
    ),
    (r"^(model\.)*\d+\.(conv|bn|cv\d|m|dfl|attn)\.", "a YOLO"),
    (r"^(encoder|decoder)\..*|^segmentation_head\.", "a network with encoder and decoder, such as a U-Net"),
    (r"^(aux_)?classifier\.\d+\.|^(aux_)?classifier\.weight$", "a classifier or a semantic segmentation"),
    (r"^fc\.weight$|^layer1\.0\.conv1\.weight$", "a ResNet without a detector"),
)
"""Networks by patterns of the names of their tensors; the first that fits counts."""

_BACKBONES: Final = (
    (r"^backbone\.(body|bottom_up)\.(0\.0|features)\.", "a backbone that is not a ResNet, such as MobileNet"),
    (r"^backbone\.(bottom_up\.|body\.)?(net\.)?(patch_embed|blocks\.\d+\.attn|layers\.\d+\.blocks)\b",
     "a transformer as backbone"),
    (r"^backbone\.(bottom_up\.)?res\d\.\d+\.conv2_offset\.", "deformable convolutions"),
    (r"^backbone\.(bottom_up\.)?res4\.35\.", "ResNet-152"),
    (r"^backbone\.fpn_\w+\.norm\.", "norms in its pyramid"),
    (r"^roi_heads\.(box|mask)_head\.(\d\.)?\w+\.norm\.", "norms in its heads"),
    (r"^roi_heads\.box_head\.(\d\.)?conv\d", "convolutions in its box head"),
)  # fmt: skip


_MMDETECTION: Final = (
    (r"^backbone\.layer\d\.\d+\.conv\d\.conv_offset\.", "deformable convolutions"),
    (r"^(backbone|neck|roi_head)\..*\bgn\d?\.|\.(convs|shared_convs)\.\d+\.(gn|bn|norm)\.", "group or other norms"),
    (r"^backbone\.(patch_embed|stages\.\d+\.blocks)\b", "a transformer as backbone"),
    (r"^backbone\.(stem|stages|features|layers)\b|^backbone\.layer\d\.\d+\.(convs|conv0|se_layer)\b",
     "a backbone that is not a plain ResNet"),
    (r"^backbone\.layer3\.35\.", "ResNet-152"),
    (r"^neck\.(?!lateral_convs\.[0-3]\.conv\.|fpn_convs\.[0-3]\.conv\.)", "another pyramid than FPN"),
    (r"^rpn_head\.(?!rpn_(conv|cls|reg)\.(weight|bias)$)", "another RPN"),
    (r"^roi_head\.bbox_head\.(?!shared_fcs\.[01]\.|fc_(cls|reg)\.(weight|bias)$)", "another box head"),
    (r"^roi_head\.mask_head\.(?!convs\.[0-3]\.conv\.|(upsample|conv_logits)\.(weight|bias)$)", "another mask head"),
    (r"^roi_head\.(?!bbox_head|mask_head)", "heads of another kind"),
)  # fmt: skip
"""What a network of MMDetection has that is not supported, by patterns of names; the first that fits counts."""


def unsupported_network(shapes: Mapping[str, Shape]) -> str | None:
    """Return a message on the network that tensors belong to, if it is known and not supported; else None.

    Args:
        shapes: of the tensors, by their names in the network.
    """
    for pattern, what in _BY_NAME:
        if any(map(re.compile(pattern).search, shapes)):
            return f"is {what}, which is not supported: {_SUPPORTED}"
    if any(name.startswith("roi_head.") for name in shapes):
        return _unsupported_of_mmdetection(shapes)
    cascade = "roi_heads.box_predictor.0.cls_score.weight" in shapes
    if not cascade and not any(name.startswith("roi_heads.box_predictor.cls_score.") for name in shapes):
        return None
    kind = "Cascade R-CNN" if cascade else "Mask R-CNN"
    if not cascade and not any(
        name.startswith(("roi_heads.mask_predictor.", "roi_heads.mask_head.")) for name in shapes
    ):
        kind = "Faster R-CNN"
        if not any(name.startswith(("backbone.bottom_up.", "backbone.stem.")) for name in shapes):
            return f"is a Faster R-CNN that is not one of torchvision's: {_SUPPORTED}"
    backbone = _backbone(shapes)
    return None if backbone is None else f"is a {kind} with {backbone}, which is not supported: {_SUPPORTED}"


def _unsupported_of_mmdetection(shapes: Mapping[str, Shape]) -> str | None:
    """Return the message on a network of MMDetection that is not supported."""
    kind = "Mask" if any(name.startswith("roi_head.mask_head.") for name in shapes) else "Faster"
    found = next(
        (what for pattern, what in _MMDETECTION if any(map(re.compile(pattern).search, shapes))), None
    )
    found = found or _unusual_blocks(shapes, "backbone.layer1")
    return (
        f"is a {kind} R-CNN of MMDetection with {found}, which is not supported: {_SUPPORTED}"
        if found
        else None
    )


def _backbone(shapes: Mapping[str, Shape]) -> str | None:
    """Return the name of a backbone that is not supported."""
    for pattern, what in _BACKBONES:
        if any(map(re.compile(pattern).search, shapes)):
            return what
    frozen = any(name.endswith(".running_var") for name in shapes)
    if not frozen and any(name.startswith("backbone.") and ".norm.weight" in name for name in shapes):
        return "group norms"
    if "backbone.bottom_up.stem.conv1.weight" not in shapes:
        plain = "backbone.stem.conv1.weight" in shapes  # C4 and DC5 of detectron2
        return _unusual_blocks(shapes, "backbone.res2" if plain else "backbone.body.layer1")
    if "backbone.fpn_lateral5.weight" not in shapes:
        return "another pyramid than FPN over res2 to res5"
    middle = shapes.get("backbone.bottom_up.res2.0.conv2.weight", ())
    if middle == (256, 8, 3, 3) and any(name.startswith("backbone.bottom_up.res4.22.") for name in shapes):
        return None
    return _unusual_blocks(shapes, "backbone.bottom_up.res2")


def _unusual_blocks(shapes: Mapping[str, Shape], first: str) -> str | None:
    """Return what a backbone is called by the 3x3 convolution of its first block, if it is no ResNet's."""
    middle = shapes.get(f"{first}.0.conv2.weight", ())
    if f"{first}.0.conv3.weight" in shapes:
        return "ResNeXt or Wide ResNet" if len(middle) == 4 and middle[1] != 64 else None
    return None if first.startswith("backbone.body.") else "ResNet-18 or ResNet-34"
