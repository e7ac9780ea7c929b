"""What holds for any shape, stride, dilation, padding, multiplier, order and layout; hypothesis seeks the exception."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import direct_sums
from cases import layouts
from separable import functional
from separable.functional.arguments import padding_pairs
from tolerance import tolerance

PLAIN = {1: functional.depthwise_conv1d, 2: functional.depthwise_conv2d, 3: functional.depthwise_conv3d}
SEPARABLE = {1: functional.separable_conv1d, 2: functional.separable_conv2d, 3: functional.separable_conv3d}
DENSE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@st.composite
def windows(draw, dims=None):
    """dims, size, kernel, stride, dilation, padding; pairs padding, and whatever of it makes the kernel fit."""
    dims = draw(st.integers(1, 3)) if dims is None else dims

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, dilation = each(1, 4), each(1, 3), each(1, 3)
    words = ["same", "causal"] if dims == 1 else ["same"]
    pairs = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(dims))
    padding = draw(st.sampled_from([*words, pairs]))
    least = [1] * dims
    if padding == pairs:
        spans = zip(kernel, dilation, pairs, strict=True)
        least = [max(1, d * (k - 1) + 1 - before - after) for k, d, (before, after) in spans]
    size = tuple(n + draw(st.integers(0, 4)) for n in least)
    return dims, size, kernel, stride, dilation, padding


@settings(max_examples=60, deadline=None, derandomize=True)
@given(windows(), st.integers(0, 3), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_depthwise_equals_direct_sums(window, batch, channels, multiplier, sums):
    dims, size, kernel, stride, dilation, padding = window
    x = torch.randn(batch, channels * (multiplier if sums else 1), *size, dtype=torch.float64)
    filters = (channels, multiplier) if sums else (channels * multiplier, 1)
    weight, bias = torch.randn(*filters, *kernel, dtype=torch.float64), torch.randn(filters[0], dtype=torch.float64)
    pairs = {
        "same": lambda: direct_sums.same_pairs(size, kernel, stride, dilation),
        "causal": lambda: [(dilation[0] * (kernel[0] - 1), 0)],
    }.get(padding, lambda: padding)()
    expected = direct_sums.depthwise(x, weight, bias, stride, pairs, dilation)
    actual = PLAIN[dims](x, weight, bias, stride, padding, dilation)
    taps = multiplier * weight[0, 0].numel()
    torch.testing.assert_close(actual, expected, **tolerance(torch.float64, taps))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(windows(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_separable_equals_the_dense_convolution_it_stands_for(window, channels, out_channels, m, pointwise_first):
    dims, size, kernel, stride, dilation, padding = window
    x, ones = torch.randn(2, channels, *size, dtype=torch.float64), (1,) * dims
    if pointwise_first:
        dw = torch.randn(out_channels, m, *kernel, dtype=torch.float64)
        pw = torch.randn(out_channels * m, channels, *ones, dtype=torch.float64)
        dense = torch.einsum("orc,or...->oc...", pw.view(out_channels, m, channels), dw)
    else:
        dw = torch.randn(channels * m, 1, *kernel, dtype=torch.float64)
        pw = torch.randn(out_channels, channels * m, *ones, dtype=torch.float64)
        dense = torch.einsum("ocr,cr...->oc...", pw.view(out_channels, channels, m), dw.view(channels, m, *kernel))
    order = "pointwise_first" if pointwise_first else "depthwise_first"
    actual = SEPARABLE[dims](x, dw, pw, None, None, stride, padding, dilation, order=order)
    pairs = padding_pairs(padding, size, kernel, stride, dilation)
    padded = F.pad(x, [side for pair in reversed(pairs) for side in pair])
    expected = DENSE[dims](padded, dense, None, stride, 0, dilation)
    torch.testing.assert_close(actual, expected, **tolerance(torch.float64, channels * m * dense[0, 0].numel()))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(windows(dims=2), st.integers(1, 5), st.data())
def test_layout_changes_no_value(window, channels, data):
    _, size, kernel, stride, dilation, padding = window
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    weight = torch.randn(channels, 1, *kernel, dtype=torch.float64)
    laid_out = data.draw(st.sampled_from(sorted(layouts(x).items(), key=lambda item: item[0])))[1]
    plain = laid_out.clone(memory_format=torch.contiguous_format)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    actual = functional.depthwise_conv2d(laid_out, weight, **options)
    expected = functional.depthwise_conv2d(plain, weight, **options)
    torch.testing.assert_close(actual, expected, **tolerance(torch.float64, weight[0].numel()))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 6), st.integers(1, 4))
def test_same_is_the_least_padding_that_keeps_ceil_n_over_stride(n, kernel, stride, dilation):
    pairs = padding_pairs("same", (n,), (kernel,), (stride,), (dilation,))
    if stride > 1:
        assert list(pairs) == list(direct_sums.same_pairs((n,), (kernel,), (stride,), (dilation,)))
    (before, after) = pairs[0]
    assert (n + before + after - dilation * (kernel - 1) - 1) // stride + 1 == -(-n // stride)
    assert after - before in (0, 1)
