"""One convolution in one form, nearest to it in weights, or, given the moments of its input, in outputs."""

from typing import Any

import torch
from torch import nn

from separable.conversion import chain
from separable.conversion.fitting import approximate
from separable.conversion.forms import FORMS, Shape
from separable.conversion.moments import Moments, Whitening
from separable.conversion.patches import grouped_weight
from separable.conversion.stays import why_not
from separable.errors import InputError


@torch.inference_mode(False)
@torch.no_grad()
def factorize(
    conv: Any, form: str = "polyadic", rank: int | None = None, moments: Moments | None = None
) -> nn.Sequential:
    """The chain of convolutions of this form and rank nearest to `conv`; exact at full rank, which is also the default.

    Args:
        conv: torch's convolution, plain or transposed, of one to three dimensions, with a kernel of more than one tap.
        form: one of `separable.conversion.forms.FORMS`.
        rank: at most the form's full rank for this layer.
        moments: of what the layer reads, as `survey` gives them.

    Returns:
        A Sequential of the same input and output, dtype, device and training flag.

    Raises:
        InputError: a layer that has no such form, with the reason, or a rank outside 1 ... full rank.

    >>> conv = nn.Conv2d(8, 16, 3, padding=1)
    >>> x = torch.randn(1, 8, 6, 6)
    >>> torch.allclose(factorize(conv, "depthwise first")(x), conv(x), atol=1e-5)
    True
    >>> factorize(conv, rank=12).conv_dw.weight.shape
    torch.Size([12, 1, 3, 3])
    """
    reason = why_not(conv)
    if reason:
        raise InputError("conv", repr(conv), f"cannot be made separable: {reason}")
    if form not in FORMS:
        raise InputError("form", form, f"must be one of {', '.join(FORMS)}")
    shape, taken = Shape.of(conv), FORMS[form]
    if not taken.possible(shape):
        raise InputError("form", form, f"does not differ from another form, or from the layer itself, for {conv!r}")
    full = taken.full_rank(shape)
    rank = full if rank is None else rank
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= full:
        raise InputError("rank", rank, f"must be a whole number from 1 to {full}, the full rank of this layer")
    weight = grouped_weight(conv)
    if moments is None:
        factors = [factor.double() for factor in taken.start(weight, shape, rank)]
    else:
        whitening = Whitening(moments, torch.ones(weight.shape[:2], dtype=torch.float64))
        factors = approximate(taken, weight, shape, rank, whitening)
    return chain.assemble(conv, taken, rank, factors, conv.bias)
