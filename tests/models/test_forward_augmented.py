"""Test-time augmentation against a plain implementation with torchvision's own modules, and its laws."""

import dataclasses

import numpy as np
import pytest
import torch
from benchmarks.parity import random_model
from matterport_oracle import model_of, tensors_of
from pycocotools import mask as coco_mask
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import batched_nms

from maskrcnn.config import parse_tta
from maskrcnn.errors import ItemError, UsageError
from maskrcnn.models.architectures.matterport_config import MatterportConfig
from maskrcnn.models.model import Model, load_model
from maskrcnn.models.networks import check_tta
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.synthetic.scenes import render_scene
from maskrcnn.types import Detections, Pixels

pytestmark = pytest.mark.slow

SIZE = 96
IMAGES = [render_scene(seed, 128).image[:, : 128 - 28 * seed] for seed in range(2)]
TENSORS = [torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in IMAGES]


def small(network: torch.nn.Module) -> torch.nn.Module:
    """A network whose second stage has few proposals to compute."""
    if hasattr(network, "rpn"):
        network.rpn._pre_nms_top_n = network.rpn._post_nms_top_n = {"training": 60, "testing": 60}
    return network


def embedded() -> Model:
    """The embedded model, at a small size."""
    model = load_model("scenes")
    model.module.transform.min_size, model.module.transform.max_size = (SIZE,), 2 * SIZE
    small(model.module)
    return model


def random(architecture: str) -> Model:
    """A network with random weights whose scores are apart."""
    return random_model(architecture, TENSORS, SIZE, classes=3, change=small)


@pytest.fixture(scope="module")
def model() -> Model:
    return embedded()


# --- the reference ----------------------------------------------------------------------------------------------


def reference(model: Model, image: Pixels, tta: str, min_score: float, most: int) -> dict[str, torch.Tensor]:
    """The method, image by image and copy by copy, with torchvision's modules; boxes in pixels of the image."""
    network, (height, width) = model.module, image.shape[:2]
    network.roi_heads.score_thresh, network.roi_heads.detections_per_img = min_score, most
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1) / 255
    whole, _ = network.transform([pixels])
    copies, boxes, labels, scores = [], [], [], []
    for scale, flip in parse_tta(tta).copies:
        rows, columns = (round(side * scale) for side in whole.image_sizes[0])
        resized = F.interpolate(
            network.transform.normalize(pixels)[None], size=(rows, columns), mode="bilinear"
        )
        resized = resized.flip(3) if flip else resized
        batch = network.transform.batch_images([resized[0]], 32)
        maps = network.backbone(batch)
        proposals, _ = network.rpn(ImageList(batch, [(rows, columns)]), maps)
        ((found,), _) = network.roi_heads(maps, proposals, [(rows, columns)])
        own = found["boxes"]
        own = (
            torch.stack([columns - own[:, 2], own[:, 1], columns - own[:, 0], own[:, 3]], 1) if flip else own
        )
        boxes.append(own * torch.tensor([width / columns, height / rows] * 2))
        labels.append(found["labels"])
        scores.append(found["scores"])
        copies.append((maps, rows, columns, flip))
    box, label, score = torch.cat(boxes), torch.cat(labels), torch.cat(scores)
    kept = batched_nms(box, score, label, network.roi_heads.nms_thresh)[:most]
    box, label, score = box[kept], label[kept], score[kept]

    squares = []
    for maps, rows, columns, flip in copies:
        own = box * torch.tensor([columns / width, rows / height] * 2)
        own = (
            torch.stack([columns - own[:, 2], own[:, 1], columns - own[:, 0], own[:, 3]], 1) if flip else own
        )
        features = network.roi_heads.mask_roi_pool(maps, [own], [(rows, columns)])
        logits = network.roi_heads.mask_predictor(network.roi_heads.mask_head(features))
        square = logits.sigmoid()[torch.arange(len(label)), label]
        squares.append(square.flip(2) if flip else square)
    mean = torch.stack(squares).mean(0)
    masks = paste_masks_in_image(mean[:, None], box, (height, width))[:, 0] > 0.5
    return {"boxes": box, "labels": label, "scores": score, "squares": mean, "masks": masks}


