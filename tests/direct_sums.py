"""Convolution as its definition says it: float64 sums written as loops over outputs and taps; nothing of torch.nn.

The loops run over positions; channels and batch ride along as array dimensions, element by element.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

Pairs = Sequence[tuple[int, int]]
ALL = slice(None)

ACTIVATIONS = {
    None: lambda x: x,
    "relu": lambda x: torch.where(x > 0, x, 0),
    "relu6": lambda x: torch.where(x > 0, torch.where(x < 6, x, 6), 0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "hard_swish": lambda x: x * torch.where(x > -3, torch.where(x < 3, x + 3, 6), 0) / 6,
    "gelu": lambda x: x / 2 * (1 + torch.erf(x / 2**0.5)),
}


def same_pairs(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Pairs:
    """TensorFlow's "same", by search: the least padding that gives ceil(n / s) outputs, the odd pixel after."""
    pairs = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        wanted, total = -(-n // s), 0
        while (n + total - d * (k - 1) - 1) // s + 1 < wanted:
            total += 1
        pairs.append((total // 2, total - total // 2))
    return pairs


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pairs: Pairs, dilation: Sequence[int]
) -> Tensor:
    """y[o, p] = bias[o] + sum over o's inputs i and taps t of weight[o, i, t] * x[i, p*stride + t*dilation - before].

    x [N, C, ...], weight [C*m, 1, k...] or [C/m, m, k...]; positions outside x count as zero.
    """
    size, kernel, (filters, inner) = x.shape[2:], weight.shape[2:], weight.shape[:2]
    out = [
        (n + a + b - d * (k - 1) - 1) // s + 1
        for n, k, s, d, (a, b) in zip(size, kernel, stride, dilation, pairs, strict=True)
    ]
    groups = x.shape[1] // inner
    sources = torch.arange(filters) // (filters // groups) * inner  # first input channel of each filter
    y = torch.zeros(x.shape[0], filters, *out, dtype=torch.float64)
    for position in product(*map(range, out)):
        for tap in product(*map(range, kernel)):
            where = [
                p * s + t * d - a for p, s, t, d, (a, _) in zip(position, stride, tap, dilation, pairs, strict=True)
            ]
            if any(w < 0 or w >= n for w, n in zip(where, size, strict=True)):
                continue
            for i in range(inner):
                y[(ALL, ALL, *position)] += weight[(ALL, i, *tap)].double() * x[(ALL, sources + i, *where)].double()
    return y if bias is None else y + bias.double().reshape(-1, *[1] * len(size))


def depthwise_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Every input position adds weight * x to the outputs at p*stride + t*dilation - padding.

    x [N, C, ...], weight [C, m, k...]: input c feeds outputs c*m + j; or [C/m, m, k...]: inputs o*m + j feed output o.
    """
    size, kernel, (groups, m) = x.shape[2:], weight.shape[2:], weight.shape[:2]
    spreads = x.shape[1] == groups
    out = [
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, k, s, p, o, d in zip(size, kernel, stride, padding, output_padding, dilation, strict=True)
    ]
    y = torch.zeros(x.shape[0], groups * m if spreads else groups, *out, dtype=torch.float64)
    for position in product(*map(range, size)):
        for tap in product(*map(range, kernel)):
            where = [p * s + t * d - a for p, s, t, d, a in zip(position, stride, tap, dilation, padding, strict=True)]
            if any(w < 0 or w >= n for w, n in zip(where, out, strict=True)):
                continue
            here = x[(ALL, ALL, *position)].double()
            for j in range(m):
                taken = here if spreads else here[:, j::m]
                fed = slice(j, None, m) if spreads else ALL
                y[(ALL, fed, *where)] += weight[(ALL, j, *tap)].double() * taken
    return y if bias is None else y + bias.double().reshape(-1, *[1] * len(size))


def of_case(case, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`depthwise` with the options of a case of the grid."""
    options = {"stride": 1, "padding": 0, "dilation": 1, **case.options}
    stride, dilation = (_each(options[name], case.dims) for name in ("stride", "dilation"))
    padding = options["padding"]
    if padding == "same":
        pairs = same_pairs(x.shape[2:], case.kernel, stride, dilation)
    elif padding == "causal":
        pairs = [(dilation[0] * (case.kernel[0] - 1), 0)]
    else:
        each = _each(0 if padding == "valid" else padding, case.dims)
        pairs = [p if isinstance(p, tuple) else (p, p) for p in each]
    return depthwise(x, weight, bias, stride, pairs, dilation)


def separable(case, x: Tensor, weights, biases, order: str, inner=None, last=None) -> Tensor:
    """Both halves of a case, (depthwise, pointwise) weights and biases, in the given order."""
    (dw, pw), (dw_bias, pw_bias) = weights, biases
    if order == "depthwise_first":
        return ACTIVATIONS[last](pointwise(ACTIVATIONS[inner](of_case(case, x, dw, dw_bias)), pw, pw_bias))
    return ACTIVATIONS[last](of_case(case, ACTIVATIONS[inner](pointwise(x, pw, pw_bias)), dw, dw_bias))


def _each(value, dims: int) -> tuple:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y[o] = bias[o] + sum over c of weight[o, c] * x[c], at every position; x [N, C, ...], weight [O, C, 1...]."""
    y = torch.zeros(x.shape[0], weight.shape[0], *x.shape[2:], dtype=torch.float64)
    for c in range(weight.shape[1]):
        y += weight[:, c].double() * x[:, c : c + 1].double()
    return y if bias is None else y + bias.double().reshape(-1, *[1] * (x.dim() - 2))
