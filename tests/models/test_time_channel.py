"""The causal network: nothing sees the future, and steps of any length give what the whole gives."""

import pytest
import torch
from torch import nn

from separable import cost
from separable.errors import InputError
from separable.models.time_channel import TimeChannelNet


def network(**options):
    """In float64, with statistics as after training."""
    made = TimeChannelNet(**{"num_classes": 5, "bands": 8, "channels": 12, "memory": 7, **options}).double()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return made.eval()


def in_steps(net, frames, sizes):
    state, scores = net.start(len(frames)), []
    for part in frames.split(sizes, 1):
        found, state = net.step(part, state)
        scores.append(found)
    return torch.cat(scores, 1), state


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [3, 0, 1, 20, 2, 34], [59, 1]])
@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "dilations": (1, 4, 2)}, {"memory": 1}, {"memory": 200}])
def test_steps_of_any_length_give_the_scores_of_the_whole(sizes, options):
    net, frames = network(**options), torch.randn(2, 60, 8, dtype=torch.float64)
    with torch.inference_mode():
        found, _ = in_steps(net, frames, sizes)
        for t in (0, 1, 5, 6, 7, 30, 59):  # the whole network, padded causally, on all that was heard so far
            torch.testing.assert_close(found[:, t], net(frames[:, : t + 1]), atol=1e-12, rtol=1e-10)


def test_scores_do_not_see_the_future():
    net, frames = network(), torch.randn(1, 40, 8, dtype=torch.float64)
    other = frames.clone()
    other[:, 20:] += torch.randn(1, 20, 8)
    a, b = (net.step(x, net.start())[0] for x in (frames, other))
    assert torch.equal(a[:, :20], b[:, :20])
    assert (a[:, 20:] != b[:, 20:]).any(2).all(), "the present must be heard"


def test_what_is_remembered_does_not_grow():
    net = network()
    sizes = set()
    with torch.inference_mode():
        state = net.start()
        for _ in range(300):
            _, state = net.step(torch.randn(1, 11, 8, dtype=torch.float64), state)
            stored = [*state.held, state.recent]
            sizes.add(sum(x.untyped_storage().nbytes() for x in stored))  # of the whole storage, views included
            assert state.frames <= net.memory
    assert sizes == {sum(x.numel() * 8 for x in [*net.start().held, net.start().recent])}


def test_folded_it_is_the_same_function_whole_and_in_steps():
    net, frames = network(), torch.randn(2, 33, 8, dtype=torch.float64)
    folded = net.folded()
    assert not any(isinstance(module, nn.BatchNorm1d) for module in folded.modules())
    torch.testing.assert_close(folded(frames), net(frames))
    torch.testing.assert_close(in_steps(folded, frames, [5] * 6 + [3])[0], in_steps(net, frames, [33])[0])


def test_its_cost_is_that_of_its_separable_layers():
    counted = cost.count(TimeChannelNet(num_classes=10).eval().folded(), torch.zeros(1, 49, 40))
    first, other = 40 * 5 + 40 * 64, 64 * 5 + 64 * 64
    assert counted.params == first + 64 + 5 * (other + 64) + 64 * 10 + 10
    assert counted.macs == 49 * (first + 5 * other) + 640


def test_arguments_that_break_a_rule_are_refused():
    for name in ("num_classes", "bands", "channels", "memory"):
        with pytest.raises(InputError, match=f"{name} = 0"):
            TimeChannelNet(**{name: 0})
