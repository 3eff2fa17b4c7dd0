"""The categories of models that were trained on COCO."""

from typing import Final

from ..types import Category

__all__ = ["COCO_CATEGORIES"]

COCO_NAMES: Final = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, -,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
-, backpack, umbrella, -, -, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, -, wine glass, cup,
fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut,
cake, chair, couch, potted plant, bed, -, dining table, -, -, toilet, -, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, -, book, clock, vase, scissors,
teddy bear, hair drier, toothbrush
"""
"""The category names of labels 1 to 90 of models trained on COCO; labels marked `-` are unused."""

COCO_CATEGORIES: Final = tuple(
    Category(label, name)
    for label, name in enumerate(COCO_NAMES.replace("\n", " ").strip().split(", "), start=1)
    if name != "-"
)
