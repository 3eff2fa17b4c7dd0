"""Weights of other programs: every tensor is mapped and the network equal, or one line names the wrong tensor."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from checkpoints import SIZES, detectron2_tensors, mmdetection_tensors, zoo_pickle
from click.testing import CliRunner
from maskrcnn_jobs.cli import main
from networks import spread
from safetensors.torch import load_file, save_file
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn.errors import UsageError
from maskrcnn.models.conversion import convert as convert_module
from maskrcnn.models.conversion.convert import convert
from maskrcnn.models.conversion.detectron2_config import parsed
from maskrcnn.models.conversion.keys_detectron2 import detectron2_names
from maskrcnn.models.conversion.keys_mmdetection import mmdetection_names
from maskrcnn.models.conversion.parity import Row, generated_images
from maskrcnn.models.model import build_network, load_model
from maskrcnn.models.networks import NETWORKS
from maskrcnn.models.registry import COCO_CATEGORIES, NO_CATEGORY, describe_model
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.models.weights import published_weights
from maskrcnn.models.weights.checkpoint_files import read_checkpoint
from maskrcnn.models.weights.published_weights import PublishedWeights

pytestmark = pytest.mark.slow

LABELS = "cat\ndog\nbird\nfish\n"


@pytest.fixture(scope="module", autouse=True)
def one_image():
    """Compare on one image instead of two: each costs ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_module, "generated_images", lambda: generated_images()[:1])
        yield


