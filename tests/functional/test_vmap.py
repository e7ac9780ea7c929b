"""torch.vmap over operators called by name agrees with a loop over the members."""

import pytest
import torch

from separable import functional  # noqa: F401 - defines the operators

X, DW, PW = torch.randn(3, 2, 8, 6, 6), torch.randn(8, 1, 3, 3), torch.randn(3, 8, 8, 1, 1)
WINDOW = ([1, 1], [1, 1, 1, 1], [1, 1])
separable = torch.ops.separable


def last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


CALLS = {
    "depthwise_conv": lambda x, pw: separable.depthwise_conv(x, DW, None, *WINDOW),
    "depthwise_conv_inference": lambda x, pw: separable.depthwise_conv_inference(x, DW, None, *WINDOW, 1),
    "depthwise_conv_backward": lambda x, pw: separable.depthwise_conv_backward(x, x, DW, *WINDOW, True, True, True),
    "separable_conv": lambda x, pw: separable.separable_conv(x, DW, pw, None, None, *WINDOW, False, 1),
    "separable_conv_inference": lambda x, pw: separable.separable_conv_inference(
        x, DW, pw, None, None, *WINDOW, False, 1, 2
    ),
    "separable_conv_backward": lambda x, pw: separable.separable_conv_backward(
        x, x, DW, pw, None, None, *WINDOW, False, 1, True
    ),
    "batch_norm": lambda x, pw: separable.batch_norm(x, None, None, 1e-5, 1),
    "batch_norm_backward": lambda x, pw: separable.batch_norm_backward(
        x, x, None, None, torch.zeros(8), torch.ones(8), 1e-5, 1
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_agrees_with_a_loop(name):
    call, x = CALLS[name], last(X)
    looped = [call(x[i], PW[i]) for i in range(3)]
    actual = torch.vmap(call)(x, PW)
    if isinstance(actual, torch.Tensor):
        actual, looped = (actual,), [(member,) for member in looped]
    for part, members in zip(actual, zip(*looped, strict=True), strict=True):
        torch.testing.assert_close(part, torch.stack(members))


def test_goes_over_any_dimension_and_leaves_shared_arguments_alone():
    call = CALLS["separable_conv_inference"]
    actual = torch.vmap(call, in_dims=(1, None))(last(X).movedim(0, 1), PW[0])
    torch.testing.assert_close(actual, torch.stack([call(x, PW[0]) for x in last(X)]))
