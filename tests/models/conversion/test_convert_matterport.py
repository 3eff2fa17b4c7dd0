"""matterport's `.h5` files are converted with parity, for any number of classes, or refused in one line."""

import json
import pickle
import sys

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from keras_files import arrays_of, filled, hollow, names_of
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.driver.training_set import TrainingRequest, prepare_training
from matterport_oracle import Stored, far
from safetensors.torch import load_file

from maskrcnn.errors import UsageError
from maskrcnn.models.architectures.matterport_config import ELSEWHERE, MatterportConfig, configured
from maskrcnn.models.architectures.network_config import config_of
from maskrcnn.models.conversion import convert as convert_module
from maskrcnn.models.conversion.convert import convert
from maskrcnn.models.conversion.h5_reader import arrays_in_h5
from maskrcnn.models.conversion.parity import generated_images
from maskrcnn.models.model import load_model
from maskrcnn.models.networks import NETWORKS
from maskrcnn.models.registry import COCO_CATEGORIES, NO_CATEGORY, describe_model
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.training.config import TrainingConfig

pytestmark = pytest.mark.slow

LOGITS = "mrcnn_class_logits/mrcnn_class_logits/kernel:0"
STEM = "conv1/conv1/kernel:0"


@pytest.fixture(scope="module", autouse=True)
def one_image():
    """Compare on one image instead of two: each costs seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_module, "generated_images", lambda: generated_images()[:1])
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The oracle's file of `save_weights`, and its converted file."""
    folder = tmp_path_factory.mktemp("matterport")
    filled(folder / "mask_rcnn_coco.h5", arrays_of())
    sizes = ["--min-size=320", "--max-size=384"]
    result = CliRunner().invoke(
        main, ["convert", f"{folder}/mask_rcnn_coco.h5", f"{folder}/coco.safetensors", *sizes]
    )
    assert result.exit_code == 0, result.output
    (folder / "output.txt").write_text(result.output)
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return json.loads((folder / "coco.safetensors.report.json").read_text())


def test_the_published_file_needs_no_labels_and_matches_the_reference(folder):
    model = load_model(f"{folder}/coco.safetensors")
    assert model.card.architecture == "maskrcnn_matterport_resnet50"
    assert model.card.categories == COCO_CATEGORIES
    assert model.card.category_ids == (NO_CATEGORY, *(category.id for category in COCO_CATEGORIES))
    assert model.card.config == MatterportConfig()
    stored = Stored("resnet50", "d_200x210")
    (found,) = MaskRCNNSegmenter(model, min_score=0.7).segment([stored.pixels])
    ids = np.array(model.card.category_ids)
    assert np.array_equal(found.labels, ids[stored["final_class_ids"]])
    assert np.array_equal(found.boxes[:, [1, 0, 3, 2]], stored["final_rois"])
    assert far(found.areas, stored["final_mask_area"]) <= 2


def test_every_tensor_is_mapped_and_every_stage_is_within_its_limit(report, folder):
    sources = sorted(step["source"] for step in report["steps"])
    assert sources == sorted("/".join(name.split("/")[-2:])[:-2] for name in names_of())
    targets = {step["target"]: tuple(step["new_shape"]) for step in report["steps"]}
    assert targets == NETWORKS["maskrcnn_matterport_resnet50"].shapes(81)
    assert sum(report["tensors"].values()) == 384
    assert report["sound"]
    assert [row["stage"] for row in report["parity"]][:2] == ["resized and padded", "features C1"]
    assert all(row["compared"] for row in report["parity"])
    assert "TensorFlow was not run" in report["parity_note"]
    assert (
        "| mrcnn_mask_deconv/kernel | 2 x 2 x 256 x 256 | transposed |"
        in (folder / "coco.safetensors.report.md").read_text()
    )
    assert "ok   masks in the image" in (folder / "output.txt").read_text()


def test_axes_and_coordinates_are_reordered(folder):
    found, arrays = load_file(folder / "coco.safetensors"), arrays_of()
    assert np.array_equal(found["backbone.body.conv1.weight"][5, 2], arrays[STEM][:, :, 2, 5])
    offsets = arrays["mrcnn_bbox_fc/mrcnn_bbox_fc/kernel:0"]
    for ours, theirs in enumerate((1, 0, 3, 2)):
        row = found["roi_heads.box_predictor.bbox_pred.weight"][4 * 7 + ours]
        assert np.array_equal(row, offsets[:, 4 * 7 + theirs])