@pytest.mark.parametrize("tta", ["flip", "flip,scales=0.5/1/1.5"])
def test_instances_and_mean_masks_equal_those_of_a_plain_implementation(model: Model, tta: str) -> None:
    image, min_score, most = IMAGES[1], 0.05, 20
    segmenter = MaskRCNNSegmenter(model, min_score=min_score, max_detections=most, tta=tta)
    with torch.inference_mode():
        expected = reference(model, image, tta, min_score, most)
        squares = segmenter._found([image]).probabilities
    (found,) = segmenter.segment([image])
    assert squares is not None
    assert len(found) == len(squares) == most
    assert len(set(found.labels.tolist())) > 1
    differing = 0
    for i in range(most):
        apart = np.abs(found.boxes - expected["boxes"][i].numpy()).max(1)
        apart[found.labels != int(expected["labels"][i])] = np.inf
        near = int(apart.argmin())
        if expected["scores"][i] < expected["scores"][-1] + 1e-4 and apart[near] > 1:
            continue  # rounding decides which instance is the last
        assert apart[near] < 0.02
        assert abs(found.scores[near] - expected["scores"][i]) < 1e-4
        torch.testing.assert_close(squares[near], expected["squares"][i], rtol=0, atol=2e-3)
        ours = coco_mask.decode(found.rles()[near]).astype(bool)
        differing += int((ours ^ expected["masks"][i].numpy()).sum())
    assert differing <= 0.002 * int(expected["masks"].sum())


# --- laws -------------------------------------------------------------------------------------------------------


