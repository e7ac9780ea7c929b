"""A copy of a network whose depthwise convolutions and batch norms train natively: our layers in place of torch's."""

import copy

from torch import nn

from separable import layers
from separable.acceleration.one_pass import run_in_one_pass
from separable.errors import InputError
from separable.layers import DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d
from separable.layers.separable import is_hooked

_CONVS = {nn.Conv1d: DepthwiseConv1d, nn.Conv2d: DepthwiseConv2d, nn.Conv3d: DepthwiseConv3d}
_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: layers.BatchNorm1d,
    nn.BatchNorm2d: layers.BatchNorm2d,
    nn.BatchNorm3d: layers.BatchNorm3d,
}


def swap_layers(model: nn.Module, recompute: bool = False) -> nn.Module:
    """A copy of `model` with our layers, of the same parameters, for torch's depthwise convolutions and batch norms.

    Names, values and trainability of parameters stay, so that weights go there and back; modules that are shared stay
    shared. In a torch.nn.Sequential a norm and the activation after it run in one pass, as those in timm's norms do,
    and stay modules of their own. `recompute` is set in every separable layer of ours. Modules with hooks or
    parametrizations, and other classes that derive from torch's, are left alone.
    """
    try:
        model = copy.deepcopy(model)
    except Exception as error:
        raise InputError("model", type(model).__name__, f"cannot be copied: {error}") from error
    made: dict[nn.Module, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if child not in made and (_is_depthwise(child) or _is_norm(child)):
                made[child] = _ours(child)
            if child in made:
                setattr(module, name, made[child])
        if recompute and hasattr(module, "recompute"):
            module.recompute = True  # type: ignore[assignment]
    for module in model.modules():
        run_in_one_pass(module)
    return _ours(model) if _is_depthwise(model) or _is_norm(model) else model


def _is_norm(module: nn.Module) -> bool:
    return type(module) in _NORMS and not is_hooked(module)


def _is_depthwise(module: nn.Module) -> bool:
    if type(module) not in _CONVS or is_hooked(module):
        return False
    groups = int(module.groups)  # type: ignore[arg-type]
    channels, filters = int(module.in_channels), int(module.out_channels)  # type: ignore[arg-type]
    return groups == min(channels, filters) > 1 and max(channels, filters) % groups == 0


def _ours(module) -> nn.Module:
    return _our_conv(module) if type(module) in _CONVS else _our_norm(module)


def _our_conv(conv) -> nn.Module:
    layer = _CONVS[type(conv)](
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


def _our_norm(norm) -> nn.Module:
    layer = _NORMS[type(norm)](
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, "meta"
    )
    layer.weight, layer.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(layer, name, buffer)
    return layer.train(norm.training)
