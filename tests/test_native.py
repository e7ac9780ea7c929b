"""The native library: what it computes on every instruction set, dtype and layout, and what happens without it.

Judged by the reference in float64. Without the library everything here skips, with its reason.
"""

import os
import subprocess
import sys

import pytest
import torch

import cases
from separable import _native, functional
from separable.errors import InputError
from separable.functional import depthwise_conv_ways
from separable.functional.arguments import ACTIVATIONS
from tolerance import tolerance

pytestmark = pytest.mark.skipif(bool(_native.missing), reason=f"no native library: {_native.missing}")

CONV = {1: functional.depthwise_conv1d, 2: functional.depthwise_conv2d, 3: functional.depthwise_conv3d}
OPERATORS = torch.ops.separable


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def tensors(case, form):
    """Input, weight and bias in float64; "spread" is [C*m, 1, k...], "sum" is [C/m, m, k...]."""
    if form == "spread":
        return case.input(), *case.depthwise()
    m = max(case.multiplier, 2)
    x = torch.randn(case.batch, case.channels * m, *case.size, dtype=torch.float64)
    weight = torch.randn(case.channels, m, *case.kernel, dtype=torch.float64)
    return x, weight, torch.randn(case.channels, dtype=torch.float64)


def run(case, values, dtype, layout, impl):
    """Output and the gradients of all three, from values rounded to `dtype`; the reference computes in float64."""
    leaves = [value.to(dtype) for value in values]
    leaves = [leaf.double() if impl == "reference" else leaf for leaf in leaves]
    leaves[0] = channels_last(leaves[0]) if layout == "channels_last" else leaves[0]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    y = CONV[case.dims](*leaves, **case.options, impl=impl)
    torch.manual_seed(1)
    probe = torch.randn(y.shape, dtype=torch.float64).to(dtype).to(y.dtype)
    y.backward(channels_last(probe) if layout == "channels_last" else probe)
    return y.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("form", ["spread", "sum"])
@pytest.mark.parametrize("case", cases.DEPTHWISE, ids=str)
def test_every_case_and_its_gradients_equal_the_reference(case, form, isa):
    values = tensors(case, form)
    with _native.force(isa):
        if max(case.multiplier, 2 if form == "sum" else 1) > _native.lanes():
            pytest.skip(f"{isa} has {_native.lanes()} lanes, too few for this multiplier")
        taps = case.taps * values[1].shape[1]
        for dtype in (torch.float32, torch.bfloat16):
            expected = run(case, values, dtype, "contiguous", "reference")
            sums = (taps, case.taps * case.multiplier, *[2 * max(expected[0][:, 0].numel(), 1)] * 2)
            for layout in ("contiguous", "channels_last"):
                actual = run(case, values, dtype, layout, "native")
                for found, wanted, terms in zip(actual, expected, sums, strict=True):
                    torch.testing.assert_close(found.double(), wanted, **tolerance(dtype, terms))


@pytest.mark.parametrize("layout", cases.layouts(torch.zeros(1, 1, 1, 1)))
def test_any_layout_is_read_as_it_lies_and_left_as_it_was(layout):
    x = cases.layouts(torch.randn(2, 16, 9, 9))[layout]
    weight, kept = torch.randn(16, 1, 3, 3), x.clone()
    y = functional.depthwise_conv2d(x, weight, padding=1, impl="native")
    expected = functional.depthwise_conv2d(x.double(), weight.double(), padding=1, impl="reference")
    torch.testing.assert_close(y.double(), expected, **tolerance(torch.float32, 9))
    assert torch.equal(x, kept)


def exact_gradients(grad, x, weight):
    """Of input, weight and bias at stride 1 and padding 1, by torch in float64."""
    doubles, window = (t.double() for t in (grad, x, weight)), ([1, 1], [1, 1], [1, 1], False, [0, 0])
    return torch.ops.aten.convolution_backward(*doubles, [len(weight)], *window, x.shape[1], [True] * 3)