def assert_same(one: Detections, other: Detections) -> None:
    assert one.masks == other.masks
    for name in ("boxes", "labels", "scores", "areas", "mask_boxes", "capped"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def mirrored(found: Detections) -> Detections:
    """The instances of the image from right to left."""
    boxes = np.stack([found.width - found.boxes[:, 2], found.boxes[:, 1], found.width - found.boxes[:, 0]], 1)
    masks = found.masks and tuple(
        coco_mask.encode(np.asfortranarray(coco_mask.decode(rle)[:, ::-1]))["counts"] for rle in found.rles()
    )
    boxes = np.concatenate([boxes, found.boxes[:, 3:]], 1)
    return dataclasses.replace(found, boxes=boxes, masks=masks)


def matched(found: Detections, expected: Detections, box_px: float) -> float:
    """The share of instances that both have, but for rounding, and but for few pixels of their masks."""
    assert len(found) == len(expected) > 5
    count = 0
    for i in range(len(expected)):
        apart = np.abs(found.boxes - expected.boxes[i]).max(1) + 100 * (found.labels != expected.labels[i])
        near = int((apart + np.abs(found.scores - expected.scores[i])).argmin())
        same = apart[near] <= box_px and abs(found.scores[near] - expected.scores[i]) < 5e-3
        if same and found.masks:
            union = coco_mask.iou([found.rles()[near]], [expected.rles()[i]], [0])[0, 0]
            same = union > 0.95 or expected.areas[i] < 20
        count += same
    return count / len(expected)


MATTERPORT = MatterportConfig(pre_nms_limit=100, post_nms_rois_inference=60)
MODELS = {
    "embedded": embedded,
    "detectron2": lambda: random("maskrcnn_resnet50_fpn_detectron2"),
    "matterport": lambda: model_of("resnet50", tensors_of("resnet50"), MATTERPORT, (64, 128)),
    "Faster R-CNN": lambda: random("fasterrcnn_mobilenet_v3_large_fpn"),
    "SSDLite": lambda: random("ssdlite320_mobilenet_v3_large"),
}


@pytest.mark.parametrize("name", MODELS)
def test_one_copy_changes_nothing_and_a_flipped_image_has_the_flipped_instances(name: str) -> None:
    model = MODELS[name]()
    options = {"min_score": 0.3, "max_detections": 30}
    image = IMAGES[1]
    (plain,) = MaskRCNNSegmenter(model, **options).segment([image])  # type: ignore[arg-type]
    (once,) = MaskRCNNSegmenter(model, **options, tta="scales=1").segment([image])  # type: ignore[arg-type]
    assert_same(once, plain)

    twice = MaskRCNNSegmenter(model, **options, tta="flip")  # type: ignore[arg-type]
    left, right = twice.segment([image, np.ascontiguousarray(image[:, ::-1])])
    assert (left.masks is None) == (model.card.has_masks is False)
    # matterport's boxes are whole pixels; networks with random weights amplify the rounding of the resize.
    box_px = {"embedded": 0.02, "matterport": 1.0}.get(name, 0.5)
    assert matched(right, mirrored(left), box_px) >= 0.9


def test_results_are_the_same_twice_and_do_not_depend_on_the_batch(model: Model) -> None:
    """Of windows, which are not resized but for their copies."""

    def segmenter(**options: int) -> MaskRCNNSegmenter:
        return MaskRCNNSegmenter(model, tta="flip,scales=0.7/1", rescale=False, min_score=0.3, **options)  # type: ignore[arg-type]

    alone = [segmenter().segment([image])[0] for image in IMAGES]
    for found, expected in zip(segmenter().segment(IMAGES), alone, strict=True):
        assert_same(found, expected)
        assert ((found.boxes >= 0) & (found.boxes <= [found.width, found.height] * 2)).all()
    together = segmenter(batch_size=4).segment([*IMAGES, IMAGES[0]])
    for found, expected in zip(together, [*alone, alone[0]], strict=True):
        assert matched(found, expected, 0.05) >= 0.95


def test_images_share_a_batch_only_if_they_do_at_every_scale(model: Model) -> None:
    """At 96 pixels both are 96 x 128; at 0.8 one is 77 x 98 and the other 77 x 85, padded to 128 and to 96 columns."""
    narrow, wide = (SIZE, 106), (SIZE, 122)
    plain, scaled = MaskRCNNSegmenter(model), MaskRCNNSegmenter(model, tta="flip,scales")
    assert plain.canvas(*narrow) == plain.canvas(*wide) == (96, 128)
    assert scaled.canvas(*narrow) != scaled.canvas(*wide)
    images = [np.zeros((*shape, 3), np.uint8) for shape in (narrow, wide, narrow)]
    batches = MaskRCNNSegmenter(model, tta="flip,scales", batch_size=4)._batches(images)
    assert batches == [[0, 2], [1]]


def test_windows_are_resized_by_the_same_factor_whatever_their_size(model: Model) -> None:
    windows = MaskRCNNSegmenter(model, rescale=False, tta="scales=0.5/1/2")
    sizes = [
        windows.batch_of([np.zeros((64, side, 3), np.uint8)], scale)[1]
        for side in (40, 64)
        for scale in (0.5, 2)
    ]
    assert torch.cat(sizes).tolist() == [[32, 20], [128, 80], [32, 32], [128, 128]]


def test_an_image_whose_masks_are_not_finite_fails() -> None:
    model = embedded()
    with torch.no_grad():
        for parameter in model.module.roi_heads.mask_predictor.parameters():
            parameter.fill_(torch.nan)
    (outcome,) = MaskRCNNSegmenter(model, tta="flip").outcomes(IMAGES[:1])
    assert isinstance(outcome, ItemError)
    assert outcome.code == "not_finite"


def test_without_instances_there_are_none(model: Model) -> None:
    (found,) = MaskRCNNSegmenter(model, tta="flip,scales", min_score=0.9999999).segment(IMAGES[:1])
    assert len(found) == 0


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tta", "architecture", "message"),
    [
        ("scales", "ssd300_vgg16", r"resizes every image to 300 x 300 pixels: use --tta flip"),
        ("flip,scales", "ssdlite320_mobilenet_v3_large", "320 x 320"),
        ("flip", "own", "factory"),
        ("flip", "planted", "leave it out"),
        ("rotate", "maskrcnn_resnet50_fpn", "'rotate'"),
    ],
)
def test_what_a_model_cannot_do_is_refused_in_one_line(tta: str, architecture: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        check_tta(tta, "model", architecture)
    assert "\n" not in str(refused.value)


def test_a_square_network_runs_on_flipped_copies() -> None:
    check_tta("flip", "model", "ssd300_vgg16")
    check_tta("flip,scales=1", "model", "ssd300_vgg16")
    check_tta(None, "model", "own")
