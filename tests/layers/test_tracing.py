"""torch.jit.trace, torch.fx, TensorBoard and the older ONNX exporter follow every layer and network of ours."""

import io
import warnings

import pytest
import torch
from torch import nn

from separable import functional, layers, models
from separable.acceleration import accelerate
from separable.models.ds_cnn import DSCNN
from separable.models.residual_separable import ResidualSeparable
from separable.models.time_channel import TimeChannelNet

CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # of networks never trained, whose outputs are in the hundreds
SIZES = {1: (23,), 2: (17, 14), 3: (7, 8, 6)}


def cases() -> dict:
    """Each public layer in the forms that go different ways, and each public network; with an input."""
    made = {}
    for d, size in SIZES.items():
        x = torch.randn(2, 8, *size)
        for name, kind, most in (
            ("DepthwiseConv", 16, {}),
            ("SeparableConv", 12, {"norm": getattr(nn, f"BatchNorm{d}d")}),
        ):
            layer, transposed = getattr(layers, f"{name}{d}d"), getattr(layers, f"{name}Transpose{d}d")
            made[f"{name}{d}d"] = layer(8, kind, 3, **most), x
            made[f"{name}{d}d same, stride 2"] = layer(8, kind, 3, 2, "same", activation="relu"), x
            made[f"{name}{d}d kernel within the stride"] = layer(8, kind, 2, 3, "same"), x
            made[f"{name}{d}d circular"] = layer(8, kind, 3, 2, "same", padding_mode="circular"), x
            made[f"{name}Transpose{d}d"] = transposed(8, kind, 3, 2, 1, **most), x
        made[f"SeparableConv{d}d pointwise first"] = (
            getattr(layers, f"SeparableConv{d}d")(8, 12, 3, depth_multiplier=2, order="pointwise_first"),
            x,
        )
        made[f"DepthwiseConv{d}d sums"] = getattr(layers, f"DepthwiseConv{d}d")(8, 4, 3, padding=((1, 0),) * d), x
        made[f"BatchNorm{d}d"] = getattr(layers, f"BatchNorm{d}d")(8), x
    x = torch.randn(2, 8, 16, 16)
    made["GatedSeparableConv2d"] = layers.GatedSeparableConv2d(8, 12, 3), x
    made["StackedConv2d"] = layers.StackedConv2d(8, 12, 3), x
    made["InvertedResidual"] = layers.InvertedResidual(8, 8, 24, squeeze_channels=4), x
    made["SqueezeExcite"] = layers.SqueezeExcite(8, 4), x
    made["XceptionBlock"] = layers.XceptionBlock(8, (12, 12), 2), x
    made["ConvNeXtBlock"] = layers.ConvNeXtBlock(8), x
    made["mobilenet_v1_block"] = layers.mobilenet_v1_block(8, 12, 2), x
    images, small = torch.randn(2, 3, 64, 64), {"num_classes": 5, "width_multiplier": 0.25}
    for name in ("MobileNetV1", "MobileNetV2", "MobileNetV3Large", "MobileNetV3Small"):
        made[name] = getattr(models, name)(**small), images
    made["Xception"] = models.Xception(num_classes=5), torch.randn(2, 3, 71, 71)
    made["ResidualSeparable"] = ResidualSeparable(num_classes=5), images
    made["DSCNN"] = DSCNN("small"), torch.randn(2, 49, 10)
    made["TimeChannelNet"] = TimeChannelNet(), torch.randn(2, 60, 40)
    blocks = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Flatten(2))
    made["a Sequential trained natively"] = accelerate(blocks, training=True), images
    made["trained natively"] = accelerate(models.MobileNetV1(**small), training=True), images
    return made


CASES = cases()
NETWORKS = [name for name in CASES if hasattr(models, name)] + ["ResidualSeparable", "DSCNN", "TimeChannelNet"]


@pytest.fixture(params=CASES)
def case(request):
    network, x = CASES[request.param]
    return network.eval(), x


def test_every_public_layer_and_network_is_among_them():
    kinds = {type(network).__name__ for network, _ in CASES.values()} | {"mobilenet_v1_block"}
    networks = {name for name in models.__all__ if isinstance(getattr(models, name), type)} - {"Source"}
    assert set(layers.__all__) | networks <= kinds


def other_input(x: torch.Tensor) -> torch.Tensor:
    """Other values, and images and sounds of other sizes."""
    sound = x.shape[1:] in ((49, 10), (60, 40))  # [N, frames, size of a frame]
    return torch.randn(3, *x.shape[1:2], *(n + (not sound) for n in x.shape[2:]))


def test_a_trace_gives_what_the_network_gives_also_of_other_sizes(case):
    network, x = case
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(network, x, check_trace=False)
        for other in (torch.randn_like(x), other_input(x)):
            torch.testing.assert_close(traced(other), network(other), **CLOSE)
    assert not [n.kind() for n in traced.inlined_graph.nodes() if not n.kind().startswith(("aten::", "prim::"))]


def test_torch_fx_follows_it_and_the_graph_gives_the_same(case):
    network, x = case
    graph = torch.fx.symbolic_trace(network)
    other = other_input(x)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), network(x), **CLOSE)
        torch.testing.assert_close(graph(other), network(other), **CLOSE)


def test_torch_fx_follows_a_network_in_training_and_its_gradients_are_the_same():
    network, x = models.MobileNetV2(num_classes=5, width_multiplier=0.25, dropout=0.0), torch.randn(4, 3, 64, 64)
    graph = torch.fx.symbolic_trace(network.train())
    torch.testing.assert_close(
        torch.autograd.grad(graph(x).square().sum(), list(graph.parameters())),
        torch.autograd.grad(network(x).square().sum(), list(network.parameters())),
    )


def test_a_function_of_ours_is_one_node_of_the_graph():
    def compute(x, weight):
        return functional.depthwise_conv2d(x, weight, padding="same", activation="relu") + 1

    graph = torch.fx.symbolic_trace(compute)
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert called[0] is functional.depthwise_conv2d
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3)
    torch.testing.assert_close(graph(x, weight), compute(x, weight))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_older_exporter_of_onnx_and_onnxruntime_agree(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    network, x = CASES[name]
    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(network.eval(), (x,), written, dynamo=False, input_names=["x"])
    session = onnxruntime.InferenceSession(written.getvalue(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        (given,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(given), network(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_tensorboard_draws_it(name, tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    network, x = CASES[name]
    with tensorboard.SummaryWriter(tmp_path) as writer:
        writer.add_graph(network.eval(), x)
    assert any(file.stat().st_size > 1000 for file in tmp_path.iterdir())