@pytest.mark.parametrize("layout", cases.layouts(torch.zeros(1, 1, 1, 1)))
def test_gradients_read_any_layout(layout):
    x, weight = cases.layouts(torch.randn(2, 16, 9, 9))[layout], torch.randn(16, 1, 3, 3)
    grad, window = cases.layouts(torch.randn(2, 16, 9, 9))[layout], ([1, 1], [1] * 4, [1, 1], True, True, True)
    found_all = OPERATORS.depthwise_conv_backward(grad, x, weight, *window)
    for found, right, count in zip(found_all, exact_gradients(grad, x, weight), (9, 2 * 81, 2 * 81), strict=True):
        torch.testing.assert_close(found.double(), right, **tolerance(torch.float32, count))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_gradients_are_the_same_whichever_of_them_are_asked_for(wanted, multiplier, layout):
    x = cases.layouts(torch.randn(2, 20, 9, 8))[layout]
    weight, window = torch.randn(20 * multiplier, 1, 3, 3), ([2, 2], [1] * 4, [1, 1])
    grad = torch.randn_like(OPERATORS.depthwise_conv(x, weight, None, *window))
    whole = OPERATORS.depthwise_conv_backward(grad, x, weight, *window, True, True, True)
    some = OPERATORS.depthwise_conv_backward(grad, x, weight, *window, *wanted)
    for found, right, asked in zip(some, whole, wanted, strict=True):
        assert torch.equal(found, right) if asked else found.numel() == 0


def test_sums_over_a_wide_map_stay_exact():
    x, weight = torch.rand(1, 16, 2, 20_000).contiguous(memory_format=torch.channels_last), torch.randn(16, 1, 3, 3)
    grad = torch.rand(1, 16, 2, 20_000).contiguous(memory_format=torch.channels_last)
    window = ([1, 1], [1] * 4, [1, 1], False, True, True)
    found = OPERATORS.depthwise_conv_backward(grad, x, weight, *window)[1:]
    for sums, right in zip(found, exact_gradients(grad, x, weight)[1:], strict=True):
        torch.testing.assert_close(sums.double(), right, rtol=2e-6, atol=0)


ALONE_OR_SHARED = (
    "plain",
    "lanes+1",
    "many_channels",
    "stride_2",
    "multiplier_3",
    "multiplier_2_more_channels",
    "volume",
    "long",
)
ALONG_ROWS = [  # channels-first: channels beside each other in a vector, rows of several vectors, bands of a tall map
    ((2, 5, 3, 3), 3, 1),
    ((1, 21, 7, 6), 3, (0, 2)),
    ((3, 3, 9, 7), 5, 2),
    ((1, 2, 100, 21), 3, (2, 1)),
    ((2, 2, 33, 50), 7, (1, 3)),
]


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize(("size", "kernel", "padding"), ALONG_ROWS, ids=str)
def test_rows_that_lie_densely_are_filtered_along_them(size, kernel, padding, isa):
    x, bias = torch.randn(size, dtype=torch.float64), torch.randn(size[1], dtype=torch.float64)
    case = cases.Case("rows", size[0], size[1], 1, 1, size[2:], (kernel, kernel), {"padding": padding})
    values = (x, torch.randn(size[1], 1, kernel, kernel, dtype=torch.float64), bias)
    expected = run(case, values, torch.float32, "contiguous", "reference")
    with _native.force(isa):
        actual = run(case, values, torch.float32, "contiguous", "native")
    terms = (case.taps, case.taps, *[expected[0][:, 0].numel()] * 2)
    for found, wanted, count in zip(actual, expected, terms, strict=True):
        torch.testing.assert_close(found.double(), wanted, **tolerance(torch.float32, count))