@pytest.fixture
def quick(monkeypatch):
    """Skip the comparison, which another test covers."""
    monkeypatch.setattr(convert_module, "compare_matterport", lambda *_: [])


def test_a_file_of_model_save_with_a_user_s_classes_is_the_same_network(quick, tmp_path):
    arrays = arrays_of(4)
    filled(tmp_path / "mask_rcnn_balloon_0030.h5", arrays, "model_weights")
    with h5py.File(tmp_path / "mask_rcnn_balloon_0030.h5", "a") as file:
        file.create_dataset("optimizer_weights/SGD/iterations:0", data=7)  # not part of the network
    filled(
        tmp_path / "weights.h5", {name[:-2]: array for name, array in arrays.items()}
    )  # names without `:0`
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    made = [
        convert(f"{tmp_path}/{name}.h5", f"{tmp_path}/{name}.safetensors", f"{tmp_path}/labels.txt")
        for name in ("mask_rcnn_balloon_0030", "weights")
    ]
    assert [category.name for category in made[0].categories] == ["cat", "dog", "bird"]
    card = describe_model(f"{tmp_path}/weights.safetensors")
    assert card.category_ids == (NO_CATEGORY, 1, 2, 3)
    assert (card.min_size, card.max_size) == (800, 1024)
    first, second = (
        load_file(tmp_path / f"{name}.safetensors") for name in ("mask_rcnn_balloon_0030", "weights")
    )
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_the_deeper_backbone_is_recognized_by_its_blocks(quick, tmp_path):
    hollow(tmp_path / "deep.h5", names_of(backbone="resnet101"))
    made = convert(f"{tmp_path}/deep.h5", f"{tmp_path}/deep.safetensors")
    assert made.architecture == "maskrcnn_matterport_resnet101"
    assert len(made.steps) == 690


def test_the_inference_config_is_stored_in_the_file(quick, tmp_path):
    hollow(tmp_path / "m.h5", names_of())
    settings = ("RPN_ANCHOR_SCALES=(8, 16, 32, 64, 128)", "MEAN_PIXEL=43.53,39.56,48.22", "IMAGE_RESIZE_MODE=pad64",
                "DETECTION_NMS_THRESHOLD=0.2", "POST_NMS_ROIS_INFERENCE=2000")  # fmt: skip
    convert(f"{tmp_path}/m.h5", f"{tmp_path}/m.safetensors", min_size=512, max_size=512, settings=settings)
    model = load_model(f"{tmp_path}/m.safetensors")
    assert model.card.config == configured(settings)
    assert model.card.config.rpn_anchor_scales == (8, 16, 32, 64, 128)
    assert model.module.roi_heads.nms_thresh == 0.2
    assert model.module.rpn.post_nms_top_n() == 2000
    assert config_of(model.card.config.to_json(), MatterportConfig()) == model.card.config


def test_a_class_without_a_name_is_found_by_neither_side(tmp_path):
    filled(tmp_path / "m.h5", arrays_of(4))
    (tmp_path / "labels.txt").write_text("cat\n\nbird\n")
    sizes = {"min_size": 128, "max_size": 128}
    made = convert(f"{tmp_path}/m.h5", f"{tmp_path}/m.safetensors", f"{tmp_path}/labels.txt", **sizes)
    assert [row for row in made.parity if not row.within_limit] == []
    assert [category.id for category in made.categories] == [1, 3]
    assert (
        "min_size 128, max_size 128, image_resize_mode square"
        in (tmp_path / "m.safetensors.report.md").read_text()
    )


def test_configuration_values_may_be_written_as_in_matterport():
    assert configured(["MEAN_PIXEL=np.array([43.5, 39.6, 48.2])"]).mean_pixel == (43.5, 39.6, 48.2)
    assert configured(["PRE_NMS_LIMIT=6000.0"]).pre_nms_limit == 6000


