"""The accelerated network gives the model's outputs, whatever is done with it."""

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import separable
from norms import lived_in
from separable import _native, accelerate, models
from separable.acceleration import accelerated
from separable.errors import InputError

needs_kernels = pytest.mark.skipif(bool(_native.missing), reason=f"no native kernels: {_native.missing}")
KINDS = {
    "mobilenetv1": models.MobileNetV1,
    "mobilenetv2": models.MobileNetV2,
    "mobilenetv3": models.MobileNetV3Large,
    "xception": models.Xception,
}


def distance(actual, expected) -> float:
    """Largest difference over the largest expected value."""
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def separable_network() -> nn.Module:
    """Every kind of block in small, norms drawn."""
    return lived_in(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
            separable.layers.InvertedResidual(16, 16, 48, squeeze_channels=8, activation="hard_swish"),
            separable.layers.mobilenet_v1_block(16, 24, 2),
            separable.layers.XceptionBlock(24, (32, 32), 2),
            separable.layers.ConvNeXtBlock(32, layer_scale=0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )
    ).eval()


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_our_networks_give_the_same_outputs(name):
    network = lived_in(KINDS[name](num_classes=10)).eval()
    x = torch.randn(2, 3, 64, 64)
    fast = accelerate(network, x)
    assert distance(fast(x), network(x)) < 1e-5
    assert not [row for row in fast.report.left_alone if _native.path]


@torch.no_grad()
def test_every_kind_of_block_runs_in_one_program():
    network, x = separable_network(), torch.randn(2, 3, 40, 36)
    fast = accelerate(network, x)
    assert distance(fast(x), network(x)) < 1e-5
    if _native.path:
        kernels = {row.kernel for row in fast.report.rows}
        assert "separable_conv (depthwise + pointwise)" in kernels
        assert not fast.report.left_alone


@torch.no_grad()
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch_and_any_size(batch):
    network = separable_network()
    fast = accelerate(network)
    for size in ((32, 32), (47, 33)):
        x = torch.randn(batch, 3, *size)
        expected = network(x)
        assert fast(x).shape == expected.shape
        if batch:
            assert distance(fast(x), expected) < 1e-5


@torch.no_grad()
def test_inputs_may_lie_in_memory_in_any_way():
    network = separable_network()
    fast, x = accelerate(network), torch.randn(2, 3, 32, 32)
    ways = [
        x.contiguous(memory_format=torch.channels_last),
        torch.randn(2, 5, 32, 64)[:, 1:4, :, ::2].copy_(x),
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ]
    for given in ways:
        before = given.clone()
        assert distance(fast(given), network(x)) < 1e-5
        assert torch.equal(given, before), "an input was written"
    one = x[:1].expand(3, -1, -1, -1)
    assert distance(fast(one), network(one)) < 1e-5


@torch.no_grad()
def test_feature_maps_come_out_as_torch_lays_them():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1)).eval()
    for x in (torch.randn(2, 3, 9, 7), torch.randn(2, 3, 9, 7).contiguous(memory_format=torch.channels_last)):
        actual, expected = accelerate(network)(x), network(x)
        assert actual.stride() == expected.stride()
        assert distance(actual, expected) < 1e-5


@torch.no_grad()
def test_deepcopy_and_pickle_carry_the_network():
    network, x = separable_network(), torch.randn(1, 3, 32, 32)
    fast = accelerate(network, x)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert torch.equal(other(x), fast(x))
        assert other.model is not network


@torch.no_grad()
def test_new_weights_are_packed_anew():
    network, other, x = separable_network(), separable_network(), torch.randn(1, 3, 32, 32)
    fast = accelerate(network, x)
    fast.load_state_dict({f"model.{name}": value for name, value in other.state_dict().items()})
    assert distance(fast(x), other(x)) < 1e-5


