"""A copy of a network whose depthwise convolutions and batch norms train natively: our layers in place of torch's."""

import copy
import itertools

from torch import nn

from separable import layers
from separable.errors import InputError
from separable.layers import DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d
from separable.layers.separable import is_hooked
from separable.store.capture import is_timm_norm_act

_CONVS = {nn.Conv1d: DepthwiseConv1d, nn.Conv2d: DepthwiseConv2d, nn.Conv3d: DepthwiseConv3d}
_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: layers.BatchNorm1d,
    nn.BatchNorm2d: layers.BatchNorm2d,
    nn.BatchNorm3d: layers.BatchNorm3d,
}
_ACTIVATIONS = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.Hardswish: "hard_swish"}


def swap_layers(model: nn.Module, recompute: bool = False) -> nn.Module:
    """A copy of `model` with our layers, of the same parameters, for torch's depthwise convolutions and batch norms.

    Names, values and trainability of parameters stay, so that weights go there and back; modules that are shared stay
    shared. In a torch.nn.Sequential an activation after a norm becomes part of it, as that inside timm's norms does.
    `recompute` is set in every separable layer of ours. Modules with hooks or parametrizations, and other classes that
    derive from torch's, are left alone.
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
    _join_activations(model)
    return _ours(model) if _is_depthwise(model) or _is_norm(model) else model


def _is_norm(module: nn.Module) -> bool:
    """Torch's norm, or timm's with an activation that ours computes and no dropout between."""
    if is_timm_norm_act(module):
        inner = [*module.children()]
        known = type(module.act) in (nn.Identity, *_ACTIVATIONS) and isinstance(module.drop, nn.Identity)
        return known and not any(is_hooked(part) for part in (module, *inner))
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
    layer = _NORMS.get(type(norm), layers.BatchNorm2d)(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, "meta"
    )
    layer.weight, layer.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(layer, name, buffer)
    if is_timm_norm_act(norm):
        layer.activation = _ACTIVATIONS.get(type(norm.act))  # type: ignore[assignment]
    return layer.train(norm.training)


def _join_activations(model: nn.Module) -> None:
    """In each Sequential: the activation that follows a norm, which stands nowhere else, moves into it."""
    places: dict[nn.Module, int] = {}
    for module in model.modules():
        for child in module.children():
            places[child] = places.get(child, 0) + 1
    for module in model.modules():
        if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
            continue
        pairs = list(module.named_children())
        for (_, norm), (name, activation) in itertools.pairwise(pairs):
            known = _ACTIVATIONS.get(type(activation))
            free = isinstance(norm, tuple(_NORMS.values())) and norm.activation is None and places[norm] == 1
            if free and known and not is_hooked(activation):
                norm.activation = known  # type: ignore[assignment]
                module.register_module(name, nn.Identity())
