"""What a saved network may call, and nothing else: functions, tensor methods, attributes, module classes.

A model.json names operations; a name that is not here is refused when saving, with the line that needs it, and when
loading, so that a file from anywhere can compute with tensors and do nothing besides.
"""

import math
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from separable import functional, layers

_TORCH = """
abs acos add addcdiv addcmul addmm all amax amin any arange argmax argmin asin atan atan2 baddbmm batch_norm bmm
broadcast_to bucketize cat ceil chunk clamp clamp_max clamp_min clip clone column_stack concat conj conv1d conv2d
conv3d conv_transpose1d conv_transpose2d conv_transpose3d cos cosh count_nonzero cross cumprod cumsum diag diagonal
diff div dropout dsplit dstack einsum eq equal erf erfc exp expm1 eye flatten flip floor floor_divide fmod frac full
full_like gather ge group_norm gt hsplit hstack index_select instance_norm isfinite isinf isnan layer_norm le lerp
linspace log log10 log1p log2 log_softmax logaddexp logical_and logical_not logical_or logical_xor logsumexp lt
masked_fill matmul max maximum mean median meshgrid min minimum mm moveaxis movedim mul multiply mv nan_to_num narrow
ne neg nonzero norm normal numel ones ones_like outer permute pixel_shuffle pixel_unshuffle pow prelu prod reciprocal
relu remainder repeat_interleave reshape rms_norm roll round rsqrt rsub scatter select selu sigmoid sign sin sinh
softmax sort split sqrt square squeeze stack std std_mean sub subtract sum swapaxes swapdims t take take_along_dim tan
tanh tensor_split tensordot tile topk transpose tril triu true_divide trunc unbind unflatten unsqueeze var var_mean
vsplit vstack where zeros zeros_like
"""
_FUNCTIONAL = """
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu celu_
channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity dropout
dropout1d dropout2d dropout3d elu elu_ embedding feature_alpha_dropout fold gelu glu grid_sample group_norm hardshrink
hardsigmoid hardswish hardtanh hardtanh_ instance_norm interpolate layer_norm leaky_relu leaky_relu_ linear
local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d max_pool1d max_pool2d max_pool3d max_unpool2d mish
normalize one_hot pad pairwise_distance pdist pixel_shuffle pixel_unshuffle prelu relu relu6 relu_ rms_norm rrelu
rrelu_ scaled_dot_product_attention selu selu_ sigmoid silu softmax softmin softplus softshrink softsign tanh
tanhshrink threshold threshold_ unfold upsample
"""
_OPERATOR = """
abs add and_ eq floordiv ge getitem gt iadd iand imul index invert isub itruediv le lt matmul mod mul ne neg not_ or_
pos pow sub truediv xor
"""
_METHODS = """
abs add add_ addcmul all amax amin any argmax argmin baddbmm bfloat16 bmm bool broadcast_to ceil chunk clamp clamp_
clamp_max clamp_min clip clone contiguous cos cumsum detach dim div div_ double eq erf exp expand expand_as expm1
flatten flip float floor floor_divide gather ge gt half index_select int is_floating_point le lerp log log1p
log_softmax logical_and logical_not logical_or logsumexp long lt masked_fill masked_fill_ matmul max maximum mean
median min minimum mm movedim mul mul_ narrow ndimension ne neg new_full new_ones new_tensor new_zeros norm numel
permute pow prod reciprocal relu relu_ repeat repeat_interleave reshape reshape_as roll round rsqrt select sigmoid
sigmoid_ sign sin size softmax sort split split_with_sizes sqrt square squeeze std sub sub_ sum swapaxes swapdims t
tanh tanh_ tile to topk transpose tril triu type_as unbind unflatten unfold unsqueeze var view view_as where
"""
_MODULES = """
AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
AlphaDropout AvgPool1d AvgPool2d AvgPool3d BatchNorm1d BatchNorm2d BatchNorm3d Bilinear CELU ChannelShuffle
CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d Conv1d Conv2d Conv3d
ConvTranspose1d ConvTranspose2d ConvTranspose3d CosineSimilarity Dropout Dropout1d Dropout2d Dropout3d ELU Embedding
FeatureAlphaDropout Flatten Fold GELU GLU GRU GroupNorm Hardshrink Hardsigmoid Hardswish Hardtanh Identity
InstanceNorm1d InstanceNorm2d InstanceNorm3d LPPool1d LPPool2d LSTM LayerNorm LeakyReLU Linear LocalResponseNorm
LogSigmoid LogSoftmax MaxPool1d MaxPool2d MaxPool3d Mish MultiheadAttention PReLU PixelShuffle PixelUnshuffle RMSNorm
RNN RReLU ReLU ReLU6 ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d
ReplicationPad3d SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign Tanh Tanhshrink Threshold
Unflatten Unfold Upsample UpsamplingBilinear2d UpsamplingNearest2d ZeroPad1d ZeroPad2d ZeroPad3d
"""
_LAYERS = (
    *(f"DepthwiseConv{n}d" for n in (1, 2, 3)),
    *(f"DepthwiseConvTranspose{n}d" for n in (1, 2, 3)),
    *(f"SeparableConv{n}d" for n in (1, 2, 3)),
    *(f"SeparableConvTranspose{n}d" for n in (1, 2, 3)),
)

# Containers hold modules and are never called: the graph calls what is inside.
CONTAINERS: dict[str, type[nn.Module]] = {
    "Module": nn.Module,
    "Sequential": nn.Sequential,
    "ModuleList": nn.ModuleList,
    "ModuleDict": nn.ModuleDict,
}
MODULES: dict[str, type[nn.Module]] = {
    **{f"torch.nn.{name}": getattr(nn, name) for name in _MODULES.split() if hasattr(nn, name)},
    **{f"separable.layers.{name}": getattr(layers, name) for name in _LAYERS},
}
FUNCTIONS: dict[str, Callable] = {
    **{f"torch.{name}": getattr(torch, name) for name in _TORCH.split() if hasattr(torch, name)},
    **{f"torch.nn.functional.{name}": getattr(F, name) for name in _FUNCTIONAL.split() if hasattr(F, name)},
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATOR.split()},
    **{f"math.{name}": getattr(math, name) for name in ("sqrt", "floor", "ceil", "log")},
    **{f"separable.functional.{name}": getattr(functional, name) for name in functional.__all__},
    "getattr": getattr,  # of the ATTRIBUTES alone
}
METHODS = frozenset(_METHODS.split())
ATTRIBUTES = frozenset(("shape", "ndim", "dtype", "device", "T", "mT"))

FUNCTION_NAMES: dict[Callable, str] = {function: name for name, function in reversed(FUNCTIONS.items())}
MODULE_NAMES: dict[type[nn.Module], str] = {kind: name for name, kind in MODULES.items()}