@pytest.fixture(scope="module")
def tensors():
    """The tensors of detectron2's R50-FPN with four classes."""
    return detectron2_tensors()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tensors):
    """A `.pkl` like those of the model zoo, its labels, and its converted file."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "labels.txt").write_text(LABELS)
    (folder / "zoo.pkl").write_bytes(pickle.dumps(zoo_pickle(tensors)))
    arguments = ["convert", f"{folder}/zoo.pkl", f"{folder}/zoo.safetensors", f"--labels={folder}/labels.txt"]
    sizes = [f"--min-size={SIZES[0]}", f"--max-size={SIZES[1]}"]
    result = CliRunner().invoke(main, [*arguments, *sizes])
    assert result.exit_code == 0, result.output
    (folder / "output.txt").write_text(result.output)
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return json.loads((folder / "zoo.safetensors.report.json").read_text())


def by_source(report):
    return {step["source"]: step for step in report["steps"]}


# --- detectron2 -----------------------------------------------------------------------------------------------


def test_a_converted_file_can_be_loaded_as_a_model(folder):
    model = load_model(str(folder / "zoo.safetensors"))
    assert model.card.architecture == "maskrcnn_resnet50_fpn_detectron2"
    assert [category.name for category in model.categories] == LABELS.split()
    assert (model.card.min_size, model.card.max_size) == SIZES
    image = np.random.default_rng(1).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    (found,) = MaskRCNNSegmenter(model).segment([image])
    assert len(found) > 10


def test_every_tensor_of_the_source_is_mapped_once(report, tensors):
    sources = [step["source"] for step in report["steps"]]
    assert sorted(sources) == sorted(tensors)
    targets = {step["target"]: tuple(step["new_shape"]) for step in report["steps"] if step["target"]}
    assert targets == NETWORKS["maskrcnn_resnet50_fpn_detectron2"].shapes(5)
    assert report["tensors"] == {"taken": len(tensors) - 7, "flipped": 1, "reordered": 2, "padded": 4}


def test_changed_tensors_are_changed_as_reported(folder, tensors, report):
    found, steps = load_file(folder / "zoo.safetensors"), by_source(report)
    expected = {
        "backbone.bottom_up.stem.conv1.weight": lambda t: t[:, [2, 1, 0]],
        "roi_heads.box_predictor.cls_score.bias": lambda t: t[[4, 0, 1, 2, 3]],
        "roi_heads.box_predictor.bbox_pred.bias": lambda t: torch.cat([torch.zeros(4), t]),
        "roi_heads.mask_head.predictor.bias": lambda t: torch.cat([torch.zeros(1), t]),
        "proposal_generator.rpn_head.conv.weight": lambda t: t,
    }
    for name, change in expected.items():
        assert torch.equal(found[steps[name]["target"]], change(tensors[name])), name
    assert steps["backbone.bottom_up.stem.conv1.weight"]["action"] == "flipped"
    assert "background" in steps["roi_heads.box_predictor.cls_score.bias"]["note"]


def test_the_report_has_the_difference_of_each_stage_and_the_reference(report, folder):
    assert report["sound"]
    assert {row["stage"] for row in report["parity"]} >= {
        "features 0",
        "class probabilities",
        "mask probabilities",
    }
    assert all(row["difference"] <= row["limit"] and row["compared"] for row in report["parity"])
    assert "detectron2 itself was not run" in report["parity_note"]
    assert report["sha256_of_source"] == hashlib.sha256((folder / "zoo.pkl").read_bytes()).hexdigest()
    text = (folder / "zoo.safetensors.report.md").read_text()
    for line in (
        "| class probabilities |",
        "input channels from BGR to RGB",
        "detectron2 itself was not run",
    ):
        assert line in text
    summary = (folder / "output.txt").read_text().splitlines()
    assert "tensors: 1 flipped, 300 taken, 2 reordered, 4 padded" in summary
    assert any(line.startswith("ok   mask probabilities: ") for line in summary)


ZOOS = [
    name
    for name in NETWORKS
    if name.endswith(("_detectron2", "_mmdetection")) and name != "maskrcnn_resnet50_fpn_detectron2"
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ZOOS)
def test_each_network_of_the_zoos_is_recognised_and_converted_with_parity(architecture, tmp_path):
    sizes = {"min_size": 96, "max_size": 160}
    if architecture.endswith("_mmdetection"):
        report = converted(tmp_path, {"state_dict": mmdetection_tensors(architecture=architecture)}, **sizes)
    else:
        (tmp_path / "config.yaml").write_text("MODEL: {RPN: {POST_NMS_TOPK_TEST: 60}}")
        config = dataclasses.replace(NETWORKS[architecture].config, post_nms_limit=60)
        tensors = detectron2_tensors(architecture=architecture, config=config)
        report = converted(tmp_path, {"model": tensors}, config=f"{tmp_path}/config.yaml", **sizes)
    assert report.architecture == architecture
    assert [row for row in report.parity if not row.within_limit] == []
    assert describe_model(f"{tmp_path}/m.safetensors").has_masks == architecture.startswith("mask")
    model = load_model(f"{tmp_path}/m.safetensors")
    (found,) = MaskRCNNSegmenter(model).segment(generated_images()[:1])
    assert len(found) > 10


@pytest.fixture
def quick(monkeypatch):
    """Skip the comparison, which another test covers."""
    monkeypatch.setattr(convert_module, "compare", lambda *_: [])


def test_a_checkpoint_of_its_trainer_gives_the_same_file(quick, folder, tensors, tmp_path):
    older = {  # constants that older checkpoints contain
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675])[:, None, None],
        "pixel_std": torch.ones(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.tensor(
            [
                [-22.6274, -11.3137, 22.6274, 11.3137],
                [-16, -16, 16, 16],
                [-11.3137, -22.6274, 11.3137, 22.6274],
            ]
        ),
    }
    torch.save({"model": tensors | older, "iteration": 89_999}, tmp_path / "model_final.pth")
    report = convert(f"{tmp_path}/model_final.pth", f"{tmp_path}/m.safetensors", f"{folder}/labels.txt")
    assert report.counts()["dropped"] == 3
    found, expected = load_file(tmp_path / "m.safetensors"), load_file(folder / "zoo.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_eighty_classes_are_coco_s(quick, tmp_path):
    torch.save({"model": hollow(detectron2_names(81))}, tmp_path / "coco.pth")
    convert(f"{tmp_path}/coco.pth", f"{tmp_path}/coco.safetensors")
    card = describe_model(f"{tmp_path}/coco.safetensors")
    assert card.categories == COCO_CATEGORIES
    assert card.category_ids == (NO_CATEGORY, *(category.id for category in COCO_CATEGORIES))


def test_a_difference_ends_in_exit_code_one_and_is_reported(folder, tensors, tmp_path, monkeypatch):
    row = Row("features 0", 0.5, "of the largest value", 1e-4, 10)
    monkeypatch.setattr(convert_module, "compare", lambda *_: [row])
    torch.save({"model": tensors}, tmp_path / "m.pth")
    arguments = ["convert", f"{tmp_path}/m.pth", f"{tmp_path}/m.safetensors", f"--labels={folder}/labels.txt"]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["sound"] is False
    assert "DIFFERS" in (tmp_path / "m.safetensors.report.md").read_text()


def test_the_settings_of_a_configuration_are_applied_with_parity(tmp_path, monkeypatch):
    content = {
        "MODEL": {
            "PIXEL_MEAN": [123.675, 116.28, 103.53],
            "PIXEL_STD": [58.395, 57.12, 57.375],
            "RESNETS": {"STRIDE_IN_1X1": False, "DEPTH": 50},
            "ANCHOR_GENERATOR": {
                "SIZES": [[24], [48], [96], [192], [384]],
                "ASPECT_RATIOS": [[0.4, 0.8, 1.25, 2.5]],
            },
            "RPN": {"NMS_THRESH": 0.6, "POST_NMS_TOPK_TEST": 60, "BBOX_REG_WEIGHTS": [2.0, 2.0, 1.0, 1.0]},
            "ROI_HEADS": {"NUM_CLASSES": 4, "NMS_THRESH_TEST": 0.4, "SCORE_THRESH_TEST": 0.1},
            "ROI_BOX_HEAD": {"BBOX_REG_WEIGHTS": [5.0, 5.0, 2.5, 2.5]},
        },
        "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TEST": SIZES[0], "MAX_SIZE_TEST": SIZES[1]},
        "TEST": {"DETECTIONS_PER_IMAGE": 12},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    config = parsed("config.yaml", yaml.safe_dump(content)).applied_to("maskrcnn_resnet50_fpn_detectron2")
    torch.save({"model": detectron2_tensors(config=config)}, tmp_path / "m.pth")
    (tmp_path / "labels.txt").write_text(LABELS)
    files = (f"{tmp_path}/m.pth", f"{tmp_path}/m.safetensors", f"{tmp_path}/labels.txt")
    report = convert(*files, config=f"{tmp_path}/config.yaml")
    assert [row for row in report.parity if not row.within_limit] == []
    assert "flipped" not in report.counts()
    card = describe_model(f"{tmp_path}/m.safetensors")
    assert card.config == config
    assert (card.min_size, card.max_size) == SIZES
    assert (config.pixel_std, config.max_detections) == ((58.395, 57.12, 57.375), 12)


def test_a_configuration_of_another_network_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL: {ROI_HEADS: {NUM_CLASSES: 80}}")
    option = f"--config={tmp_path}/config.yaml"
    assert "MODEL.ROI_HEADS.NUM_CLASSES is 80, and they have 4" in run(
        tmp_path, DETECTRON2, option, name="m.pth"
    )
    assert "--config is for weights of detectron2: leave it out" in run(
        tmp_path, hollow_torchvision(), option, name="m.pth"
    )


# --- MMDetection ----------------------------------------------------------------------------------------------


class HistoryBuffer:
    """As MMEngine stores in its checkpoints."""


NAMES = ["cat", "dog", "bird", "fish"]


def test_a_checkpoint_of_mmdetection_names_its_categories(quick, tmp_path, monkeypatch):
    place = "mmengine.logging.history_buffer"
    monkeypatch.setattr(HistoryBuffer, "__module__", place)
    for module in ("mmengine", "mmengine.logging", place):
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(HistoryBuffer=HistoryBuffer))
    state = hollow(mmdetection_names(5)) | {"backbone.bn1.num_batches_tracked": torch.tensor(3)}
    meta = {"dataset_meta": {"classes": NAMES, "palette": None}, "cfg": "model = dict(type='MaskRCNN')"}
    content = {"meta": meta, "state_dict": state, "message_hub": {"log_scalars": {"loss": HistoryBuffer()}}}
    torch.save(content, tmp_path / "m.pth")
    report = convert(f"{tmp_path}/m.pth", f"{tmp_path}/m.safetensors")
    assert [category.name for category in report.categories] == NAMES
    assert report.counts() == {"taken": 301, "reordered": 2, "padded": 4, "dropped": 1}


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"CLASSES": tuple(NAMES), "config": "x = 1"}, tuple(NAMES)),
        ({"dataset_meta": {"CLASSES": NAMES}}, tuple(NAMES)),
        ({"CLASSES": "cat"}, ("cat",)),
        ({"CLASSES": ["cat", "cat"]}, ()),
        ({"CLASSES": ["cat", " "]}, ()),
        ({"CLASSES": [1, 2]}, ()),
        ("none", ()),
    ],
)
def test_the_names_of_classes_are_read_as_versions_2_and_3_write_them(meta, names):
    buffer = io.BytesIO()
    torch.save({"meta": meta, "state_dict": {"backbone.x": torch.zeros(1)}}, buffer)
    assert read_checkpoint("m.pth", buffer.getvalue()).classes == names


# --- torchvision ----------------------------------------------------------------------------------------------


def test_a_detector_of_torchvision_without_masks_is_converted(tmp_path):
    torch.manual_seed(2)
    network = build_network("ssdlite320_mobilenet_v3_large", 4, 320, 320)
    torch.save(network.state_dict(), tmp_path / "m.pth")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    out = tmp_path / "m.safetensors"
    report = convert(str(tmp_path / "m.pth"), str(out), str(tmp_path / "names.txt"))
    assert all(row.within_limit for row in report.parity if row.stage.startswith("features"))
    assert not load_model(str(out)).card.has_masks
    with pytest.raises(UsageError, match="resizes every image to 320 x 320 pixels: leave --min-size"):
        convert(str(tmp_path / "m.pth"), str(tmp_path / "o.safetensors"), min_size=200)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("version", ["resnet50_fpn", "resnet50_fpn_v2", "resnet18_fpn"])
def test_a_state_dict_of_torchvision_is_converted_with_parity(version, tmp_path):
    torch.manual_seed(2)
    network = build_network(f"maskrcnn_{version}", 5, *SIZES)
    spread(network)
    torch.save(network.state_dict(), tmp_path / "m.pth")
    (tmp_path / "labels.txt").write_text(LABELS)
    report = convert(
        f"{tmp_path}/m.pth",
        f"{tmp_path}/m.safetensors",
        f"{tmp_path}/labels.txt",
        min_size=SIZES[0],
        max_size=SIZES[1],
    )
    assert report.architecture == f"maskrcnn_{version}"
    assert report.counts() == {"taken": len(network.state_dict())}
    assert [row for row in report.parity if not row.within_limit] == []
    found = load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())


def frozen(*, eps):
    """torchvision's first network with norms as its published weights have them: frozen, with tiny variances."""
    torch.manual_seed(3)
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    network = MaskRCNN(_resnet_fpn_extractor(body, 3), 5, min_size=SIZES[0], max_size=SIZES[1])
    for layer in network.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            layer.eps = eps
            layer.running_var.copy_(torch.logspace(-13, -3, len(layer.running_var)))
            layer.weight.copy_((layer.running_var + eps).sqrt())  # so that each channel matters
    spread(network)
    return network.eval()


