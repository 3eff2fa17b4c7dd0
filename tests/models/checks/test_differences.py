"""Two results of one image are compared but for rounding."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_images import random_instances

from maskrcnn.models.checks.differences import differences, equal
from maskrcnn.synthetic.planted import PlantedSegmenter, plant


def found_in(seed):
    random = np.random.Generator(np.random.PCG64(seed))
    [found] = PlantedSegmenter().segment([plant((80, 96), random_instances(random, 80, 96, 6))])
    return found


@given(st.integers(0, 1000), st.permutations(range(6)))
def test_rounding_and_order_are_no_difference(seed, order):
    one = found_in(seed)
    order = [index for index in order if index < len(one)]
    other = replace(one, boxes=one.boxes + np.float32(0.01), scores=one.scores - np.float32(1e-4))
    boxes, scores = differences(one, other.take(np.array(order, np.intp)))
    assert boxes == pytest.approx(0.01 if len(one) else 0, abs=1e-4)
    assert scores == pytest.approx(1e-4 if len(one) else 0, abs=1e-6)
    assert differences(one, one) == (0, 0)
    assert equal(one, one)
    assert equal(one, other) == (len(one) == 0)


@given(st.integers(0, 1000), st.sampled_from([-30, 30]))
def test_a_missing_instance_or_a_box_that_moved_is_one(seed, moved):
    one = found_in(seed)
    best = one.take(np.arange(len(one))[:2])
    if len(best) == 2 and best.scores[0] > best.scores[1] + 0.01:
        assert differences(best, best.take(np.array([1]))) is None
        boxes = best.boxes.copy()
        boxes[0] += moved
        assert differences(best, replace(best, boxes=boxes)) is None