@needs_kernels
@torch.no_grad()
def test_plans_of_many_shapes_share_their_weights_and_a_budget():
    network = lived_in(nn.Sequential(nn.Conv2d(3, 384, 3, 2, 1), nn.ReLU(), nn.Conv2d(384, 768, 3), nn.ReLU())).eval()
    fast, sizes = accelerate(network), [16 + i for i in range(50)]
    fast(torch.randn(1, 3, 66, 66))
    alone = fast.report.bytes
    for size in sizes:
        x = torch.randn(1, 3, size, 24)
        assert distance(fast(x), network(x)) < 1e-5
    report = fast.report
    assert report.bytes <= report.budget_bytes
    assert report.bytes < 1.5 * alone
    assert report.plans > 4  # of large layers some shapes have a Winograd form of their own
    assert f"{report.plans} plans take" in str(report)


@torch.no_grad()
def test_plans_used_longest_ago_leave_first(monkeypatch):
    """With room for two plans."""
    watched = []
    follow = accelerated.follow
    monkeypatch.setattr(accelerated, "follow", lambda *args: watched.append(args[1][0].shape[2]) or follow(*args))
    monkeypatch.setattr(accelerated, "_LEAST_BYTES", 20)
    monkeypatch.setattr(accelerated, "_MOST_SHARE", 0)
    monkeypatch.setattr(accelerated.Accelerated, "_bytes", lambda self: 10 * len(self._plans))
    fast = accelerate(nn.Conv2d(3, 4, 3).eval())
    for size in (5, 6, 5, 7, 5, 6):
        fast(torch.randn(1, 3, size, 5))
    assert watched == [5, 6, 7, 6]


@torch.no_grad()
def test_threads_may_call_at_once():
    network = separable_network()
    fast = accelerate(network)
    inputs = [torch.randn(1, 3, 32 + 8 * (i % 2), 32) for i in range(6)]
    expected, results = [network(x) for x in inputs], {}

    def call(i):
        for _ in range(10):
            results[i] = fast(inputs[i])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(distance(results[i], expected[i]) < 1e-5 for i in range(len(inputs)))


@needs_kernels
@torch.no_grad()
def test_calls_at_once_leave_room_for_the_plans_of_several_shapes():
    fast, sizes = accelerate(nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 3, 1)).eval(), tune=False), (64, 72)
    inputs = [torch.randn(4, 3, size, size) for size in sizes]
    for x in inputs:
        fast(x)
    start = threading.Barrier(6)

    def call():
        start.wait()
        for _ in range(5):
            fast(inputs[1])

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fast(torch.randn(4, 3, 65, 65))
    assert fast.report.plans >= 3
    assert fast.report.bytes <= fast.report.budget_bytes


@needs_kernels
@torch.no_grad()
def test_the_same_bits_for_one_thread_and_two_and_every_time():
    network, x = separable_network(), torch.randn(3, 3, 40, 40)
    fast, threads = accelerate(network), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = fast(x)
        assert torch.equal(alone, fast(x))
        torch.set_num_threads(2)
        assert torch.equal(alone, fast(x))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("isa", _native.isas())
@torch.no_grad()
def test_every_instruction_set_agrees(isa):
    network, x = separable_network(), torch.randn(1, 3, 32, 32)
    fast = accelerate(network)
    with _native.force(isa):
        assert distance(fast(x), network(x)) < 1e-5
        assert fast.report.isa == isa


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_subnormal_weights_are_zeros_in_programs_and_nowhere_else(threads):
    network = nn.Sequential(nn.Conv2d(8, 40, 3), nn.ReLU(), nn.Conv2d(40, 8, 1)).eval()
    for parameter in network.parameters():
        parameter[torch.rand_like(parameter) < 0.7] *= 1e-39
    zeros, x = copy.deepcopy(network), torch.randn(2, 8, 40, 40)
    for parameter in zeros.parameters():
        parameter[parameter.abs() < torch.finfo(torch.float32).tiny] = 0
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = accelerate(network, tune=False)
        assert torch.equal(fast(x), accelerate(zeros, tune=False)(x))
        small = torch.full((1 << 17,), 1e-39)
        assert torch.equal(small + small, small * 2)
        assert (small + small).min() > 0, "torch's own threads keep subnormal numbers"
    finally:
        torch.set_num_threads(before)


