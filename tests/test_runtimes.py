"""A network in each runtime: the same outputs however they are held, nothing changed, one sentence where it cannot."""

import copy

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from separable import _native, runtimes
from separable.errors import InputError
from separable.inputs import own_copy

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