def converted(folder, content, **options):
    torch.save(content, folder / "m.pth")
    (folder / "labels.txt").write_text(LABELS)
    options = {"min_size": SIZES[0], "max_size": SIZES[1]} | options
    return convert(f"{folder}/m.pth", f"{folder}/m.safetensors", f"{folder}/labels.txt", **options)


def test_a_given_epsilon_gives_the_features_of_the_network_that_was_trained(quick, tmp_path):
    eps = 0.0
    network = frozen(eps=eps)
    report = converted(tmp_path, {"state_dict": network.state_dict()}, norm_eps=eps)
    assert (report.assumed["norm_eps"], report.place) == (eps, "state_dict")
    assert report.counts()["rescaled"] == 53
    text = (tmp_path / "m.safetensors.report.md").read_text()
    assert f"norm_eps {eps:g}" in text
    assert "Converted from `m.pth`, under `state_dict`" in text
    model = load_model(str(tmp_path / "m.safetensors"))
    with torch.inference_mode():
        image = torch.randn(1, 3, 64, 64)
        expected, found = network.backbone(image), model.module.backbone(image)
    for level, features in expected.items():
        torch.testing.assert_close(
            found[level], features, rtol=1e-3, atol=1e-4 * float(features.abs().max()), msg=level
        )