@needs_kernels
@torch.no_grad()
def test_subnormal_weights_are_packed_as_zeros():
    network = separable_network()
    zeros = copy.deepcopy(network)
    for parameter, zero in zip(network.parameters(), zeros.parameters(), strict=True):
        small = torch.rand_like(parameter) < (0.7 if parameter.dim() > 1 else 0)
        parameter[small], zero[small] = 1e-39, 0
    x = torch.randn(1, 3, 32, 32)
    fast = [accelerate(model, x, tune=False) for model in (network, zeros)]
    packed, expected = (set(made._shared._packed) for made in fast)  # by their contents
    assert len(packed) > 3
    assert packed == expected


@torch.no_grad()
def test_the_report_names_layers_with_subnormal_numbers():
    network, x = separable_network(), torch.randn(1, 3, 32, 32)
    fast = accelerate(network, x)
    assert fast.report.subnormal == []
    assert "subnormal" not in str(fast.report)
    first = next(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    network.get_submodule(first).weight[:] = 1e-39
    fast(x)
    assert [(row.layer, row.tensor) for row in fast.report.subnormal] == [(first, "weight"), (first, "activations")]
    assert all(row.share > 0.9 for row in fast.report.subnormal)
    assert f"subnormal numbers, zeros in programs but not in torch: {first} weight 100 %" in str(fast.report)


@torch.no_grad()
def test_a_network_that_cannot_be_planned_has_its_subnormal_weights_named():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x) if x.sum() > 0 else x

    network = Decides().eval()
    network.linear.bias[0] = 1e-39
    fast = accelerate(network, torch.ones(1, 4))
    assert [str(row) for row in fast.report.subnormal] == ["linear bias 25 %"]


@torch.no_grad()
def test_what_is_not_a_number_stays_so():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6()).eval()
    x = torch.randn(1, 3, 9, 9)
    x[0, 0, 4, 4] = float("nan")
    assert torch.equal(accelerate(network)(x).isnan(), network(x).isnan())


class _TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(4, 4, 1), nn.Linear(3, 4)

    def forward(self, image, *, by, twice=False):
        y = self.conv(image) * self.gate(by)[:, :, None, None]
        return {"y": y + y if twice else y, "shape": tuple(y.shape), "by": by}


@torch.no_grad()
def test_several_inputs_and_outputs_keep_their_structure():
    network, image, by = _TwoInputs().eval(), torch.randn(2, 4, 5, 6), torch.randn(2, 3)
    fast = accelerate(network)
    for twice in (False, True):
        actual, expected = fast(image, by=by, twice=twice), network(image, by=by, twice=twice)
        assert actual.keys() == expected.keys()
        assert actual["shape"] == expected["shape"]
        assert torch.equal(actual["by"], by)
        assert distance(actual["y"], expected["y"]) < 1e-5


def test_training_mode_is_refused():
    network = separable_network()
    network[4].train()
    with pytest.raises(InputError, match="'4' is in training mode"):
        accelerate(network)
    fast = accelerate(network.eval())
    with pytest.raises(InputError, match="cannot be trained"):
        fast.train()


def test_gradients_are_refused_and_never_lost_in_silence():
    fast, x = accelerate(separable_network()), torch.randn(1, 3, 32, 32)
    assert not fast(x).requires_grad
    with pytest.raises(InputError, match="gives no gradients"):
        fast(x.requires_grad_())


def test_a_report_needs_a_plan():
    with pytest.raises(InputError, match="needs a plan"):
        accelerate(separable_network()).report  # noqa: B018 - reading it is what fails