def test_training_it_is_refused_before_anything_starts(quick, tmp_path):
    hollow(tmp_path / "m.h5", names_of())
    convert(f"{tmp_path}/m.h5", f"{tmp_path}/m.safetensors")
    for name in (f"{tmp_path}/m.safetensors", "imagenet:maskrcnn_matterport_resnet50"):
        request = TrainingRequest(f"{tmp_path}/none.json", f"{tmp_path}/out", TrainingConfig(model=name))
        with pytest.raises(UsageError, match=r"cannot be trained|name one of maskrcnn_resnet50_fpn"):
            prepare_training(request)


# --- what is refused ------------------------------------------------------------------------------------------


def refusal(tmp_path, *options, name="m.h5"):
    result = CliRunner().invoke(
        main, ["convert", f"{tmp_path}/{name}", f"{tmp_path}/m.safetensors", *options]
    )
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "m.safetensors").exists()
    return result.output


def without(names, *left_out):
    return {name: shape for name, shape in names.items() if name not in left_out}


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (without(names_of(), STEM), "lacks the tensor conv1/kernel"),
        (without(names_of(), LOGITS), "lacks the tensor mrcnn_class_logits/kernel"),
        (names_of() | {"extra/extra/kernel:0": (3, 3)}, "has the unknown tensor extra/kernel"),
        (
            names_of() | {"res4g_branch2a/res4g_branch2a/bias:0": (3,)},
            "has the unknown tensor res4g_branch2a/bias",
        ),
        (names_of() | {STEM: (3, 3, 3, 64)}, "conv1/kernel has the shape (3, 3, 3, 64), not (7, 7, 3, 64)"),
        (
            names_of() | {"mrcnn_mask/mrcnn_mask/bias:0": (80,)},
            "mrcnn_mask/bias has the shape (80,), not (81,)",
        ),
        (names_of() | {"other/conv1/kernel:0": (7, 7, 3, 64)}, "has the tensor conv1/kernel twice"),
        ({"block1_conv1/block1_conv1/kernel:0": (3, 3, 3, 64)}, "has no network of"),
        ({}, "has no network of"),
    ],
)
def test_a_wrong_tensor_is_named_in_one_line(names, complaint, tmp_path):
    hollow(tmp_path / "m.h5", names)
    assert complaint in refusal(tmp_path)


