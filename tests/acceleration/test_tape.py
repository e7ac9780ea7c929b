"""What cannot be followed is left alone and says why; where memory is shared or written, results stay right."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from separable import _native, accelerate
from separable.acceleration.state import State
from separable.acceleration.tape import follow

_elsewhere = torch.rand(1)


class _Body(nn.Module):
    """A network whose forward is a function of itself and the input, between two convolutions' worth of weights."""

    def __init__(self, body):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.register_buffer("count", torch.zeros(()))
        self.table = [torch.randn(4, 1, 1)]
        self.body = body

    def forward(self, x):
        return self.body(self, x)


def _agrees(body, **fast_has) -> None:
    network, x = _Body(body).eval(), torch.randn(2, 4, 6, 5)
    with torch.no_grad():
        expected = network(x.clone())
        fast = accelerate(network, x.clone())
        actual = fast(x.clone())
    for a, e in zip(actual, expected, strict=True) if isinstance(expected, tuple) else [(actual, expected)]:
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


def _relu_in_place_of_a_shared_value(net, x):
    y = net.first(x)
    return net.second(F.relu_(y)) + y  # y is positive now


def _view_made_before_the_write(net, x):
    y = net.first(x)
    rows = y.permute(0, 2, 3, 1)
    y.mul_(2).relu_()
    return net.second(y) + rows.permute(0, 3, 1, 2)


def _slice_written(net, x):
    y = net.first(x)
    y[:, 1:3] = net.second(x)[:, :2]
    return net.second(y)


def _constant_filled_with_values(net, x):
    y = torch.zeros(2, 4, 6, 5)
    y[:, :2] = net.first(x)[:, 2:]
    return net.second(y)


def _constant_used_then_written(net, x):
    shift = torch.ones(4, 1, 1)
    y = net.first(x) + shift
    shift.mul_(3)
    return net.second(y) * shift


def _input_written(net, x):
    x.relu_()
    return net.first(x) + x


def _both_before_and_after(net, x):
    y = net.second(net.first(x))
    before = y + 1
    return before, y.sigmoid_(), y


def _operation_without_a_kernel_in_place(net, x):
    y = net.first(x)
    z = net.second(y)
    y.cumsum_(2)
    return net.second(y) + z


def _reshapes_that_must_copy(net, x):
    y = net.first(x).view(2, 2, 2, 6, 5).transpose(1, 2).reshape(2, 4, 6, 5)  # a channel shuffle
    tokens = net.second(y).flatten(2).transpose(1, 2)
    return net.first((tokens * 2).transpose(1, 2).reshape(2, 4, 6, 5)), tokens


def _pieces_and_joins(net, x):
    a, b = net.first(x).chunk(2, dim=1)
    c, d, e, f = net.second(x).split(1, dim=1)
    return net.second(torch.cat([d, b, c * 2], 1)), torch.cat([a, e], 1), f


def _loose_tensor(net, x):
    return net.second(net.first(x) * net.table[0])


def _global_tensor(net, x):
    return net.second(net.first(x) * _elsewhere)


@pytest.mark.parametrize(
    "body",
    [
        _relu_in_place_of_a_shared_value,
        _view_made_before_the_write,
        _slice_written,
        _constant_filled_with_values,
        _constant_used_then_written,
        _input_written,
        _both_before_and_after,
        _operation_without_a_kernel_in_place,
        _reshapes_that_must_copy,
        _pieces_and_joins,
        _loose_tensor,
        _global_tensor,
    ],
    ids=lambda body: body.__name__.strip("_"),
)
def test_agrees_with_torch_where_memory_is_shared(body):
    _agrees(body)


def _decides(net, x):
    return net.first(x) if x.sum() > 0 else net.second(x)


def _reads_in_python(net, x):
    return net.first(x) * float(x.mean().tolist())


def _finds_where(net, x):
    return net.first(x)[x > 0]


def _counts(net, x):
    net.count += 1
    return net.first(x) * net.count


_unseen = weakref.ref(_elsewhere)


def _uses_a_tensor_of_unknown_origin(net, x):
    return net.first(x) * _unseen()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (_decides, "decides by the values"),
        (_reads_in_python, "reads values in Python"),
        (_finds_where, "decides by the values"),
        (_counts, "writes a parameter or buffer"),
        (_uses_a_tensor_of_unknown_origin, "neither an input nor a parameter"),
    ],
    ids=lambda case: case.__name__.strip("_") if callable(case) else "",
)
def test_what_cannot_be_followed_runs_as_it_is_and_says_why(body, reason):
    network, x = _Body(body).eval(), torch.randn(2, 4, 6, 5)
    assert reason in follow(network, (x,), {}, State(network)).reason
    network.count.zero_()
    fast = accelerate(network)
    for given in (x, -x):
        count = network.count.clone()
        expected = network(given)
        network.count.copy_(count)
        assert torch.equal(fast(given), expected)
        network.count.copy_(count)
    assert [row.operation for row in fast.report.left_alone] == ["_Body"]
    assert reason in fast.report.left_alone[0].reason