@torch.no_grad()
def test_double_precision_is_left_alone_with_the_reason():
    network, x = separable_network().double(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    fast = accelerate(network, x)
    torch.testing.assert_close(fast(x), network(x))
    assert {row.reason for row in fast.report.left_alone} >= {"it works on float64"}


def test_training_swaps_depthwise_layers_and_keeps_everything_else():
    network = lived_in(models.import_timm().create_model("mobilenetv2_035", num_classes=5)).train()
    swapped = accelerate(network, training=True)
    kinds = [type(module) for module in swapped.modules()]
    assert kinds.count(separable.DepthwiseConv2d) == 17
    norms = [module for module in swapped.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all(type(norm).__mro__[1].__name__ == "_NormAct" for norm in norms)
    assert swapped.training
    assert list(swapped.state_dict()) == list(network.state_dict())
    x, target = torch.randn(2, 3, 32, 32), torch.tensor([1, 3])

    def loss_of(module, dtype):
        torch.manual_seed(1)
        return F.cross_entropy(module.to(dtype)(x.to(dtype)), target)

    # float32 by its loss, natively; gradients in float64, since rounding is enough to switch units of ReLU6 on and off
    assert loss_of(swapped, torch.float32).item() == pytest.approx(loss_of(network, torch.float32).item(), rel=1e-4)
    for module in (network, swapped):
        loss_of(module, torch.float64).backward()
    for (name, expected), actual in zip(network.named_parameters(), swapped.parameters(), strict=True):
        assert actual is not expected
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-8, atol=1e-10, msg=name)


def test_training_joins_norms_with_activations_and_recomputes_where_asked():
    separable_layer = separable.SeparableConv2d(16, 24, 3, padding=1, inner_activation="relu")
    parts = [torch.nn.Conv2d(3, 16, 1), torch.nn.BatchNorm2d(16), torch.nn.ReLU6(inplace=True), separable_layer]
    network = torch.nn.Sequential(*parts, torch.nn.BatchNorm2d(24), torch.nn.SiLU()).train()
    swapped = accelerate(network, training=True, recompute=True)
    assert [type(layer) for layer in swapped[1:3]] == [separable.layers.BatchNorm2d, torch.nn.ReLU6]
    assert swapped[3].recompute
    assert not network[3].recompute
    x = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)  # large enough for the native norm
    for module in (network, swapped):
        module(x).square().mean().backward()
    for (name, expected), actual in zip(network.state_dict().items(), swapped.state_dict().values(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5, msg=name)
    for (name, expected), actual in zip(network.named_parameters(), swapped.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=name)
    torch.testing.assert_close(swapped.eval()(x), network.eval()(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="training"):
        accelerate(network, recompute=True)


@torch.no_grad()
def test_bfloat16_rounds_factors_and_keeps_sums():
    network, x = separable_network(), torch.randn(2, 3, 40, 36)
    if not _native.has_bfloat16():
        with pytest.raises(InputError, match="AVX512-BF16"):
            accelerate(network, dtype=torch.bfloat16)
        pytest.skip("this processor multiplies no bfloat16: seen that it is refused")
    fast, expected = accelerate(network, dtype=torch.bfloat16), network(x)
    assert 1e-5 < distance(fast(x), expected) < 2e-2
    assert fast(x).dtype == torch.float32
    assert torch.equal(copy.deepcopy(fast)(x), fast(x))
    with _native.force(_native.isas()[-1]), pytest.raises(InputError, match="AVX512-BF16"):
        accelerate(network, dtype=torch.bfloat16)


@pytest.mark.skipif(not _native.has_bfloat16(), reason="this processor multiplies no bfloat16")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("channels", [2, 32, 33, 96])
@torch.no_grad()
def test_bfloat16_of_dense_convolutions(channels, layout):
    """Against the same network with its factors rounded first; a layer of under 64 factors a sum stays float32."""
    first = nn.Conv2d(channels, 64, 3, padding=1)
    network = nn.Sequential(first, nn.ReLU(), nn.Conv2d(64, 24, 5, stride=2, padding=1)).eval()
    x = torch.randn(2, channels, 33, 31).to(memory_format=layout)
    rounded, hidden = copy.deepcopy(network), x
    if channels * 9 >= 64:
        rounded[0].weight.copy_(first.weight.bfloat16())
        hidden = x.bfloat16().float()
    rounded[2].weight.copy_(network[2].weight.bfloat16())
    hidden = rounded[0](hidden).relu().bfloat16().float()
    fast = accelerate(network, x, dtype=torch.bfloat16)
    assert not fast.report.left_alone
    assert distance(fast(x), rounded[2](hidden)) < 2e-3  # a sum that falls between two bfloat16 may round either way


@pytest.mark.skipif(not _native.has_bfloat16(), reason="this processor multiplies no bfloat16")
@torch.no_grad()
def test_bfloat16_leaves_squeeze_excite_of_few_images_exact():
    squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 16, 1), nn.ReLU(), nn.Conv2d(16, 64, 1)).eval()
    fast = accelerate(squeeze, dtype=torch.bfloat16)
    few, many = torch.randn(15, 64, 5, 5), torch.randn(16, 64, 5, 5)
    assert distance(fast(few), squeeze(few)) < 1e-5 < distance(fast(many), squeeze(many))


