"""The numbers of weights files are judged as torch judges them, from the bytes alone."""

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from maskrcnn.errors import UsageError
from maskrcnn.models.weights.checkpoint_files import read_checkpoint
from maskrcnn.models.weights.finite_values import check_checkpoint_values, check_safetensors_values

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
NUMBERS = [0.0, -1.5, 3e38, 65504.0, 1e-40, math.inf, -math.inf, math.nan]


def of_torch(state, *, legacy):
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@st.composite
def tensors(draw):
    """A tensor of any type, perhaps a view of a larger one."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(), (0,), (3,), (2, 3), (3, 2, 2)]))
    count = math.prod(shape)
    known = NUMBERS if dtype.is_floating_point else [0.0, 1.0, 7.0]
    values = torch.tensor(draw(st.lists(st.sampled_from(known), min_size=count, max_size=count))).to(dtype)
    tensor = values.view(shape)
    return tensor.transpose(0, -1) if tensor.ndim > 1 and draw(st.booleans()) else tensor


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(["a.weight", "b.bias"]), tensors(), min_size=1), st.booleans())
def test_a_file_is_refused_if_a_number_of_it_is_not_finite_for_torch(state, legacy):
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    stored = of_torch(state, legacy=legacy)
    flat = save({name: tensor.contiguous() for name, tensor in state.items()})
    checks = [
        lambda: check_checkpoint_values("m.pth", read_checkpoint("m.pth", stored), stored),
        lambda: check_checkpoint_values("m.safetensors", read_checkpoint("m.safetensors", flat), flat),
        lambda: check_safetensors_values("m.safetensors", flat),
    ]
    for check in checks:
        if not bad:
            check()
            continue
        with pytest.raises(UsageError) as refused:
            check()
        assert any(
            f"the tensor {name} is not finite: the training diverged" in str(refused.value) for name in bad
        )


def test_what_lies_beside_the_weights_may_be_anything():
    whole = torch.tensor([1.0, math.nan, 2.0])
    stored = of_torch({"weight": whole[::2], "bias": whole[2:]}, legacy=False)
    check_checkpoint_values("m.pth", read_checkpoint("m.pth", stored), stored)


def test_a_tensor_larger_than_its_storage_is_damaged():
    stored = of_torch({"weight": torch.zeros(2)}, legacy=False)
    checkpoint = read_checkpoint("m.pth", stored)
    checkpoint.saved["weight"] = checkpoint.saved["weight"]._replace(shape=(3,))
    with pytest.raises(UsageError, match=r"m\.pth is damaged: the tensor weight does not fit its numbers"):
        check_checkpoint_values("m.pth", checkpoint, stored)
