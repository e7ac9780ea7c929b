"""Depthwise convolution in one, two and three dimensions: each group of channels is filtered on its own.

One operation serves both halves of a separable convolution. Weight [C*m, 1, k...] makes m maps of each input channel
(depthwise first); weight [C/m, m, k...] sums m filtered channels into each output (pointwise first).
Source: Chollet 2017, arXiv:1610.02357, section 1; Haase and Amthor 2020, arXiv:2003.13549, section 3.
"""

import operator

import torch
import torch.nn.functional as F
from torch import Tensor

from separable import _native
from separable.errors import InputError
from separable.functional import arguments, depthwise_conv_operator
from separable.functional.arguments import Padding, Size, Window, seen_whole
from separable.functional.depthwise_conv_training import Training
from separable.functional.depthwise_conv_ways import choice_of, has_derivatives, native_wins, obstacle_to_native, way


def _conv1d(input, weight, bias=None, stride=(1,), padding=(0,), dilation=(1,), groups=1):
    """torch's conv1d; a sequence whose channels lie together in memory is computed as a matrix or as an image.

    conv1d would copy it to channels-first and back: forward and backward of 800 places of 256 channels at dilation 4
    take 7.6 ms so, 2.0 ms as an image of height 1. A kernel of 1 is a matrix product. Exported graphs keep conv1d.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return F.conv1d(input, weight, bias, stride, padding, dilation, groups)
    if not (input.stride(1) == 1 and input.shape[1] > 1 and input.shape[2] > 1):
        return F.conv1d(input, weight, bias, stride, padding, dilation, groups)
    if weight.shape[2] == groups == stride[0] == 1 and padding[0] == 0:
        return F.linear(input.transpose(1, 2), weight[:, :, 0], bias).transpose(1, 2)
    apart = dilation[0]
    if apart > 1 == stride[0] and not (input.shape[2] % apart or padding[0] % apart):
        # places `apart` apart form a column of an image that is a view, so nothing is dilated: forward and backward of
        # 880 places of 256 channels at dilation 4 take 0.5 ms so, 3.1 ms dilated
        image = input.transpose(1, 2).unflatten(1, (-1, apart)).permute(0, 3, 1, 2)  # [N, C, L/apart, apart]
        y = F.conv2d(image, weight.unsqueeze(3), bias, 1, (padding[0] // apart, 0), 1, groups)
        return y.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2)
    image, filters = input.unsqueeze(2), weight.unsqueeze(2)  # [N, C, 1, L], [O, C/groups, 1, k]
    y = F.conv2d(image, filters, bias, (1, *stride), (0, *padding), (1, *dilation), groups)
    return y.squeeze(2)


CONV = {1: _conv1d, 2: F.conv2d, 3: F.conv3d}


@seen_whole
def depthwise_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """Filter each channel of a sequence on its own; see `depthwise_conv2d`. `padding="causal"` exists here only.

    Shapes: input [N, C, L], weight [C*m, 1, k] -> [N, C*m, L'].
    """
    return _depthwise_conv(1, input, weight, bias, stride, padding, dilation, activation, impl)


@seen_whole
def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """Filter each channel on its own; channels are never mixed.

    Args:
        input: [N, C, H, W].
        weight: [C*m, 1, kh, kw] with m the depth multiplier: output channel c*m + j reads input channel c. Or
            [C/m, m, kh, kw]: output channel o sums the filtered input channels o*m ... o*m + m - 1.
        bias: one value for each output channel.
        stride, dilation: an int or one for each dimension, at least 1.
        padding: an int, one for each dimension, pairs (before, after), "valid", "same" (TensorFlow's rule), and in 1-D
            "causal".
        activation: None, "relu", "relu6", "silu", "hard_swish" or "gelu" (erf), applied to the result.
        impl: "auto" takes the fastest way known for this shape, "reference" plain torch, "native" this project's CPU
            kernels (float32 and bfloat16; the sum of products is float32).

    Returns:
        [N, C*m, H', W'] with H' = floor((H + before + after - dilation*(kh - 1) - 1) / stride) + 1.
        Work: N * C*m * H' * W' * kh * kw multiply-adds.

    Raises:
        InputError: an argument breaks one of these rules.

    >>> import torch
    >>> depthwise_conv2d(torch.ones(1, 2, 5, 5), torch.ones(4, 1, 3, 3), padding="same", stride=2).shape
    torch.Size([1, 4, 3, 3])
    """
    return _depthwise_conv(2, input, weight, bias, stride, padding, dilation, activation, impl)


@seen_whole
def depthwise_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """Filter each channel of a volume on its own; see `depthwise_conv2d`.

    Shapes: input [N, C, D, H, W], weight [C*m, 1, kd, kh, kw] -> [N, C*m, D', H', W'].
    """
    return _depthwise_conv(3, input, weight, bias, stride, padding, dilation, activation, impl)


def reference(
    input: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int, activation: str | None
) -> Tensor:
    """The operation in plain torch, arguments in normal form; what export, tracing and double backward see."""
    stride, pairs, dilation = window
    if all(arguments.certain(before == after) for before, after in pairs):
        padding = tuple(before for before, _ in pairs)  # torch pads as it goes: no copy
    else:
        input, padding = arguments.pad(input, pairs), (0,) * len(pairs)
    y = CONV[len(pairs)](input, weight, bias, stride, padding, dilation, groups)
    return arguments.activate(y, activation)


def groups_of(channels: int, weight: Tensor) -> int:
    """How many groups of channels `weight` filters, once it is known to fit `channels` input channels."""
    filters, inner = arguments.sizes(weight)[:2]
    if inner == 1 and filters >= channels:
        if filters % channels:
            rule = f"{filters} filters cannot be shared equally by {channels} input channels"
            raise arguments.wrong_shape("weight", weight, f"{rule}; weight is [C*depth_multiplier, 1, k...]")
        return channels
    if filters * inner != channels:
        raise arguments.wrong_shape(
            "weight",
            weight,
            f"must be [C*depth_multiplier, 1, k...] or [C/depth_multiplier, depth_multiplier, k...] for C = {channels} "
            "input channels; to mix channels use separable_conv or a 1x1 convolution",
        )
    return filters


def _depthwise_conv(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Padding,
    dilation: Size,
    activation: str | None,
    impl: str,
) -> Tensor:
    key, options = None, (stride, padding, dilation, activation, impl)
    if _plain(input, weight, bias):
        try:
            call = _calls.get(key := (dims, options, *_state(input, weight, bias)))
        except TypeError:  # a list among the options
            key = call = None
        if call is not None and (_are_same(options, call.options) or all(map(_is_exact, options))):
            return call(input, weight, bias)
    arguments.check_impl(impl, native=True)
    arguments.check_activation("activation", activation)
    arguments.check_tensors(input, dims, weight=weight, bias=bias)
    arguments.check_kernel("weight", weight, dims, "[C*m, 1, k...]")
    groups = groups_of(arguments.sizes(input)[1], weight)
    filters, _, *kernel_size = arguments.sizes(weight)
    arguments.check_bias("bias", bias, filters)
    window = arguments.window(input.shape[2:], kernel_size, stride, padding, dilation)
    if key is None or not all(map(_is_exact, options)):
        return compute(input, weight, bias, window, groups, activation, impl)
    call = _keep(key, _Call(input, weight, bias, window, groups, activation, impl))
    call.options = options
    return call(input, weight, bias)


def compute(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
    activation: str | None,
    impl: str,
) -> Tensor:
    """The operation by the way that `impl` names or, for "auto", that wins; arguments in normal form."""
    if _plain(input, weight, bias):
        key = (window, groups, activation, impl, *_state(input, weight, bias))
        call = _calls.get(key) or _keep(key, _Call(input, weight, bias, window, groups, activation, impl))
        return call(input, weight, bias)
    if impl != "reference" and torch.amp.is_autocast_available(input.device.type):
        input, weight = _as_autocast_has_it(input), _as_autocast_has_it(weight)
        bias = None if bias is None else _as_autocast_has_it(bias)
    if impl == "reference" or way(input, weight, bias, window.stride, activation, impl)[0] == "reference":
        return reference(input, weight, bias, window, groups, activation)
    return _native_conv(input, weight, bias, window, activation)


class _Call:
    """One call in eager mode, all that follows from shapes, layout and options already decided."""

    options: tuple = ()  # as the user wrote them

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        window: Window,
        groups: int,
        activation: str | None,
        impl: str,
    ):
        self.window, self.groups, self.activation = window, groups, activation
        self.flat = (window.stride, [side for pair in window.pairs for side in pair], window.dilation)
        self.fused = depthwise_conv_operator.number_of(activation)
        obstacle = obstacle_to_native(input, weight, bias)
        if impl == "native" and obstacle:
            raise InputError("impl", impl, f"cannot run here: {obstacle}")
        native = impl != "reference" and not obstacle
        self.infers = native and (impl == "native" or native_wins(input, weight, window.stride, activation, False))
        self.choice = choice_of(input, weight, window, groups, impl) if native else None

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if has_derivatives(input, weight, bias):
            if self.choice is not None and not self.choice.is_standard():
                y = Training.apply(input, weight, bias, self.choice)
                return y if self.activation is None else arguments.activate(y, self.activation)
        elif self.infers:
            return _INFERENCE(input, weight, bias, *self.flat, self.fused)
        return reference(input, weight, bias, self.window, self.groups, self.activation)


_INFERENCE = torch.ops.separable.depthwise_conv_inference.default
_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_INT = frozenset((int,))
_MOST_CALLS = 4096  # a program with more shapes than this decides anew
_calls: dict[tuple, _Call] = {}  # of this process, by all that a decision depends on


def _plain(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether nothing but the tensors themselves decides what a call computes, and they are torch's own on the CPU."""
    if not _native.plain():
        return False
    known = type(input) in _PLAIN and type(weight) in _PLAIN and (bias is None or type(bias) in _PLAIN)
    return known and input.is_cpu and weight.is_cpu and (bias is None or bias.is_cpu)


def _state(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple:
    """What a way and its time depend on beside the options."""
    of_bias = None if bias is None else (bias.shape, bias.dtype)
    of_input = (input.shape, input.stride(), input.dtype)
    return *of_input, weight.shape, weight.dtype, of_bias, _native.isa(), _native.missing, torch.get_num_threads()


def _keep(key: tuple, call: _Call) -> _Call:
    if len(_calls) >= _MOST_CALLS:
        _calls.clear()
    _calls[key] = call
    return call


def _are_same(options: tuple, others: tuple) -> bool:
    """The very same objects, as a layer passes them in each call."""
    return all(map(operator.is_, options, others))


def _is_exact(value: Size | Padding | None) -> bool:
    """Ints, words or tuples of ints, none of them a bool: equal keys then mean equal arguments."""
    if type(value) is tuple:
        return _INT.issuperset(map(type, value)) or all(
            type(v) is tuple and _INT.issuperset(map(type, v)) for v in value
        )
    return value is None or type(value) is int or type(value) is str


def explain(input: Tensor, weight: Tensor, stride: tuple[int, ...], padding: Padding = 0) -> dict[str, tuple[str, str]]:
    """For inference and each direction of training: "native" or "reference", and why; measured where training would.

    Keys: "inference", "training, forward", "training, gradient of input", "training, gradient of weight".
    """
    directions = [f"training, {name}" for name in ("forward", "gradient of input", "gradient of weight")]
    with torch.no_grad():
        ways = {"inference": way(input, weight, None, stride)}
        if obstacle := obstacle_to_native(input, weight, None):
            return ways | dict.fromkeys(directions, ("reference", obstacle))
        window = arguments.window(input.shape[2:], weight.shape[2:], stride, padding, 1)
        choice = choice_of(input, weight, window, groups_of(input.shape[1], weight))
        if choice.is_standard():
            return ways | dict.fromkeys(directions, ("reference", choice.rule()))
        y = choice.compute(choice.forward_way(input, weight, None), input, weight, None)
        of_input, of_weight = choice.backward_ways(y, input, weight, (True, True, False))
    whys = (
        [choice.why, *[ways.why for ways in choice.backward.values()] * 2] if choice.backward else [choice.rule()] * 3
    )
    return ways | dict(
        zip(directions, zip((choice.forward or choice.fixed, of_input, of_weight), whys, strict=True), strict=True)
    )


def _as_autocast_has_it(tensor: Tensor) -> Tensor:
    """In autocast's dtype where it is on, as it would bring it for torch's own convolution."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def _native_conv(input: Tensor, weight: Tensor, bias: Tensor | None, window: Window, activation: str | None) -> Tensor:
    """Through an operator with derivatives where one is asked for, else through the one that fuses the activation.

    Where a dispatch mode watches operation by operation, as a profile does, the activation stays apart.
    """
    flat = (window.stride, [side for pair in window.pairs for side in pair], window.dilation)
    operators = torch.ops.separable
    if has_derivatives(input, weight, bias):
        return arguments.activate(operators.depthwise_conv(input, weight, bias, *flat), activation)
    apart = activation is not None and _native.keeps_apart()
    fused = depthwise_conv_operator.number_of(None if apart else activation)
    y = operators.depthwise_conv_inference(input, weight, bias, *flat, fused)
    return arguments.activate(y, activation) if apart else y
