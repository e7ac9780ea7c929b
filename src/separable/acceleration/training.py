"""A copy of a network whose depthwise convolutions train natively: layers of ours in place of torch's."""

import copy

from torch import nn

from separable.errors import InputError
from separable.layers import DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d

_OURS = {nn.Conv1d: DepthwiseConv1d, nn.Conv2d: DepthwiseConv2d, nn.Conv3d: DepthwiseConv3d}


def swap_depthwise(model: nn.Module) -> nn.Module:
    """A copy of `model` in which every torch depthwise convolution is one of our layers with the same parameters.

    Names, values and trainability of parameters stay, so that weights go there and back; modules that are shared stay
    shared. Modules with hooks or parametrizations, and classes derived from torch's, are left as they are.
    """
    try:
        model = copy.deepcopy(model)
    except Exception as error:
        raise InputError("model", type(model).__name__, f"cannot be copied: {error}") from error
    made: dict[nn.Module, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if _is_depthwise(child):
                if child not in made:
                    made[child] = _ours(child)
                setattr(module, name, made[child])
    if _is_depthwise(model):
        return _ours(model)
    return model


def _is_depthwise(module: nn.Module) -> bool:
    if type(module) not in _OURS or module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return False
    groups = int(module.groups)  # type: ignore[arg-type]
    channels, filters = int(module.in_channels), int(module.out_channels)  # type: ignore[arg-type]
    return groups == min(channels, filters) > 1 and max(channels, filters) % groups == 0


def _ours(conv) -> nn.Module:
    layer = _OURS[type(conv)](
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.bias is not None,
        conv.padding_mode,
        device="meta",
    )
    layer.weight, layer.bias = conv.weight, conv.bias
    return layer.train(conv.training)
