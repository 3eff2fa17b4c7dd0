"""Which networks are trained and at which size: what cannot be is one line, before anything is started."""

import pytest

from maskrcnn.errors import UsageError
from maskrcnn.models.networks import NETWORKS, TRAINABLE
from maskrcnn.training.network_choice import check_architecture, check_trainable, crop_of, sizes_of

SSD = "ssdlite320_mobilenet_v3_large"
FASTER = "fasterrcnn_mobilenet_v3_large_320_fpn"


def test_all_networks_of_torchvision_are_trained():
    others = {name for name in NETWORKS if name not in TRAINABLE}
    assert all("matterport" in name for name in others)
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


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: sizes_of(SSD, 320, None), "every image to 320 x 320 pixels: leave out --min-size"),
        (lambda: sizes_of("ssd300_vgg16", None, 300), "every image to 300 x 300 pixels: leave out --max-size"),
        (lambda: crop_of(SSD, 384), "trained on squares of 320 pixels, its own size: leave out --crop"),
        (lambda: sizes_of(FASTER, 8, None), "--min-size must be at least 32"),
        (lambda: sizes_of(FASTER, 200, 100), "--max-size at least --min-size"),
        (lambda: check_trainable("a.h5", "maskrcnn_matterport_resnet50"), "--model a.h5: maskrcnn_matterport_resnet50"),
        (lambda: check_architecture("random", "resnet50"), "--model random:…: name one of maskrcnn_resnet50_fpn, "),
    ],
    ids=range(7),
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line(call, says):
    with pytest.raises(UsageError) as raised:
        call()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
