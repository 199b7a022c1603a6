import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

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


@given(rows=st.lists(st.integers(0, 5), max_size=3), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(max_examples=30, deadline=None)
def test_linear(rows, sizes):
    x, weight = torch.randn(*rows, sizes[0]), torch.randn(sizes[1], sizes[0])
    bias = torch.randn(sizes[1]) if rows else None
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), x @ weight.T + (0 if bias is None else bias))
