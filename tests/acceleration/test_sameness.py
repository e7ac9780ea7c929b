"""Call after call, an accelerated network does what its twin does: results, arguments and state are compared."""

import copy
import dataclasses
import enum
import random
import types
from collections import OrderedDict, namedtuple
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies
from torch import Tensor, nn
from torch.nn.utils import prune

from separable import accelerate

Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Boxes:
    scores: Tensor
    note: str = ""


class Net(nn.Module):
    """Some layers and some state; `body` is its forward."""

    factor = 1.0  # an attribute of the class

    def __init__(self, body):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(2, 4, 6, 5))
        self.calls, self.scale, self.kept, self.notes = 0, 2.0, None, {"shift": 0.5}
        self.history: list[Any] = []
        self.options = types.SimpleNamespace(double=False)
        self.table, self.loose = np.ones(3), torch.zeros(4, 1, 1)
        self.body = body

    def forward(self, *args, **kwargs):
        return self.body(self, *args, **kwargs)


def image(seed: int = 0, **like) -> Tensor:
    return torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(seed), **like)


def assert_same(actual: Any, expected: Any, where: str = "result") -> None:
    """Equal in structure, type and value; tensors nearly so."""
    assert type(actual) is type(expected), where
    if isinstance(expected, Tensor):
        assert (actual.shape, actual.dtype, actual.stride()) == (expected.shape, expected.dtype, expected.stride()), (
            where
        )
        torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-4, atol=1e-5, equal_nan=True, msg=where)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected), where
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), where
        for i, pair in enumerate(zip(actual, expected, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif dataclasses.is_dataclass(expected):
        assert_same(vars(actual), vars(expected), where)
    else:
        assert actual == expected or (actual != actual and expected != expected), where  # or both are no number


def held(network: Net) -> dict[str, Any]:
    names = ("calls", "scale", "kept", "notes", "history", "loose")
    return {**{name: getattr(network, name) for name in names}, **dict(network.named_buffers())}


def aliases(*values: Any) -> list[tuple[int, int]]:
    """Which of all tensors share memory."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    pairs = ((i, j) for j in range(len(leaves)) for i in range(j))
    return [(i, j) for i, j in pairs if torch._C._is_alias_of(leaves[i], leaves[j])]


class Twins:
    """A network and an accelerated copy of it, called side by side."""

    def __init__(self, body, example: Any = None):
        self.network = Net(body).eval()
        self.copied = copy.deepcopy(self.network)
        before = copy.deepcopy(held(self.copied))
        self.fast = accelerate(self.copied, copy.deepcopy(example))
        if body not in TABLES:
            assert_same(held(self.copied), before, "state after planning")

    def call(self, *args: Any, **kwargs: Any) -> None:
        given, given_fast = (args, kwargs), copy.deepcopy((args, kwargs))  # keeps what is shared shared
        torch.manual_seed(11)
        expected = self.network(*args, **kwargs)
        drawn = torch.random.get_rng_state()
        torch.manual_seed(11)
        actual = self.fast(*given_fast[0], **given_fast[1])
        assert torch.equal(torch.random.get_rng_state(), drawn), "random numbers drawn"
        assert_same(actual, expected)
        assert_same(given_fast, given, "arguments")
        assert_same(held(self.copied), held(self.network), "state")
        assert aliases(given_fast, actual) == aliases(given, expected), "memory shared"

    @property
    def reasons(self) -> set[str]:
        return {row.reason for row in self.fast.report.left_alone}


@pytest.fixture(autouse=True, params=["no_grad", "grad"])
def grad_mode(request):
    with torch.set_grad_enabled(request.param == "grad"):
        yield


# ---- what a call depends on beside shapes


def test_one_tensor_twice_then_two():
    twins = Twins(lambda net, x, y: net.first(x) - net.second(y))
    x, y = image(1), image(2)
    for pair in ((x, x), (x, y), (y, y), (y, x)):
        twins.call(*pair)


@pytest.mark.parametrize(
    "nest",
    [lambda x, y: [x, y], lambda x, y: {"a": x, "b": [y]}, lambda x, y: (x, {"k": (y,)}), Pair],
    ids=["list", "dict", "tuple", "named"],
)
def test_tensors_nested_in_arguments(nest):
    def body(net, given):
        x, y = torch.utils._pytree.tree_leaves(given)
        return net.first(x) - net.second(y) if x is not y else net.first(x)

    twins, x, y = Twins(body), image(1), image(2)
    for pair in ((x, x), (x, y), (y, x), (x, x)):
        twins.call(nest(*pair))


def test_views_of_one_memory():
    def body(net, x, y):
        x.mul_(2)  # seen through y where they overlap
        return net.first(x) + net.second(y)

    twins, memory = Twins(body), torch.randn(480)
    half = memory[:240].view(2, 4, 6, 5)
    for other in (memory[240:].view(2, 4, 6, 5), half, half.view(-1).view(2, 4, 6, 5), image(4)):
        twins.call(half, other)


def test_an_input_that_is_a_tensor_of_the_network():
    twins = Twins(lambda net, x: net.first(x) * net.cache)
    twins.call(image())
    for network in (twins.network, twins.copied):
        network.cache.copy_(image(5))
    twins.call(image(1))
    actual, expected = twins.fast(twins.copied.cache), twins.network(twins.network.cache)
    assert_same(actual.detach(), expected.detach())
    twins.call(image(2))


@pytest.mark.parametrize("value", [0.0, -0.0, 0, False, float("nan"), 1, 1.0, True])
def test_arguments_that_are_equal_and_differ(value):
    def body(net, x, by):
        y = net.first(x)
        return y / by if isinstance(by, float) else y * by + (1 if by is True else 0)

    twins, x = Twins(body), image()
    for by in (0.0, -0.0, value, 1, 1.0, True, False, float("nan"), float("nan")):
        twins.call(x, by)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def test_other_arguments():
    def body(net, x, what=None, *, more=()):
        return net.first(x) * (2 if what is Colour.RED else 3) + len(more)

    twins, x = Twins(body), image()
    for kwargs in ({"what": Colour.RED}, {"what": Colour.BLUE}, {"more": [1]}, {"more": (1, 2)}, {"what": "red"}, {}):
        twins.call(x, **kwargs)


def test_an_argument_that_may_hold_anything():
    twins, box = Twins(lambda net, boxes: net.first(boxes.scores) * len(boxes.note)), Boxes(image(), "a")
    twins.call(box)
    box.note = "abc"
    twins.call(box)
    box.scores = image(7)
    twins.call(box)
    assert "may hold anything" in "".join(twins.reasons)


def test_autocast_inside_and_outside():
    twins, x = Twins(lambda net, x: net.first(x)), image()
    for inside in (True, False, True, False):
        with torch.autocast("cpu", enabled=inside):
            expected, actual = twins.network(x), twins.fast(x)
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected.detach(), rtol=1e-4, atol=1e-5)


def test_global_settings_that_a_network_reads():
    def body(net, x):
        y = net.first(x)
        y = y + torch.zeros((), dtype=torch.get_default_dtype()).to(y).numel()
        y = y * 2 if torch.is_grad_enabled() else y
        return {"y": y * 3 if torch.are_deterministic_algorithms_enabled() else y, "made": torch.ones(2)}

    twins, x = Twins(body), image()
    twins.call(x)
    with torch.no_grad():
        twins.call(x)
    with torch.enable_grad():
        twins.call(x)
    torch.use_deterministic_algorithms(True)
    try:
        twins.call(x)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float64)
    try:
        twins.call(x)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        twins.call(x)
    twins.call(x)


THRESHOLD = 1.0
LIMITS = {"high": 2.0}


def _reads_attribute(net, x):
    return net.first(x) * net.scale


def _reads_nested(net, x):
    return net.first(x) + net.notes["shift"] + len(net.history) * (2 if net.options.double else 1)


def _reads_class(net, x):
    return net.first(x) * net.factor


def _reads_globals(net, x):
    return net.first(x) * THRESHOLD + LIMITS["high"]


def _reads_array(net, x):
    return net.first(x) * float(net.table[0])


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        (_reads_attribute, [lambda net: setattr(net, "scale", 3.0), lambda net: setattr(net, "scale", -1.0)]),
        (_reads_nested, [lambda net: net.notes.update(shift=3.0), lambda net: net.history.append(1)]),
        (_reads_nested, [lambda net: net.history.append(1), lambda net: setattr(net.options, "double", True)]),
        (_reads_array, [lambda net: net.table.__setitem__(0, 4.0)]),
        (_reads_attribute, [lambda net: net.first.weight.mul_(2), lambda net: net.first.bias.zero_()]),
        (_reads_attribute, [lambda net: setattr(net, "first", nn.Conv2d(4, 4, 1, bias=False))]),
        (_reads_attribute, [lambda net: net.first.register_parameter("bias", None)]),
        (_reads_attribute, [lambda net: net.first.register_forward_hook(lambda *_: _[2] * 2)]),
    ],
)
def test_state_that_others_change_between_calls(body, changes):
    twins, x = Twins(body, image()), image(3)
    twins.call(x)
    for change in changes:
        torch.manual_seed(5)
        with torch.no_grad():
            change(twins.network)
        torch.manual_seed(5)
        with torch.no_grad():
            change(twins.copied)
        twins.call(x)
        twins.call(image(4))


@pytest.mark.parametrize(
    "write",
    [
        lambda net: net[0].half().float(),
        lambda net: nn.utils.vector_to_parameters(torch.randn(160), net.parameters()),
        lambda net: prune.remove(prune.l1_unstructured(net[0], "weight", 0.5), "weight"),
        lambda net: setattr(net[0].weight, "data", torch.randn_like(net[0].weight)),
        lambda net: setattr(net[2], "__class__", nn.SiLU),
        *(lambda net, kind=kind: take_fused_step(net, kind) for kind in (torch.optim.SGD, torch.optim.Adam)),
    ],
)
def test_weights_that_others_write_where_torch_counts_no_version(write):
    network, x = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), torch.randn(2, 4, 8, 8)
    fast = accelerate(network, x)
    with torch.no_grad():
        fast(x)
    write(network)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-5)


@torch.enable_grad()
def take_fused_step(network, kind):
    optimizer = kind(network.parameters(), lr=0.1, fused=True)
    network(torch.randn(2, 4, 8, 8)).square().mean().backward()
    optimizer.step()


@torch.no_grad()
def test_a_global_that_is_called_as_an_attribute_is_no_obstacle(monkeypatch):
    monkeypatch.setitem(globals(), "first", None)  # the body names an attribute so
    twins = Twins(lambda net, x: net.first(x), image())
    for seed in range(3):
        monkeypatch.setitem(globals(), "first", accelerate(nn.Conv2d(4, 4, 3).eval(), image(seed)))
        twins.call(image(seed))
    assert not twins.reasons


@torch.no_grad()
def test_settings_of_torchs_own_layers_that_others_change():
    layers = (
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(3, 1, 1),
        nn.Upsample(None, 2),
    )
    network, x = nn.Sequential(*layers).eval(), torch.randn(2, 4, 8, 8)
    fast = accelerate(network, x)
    for layer, name, value in (
        *((0, "stride", (2, 2)), (1, "eps", 3.0), (2, "negative_slope", 0.7)),
        *((3, "padding", 0), (4, "scale_factor", 3), (4, "mode", "bilinear"), (2, "forward", torch.sigmoid)),
    ):
        setattr(network[layer], name, value)
        for _ in range(2):
            torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-5)


def test_classes_globals_and_closures_that_others_change(monkeypatch):
    shift = 1.0

    def reads_closure(net, x):
        return net.first(x) + shift

    x = image()
    bodies = [Twins(body) for body in (_reads_class, _reads_globals, reads_closure)]
    for step in range(3):
        monkeypatch.setattr(Net, "factor", step + 1.0)
        monkeypatch.setitem(globals(), "THRESHOLD", step + 2.0)
        monkeypatch.setitem(LIMITS, "high", step + 3.0)
        shift = step + 4.0
        for twins in bodies:
            twins.call(x)
            twins.call(x)


# ---- what a call does


def _counts_in_python(net, x):
    net.calls += 1
    return net.first(x) * net.calls


def _counts_in_a_buffer(net, x):
    net.seen += 1
    return net.first(x) * net.seen


def _keeps_a_list(net, x):
    net.history.append(len(net.history))
    return net.first(x) * len(net.history)


def _keeps_a_tensor(net, x):
    y = net.first(x)
    net.kept = y if net.kept is None else net.kept + y
    return net.second(net.kept)


def _keeps_a_tensor_by_key(net, x):
    net.notes.setdefault("last", net.first(x))
    return net.second(x) + net.notes["last"]


def _writes_a_view_of_a_buffer(net, x):
    net.cache[:, 1:2] += net.first(x)[:, :1]
    return net.second(net.cache)


def _writes_a_tensor_that_is_no_buffer(net, x):
    net.loose.add_(1)
    return net.first(x) + net.loose


def _assigns_a_buffer(net, x):
    net.cache = net.first(x) + net.cache
    return net.cache * 1


def _makes_its_constant_once(net, x):
    if net.kept is None:
        net.kept = torch.arange(4.0).view(4, 1, 1)
    return net.first(x) + net.kept


def _keeps_a_constant_for_each_size(net, x):
    if x.shape[2] not in net.notes:
        net.notes[x.shape[2]] = torch.linspace(0, 1, x.shape[2]).view(-1, 1)
    return net.first(x) + net.notes[x.shape[2]]


def _returns_what_it_keeps(net, x):
    net.notes["y"] = net.first(x)
    return net.notes


def _returns_a_list_that_it_keeps(net, x):
    return {"y": net.first(x), "history": net.history}


def _writes_its_input(net, x):
    x.sub_(0.5).div_(2)
    return net.first(x)


def _writes_a_slice_of_its_input(net, x):
    x[:, 1] = net.first(x)[:, 0]
    return net.second(x)


def _writes_its_input_by_out(net, x):
    torch.add(x, 1, out=x)
    return net.first(x)


def _returns_its_input_written(net, x):
    return x.relu_(), net.first(x)


def _returns_its_input(net, x):
    return net.first(x), x, x.view(2, -1)


def _returns_views_of_one_result(net, x):
    y = net.first(x)
    return y, y.view(2, -1), y.permute(0, 2, 3, 1), y[:, 1:3], y


def _returns_pieces(net, x):
    return net.first(x).chunk(2, 1)


def _returns_a_constant(net, x):
    return net.first(x), torch.ones(3) * 2, net.first.weight.detach().sum() * 1


def _returns_a_parameter_and_a_buffer(net, x):
    return net.first(x), net.cache


def _returns_a_dataclass(net, x):
    return Boxes(net.first(x), f"{tuple(x.shape)}")


def _returns_named_and_nested(net, x):
    y = net.first(x)
    return OrderedDict(a=Pair(y, [y + 1, {"b": y * 2}]), c=(None, 3, "text", y.shape, y.dtype))


def _divides_by_zero(net, x):
    return net.first(x) / 0, net.second(x) / -0.0, F.relu(x - x) / 0


def _divides_by_the_smallest(net, x):
    return net.first(x) / 1e-40, net.first(x) / 1e40, net.first(x) * 1e-40 / 1e-40


def _draws(net, x):
    return net.first(x) + torch.rand(4, 1, 1), F.dropout(x, 0.5, training=True)


def _draws_in_python(net, x):
    return net.first(x) * random.Random(3).random() * (random.random() * 0 + 1)


def _asks_for_identity(net, x):
    y = net.first(x)
    z = y.contiguous()
    return z + 1 if z is y else z + 2


def _writes_a_constant_it_returns(net, x):
    table = torch.zeros(3)
    table[1] = 5
    return net.first(x), table


def _changes_its_shape_in_place(net, x):
    y = net.first(x)
    y.unsqueeze_(0)
    return y, x.t_() if x.dim() == 2 else net.second(x)


TABLES = (_makes_its_constant_once, _keeps_a_constant_for_each_size)  # gained by planning too: they hold for any input
EFFECTS = [
    value for name, value in list(globals().items()) if name.startswith("_") and isinstance(value, types.FunctionType)
]
EFFECTS = [body for body in EFFECTS if not body.__name__.startswith("_reads")]


@pytest.mark.parametrize("body", EFFECTS, ids=lambda body: body.__name__.strip("_"))
@pytest.mark.parametrize("planned", [False, True])
def test_what_a_call_does(body, planned):
    twins = Twins(body, image() if planned else None)
    for seed in (0, 1, 1, 2, 3, 4, 5):
        twins.call(image(seed))


@pytest.mark.parametrize("body", TABLES)
def test_state_that_settles_is_no_obstacle(body):
    twins = Twins(body)
    for seed in range(4):
        twins.call(image(seed))
    assert not any("changes" in reason for reason in twins.reasons), twins.reasons


def test_results_belong_to_the_caller():
    twins = Twins(_returns_a_constant)
    for seed in range(3):
        twins.call(image(seed))
        for made in twins.fast(image(seed))[:2]:
            made.fill_(float("nan"))


def test_a_caller_that_changes_what_it_was_given():
    def body(net, given):
        given["made"] = net.first(given["x"])
        return given["made"] + 1

    twins = Twins(body)
    for seed in range(5):
        twins.call({"x": image(seed)})


def test_planning_draws_no_random_numbers():
    network = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()).eval()  # of which forms are timed
    x, before = torch.randn(1, 16, 8, 8), torch.random.get_rng_state()
    fast = accelerate(network, x)
    fast(x)
    accelerate(network)(x)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_errors_are_the_networks_own():
    def body(net, x):
        if x.shape[0] == 1:
            raise KeyError("one image")
        return net.first(x)

    twins = Twins(body)
    for _ in range(2):
        twins.call(image())
        with pytest.raises(KeyError, match="one image"):
            twins.fast(image()[:1])


# ---- networks drawn at random

STEPS = {
    "convolve": lambda net, s: s["y"].append(net.first(s["y"][-1])),
    "filter": lambda net, s: s["y"].append(net.second(s["y"][-1])),
    "relu in place": lambda net, s: s["y"].append(s["y"][-1].relu_()),
    "add in place": lambda net, s: s["y"][-1].add_(s["y"][0]),
    "keep a view": lambda net, s: s["y"].insert(0, s["y"][-1][:, :].permute(0, 1, 2, 3)),
    "write a slice": lambda net, s: s["y"][-1][:, 1:3].copy_(s["y"][0][:, :2] + 1),
    "write the other": lambda net, s: s["x"][-1].mul_(0.5),
    "add the other": lambda net, s: s["y"].append(s["y"][-1] + s["x"][-1]),
    "is it the same": lambda net, s: s["y"].append(s["y"][-1] * (2 if s["x"][0] is s["x"][-1] else 3)),
    "count": lambda net, s: setattr(net, "calls", net.calls + 1) or s["y"].append(s["y"][-1] * net.calls),
    "remember once": lambda net, s: s["y"].append(s["y"][-1] + net.notes.setdefault("t", torch.rand(4, 1, 1))),
    "count in a buffer": lambda net, s: net.seen.add_(1) and s["y"].append(s["y"][-1] + net.seen),
    "write a buffer": lambda net, s: net.cache[0].add_(s["y"][-1][0]),
    "read a buffer": lambda net, s: s["y"].append(s["y"][-1] + net.cache),
    "read an attribute": lambda net, s: s["y"].append(s["y"][-1] * net.scale),
    "draw": lambda net, s: s["y"].append(s["y"][-1] + torch.rand(1)),
    "result": lambda net, s: s["out"].append(s["y"][-1]),
    "result as a view": lambda net, s: s["out"].append({"v": s["y"][-1].view(2, 4, -1)}),
    "result as an object": lambda net, s: s["out"].append(Boxes(s["y"][-1])),
    "result of shape": lambda net, s: s["out"].append(Pair(s["y"][-1].shape, s["x"][-1])),
}


@hypothesis.settings(
    max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
    steps=strategies.lists(strategies.sampled_from(sorted(STEPS)), min_size=1, max_size=7),
    calls=strategies.lists(strategies.sampled_from(["xx", "xy", "yx", "xv", "x", "scale"]), min_size=2, max_size=6),
    planned=strategies.booleans(),
)
def test_networks_drawn_at_random(steps, calls, planned):
    def body(net, x, others=()):
        s = {"x": [x, *others], "y": [net.first(x)], "out": []}
        for step in steps:
            STEPS[step](net, s)
        return [*s["out"], s["y"][-1]]

    twins = Twins(body, image() if planned else None)
    for i, kind in enumerate(calls):
        x, y = image(i), image(i + 10)
        if kind == "scale":
            twins.network.scale = twins.copied.scale = float(i)
        others = {"xx": [x], "xy": [y], "yx": [y], "xv": [x.view(-1).view(2, 4, 6, 5)]}.get(kind)
        twins.call(x, others) if others else twins.call(x)
