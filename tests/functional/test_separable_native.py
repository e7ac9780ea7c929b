"""The fused separable kernels give what plain torch gives in float64, in every layout, on every instruction set."""

import os
import subprocess
import sys

import pytest
import torch
from tests import cases
from tests.tolerance import tolerance

from separable import _native
from separable.errors import InputError
from separable.functional import separable_conv, separable_conv1d, separable_conv2d
from separable.functional.arguments import ACTIVATIONS

pytestmark = pytest.mark.skipif(bool(_native.missing), reason=f"no native kernels: {_native.missing}")

CONV = {1: separable_conv1d, 2: separable_conv2d}
ORDERS = ("depthwise_first", "pointwise_first")
SINGLE = [case for case in cases.DEPTHWISE if case.multiplier == 1 and case.dims < 3]


def close(actual: torch.Tensor, expected: torch.Tensor, terms: int) -> None:
    torch.testing.assert_close(actual.double(), expected, **tolerance(torch.float32, taps=terms))


def both(case, order, **more):
    """The native result in float32 and the reference in float64, of the same numbers."""
    tensors = (case.input(torch.float32), *case.separable(order, torch.float32))
    x, *weights = tensors
    before = [t.clone() for t in tensors]
    actual = CONV[case.dims](x, *weights, **case.options, order=order, impl="native", **more)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    doubles = [t.double() for t in tensors]
    return actual, CONV[case.dims](*doubles, **case.options, order=order, impl="reference", **more)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_matches_the_reference_in_float64(case, order, isa):
    with _native.force(isa):
        actual, expected = both(case, order, inner_activation="relu6", activation="relu")
    close(actual, expected, case.taps * case.channels)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("last", [None, *ACTIVATIONS])
@pytest.mark.parametrize("inner", [None, *ACTIVATIONS])
def test_applies_every_pair_of_activations(inner, last, isa):
    case = next(case for case in SINGLE if case.name == "lanes+1")
    with _native.force(isa):
        for order in ORDERS:
            actual, expected = both(case, order, inner_activation=inner, activation=last)
            close(actual, expected, case.taps * case.channels)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("biases", [(True, False), (False, True), (False, False)])
def test_goes_without_either_bias(biases, order):
    case = next(case for case in SINGLE if case.name == "plain")
    x, dw, pw, dw_bias, pw_bias = case.input(), *case.separable(order)
    dw_bias, pw_bias = (b if has else None for b, has in zip((dw_bias, pw_bias), biases, strict=True))
    expected = separable_conv2d(x, dw, pw, dw_bias, pw_bias, order=order, **case.options, impl="reference")
    floats = [None if t is None else t.float() for t in (x, dw, pw, dw_bias, pw_bias)]
    close(separable_conv2d(*floats, order=order, **case.options, impl="native"), expected, case.taps * case.channels)


@pytest.mark.parametrize("layout", cases.layouts(torch.zeros(2, 16, 9, 9)))
def test_reads_every_layout_and_answers_in_it(layout):
    x = cases.layouts(torch.randn(2, 16, 9, 9))[layout]
    dw, pw = torch.randn(16, 1, 3, 3), torch.randn(20, 16, 1, 1)
    y = separable_conv2d(x, dw, pw, padding=1, impl="native")
    close(y, separable_conv2d(x.double(), dw.double(), pw.double(), padding=1, impl="reference"), 9 + 16)
    assert y.is_contiguous(memory_format=torch.channels_last if x.stride(1) == 1 else torch.contiguous_format)


