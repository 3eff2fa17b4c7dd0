"""Which networks are trained and at which size: what cannot be is one line, before anything is started."""

import pytest

from maskrcnn.errors import UsageError
from maskrcnn.models.networks import NETWORKS, TRAINABLE
from maskrcnn.training.network_choice import check_architecture, check_trainable, crop_of, sizes_of

SSD = "ssdlite320_mobilenet_v3_large"
FASTER = "fasterrcnn_mobilenet_v3_large_320_fpn"


def test_all_networks_of_torchvision_are_trained():
    assert {name for name, network in NETWORKS.items() if network.from_state_dict} <= set(TRAINABLE)
    for name in TRAINABLE:
        check_trainable("a.pth", name)
        check_architecture("random", name)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ((None, None), (320, 640)),
        ((None, None, (800, 1333)), (800, 1333)),
        ((None, 900, (800, 1333)), (800, 900)),
        ((300, None, (800, 1333)), (300, 500)),
        ((300, 300), (300, 300)),
    ],
    ids=str,
)
def test_sizes_are_those_given_or_the_model_s_or_the_network_s(options, sizes):
    assert sizes_of(FASTER, *options) == sizes


def test_an_ssd_has_its_own_size():
    assert sizes_of(SSD, None, None, (320, 320)) == (320, 320)
    assert crop_of(SSD, 512) == crop_of(SSD, 320) == 320
    assert crop_of("ssd300_vgg16", 512) == 300
    assert crop_of(FASTER, 96) == 96


@pytest.mark.parametrize("source", ["imagenet", "random"])
def test_the_names_that_a_refusal_lists_are_those_that_work(source):
    with pytest.raises(UsageError) as raised:
        check_architecture(source, "none")
    listed = str(raised.value).partition("one of ")[2].removesuffix(" after the colon").split(", ")
    works = []
    for name in NETWORKS:
        try:
            check_architecture(source, name)
        except UsageError:
            continue
        works.append(name)
    assert listed == works
    assert set(listed) <= set(TRAINABLE)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: sizes_of(SSD, 320, None), "every image to 320 x 320 pixels: leave out --min-size"),
        (lambda: sizes_of("ssd300_vgg16", None, 300), "every image to 300 x 300 pixels: leave out --max-size"),
        (lambda: crop_of(SSD, 384), "trained on squares of 320 pixels, its own size: leave out --crop"),
        (lambda: sizes_of(FASTER, 8, None), "--min-size must be at least 32"),
        (lambda: sizes_of(FASTER, 200, 100), "--max-size at least --min-size"),
        (
            lambda: check_trainable("a.h5", "maskrcnn_matterport_resnet50"),
            "--model a.h5: maskrcnn_matterport_resnet50 runs here, but cannot be trained: start from coco, ",
        ),
        (lambda: check_trainable("planted", "planted"), "--model planted: it cannot be trained"),
        (
            lambda: check_architecture("random", "retinanet_resnet50"),
            "--model random:retinanet_resnet50: there is no such network; did you mean 'retinanet_resnet50_fpn'? Name "
            "one of maskrcnn_resnet50_fpn, ",
        ),
        (
            lambda: check_architecture("random", "maskrcnn_resnet50_c4_detectron2"),
            "--model random:maskrcnn_resnet50_c4_detectron2: this network runs here, but cannot be trained: name one ",
        ),
        (
            lambda: check_architecture("imagenet", SSD),
            f"--model imagenet:{SSD}: no ImageNet weights fit the backbone of this network: start from --model {SSD}, "
            "or name one of maskrcnn_resnet50_fpn, ",
        ),
        (
            lambda: check_architecture("imagenet", "maskrcnn_resnet50_fpn_detectron2"),
            "no ImageNet weights fit the backbone of this network: name one of maskrcnn_resnet50_fpn, ",
        ),
    ],
    ids=range(11),
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line(call, says):
    with pytest.raises(UsageError) as raised:
        call()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
