"""What one aten operation costs: its kind, its multiply-adds, its other arithmetic, the bytes it cannot but move.

Rules (docs/cost.md repeats them with examples; they hold for forward passes):

- macs: convolution N * out positions * weight elements (transposed: N * in positions * weight elements), taps that
  fall on padding included; matrix product [m, k] x [k, n]: m*k*n. Biases and all else are not MACs. 1 MAC = 2 FLOPs.
- gradient_macs: a product of two operands is multiplied once more for each operand whose gradient is needed.
- other_ops: activation 1 for each output element whatever the function; softmax 5 (max, subtract, exp, sum, divide);
  normalisation 2 with stored statistics (one multiply, one add), 6 with statistics of its own (sum; subtract, square,
  sum; multiply, add); pooling 1 for each element of each window; reductions 1 for each input element; other arithmetic
  1 for each output element; copies 0.
- bytes: each tensor that is read, once, and the result, once. An expanded tensor counts for what it stores; a lookup
  reads what it returns; a view moves nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

PRODUCTS = ("dense", "depthwise", "pointwise", "grouped", "transposed", "linear", "attention")  # kinds that have MACs

_NORMS = {
    "native_batch_norm": 5,  # where the flag for the batch's own statistics stands, if there is one
    "_native_batch_norm_legit": 5,
    "_native_batch_norm_legit_no_training": None,
    "native_layer_norm": None,
    "native_group_norm": None,
    "_fused_rms_norm": None,
}
_STORED_STATISTICS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
_ACTIVATIONS = {
    *("relu", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish"),
    *("sigmoid", "hardsigmoid", "log_sigmoid_forward", "tanh", "softplus", "threshold", "_prelu_kernel", "glu"),
    *("rrelu_with_noise", "softshrink", "hardshrink"),
}
_SOFTMAX = {"_softmax", "_log_softmax", "_safe_softmax"}
_WINDOW_POOLS = {
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "avg_pool1d", "max_pool1d"),
    *("mkldnn_max_pool2d", "mkldnn_max_pool3d", "quantized_max_pool2d"),
}
_ADAPTIVE_POOLS = {
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d"),
    *("adaptive_max_pool2d", "adaptive_max_pool3d"),
}
_REDUCTIONS = {
    "sum",
    "mean",
    "amax",
    "amin",
    "prod",
    "var",
    "var_mean",
    "std_mean",
    "norm",
    "linalg_vector_norm",
    "cumsum",
}
_COPIES = {
    *("clone", "copy", "_to_copy", "cat", "stack", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d"),
    *("reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "roll", "flip", "repeat"),
    *("zeros", "ones", "full", "fill", "zero", "zeros_like", "ones_like", "full_like", "arange", "scalar_tensor"),
    *(
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "pixel_shuffle",
        "pixel_unshuffle",
        "new_zeros",
    ),
    *("new_ones", "new_full", "im2col", "channel_shuffle", "split_copy", "unsafe_split", "where", "slice_scatter"),
}
_LOOKUPS = {"embedding", "index", "index_select", "gather", "_unsafe_index"}
_FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh", "lift"),
    *("_local_scalar_dense", "sym_size", "is_same_size", "resize", "set", "_reshape_alias"),
}
_FUSED_ATTENTION = {
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math",
}
_MATRIX_PRODUCTS = {  # where the two factors stand
    **dict.fromkeys(("mm", "bmm", "mv", "dot"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addbmm", "_addmm_activation"), (1, 2)),
}

Needs = Callable[[Any], bool]


@dataclass
class Operation:
    """One call of an aten operation and what it costs. Whoever knows the network fills in the last three."""

    kind: str
    operands: tuple[Tensor, ...]
    result: Tensor
    macs: int = 0
    gradient_macs: int = 0
    other_ops: int = 0
    bytes: int = 0
    parameters: tuple[Tensor, ...] = ()  # of the network, that it uses
    weight: Tensor | None = None  # the first operand that is made of parameters
    input: Tensor | None = None  # the first operand that is not


def describe(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any, is_weight: Needs, needs_gradient: Needs
):
    """The `Operation` that a call of the aten overload `func` was, or None where it moved and computed nothing."""
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    results = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]
    if func.is_view or name in _FREE or not results:
        return None
    operands = tuple(t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor))
    op = Operation("elementwise", operands, results[0], bytes=bytes_moved(operands, results[0]))
    if name in ("convolution", "_convolution"):
        _convolution(op, args[0], args[1], transposed=args[6], groups=args[8], needs_gradient=needs_gradient)
    elif name in ("separable::depthwise_conv", "separable::depthwise_conv_inference"):
        groups = args[0].shape[1] // args[1].shape[1]
        _convolution(op, args[0], args[1], transposed=False, groups=groups, needs_gradient=needs_gradient)
    elif name in _MATRIX_PRODUCTS:
        first, second = (args[i] for i in _MATRIX_PRODUCTS[name])
        _product(op, first, second, is_weight, needs_gradient)
    elif name in _FUSED_ATTENTION:
        attention(op, *args[:3], needs_gradient=needs_gradient)
    elif name in _NORMS:
        op.kind, flag = "norm", _NORMS[name]
        stored = name in _STORED_STATISTICS and not (flag is not None and args[flag])
        op.other_ops = (2 if stored else 6) * op.result.numel()
    else:
        _other(op, name, args)
    return op


def attention(op: Operation, query: Tensor, key: Tensor, value: Tensor, *, needs_gradient: Needs) -> None:
    """softmax(Q Kᵀ) V for query [..., S, d], key [..., T, d], value [..., T, e]: S*T*(d + e) MACs a head."""
    pairs = query.numel() // max(query.shape[-1], 1) * key.shape[-2]
    scores, mix = pairs * query.shape[-1], pairs * value.shape[-1]
    q, k, v = needs_gradient(query), needs_gradient(key), needs_gradient(value)
    op.kind, op.macs, op.other_ops = "attention", scores + mix, 6 * pairs  # 5 for the softmax, 1 for the scale
    op.gradient_macs = scores * (q + k) + mix * ((q or k) + v)


def bytes_moved(operands: Sequence[Tensor], result: Tensor) -> int:
    """Each operand once and the result once, in bytes."""
    distinct = {id(t): t for t in operands}.values()
    return sum(stored_bytes(t) for t in distinct) + stored_bytes(result)


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of the elements that exist; an expanded dimension stores one."""
    if tensor.layout != torch.strided:
        return tensor.numel() * tensor.element_size()
    stored = math.prod(n if stride else min(n, 1) for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return stored * tensor.element_size()


def _convolution(op, x, weight, *, transposed: bool, groups: int, needs_gradient: Needs) -> None:
    """x [N, C, ...], weight [C_out, C/groups, k...] or, transposed, [C, C_out/groups, k...]."""
    positions = math.prod((x if transposed else op.result).shape[2:])
    op.macs = x.shape[0] * positions * weight.numel()
    op.gradient_macs = op.macs * (needs_gradient(x) + needs_gradient(weight))
    if transposed:
        op.kind = "transposed"
    elif groups == 1:
        op.kind = "pointwise" if all(k == 1 for k in weight.shape[2:]) else "dense"
    else:  # one filter an input channel, or m filtered channels summed into one output: both never mix further
        op.kind = "depthwise" if weight.shape[1] == 1 or groups == weight.shape[0] else "grouped"


def _product(op, first, second, is_weight: Needs, needs_gradient: Needs) -> None:
    """[..., m, k] x [..., k, n]; a matrix and a vector, or two vectors, likewise."""
    if first.dtype != second.dtype:  # the meta device would let it pass
        raise RuntimeError(f"both factors of a product must be of one type, not {first.dtype} and {second.dtype}")
    columns = second.shape[-1] if second.dim() > 1 else 1
    op.macs = first.numel() * columns
    op.gradient_macs = op.macs * (needs_gradient(first) + needs_gradient(second))
    op.kind = "linear" if is_weight(first) or is_weight(second) else "attention"


def _other(op, name: str, args: Sequence[Any]) -> None:
    if name in _ACTIVATIONS:
        op.kind, op.other_ops = "activation", op.result.numel()
    elif name in _SOFTMAX:
        op.kind, op.other_ops = "activation", 5 * op.result.numel()
    elif name in _WINDOW_POOLS:
        dims = 1 if "1d" in name else 2 if "2d" in name else 3
        window = list(args[1]) * (dims if len(args[1]) == 1 else 1)
        op.kind, op.other_ops = "pool", op.result.numel() * math.prod(window)
    elif name in _ADAPTIVE_POOLS:
        op.kind, op.other_ops = "pool", args[0].numel()
    elif name in _REDUCTIONS:
        op.kind, op.other_ops = "pool", op.operands[0].numel()
    elif name in _LOOKUPS:
        op.kind, op.bytes = "copy", bytes_moved(op.operands[1:], op.result) + stored_bytes(op.result)
    elif name in _COPIES:
        op.kind = "copy"
    else:
        op.other_ops = op.result.numel()