SHAPES = [  # (C_in, C_out, H, stride): whole tiles, tiles split by columns, tiles of one row
    (32, 64, 56, 1),
    (64, 128, 57, 2),
    (256, 256, 28, 1),
    (1024, 1024, 7, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gives_the_same_bits_on_one_thread_and_two(shape):
    c_in, c_out, size, stride = shape
    x = torch.randn(1, c_in, size, size).to(memory_format=torch.channels_last)
    dw, pw = torch.randn(c_in, 1, 3, 3) / 3, torch.randn(c_out, c_in, 1, 1) / c_in**0.5
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 1, 2):
            torch.set_num_threads(count)
            results.append(separable_conv2d(x, dw, pw, stride=stride, padding=1, impl="native"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])
    expected = separable_conv2d(x.double(), dw.double(), pw.double(), stride=stride, padding=1, impl="reference")
    close(results[0], expected, 9 + c_in)


def test_passes_nan_and_infinity_through():
    x = torch.randn(1, 16, 6, 6)
    x[0, 3, 2, 2], x[0, 5, 4, 4] = float("nan"), float("inf")
    dw, pw = torch.rand(16, 1, 3, 3), torch.rand(20, 16, 1, 1)
    for activation in (None, "relu", "relu6", "silu", "hard_swish", "gelu"):
        options = {"padding": 1, "inner_activation": activation, "activation": activation}
        actual = separable_conv2d(x, dw, pw, **options, impl="native")
        # In float64, for torch's own gelu makes NaN of infinity in float32.
        expected = separable_conv2d(x.double(), dw.double(), pw.double(), **options, impl="reference")
        torch.testing.assert_close(actual, expected.float(), equal_nan=True)


def test_auto_leaves_gradients_to_torch():
    x = torch.randn(1, 8, 6, 6)
    dw, pw = torch.randn(8, 1, 3, 3, requires_grad=True), torch.randn(4, 8, 1, 1)
    separable_conv2d(x, dw, pw, padding=1).sum().backward()
    assert dw.grad.abs().sum() > 0
    with pytest.raises(InputError, match="nothing for derivatives"):
        separable_conv2d(x, dw, pw, padding=1, impl="native")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": torch.zeros(1, 8, 6, 6, dtype=torch.float64)}, "float32"),
        ({"dw": torch.zeros(16, 1, 3, 3), "pw": torch.zeros(4, 16, 1, 1)}, "multiplier 1"),
    ],
)
def test_refuses_what_it_cannot_compute_with_the_reason(change, reason):
    tensors = {"x": torch.zeros(1, 8, 6, 6), "dw": torch.zeros(8, 1, 3, 3), "pw": torch.zeros(4, 8, 1, 1)} | change
    if tensors["x"].dtype == torch.float64:
        tensors = {name: t.double() for name, t in tensors.items()}
    with pytest.raises(InputError, match=reason):
        separable_conv2d(tensors["x"], tensors["dw"], tensors["pw"], impl="native")


def test_operator_is_registered_as_torch_wants_it():
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    arguments = (x, torch.randn(8, 1, 3, 3), torch.randn(4, 8, 1, 1), None, torch.randn(4))
    for first in (False, True):
        dw = torch.randn(4, 1, 3, 3) if first else arguments[1]
        options = ([1, 1], [1, 1, 1, 1], [1, 1], first, 2, 0)
        torch.library.opcheck(torch.ops.separable.separable_conv_inference.default, (x, dw, *arguments[2:], *options))


def test_compiles_whole_and_exports_standard_operators():
    dw, pw = torch.randn(8, 1, 3, 3), torch.randn(4, 8, 1, 1)

    class Net(torch.nn.Module):
        def forward(self, x):
            return separable_conv2d(x, dw, pw, padding=1, impl="auto")

    x = torch.randn(1, 8, 6, 6).to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(Net(), backend="eager", fullgraph=True)(x), Net()(x))
        graph = torch.export.export(Net(), (x,)).graph
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert len(names) > 0
    assert not any("separable" in name for name in names)


def test_counts_the_work_of_both_halves():
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(2, 8, 6, 6)
    counts = []
    for impl in ("native", "reference"):
        for order in ORDERS:
            dw = torch.randn(8 if order == "depthwise_first" else 4, 1, 3, 3)
            with FlopCounterMode(display=False) as counter:
                separable_conv2d(x, dw, torch.randn(4, 8, 1, 1), padding=1, stride=2, order=order, impl=impl)
            counts.append(counter.get_total_flops())
    assert counts[:2] == counts[2:]


def test_auto_takes_the_fused_kernels_for_channels_last_inference_only(monkeypatch):
    took = []
    monkeypatch.setattr(separable_conv, "_native_conv", lambda input, *rest: took.append(input.stride(1)) or input)
    x, dw, pw = torch.zeros(1, 8, 6, 6), torch.zeros(8, 1, 3, 3), torch.zeros(8, 8, 1, 1)
    separable_conv2d(x.to(memory_format=torch.channels_last), dw, pw)
    separable_conv2d(x, dw, pw)
    separable_conv2d(x.to(memory_format=torch.channels_last), dw.requires_grad_(), pw)
    assert took == [1]


@pytest.mark.parametrize("isa", _native.isas())
def test_a_process_may_ask_for_a_lower_instruction_set(isa):
    program = (
        "import torch; from separable import _native; from separable.functional import separable_conv2d as f; "
        "t = [torch.randn(1, 24, 9, 9), torch.randn(24, 1, 3, 3), torch.randn(40, 24, 1, 1)]; "
        "y = f(*t, padding=1, impl='native').double(); e = f(*[a.double() for a in t], padding=1, impl='reference'); "
        "print(_native.isa(), float((y - e).abs().max() / e.abs().max()) < 1e-5)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SEPARABLE_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [isa, "True"]


def test_reference_and_native_agree_on_what_is_an_obstacle():
    x, dw, pw = torch.zeros(1, 8, 6, 6), torch.zeros(8, 1, 3, 3), torch.zeros(4, 8, 1, 1)
    assert separable_conv.obstacle_to_native(x, (dw, pw), (None, None), "depthwise_first") == ""
    assert "CPU" in separable_conv.obstacle_to_native(x.to("meta"), (dw, pw), (None, None), "depthwise_first")