def test_random_operations_are_drawn_anew():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) + torch.randn(1)

    fast, x = accelerate(Noisy().eval()), torch.randn(1, 3, 4, 4)
    assert not torch.equal(fast(x), fast(x))


def test_modules_with_hooks_run_whole_and_their_hooks_with_them():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)).eval()
    seen = []
    network[2].register_forward_hook(lambda module, inputs, output: seen.append(output.shape) or output * 2)
    x = torch.randn(2, 3, 6, 6)
    fast = accelerate(network, x)
    seen.clear()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), network(x), rtol=1e-5, atol=1e-5)
    assert seen == [(2, 8, 4, 4)] * 2  # once each: also the accelerated one called it
    assert ("Conv2d", "the module has forward hooks") in [(r.operation, r.reason) for r in fast.report.left_alone]
    assert bool(_native.missing) or {row.layer for row in fast.report.rows if row.is_native} == {"0", "1", "3"}


def test_a_hooked_module_that_writes_its_input_is_seen():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1)).eval()
    network[1].register_forward_hook(lambda *_: None)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(accelerate(network)(x), network(x), rtol=1e-5, atol=1e-5)


def test_weights_that_are_computed_are_computed_once():
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU()).eval()
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        fast = accelerate(network, x)
        torch.testing.assert_close(fast(x), network(x), rtol=1e-5, atol=1e-5)
    assert [row.operation for row in fast.report.rows] == ["aten::conv2d", "aten::relu"]


def test_weights_that_depend_on_the_input_are_left_alone():
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights, self.conv = nn.Linear(3, 4 * 3), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            weight = self.weights(x.mean((2, 3))).view(-1, 4, 3, 1, 1)
            return F.conv2d(self.conv(x), weight[0])

    network, x = Dynamic().eval(), torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        fast = accelerate(network, x)
        torch.testing.assert_close(fast(x), network(x), rtol=1e-5, atol=1e-5)
    assert "its weight is computed from the input" in {row.reason for row in fast.report.left_alone}


def test_compiled_and_scripted_parts_stand_whole():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.script = nn.Conv2d(3, 3, 1), torch.jit.script(nn.Conv2d(3, 3, 1))

        def forward(self, x):
            return self.script(self.conv(x))

    network, x = Parts().eval(), torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(accelerate(network)(x), network(x), rtol=1e-5, atol=1e-5)


def test_lookups_are_followed_and_masks_are_not():
    class Lookup(nn.Module):
        def __init__(self, by_mask):
            super().__init__()
            self.conv, self.by_mask = nn.Conv2d(3, 3, 1), by_mask
            self.register_buffer("order", torch.tensor([2, 0, 1]))

        def forward(self, x):
            y = self.conv(x)[:, self.order]
            return y[y > 0] if self.by_mask else self.conv(y[:, torch.tensor([True, True, True])])

    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        for by_mask in (False, True):
            network = Lookup(by_mask).eval()
            fast = accelerate(network, x)
            torch.testing.assert_close(fast(x), network(x), rtol=1e-5, atol=1e-5)
            assert any("decides" in row.reason for row in fast.report.left_alone) == by_mask


def test_what_is_not_read_any_more_is_not_kept_in_memory():
    class Alternating(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(6))

        def forward(self, x):
            for conv in self.convs:
                x = conv(x).cumsum(1)  # torch's own, between two programs
            return x

    network, x = Alternating().eval(), torch.randn(1, 16, 8, 8)
    fast = accelerate(network, x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-4)
    if _native.missing:
        return
    made, empty = [], torch.empty_strided
    try:
        torch.empty_strided = lambda *args, **kwargs: made.append(weakref.ref(y := empty(*args, **kwargs))) or y
        alive = []
        plan = next(iter(fast._plans.values()))
        plan._actions = [
            lambda env, act=act: (act(env), alive.append(sum(r() is not None for r in made))) for act in plan._actions
        ]
        fast(x)
    finally:
        torch.empty_strided = empty
    assert len(made) >= 6
    assert max(alive) <= 3


def test_a_view_of_an_early_result_may_be_shown_late():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.first(x)
            z = self.second(y.cumsum(1))
            return self.second(z), y.permute(0, 2, 3, 1)[:, 1:].cumsum(3)

    network, x = Late().eval(), torch.randn(2, 3, 5, 4)
    with torch.no_grad():
        for actual, expected in zip(accelerate(network)(x), network(x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