def test_nan_in_one_channel_stays_out_of_the_weight_gradients_of_its_neighbours():
    x, weight = torch.randn(1, 8, 7, 7), torch.randn(8, 1, 3, 3, requires_grad=True)
    x[0, 2, 3, 6] = float("nan")
    functional.depthwise_conv2d(x, weight, padding=1, impl="native").sum().backward()
    assert torch.equal(weight.grad.isnan().any((1, 2, 3)), torch.arange(8) == 2)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fuses_bias_and_activation(activation, dtype):
    x, weight, bias = (t.to(dtype) for t in tensors(cases.DEPTHWISE[0], "spread"))
    actual = functional.depthwise_conv2d(x, weight, bias, padding=1, activation=activation, impl="native")
    exact = functional.depthwise_conv2d(
        x.double(), weight.double(), bias.double(), padding=1, activation=activation, impl="reference"
    )
    torch.testing.assert_close(actual.double(), exact, **tolerance(dtype, 9))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_nan_and_infinity_come_out_as_in_the_reference(bad, activation):
    x = torch.randn(1, 17, 7, 7)
    x[0, 3, 3, 3] = bad
    native, reference = (
        functional.depthwise_conv2d(x, torch.ones(17, 1, 3, 3), padding=1, activation=activation, impl=impl)
        for impl in ("native", "reference")
    )
    torch.testing.assert_close(native, reference, equal_nan=True)


def test_writes_every_element_of_its_results():
    """Freed blocks full of NaN are what allocation hands out next: what a kernel leaves as it found it shows."""
    x, weight, window = torch.randn(2, 17, 9, 9), torch.randn(17, 1, 3, 3), ([2, 2], [1, 1, 1, 1], [1, 1])
    for _ in range(8):
        dirty = [torch.full((2, 17, n, n), float("nan")) for n in (5, 9) for _ in range(4)]
        del dirty
        y = OPERATORS.depthwise_conv(x, weight, None, *window)
        gradients = OPERATORS.depthwise_conv_backward(torch.ones_like(y), x, weight, *window, True, True, True)
        assert all(torch.isfinite(t).all() for t in (y, *gradients))


@pytest.mark.parametrize("case", [c for c in cases.DEPTHWISE if c.name in ALONE_OR_SHARED], ids=str)
def test_same_bits_for_one_and_two_threads_and_twice(case):
    values, before = tensors(case, "spread"), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        once, twice = (run(case, values, torch.float32, "channels_last", "native") for _ in range(2))
        torch.set_num_threads(2)
        shared = run(case, values, torch.float32, "channels_last", "native")
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(once, twice, shared, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_operators_keep_torchs_rules_for_operators():
    x, weight, bias = (torch.randn(s, requires_grad=True) for s in ((2, 6, 7, 8), (12, 1, 3, 3), (12,)))
    window = ([2, 1], [1, 0, 1, 2], [1, 1])
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(OPERATORS.depthwise_conv.default, (x, weight, bias, *window), test_utils=checks)
    plain = [t.detach() for t in (x, weight, bias)]
    torch.library.opcheck(OPERATORS.depthwise_conv_inference.default, (*plain, *window, 3), test_utils=checks[::2])
    grad = torch.randn_like(OPERATORS.depthwise_conv(*plain, *window))
    arguments = (grad, *plain[:2], *window, True, True, True)
    torch.library.opcheck(OPERATORS.depthwise_conv_backward.default, arguments, test_utils=checks[::2])


def test_second_derivatives_equal_the_references():
    def second(impl, dtype):
        torch.manual_seed(0)
        leaves = [torch.randn(s, dtype=torch.float64) for s in ((1, 4, 6, 6), (8, 1, 3, 3), (8,))]
        leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        y = functional.depthwise_conv2d(*leaves, stride=2, padding=((1, 0), (0, 1)), activation="silu", impl=impl)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for found, wanted in zip(second("native", torch.float32), second("reference", torch.float64), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-3)


def test_compiles_whole_with_the_native_operator_inside():
    def f(x, weight):
        return functional.depthwise_conv2d(x, weight, padding="same", activation="relu", impl="native").sum()

    torch._dynamo.reset()
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3, requires_grad=True)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), f(x, weight))
    (actual,) = torch.autograd.grad(compiled(x, weight), weight)
    (expected,) = torch.autograd.grad(f(x, weight), weight)
    torch.testing.assert_close(actual, expected)


