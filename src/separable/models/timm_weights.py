"""Carry weights between these networks and timm's mobilenetv1_100, mobilenetv2_100, mobilenetv3_*_100, legacy_xception.

The shapes agree and some modules are named differently. `_RENAMES` says how, and both directions follow from it.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from separable.errors import InputError
from separable.models.mobilenetv1 import MobileNetV1
from separable.models.mobilenetv2 import MobileNetV2
from separable.models.mobilenetv3 import MobileNetV3Large, MobileNetV3Small
from separable.models.weights import check_fit
from separable.models.xception import Xception

Network = MobileNetV1 | MobileNetV2 | MobileNetV3Large | MobileNetV3Small | Xception
_Renames = list[tuple[str, str | Callable[[re.Match[str]], str]]]

_NAMES = "mobilenetv1_100, mobilenetv2_100, mobilenetv3_large_100, mobilenetv3_small_100 or legacy_xception"

# Without an expansion timm's block is another class, which numbers its norms from 1 and has nothing linear to name.
_FIRST_BLOCK: _Renames = [
    (r"^blocks\.0\.0\.conv_pwl", "blocks.0.0.conv_pw"),
    (r"^blocks\.0\.0\.bn2", "blocks.0.0.bn1"),
    (r"^blocks\.0\.0\.bn3", "blocks.0.0.bn2"),
]


def _place_in_rep(match: re.Match[str]) -> str:
    """timm's Xception block is one sequence, [ReLU], separable, norm, ReLU, ..., and its first lacks the first ReLU."""
    block, conv, norm = int(match[1]), int(match[2]), match[3] is not None
    place = 3 * conv + (block > 0) + norm
    return f"block{block + 1}.rep.{place}"


# Ours to timm's, applied one after the other
_RENAMES: dict[type, _Renames] = {
    MobileNetV1: [(r"\.inner_norm\.", ".bn1."), (r"\.norm\.", ".bn2.")],
    MobileNetV2: _FIRST_BLOCK,
    MobileNetV3Large: [*_FIRST_BLOCK, (r"^conv_last\.", "blocks.6.0.conv."), (r"^bn2\.", "blocks.6.0.bn1.")],
    MobileNetV3Small: [*_FIRST_BLOCK, (r"^conv_last\.", "blocks.5.0.conv."), (r"^bn2\.", "blocks.5.0.bn1.")],
    Xception: [
        (r"^blocks\.(\d+)\.convs\.(\d+)(\.norm)?", _place_in_rep),
        (r"^blocks\.(\d+)", lambda match: f"block{int(match[1]) + 1}"),
        (r"^conv([34])\.norm\.", r"bn\1."),
        (r"\.conv_dw\.", ".conv1."),
        (r"\.conv_pw\.", ".pointwise."),
        (r"^classifier\.", "fc."),
    ],
}


def to_timm(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network of this room under timm's names: a state dict for timm's network of the same kind.

    Raises:
        InputError: the network is none of those that timm has too.

    >>> list(to_timm(MobileNetV1()))[6:8]
    ['blocks.0.0.conv_dw.weight', 'blocks.0.0.conv_pw.weight']
    """
    if type(network) not in _RENAMES:
        kinds = ", ".join(kind.__name__ for kind in _RENAMES)
        raise InputError("network", type(network).__name__, f"must be one of {kinds}")
    return {_timm_name(type(network), name): value for name, value in network.state_dict().items()}


def from_timm(weights: nn.Module | Mapping[str, Tensor]) -> Network:
    """Our network with the weights of timm's; its kind, classes and input channels are read off the weights.

    Args:
        weights: a network of timm's or its state dict: mobilenetv1_100, mobilenetv2_100, mobilenetv3_large_100,
            mobilenetv3_small_100 or legacy_xception. They are copied.

    Raises:
        InputError: it is none of these, or some keys do not fit.

    >>> from separable.models import read_model
    >>> type(from_timm(read_model("timm:mobilenetv1_100").model)).__name__
    'MobileNetV1'
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    kind = _kind(state)
    stem, last = ("conv1.weight", "fc.weight") if kind is Xception else ("conv_stem.weight", "classifier.weight")
    network = kind(num_classes=state[last].shape[0], in_channels=state[stem].shape[1])
    ours = {_timm_name(kind, name): name for name in network.state_dict()}
    renamed = {ours.get(name, name): value for name, value in state.items()}
    check_fit("weights", f"a state dict of {len(state)} keys", renamed, network.state_dict())
    network.load_state_dict(renamed, strict=False)  # what may be absent was checked
    return network


def _kind(state: Mapping[str, Tensor]) -> type[Network]:
    """Which network, by the keys that only it has."""
    if {"conv1.weight", "block12.skip.weight", "fc.weight"} <= state.keys():
        return Xception
    if not {"conv_stem.weight", "blocks.0.0.conv_dw.weight", "classifier.weight"} <= state.keys():
        raise InputError("weights", f"a state dict of {len(state)} keys", f"must be of timm's {_NAMES}")
    if "conv_head.bias" in state:
        return MobileNetV3Large if "blocks.6.0.conv.weight" in state else MobileNetV3Small
    return MobileNetV2 if "conv_head.weight" in state else MobileNetV1


def _timm_name(kind: type, name: str) -> str:
    for pattern, replacement in _RENAMES[kind]:
        name = re.sub(pattern, replacement, name)
    return name
