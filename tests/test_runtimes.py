"""A network in each runtime: the same outputs however they are held, nothing changed, one sentence where it cannot."""

import copy
import io
import json
import math
import os
import statistics
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils import _pytree as pytree

from separable import _native, runtimes
from separable.errors import InputError
from separable.inputs import own_copy
from separable.runtimes import comparison
from separable.runtimes.comparison import notes
from separable.runtimes.prepared import torch_threads

QUICK = tuple(name for name in runtimes.NAMES if name != "compile")  # which takes seconds for each network


def usable(name: str) -> str:
    reason = runtimes.why_not(name)
    if reason:
        pytest.skip(reason)
    return name


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()
    ).eval()


class Several(nn.Module):
    """Several inputs, one of them never used and one written; outputs in a dict, a list, and beside plain numbers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, image, row, unused):
        image.relu_()
        made = self.conv(image)
        return {"map": made, "rest": [row + 1.0, (image, 7)], "best": made.argmax(1)}


def error_of(actual, expected) -> float:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("name", QUICK)
def test_each_runtime_gives_what_the_network_gives_and_leaves_it_as_it_was(name):
    network, x, threads = small(), torch.randn(2, 3, 9, 9), torch.get_num_threads()
    before = copy.deepcopy(network.state_dict())
    run = runtimes.prepare(usable(name), network, x, threads=1)
    with torch.no_grad():
        expected = network(x)
    for _ in range(2):
        assert error_of(run(), expected) < (1e-4 if name in runtimes.FLOAT32 else 5e-2)
        assert torch.get_num_threads() == threads
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])
        assert value.stride() == before[key].stride()


@pytest.mark.parametrize("name", QUICK)
def test_outputs_are_held_as_the_networks_are_and_inputs_keep_their_values(name):
    network, inputs = Several().eval(), (torch.randn(1, 3, 8, 8), torch.randn(4), torch.randn(2))
    kept = own_copy(inputs)
    with torch.no_grad():
        expected, structure = pytree.tree_flatten(network(*own_copy(inputs)))
    run = runtimes.prepare(usable(name), network, inputs)
    for _ in range(2):
        actual, as_given = pytree.tree_flatten(run())
        assert as_given == structure
        for one, other in zip(actual, expected, strict=True):
            if isinstance(other, torch.Tensor) and other.is_floating_point():
                assert error_of(one, other) < (1e-4 if name in runtimes.FLOAT32 else 5e-2)
            elif not isinstance(other, torch.Tensor):
                assert one == other
    assert all(map(torch.equal, inputs, kept))


def test_compiled_networks_of_one_class_are_each_compiled():
    """torch.compile keeps eight for each code that it meets; then it would run the network as it is."""
    usable("compile")
    from torch._dynamo.utils import counters

    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for channels in (2, 3):
            network, x = nn.Conv2d(channels, 4, 1).eval(), torch.randn(1, channels, 4, 4)
            before = counters["stats"]["unique_graphs"]
            run = runtimes.prepare("compile", network, x)
            with torch.no_grad():
                assert error_of(run(), network(x)) < 1e-4
            assert counters["stats"]["unique_graphs"] == before + 1


def test_an_operation_of_the_newer_exporter_alone_is_run_too():
    network, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(1, 5, 8)
    with torch.no_grad():
        expected = network(x)
    assert error_of(runtimes.prepare(usable("onnxruntime"), network, x)(), expected) < 1e-4


def test_a_runtime_that_is_not_installed_says_how_to_get_it(monkeypatch):
    from separable.runtimes import names

    monkeypatch.setattr(names.importlib.util, "find_spec", lambda package: None)
    assert runtimes.why_not("openvino default") == "openvino is not installed; add it with: pip install openvino"
    assert "pip install 'separable[deploy]'" in runtimes.why_not("onnxruntime")
    with pytest.raises(InputError, match=r"runtime = openvino: cannot be used here: openvino is not installed"):
        runtimes.prepare("openvino", small(), torch.randn(1, 3, 9, 9))


def test_what_stands_in_the_way_of_native_kernels_and_of_compiling_is_said(monkeypatch):
    monkeypatch.setattr(_native, "missing", "libseparable.so was not built")
    assert "libseparable.so was not built" in runtimes.why_not("accelerate")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in runtimes.why_not("compile")


@pytest.mark.parametrize(
    ("argument", "rule", "changed"),
    [
        ("runtime", "must be one of", {"name": "tensorrt"}),
        ("model", "must be a torch.nn.Module", {"model": len}),
        ("model", "is in training mode", {"model": nn.Sequential(nn.Dropout())}),
        ("inputs", "must be a tensor", {"inputs": "image"}),
        ("inputs", "must be on the CPU", {"inputs": torch.zeros(1, 3, 9, 9, device="meta")}),
        ("inputs", "fails on it", {"inputs": torch.zeros(1, 4, 9, 9)}),
        ("threads", "must be a whole number", {"threads": 0}),
        ("model", "has no channels-last form", {"name": "torch channels-last", "model": nn.ReLU().eval(),
                                                "inputs": torch.zeros(2)}),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(argument, rule, changed):
    given = {"name": "torch", "model": small(), "inputs": torch.zeros(1, 3, 9, 9), "threads": None} | changed
    with pytest.raises(InputError, match=rule) as raised:
        runtimes.prepare(**given)
    assert raised.value.argument == argument


def test_what_a_runtime_refuses_is_said_and_nothing_is_printed(capfd):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(torch.fft.fft(x).real)

    with pytest.raises(InputError, match=r"Odd: cannot be run by onnxruntime"):
        runtimes.prepare(usable("onnxruntime"), Odd().eval(), torch.randn(4, 4))
    assert capfd.readouterr() == ("", "")


def test_networks_are_compared_in_every_runtime_that_is_here():
    x, names = torch.randn(2, 3, 9, 9), [name for name in QUICK if runtimes.why_not(name) is None]
    half = nn.Sequential(*small()[:3]).eval()
    found = runtimes.compare({"a": small(), "b": half}, x, names=names, threads=1, rounds=3)
    assert [(row.network, row.runtime) for row in found.rows] == [(n, r) for n in ("a", "b") for r in names]
    for row in found.rows:
        low, high = row.quartiles_ms
        assert len(row.times_ms) == 9
        assert 0 < low <= row.ms <= high
        assert row.error <= (1e-4 if row.runtime in runtimes.FLOAT32 else 0.1)
    first = found.fastest("a")
    assert first.runtime in runtimes.FLOAT32
    assert first.ms == min(row.ms for row in found.rows if row.network == "a" and row.runtime in runtimes.FLOAT32)
    assert found.times_as_fast(first) == 1
    told = json.loads(json.dumps(found.to_json()))
    assert (told["threads"], told["clock"], told["fastest"]["a"]) == (1, "processor", first.runtime)
    assert told["unusable"] == {}


def test_networks_are_compared_round_by_round_as_a_shared_processor_is_fast_and_slow_by_turns():
    dense = runtimes.Timed("dense", "torch", [[1.0, 1.0, 9.0], [1.0], [2.0]])
    half = runtimes.Timed("half", "torch", [[0.5], [0.9], [1.0]])
    none = runtimes.Timed("half", "onnxruntime", problem="refused")
    found = runtimes.Comparison([dense, half, none], {}, threads=1, rounds=3)
    assert found.times_as_fast(half) == 2.0
    assert (dense.ms, half.ms) == (1.0, 0.9), "their quotient would say 1.11"
    assert found.times_as_fast(none) is None


def test_calls_are_clocked_when_the_caches_are_warm():
    """Two networks, of which each is slow for two calls after the other ran."""
    in_a_row = ["", 0]

    def call(name):
        def run():
            in_a_row[:] = [name, in_a_row[1] + 1 if in_a_row[0] == name else 1]
            end = time.process_time() + (1.2e-3 if in_a_row[1] <= 2 else 1e-4)
            while time.process_time() < end:
                pass

        return run

    rows = [runtimes.Timed(name, "torch") for name in "ab"]
    with torch_threads(1):
        comparison._take_turns([(row, call(row.network)) for row in rows], 4, math.inf)
    assert all(statistics.median(turn) < 0.6 for row in rows for turn in row.rounds_ms)


def test_a_wrong_output_has_no_time_and_others_keep_theirs(monkeypatch):
    from separable.runtimes import prepared

    def doubled(case):
        return lambda: case.inputs.call(case.model) * 2

    monkeypatch.setitem(prepared._PREPARE, "torch channels-last", doubled)
    found = runtimes.compare({"a": small()}, torch.randn(1, 3, 9, 9), names=["torch", "torch channels-last"], rounds=1)
    wrong = found.of("a", "torch channels-last")
    assert wrong.ms is None
    assert wrong.error == pytest.approx(1.0)
    assert found.fastest("a").runtime == "torch"
    shown = io.StringIO()
    Console(file=shown, width=160).print(found.table())
    assert "a in torch channels-last: gives another output: off by 1.0e+00 of the largest number" in shown.getvalue()


def test_a_network_that_one_runtime_refuses_is_timed_in_the_others():
    row = nn.Linear(4, 4).eval()
    found = runtimes.compare({"row": row}, torch.randn(2, 4), names=["torch channels-last", "torch"], rounds=1)
    assert "has no channels-last form" in found.of("row", "torch channels-last").problem
    assert found.of("row", "torch").ms > 0


def test_each_network_may_have_an_example_of_its_own():
    networks = {"image": small(), "row": nn.Linear(4, 4).eval()}
    inputs = {"image": torch.randn(1, 3, 9, 9), "row": torch.randn(1, 4)}
    found = runtimes.compare(networks, inputs, names=["torch"], rounds=1)
    assert all(row.ms for row in found.rows)
    with pytest.raises(InputError, match="each under its name"):
        runtimes.compare(networks, {"image": inputs["image"]}, names=["torch"])


def test_a_runtime_left_out_is_named_and_one_asked_for_is_an_error(monkeypatch):
    monkeypatch.setattr(_native, "missing", "libseparable.so was not built")
    network, x = {"a": small()}, torch.randn(1, 3, 9, 9)
    _, unusable = runtimes.choose(None)
    assert {"accelerate", "accelerate bfloat16"} <= set(unusable)
    found = runtimes.compare(network, x, names=["torch"], rounds=1)
    found.unusable = unusable
    assert any("accelerate: there are no native kernels: libseparable" in note for note in notes(found.to_json()))
    with pytest.raises(InputError, match=r"runtime = accelerate: cannot be used here: .*was not built"):
        runtimes.compare(network, x, names=["torch", "accelerate"])
    with pytest.raises(InputError, match="networks = "):
        runtimes.compare({}, x)


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([1.0, -2.0], [1.0, -2.0], 0.0),
        ([1.0, -2.2], [1.0, -2.0], 0.1),
        ([float("nan"), 1.0], [float("nan"), 1.0], 0.0),
        ([float("inf"), 1.0], [float("inf"), 2.0], 0.5),
        ([float("nan"), 1.0], [1.0, 1.0], float("inf")),
        ([1.0], [1.0, 1.0], float("inf")),
        ([0, 1, 2, 3], [0, 1, 2, 4], 0.25),
        ([], [], 0.0),
    ],
)
def test_errors_are_a_share_of_the_largest_number(actual, expected, error):
    assert runtimes.relative_error(torch.tensor(actual), torch.tensor(expected)) == pytest.approx(error)


def test_memory_is_told_of_a_process_without_other_threads_alone():
    """Weights, what stands between layers, and no more than that and the runtime itself."""
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from separable import runtimes\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.ReLU()).eval()\n"
        "large = torch.nn.Linear(4000, 4000).eval()\n"
        "print(runtimes.peak_bytes('torch', net, torch.zeros(8, 64, 128, 128)))\n"
        "print(runtimes.peak_bytes('torch', large, torch.zeros(1, 4000)))\n"
        "print(runtimes.peak_bytes('torch', large, torch.zeros(1, 3)))\n"
        "torch.set_num_threads(2); large(torch.zeros(9, 4000))\n"
        "print(runtimes.peak_bytes('torch', large, torch.zeros(1, 4000)))\n"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    maps, weights, *rest = done.stdout.split()
    if maps == "None":
        pytest.skip("memory is told on Linux, of a process that starts without threads")
    assert 1.0 < int(maps) / (2 * 8 * 64 * 128 * 128 * 4) < 2.5
    assert 1.0 < int(weights) / (4000 * 4000 * 4) < 2.6  # some processors' libraries keep a second, packed copy
    assert rest == ["None", "None"]