class Called(nn.Module):
    """A convolution, then `function` of the module, its result and the other arguments."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(8, 8, 3), function

    def forward(self, x, *others):
        return self.function(self, self.conv(x), *others)


@torch.no_grad()
def test_equal_arguments_of_different_types_have_plans_of_their_own():
    network = Called(lambda self, y, flag: y if isinstance(flag, bool) else y * 2).eval()
    fast, x = accelerate(network), torch.randn(1, 8, 6, 6)
    for flag in (1, True, 1.0):
        torch.testing.assert_close(fast(x, flag), network(x, flag), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_arguments_that_may_change_run_the_model():
    network = Called(lambda self, y, names: y * len(names)).eval()
    fast, x = accelerate(network), torch.randn(1, 8, 6, 6)
    assert torch.equal(fast(x, {1, 2}), network(x, {1, 2}))
    assert "may hold anything" in fast.report.left_alone[0].reason


@torch.no_grad()
def test_the_mean_of_everything():
    network, x = Called(lambda self, y: y / y.mean()).eval(), torch.rand(2, 8, 6, 6) + 1
    assert distance(accelerate(network)(x), network(x)) < 1e-4


@torch.no_grad()
def test_random_numbers_of_a_generator_of_its_own_are_drawn_by_the_model():
    def noisy(self, y):
        return y + torch.randn(8, 1, 1, generator=torch.Generator().manual_seed(1))

    network, x = Called(noisy).eval(), torch.randn(1, 8, 6, 6)
    fast = accelerate(network, x)
    for _ in range(2):
        torch.testing.assert_close(fast(x), network(x))
    assert "generator" in fast.report.left_alone[0].reason


def test_what_follows_the_computation_sees_the_model():
    network, x = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()).eval(), torch.randn(2, 8, 6, 6)
    fast = accelerate(network, x)
    tangents = [torch.func.jvp(f, (x,), (torch.ones_like(x),))[1] for f in (network, fast)]
    torch.testing.assert_close(*tangents)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(fast(dual)).tangent
    torch.testing.assert_close(tangent, tangents[0])
    torch.testing.assert_close(torch.func.vmap(fast)(x[:, None]), network(x)[:, None])
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(fast, x)(x), network(x))
        torch.testing.assert_close(torch.export.export(fast, (x,)).module()(x), network(x))


@pytest.mark.parametrize("model", [None, "resnet18", lambda x: x])
@pytest.mark.parametrize("training", [False, True])
def test_what_is_no_module_is_refused(model, training):
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module"):
        accelerate(model, training=training)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_accelerated_is_not_accelerated_again(training):
    with pytest.raises(InputError, match="accelerated already"):
        accelerate(nn.Sequential(accelerate(separable_network())), training=training)


def test_training_takes_no_dtype():
    with pytest.raises(InputError, match="autocast"):
        accelerate(separable_network(), training=True, dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_are_refused(dtype):
    with pytest.raises(InputError, match="must be torch"):
        accelerate(separable_network(), dtype=dtype)


@torch.no_grad()
def test_without_native_kernels_an_input_may_be_a_part_of_another(monkeypatch):
    network, images = nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), separable_network()).eval(), torch.randn(4, 3, 24, 24)
    network = nn.Sequential(nn.ConstantPad2d(1, 0.5), network).eval()
    monkeypatch.setattr(_native, "path", None)
    fast = accelerate(network, images[:1])
    for i in range(4):
        assert distance(fast(images[i : i + 1]), network(images[i : i + 1])) < 1e-5
