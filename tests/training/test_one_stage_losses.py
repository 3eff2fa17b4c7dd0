"""The losses of detectors without masks are torchvision's."""

import pytest
import torch

from maskrcnn.models.model import build_network
from maskrcnn.models.networks import NETWORKS
from maskrcnn.synthetic.scenes import render_scene
from maskrcnn.training.initialization import batch_norm_statistics_taken, freeze, freeze_batch_norm_statistics
from maskrcnn.training.losses import ImageLosses
from maskrcnn.training.one_stage_losses import OneStageLosses
from maskrcnn.training.train_scenes import to_target, to_tensor

ONE_STAGE = [name for name, network in NETWORKS.items() if network.forward.startswith("forward_one_stage")]
TWO_STAGES = [
    name for name, network in NETWORKS.items() if name.startswith("fasterrcnn_") and network.from_state_dict
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread: for such small images more only cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def samples(side):
    """Two scenes with objects, and one without."""
    scenes = [render_scene(seed, side) for seed in (5, 6)]
    targets = [
        {name: values for name, values in to_target(scene).items() if name != "masks"} for scene in scenes
    ]
    assert all(len(target["labels"]) for target in targets)
    empty = {name: values[:0] for name, values in targets[0].items()}
    return [*(to_tensor(scene.image) for scene in scenes), torch.rand(3, side, side)], [*targets, empty]


def built(architecture, side, images):
    """A random network with norms as in training; its images are not resized."""
    torch.manual_seed(1)
    network = build_network(architecture, 8, side, side).train()
    freeze(network, 0)
    with batch_norm_statistics_taken(network), torch.no_grad():
        network.backbone(torch.stack([network.transform.normalize(image) for image in images]))
    freeze_batch_norm_statistics(network)
    return network


def test_the_networks_are_those_of_torchvision_without_masks():
    assert (len(ONE_STAGE), len(TWO_STAGES)) == (5, 4)


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ONE_STAGE)
def test_the_losses_of_a_detector_of_one_stage_equal_torchvision_s(architecture):
    resize = NETWORKS[architecture].resize
    side = resize.max_size if resize.fixed else 64
    images, targets = samples(side)
    network = built(architecture, side, images)
    with torch.no_grad():
        stock = network([image.clone() for image in images], [dict(target) for target in targets])
        losses = OneStageLosses(network)
        ours = losses(images, targets, [0, 0, 0])
    assert {name.removeprefix("loss_") for name in losses.names} == stock.keys()
    for name in losses.names:
        assert ours[name].item() == pytest.approx(stock[name.removeprefix("loss_")].item(), rel=1e-5)
        assert ours[name] > 0


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", TWO_STAGES)
def test_the_losses_of_a_faster_rcnn_equal_torchvision_s(architecture):
    """With the same candidates drawn, the network called as torchvision documents it returns the same four losses."""
    images, targets = samples(64)
    network = built(architecture, 64, images)
    losses = ImageLosses(network)
    with torch.no_grad():
        ours = losses(images, targets, [3, 4, 5])
        stock = network(images, targets)  # the seeds and boxes of the samplers are still set
    assert set(losses.names) == stock.keys() == {
        "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"
    }  # fmt: skip
    for name in losses.names:
        assert ours[name].item() == pytest.approx(stock[name].item(), rel=1e-5)
        assert ours[name] > 0