def test_an_epsilon_that_a_file_does_not_say_is_asked_for(quick, tmp_path):
    state = {n: t for n, t in hollow_torchvision("").items() if not n.endswith("num_batches_tracked")}
    with pytest.raises(
        UsageError, match=r"does not say .*: give --norm-eps 0 if .* COCO weights, else --norm-eps 1e-5"
    ):
        converted(tmp_path, state)
    assert not (tmp_path / "m.safetensors").exists()
    with pytest.raises(UsageError, match="--norm-eps must be from 0 to below 1, not -1"):
        converted(tmp_path, state, norm_eps=-1.0)
    with pytest.raises(UsageError, match=r"norm of .* is infinite, since a variance is 0"):
        converted(tmp_path, state, norm_eps=0.0)
    with pytest.raises(UsageError, match="--norm-eps is for weights of torchvision: leave it out"):
        converted(tmp_path, DETECTRON2, norm_eps=0.0)


def test_a_state_dict_in_a_wrapper_and_in_half_precision_gives_the_same_file(quick, tmp_path):
    torch.manual_seed(2)
    state = {
        name: tensor.bfloat16().float() if tensor.is_floating_point() else tensor
        for name, tensor in build_network("maskrcnn_resnet18_fpn", 5, *SIZES).state_dict().items()
    }
    half = {f"model.{n}": t.bfloat16() if t.is_floating_point() else t for n, t in state.items()}
    assert converted(tmp_path, {"state_dict": half}).place == "state_dict.model"
    bare = tmp_path / "bare.safetensors"
    save_file(state, bare)
    convert(str(bare), f"{tmp_path}/other.safetensors", f"{tmp_path}/labels.txt")
    for other in ("m.safetensors", "other.safetensors"):
        found = load_file(tmp_path / other)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert describe_model(str(bare), f"{tmp_path}/labels.txt").architecture == "maskrcnn_resnet18_fpn"
    with pytest.raises(UsageError, match="needs no conversion: it is a model that maskrcnn-ray wrote"):
        convert(f"{tmp_path}/m.safetensors", f"{tmp_path}/again.safetensors")


