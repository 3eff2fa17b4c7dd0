"""How far matterport's networks are here from what its own code gave under TensorFlow, stage by stage.

    python -m tests.benchmarks.matterport

Prints, of ResNet-50 and four images, the largest difference of each stage of the fast path, given what is stored of the
stage before, and from end to end (`final_`); and of ResNet-101 and two images.
"""

import argparse

import torch
from matterport_oracle import TOLERANCES, Stored, differences, images_of, model_of, tensors_of

from maskrcnn.models.conversion.parity_matterport import FastStages


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    torch.set_num_threads(1)
    for backbone, tolerances in TOLERANCES.items():
        fast = FastStages(model_of(backbone, tensors_of(backbone)))
        worst = {}
        for image in images_of(backbone):
            for stage, difference, limit in differences(fast, Stored(backbone, image), tolerances):
                worst[stage] = max(worst.get(stage, (0.0, limit)), (difference, limit))
        print(backbone)
        for stage, (difference, limit) in worst.items():
            print(f"  {stage:16} {difference:8.1e} of {limit:.0e}")


if __name__ == "__main__":
    main()
