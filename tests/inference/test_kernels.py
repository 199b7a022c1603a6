import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyannote_prune.inference.cpu import FROZEN
from pyannote_prune.inference.derive import derive
from pyannote_prune.inference.kernels import RecomputedAttention, kernel_spectrum, linear, multiply_spectra


@given(batch=st.integers(1, 2), heads=st.integers(1, 2), frames=st.integers(1, 4), head_dim=st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_attention_and_its_gradients(batch, heads, frames, head_dim):
    def double(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    query, key, value = (double(batch, heads, frames, head_dim) for _ in range(3))
    gate, bias = double(batch, heads, frames, 1), double(heads, frames, frames)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=gate * bias)
    torch.testing.assert_close(RecomputedAttention.apply(query, key, value, gate, bias), expected)
    assert torch.autograd.gradcheck(RecomputedAttention.apply, (query, key, value, gate, bias))


@given(
    kernel_size=st.integers(1, 40),
    groups=st.sampled_from([1, 2, 4]),
    frames=st.integers(1, 130),
    batch=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_products_of_spectra_are_a_convolution(kernel_size, groups, frames, batch):
    x = torch.randn(batch, frames, 16, requires_grad=True)
    weight = torch.randn(16, 16 // groups, kernel_size, requires_grad=True)
    bias = torch.randn(16, requires_grad=True)
    convolved = F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel_size // 2, groups=groups)[..., :frames].mT
    output = multiply_spectra(x, kernel_spectrum(weight, groups), bias)
    torch.testing.assert_close(output, convolved, atol=1e-4, rtol=1e-4)
    direction = torch.randn(output.shape)
    sources = (x, weight, bias)
    torch.testing.assert_close(
        torch.autograd.grad(output, sources, direction),
        torch.autograd.grad(convolved, sources, direction),
        atol=1e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_multihead_attention(batch_first, bias):
    theirs = nn.MultiheadAttention(24, 4, batch_first=batch_first, bias=bias).eval()
    ours = derive(theirs, FROZEN)
    assert type(ours) is not type(theirs)
    x, other = torch.randn(7, 3, 24), torch.randn(7, 3, 24)
    mask = torch.zeros(*((7, 3) if batch_first else (3, 7)), dtype=torch.bool)
    mask[:, 1] = True
    with torch.no_grad():
        for inputs in ((x, x, x), (x, other, other)):
            for options in ({"need_weights": False}, {}, {"need_weights": False, "key_padding_mask": mask}):
                actual, wanted = ours(*inputs, **options), theirs(*inputs, **options)
                torch.testing.assert_close(actual[0], wanted[0], atol=1e-5, rtol=1e-5)
                assert (actual[1] is None) == (wanted[1] is None)


@given(rows=st.lists(st.integers(0, 5), max_size=3), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(max_examples=30, deadline=None)
def test_linear(rows, sizes):
    x, weight = torch.randn(*rows, sizes[0]), torch.randn(sizes[1], sizes[0])
    bias = torch.randn(sizes[1]) if rows else None
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), x @ weight.T + (0 if bias is None else bias))