def test_an_epsilon_of_zero_is_compensated(tmp_path, monkeypatch):
    # As torchvision's published v1, with variances so small that it matters.
    torch.manual_seed(3)
    network = build_network("maskrcnn_resnet18_fpn", 5, *SIZES)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 0.0
            layer.running_var.uniform_(1e-6, 1e-4)
            layer.weight.data.fill_(0.003)
    spread(network)
    torch.save(network.state_dict(), tmp_path / "m.pth")
    digest = hashlib.sha256((tmp_path / "m.pth").read_bytes()).hexdigest()
    weights = PublishedWeights(f"m-{digest[:8]}.pth", "None")
    published = published_weights.PublishedModel(
        "coco-v1", "maskrcnn_resnet18_fpn", weights, batch_norm_eps=0.0
    )
    monkeypatch.setitem(published_weights.PUBLISHED, "coco-v1", published)
    (tmp_path / "labels.txt").write_text(LABELS)
    report = convert(
        f"{tmp_path}/m.pth",
        f"{tmp_path}/m.safetensors",
        f"{tmp_path}/labels.txt",
        min_size=SIZES[0],
        max_size=SIZES[1],
    )
    assert report.counts()["rescaled"] == 20
    assert [row for row in report.parity if not row.within_limit] == []


# --- what is refused ------------------------------------------------------------------------------------------


