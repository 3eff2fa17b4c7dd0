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
NAMES = {
    "fasterrcnn": {"objectness", "rpn_box_reg", "classifier", "box_reg"},
    "fcos": {"classification", "bbox_regression", "bbox_ctrness"},
    "retinanet": {"classification", "bbox_regression"},
    "ssd300": {"classification", "bbox_regression"},
    "ssdlite320": {"classification", "bbox_regression"},
}


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
@pytest.mark.parametrize("architecture", [*ONE_STAGE, *TWO_STAGES])
def test_the_losses_of_a_batch_equal_torchvision_s(architecture):
    """Of images of the network's size, and for a Faster R-CNN with the same candidates drawn."""
    resize = NETWORKS[architecture].resize
    side = resize.max_size if resize.fixed else 64
    images, targets = samples(side)
    network = built(architecture, side, images)
    if architecture in ONE_STAGE:
        with torch.no_grad():  # before it no longer resizes
            stock = network(list(images), [dict(target) for target in targets])
            losses = OneStageLosses(network)
            ours = losses(images, targets, [3, 4, 5])
    else:
        losses = ImageLosses(network)
        with torch.no_grad():
            ours = losses(images, targets, [3, 4, 5])
            stock = network(images, targets)  # the seeds and boxes of the samplers are still set
    names = {name.removeprefix("loss_"): name for name in losses.names}
    assert (
        {name.removeprefix("loss_") for name in stock}
        == names.keys()
        == NAMES[architecture.partition("_")[0]]
    )
    for name, loss in stock.items():
        assert ours[names[name.removeprefix("loss_")]].item() == pytest.approx(loss.item(), rel=1e-5)
        assert loss > 0