def test_an_exported_graph_holds_standard_operators_only():
    class Layer(torch.nn.Module):
        def forward(self, x, weight):
            return functional.depthwise_conv2d(x, weight, padding=2)

    program = torch.export.export(Layer(), (torch.randn(1, 8, 9, 9), torch.randn(8, 1, 5, 5)))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.conv2d.default"]


def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    x, weight = torch.randn(2, 8, 9, 9), torch.randn(16, 1, 5, 5, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        functional.depthwise_conv2d(x, weight, padding="same", impl="native").sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 16 * 9 * 9 * 25) * 2  # forward, and the weight's gradient


def test_auto_says_which_way_it_takes_and_why():
    weight = torch.randn(8, 1, 7, 7)
    assert depthwise_conv_ways.way(torch.randn(1, 8, 9, 9), weight, None, (1, 1))[0] == "native"
    taken, why = depthwise_conv_ways.way(torch.randn(1, 8, 9, 9, dtype=torch.float64), weight.double(), None, (1, 1))
    assert taken == "reference"
    assert "float64" in why
    with pytest.raises(InputError, match="cannot run here: the native kernels compute float32 and bfloat16"):
        functional.depthwise_conv2d(torch.randn(1, 8, 9, 9).double(), weight.double(), impl="native")


def test_auto_leaves_small_forwards_of_channels_last_3x3_to_torch_and_takes_its_gradients():
    x = torch.randn(1, 32, 9, 9).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(32, 1, 3, 3, requires_grad=True)
    assert depthwise_conv_ways.way(x, weight, None, (1, 1))[0] == "native"
    with torch.no_grad():
        assert depthwise_conv_ways.way(x, torch.randn(32, 1, 1, 1), None, (1, 1))[0] == "native"
        assert depthwise_conv_ways.way(x, weight, None, (1, 1))[0] == "reference"
        assert depthwise_conv_ways.way(x, weight, None, (1, 1), "relu")[0] == "native"  # which it fuses
        assert depthwise_conv_ways.way(x.contiguous(), weight, None, (1, 1))[0] == "native"
        large = x.expand(1024, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        assert depthwise_conv_ways.way(large, weight, None, (1, 1))[0] == "native"
        assert depthwise_conv_ways.way(large, weight, None, (2, 2))[0] == "reference"
        assert depthwise_conv_ways.way(large.bfloat16(), weight.bfloat16(), None, (1, 1))[0] == "reference"


def test_refuses_an_instruction_set_that_is_not_there():
    with pytest.raises(InputError, match="must be one of"), _native.force("sse9"):
        pass


SHOW = "from separable import _native; print(_native.isa(), '|', _native.missing)"


def shown(**environment) -> subprocess.CompletedProcess:
    variables = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", SHOW], env=variables, capture_output=True, text=True)


def test_the_environment_chooses_a_lower_instruction_set():
    lowest = _native.isas()[-1]
    assert shown(SEPARABLE_ISA=lowest).stdout.split("|")[0].strip() == lowest
    assert "SEPARABLE_ISA = sse9: must be one of" in shown(SEPARABLE_ISA="sse9").stderr


def test_runs_without_the_library_and_says_why():
    assert shown(SEPARABLE_NATIVE="0").stdout.strip() == "None | switched off by SEPARABLE_NATIVE=0"
    absent = shown(SEPARABLE_NATIVE="/nowhere/libseparable.so")
    assert "SEPARABLE_NATIVE names /nowhere/libseparable.so, which is not there" in absent.stdout
    assert absent.stderr.count("runs without its native kernels") == 1
    assert not shown(SEPARABLE_NATIVE="0").stderr


def test_a_library_that_was_not_built_is_told_with_the_way_to_build_it(monkeypatch, tmp_path):
    file, how = tmp_path / "libseparable.so", "run `pip install --no-build-isolation .` in a checkout"
    monkeypatch.setenv("CXX", "g++")
    assert _native._open(file) == f"libseparable.so was not built: {how}"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    first = "install a C++ compiler (there is no g++, c++ or clang++)"
    assert _native._open(file) == f"libseparable.so was not built: {first}, then {how}"
    file.write_text("no library")
    assert _native._open(file).startswith("libseparable.so does not load (")