def hollow(names):
    """Tensors that repeat one number in the file."""
    return {name: torch.zeros(()).expand(shape) for name, (_, shape) in names.items()}


def hollow_torchvision(version="_v2"):
    shapes = NETWORKS[f"maskrcnn_resnet50_fpn{version}"].shapes(5)
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def renamed(state, old, new):
    return {new if name == old else name: tensor for name, tensor in state.items()}


DETECTRON2 = hollow(detectron2_names(5))
CASCADE = hollow(detectron2_names(5, "maskrcnn_resnet50_fpn_cascade_detectron2"))
C4 = hollow(detectron2_names(5, "maskrcnn_resnet50_c4_detectron2"))
FC1 = "roi_heads.box_head.fc1.weight"
STEM = "backbone.bottom_up.stem.conv1.weight"
CLASS = "roi_heads.box_predictor.cls_score.weight"
NAN = torch.full((), torch.nan)


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (
            renamed(DETECTRON2, FC1, "roi_heads.box_head.fc3.weight"),
            rf"lacks the tensor {FC1}, and has the unknown tensor roi_heads\.box_head\.fc3\.weight",
        ),
        (renamed(DETECTRON2, CLASS, "x"), f"lacks the tensor {CLASS}, and has the unknown tensor x"),
        (renamed(DETECTRON2, STEM, "stem"), f"lacks the tensor {STEM}, and has the unknown tensor stem"),
        (
            DETECTRON2 | {STEM: torch.zeros(64, 3, 3, 3)},
            rf"{STEM} has the shape \(64, 3, 3, 3\), not \(64, 3, 7, 7\)",
        ),
        (DETECTRON2 | {STEM: NAN.expand(64, 3, 7, 7)}, f"the tensor {STEM} is not finite"),
        (
            DETECTRON2 | {"pixel_std": torch.full((3, 1, 1), 58.0)},
            "the tensor pixel_std differs from the settings of maskrcnn_resnet50_fpn_detectron2: give .* as --config",
        ),
        (
            {name: tensor for name, tensor in CASCADE.items() if ".box_head.2." not in name},
            r"lacks the tensor roi_heads\.box_head\.2\.fc1\.bias and 3 more",
        ),
        (
            CASCADE | {"roi_heads.box_predictor.1.cls_score.bias": torch.zeros(81)},
            r"box_predictor\.1\.cls_score\.bias has the shape \(81,\), not \(5,\)",
        ),
        (
            dict(list(C4.items())[: len(C4) // 2]),
            r"lacks the tensor .* and \d+ more$",
        ),
        (
            C4 | {"proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(15, 4)},
            r"cell_anchors\.0 differs from the settings of maskrcnn_resnet50_c4_detectron2: give .* as --config",
        ),
        (DETECTRON2 | {"pixel_mean": torch.zeros(1)}, r"pixel_mean has the shape \(1,\), not \(3, 1, 1\)"),
        *(
            (
                renamed(hollow_torchvision(v), "backbone.fpn.inner_blocks.0.0.weight", "lateral"),
                r"lacks the tensor backbone\.fpn\.inner_blocks\.0\.0\.weight, and has the unknown tensor lateral",
            )
            for v in ("", "_v2")
        ),
        (
            renamed(hollow_torchvision(), CLASS, "x"),
            f"lacks the tensor {CLASS}, and has the unknown tensor x",
        ),
        (
            renamed(hollow_torchvision(""), FC1.replace("fc1", "fc6"), "y"),
            r"lacks the tensor roi_heads\.box_head\.fc6\.weight, and has the unknown tensor y",
        ),
        (
            hollow_torchvision() | {"rpn.head.bbox_pred.bias": torch.zeros(5)},
            r"rpn\.head\.bbox_pred\.bias has the shape \(5,\), not \(12,\)",
        ),
        (
            {"conv1.weight": torch.zeros(1)},
            "has no network of torchvision, detectron2, MMDetection or matterport: its tensors are conv1",
        ),
    ],
)
def test_a_wrong_tensor_is_named_in_one_line(state, complaint, tmp_path):
    torch.save({"model": state}, tmp_path / "m.pth")
    (tmp_path / "labels.txt").write_text(LABELS)
    with pytest.raises(UsageError, match=complaint) as caught:
        convert(f"{tmp_path}/m.pth", f"{tmp_path}/m.safetensors", f"{tmp_path}/labels.txt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_renamed_tensor_of_the_model_zoo_s_pickle_is_named(tensors, tmp_path):
    content = zoo_pickle(renamed(tensors, FC1, "roi_heads.box_head.fc9.weight"))
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UsageError, match=rf"lacks the tensor {FC1}, and has the unknown tensor .*fc9"):
        convert(f"{tmp_path}/m.pkl", f"{tmp_path}/m.safetensors")


class Owner:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def run(tmp_path, content, *options, name="m.pkl", out="m.safetensors"):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    (tmp_path / "labels.txt").write_text(LABELS)
    result = CliRunner().invoke(main, ["convert", f"{tmp_path}/{name}", f"{tmp_path}/{out}", *options])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    return result.output


def test_invalid_files_end_in_one_line_and_exit_code_two(tmp_path, folder):
    whole = pickle.dumps({"model": {STEM: np.zeros((64, 3, 7, 7))}})
    owner = pickle.dumps({"model": {"x": Owner(tmp_path / "owned")}})
    labels = f"--labels={folder}/labels.txt"
    assert "mkdir', which could run any code" in run(tmp_path, owner)
    assert "mkdir', which could run any code" in run(
        tmp_path, {"model": {"x": Owner(tmp_path / "owned")}}, name="m.pth"
    )
    assert not (tmp_path / "owned").exists()
    assert "is truncated, or not a pickle of weights" in run(tmp_path, whole[:-100])
    assert "is truncated" in run(tmp_path, b"PK\x03\x04", name="m.pth")
    assert "is a web page" in run(tmp_path, b"<!doctype html>")
    assert "give one of .pth, .pt, .ckpt" in run(tmp_path, b"x", name="m.onnx")
    assert (
        "cannot be read"
        in CliRunner().invoke(main, ["convert", "/no/m.pkl", f"{tmp_path}/x.safetensors"]).output
    )
    assert "leave --from out" in run(tmp_path, DETECTRON2, "--from=torchvision", name="m.pth")
    assert "must be a local path that ends in .safetensors" in run(
        tmp_path, DETECTRON2, name="m.pth", out="m.pth2"
    )
    assert "does not exist" in run(tmp_path, DETECTRON2, name="m.pth", out="no/m.safetensors")
    assert "sizes 0 and 1333" in run(tmp_path, DETECTRON2, "--min-size=0", name="m.pth")
    assert "give --labels FILE with one name per line" in run(tmp_path, DETECTRON2, name="m.pth")
    (tmp_path / "m.safetensors").write_bytes(b"")
    assert "exists: remove it" in run(tmp_path, DETECTRON2, labels, name="m.pth")


def test_the_number_of_labels_must_be_that_of_the_classes(tmp_path):
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    message = run(tmp_path, DETECTRON2, f"--labels={tmp_path}/two.txt", name="m.pth")
    assert "is a network of 4 categories, but its labels file names 2" in message