def test_invalid_files_end_in_one_line_and_exit_code_two(tmp_path):
    hollow(tmp_path / "whole.h5", names_of(4))
    data = (tmp_path / "whole.h5").read_bytes()
    for content, complaint in (
        (data[: len(data) // 2], "is truncated or damaged"),
        (data[:600], "is truncated or damaged"),
        (pickle.dumps({"model": {}}), "is a pickle, which is not opened"),
        (b"PK\x03\x04" + bytes(100), "is a zip archive"),
        (b"", "zero bytes"),
        (b"\0no such thing", "is not an HDF5 file"),
        (b"<!doctype html>", "is a web page"),
    ):
        (tmp_path / "m.h5").write_bytes(content)
        assert complaint in refusal(tmp_path)


def test_a_randomly_damaged_file_is_read_or_refused(tmp_path):
    hollow(tmp_path / "whole.h5", dict(list(names_of().items())[:12]))
    data = bytearray((tmp_path / "whole.h5").read_bytes())
    known = arrays_in_h5("m.h5", bytes(data))
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(150):
        damaged = data.copy()
        for place in rng.integers(8, len(data), 4):
            damaged[place] = rng.integers(256)
        try:
            arrays = arrays_in_h5("m.h5", bytes(damaged))
        except UsageError as error:
            assert "\n" not in str(error)  # noqa: PT017
            outcomes["refused"] += 1
        else:
            assert len(arrays) <= len(known)
            assert {array.dtype for array in arrays.values()} <= {np.dtype(np.float32)}
            outcomes["read"] += 1
    assert min(outcomes.values()) > 0  # most are read, since the data is all zeros


def test_labels_and_sizes_must_fit(tmp_path):
    hollow(tmp_path / "m.h5", names_of(4))
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    assert "a network of 3 categories, but its labels file names 2" in refusal(
        tmp_path, f"--labels={tmp_path}/two.txt"
    )
    assert "give --labels FILE with one name per line" in refusal(tmp_path)
    assert "--max-size 1000 does not fit this network: give a multiple of 64" in refusal(
        tmp_path, "--max-size=1000"
    )
    assert "the smaller first" in refusal(tmp_path, "--min-size=900", "--max-size=832")
    assert "leave --from out" in refusal(tmp_path, "--from=detectron2")
    assert "is not possible: it is --min-score of segment" in refusal(
        tmp_path, "--set=DETECTION_MIN_CONFIDENCE=0.9"
    )
    assert "give NAME=VALUE with one of IMAGE_RESIZE_MODE" in refusal(tmp_path, "--set=IMAGE_SIDE=1")
    assert "leave it out, it is for training only" in refusal(tmp_path, "--set=LEARNING_RATE=1")
    assert "leave it out, it always has matterport's default here" in refusal(
        tmp_path, "--set=RPN_ANCHOR_STRIDE=2"
    )
    assert "is given twice: give it once" in refusal(
        tmp_path, "--set=PRE_NMS_LIMIT=6000", "--set=PRE_NMS_LIMIT=7000"
    )
    assert "MEAN_PIXEL must be from 0 to 255" in refusal(tmp_path, "--set=MEAN_PIXEL=300,0,1")
    assert "is not a whole number" in refusal(tmp_path, "--set=PRE_NMS_LIMIT=0.5")
    assert "of 1 to 4096" in refusal(tmp_path, "--max-size=640000000")
    (tmp_path / "four.txt").write_text("BG\ncat\ndog\nbird\n")
    assert "leave the background out" in refusal(tmp_path, f"--labels={tmp_path}/four.txt")
    assert "RPN_ANCHOR_SCALES must have 5 numbers, not 2" in refusal(tmp_path, "--set=RPN_ANCHOR_SCALES=8,16")
    assert "could not convert" in refusal(tmp_path, "--set=RPN_NMS_THRESHOLD=high")
    assert "IMAGE_RESIZE_MODE must be square or pad64" in refusal(tmp_path, "--set=IMAGE_RESIZE_MODE=crop")
    torch.save({"x": torch.zeros(1), "backbone.body.x": torch.zeros(1)}, tmp_path / "m.pth")
    assert "--set is for weights of matterport" in refusal(
        tmp_path, "--set=RPN_NMS_THRESHOLD=0.6", name="m.pth"
    )


def test_non_finite_tensors_are_named(tmp_path):
    arrays = arrays_of()
    arrays[STEM][0, 0, 0, 0] = np.nan
    filled(tmp_path / "m.h5", arrays)
    assert "the tensor conv1/kernel is not finite" in refusal(tmp_path)
    arrays[STEM][0, 0, 0, 0] = 0
    filled(tmp_path / "m.h5", arrays | {STEM: arrays[STEM].astype(np.float64) + 1e300})
    assert "the tensor conv1/kernel is not finite" in refusal(tmp_path)
    variance = "bn_conv1/bn_conv1/moving_variance:0"
    filled(tmp_path / "m.h5", arrays | {variance: -arrays[variance]})
    assert "bn_conv1/moving_variance contains variances, of which one is negative" in refusal(tmp_path)
    hollow(tmp_path / "m.h5", names_of(), dtype="i4")
    assert "has the type int32, not floats" in refusal(tmp_path)


def test_nothing_outside_the_file_is_read(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4 * 64))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("conv1/conv1/bias:0", (64,), "f4", external=[(f"{tmp_path}/secret", 0, 256)])
    assert "is in another file, which is refused" in refusal(tmp_path)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["conv1"] = h5py.ExternalLink("other.h5", "/conv1")
    assert "conv1 is a link, which is refused" in refusal(tmp_path)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["conv1/self"] = file["/"]
    assert "groups are nested too deeply" in refusal(tmp_path)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("conv1/conv1/kernel:0", (2**16, 2**16), "f4", chunks=(64, 64))
    assert "more than 4 GiB" in refusal(tmp_path)


def test_without_h5py_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    hollow(tmp_path / "m.h5", names_of(4))
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install 'maskrcnn-ray[convert]'" in refusal(tmp_path)


def test_a_damaged_configuration_is_found_before_a_run(quick, tmp_path):
    for text in (
        "[]",
        '{"other": 1}',
        '{"mean_pixel": 3}',
        '{"rpn_nms_threshold": 7}',
        '{"image_resize_mode": 1}',
    ):
        with pytest.raises((ValueError, TypeError)):
            config_of(text, MatterportConfig())
    assert not {name.lower() for name in ELSEWHERE} & set(MatterportConfig.__dataclass_fields__)
