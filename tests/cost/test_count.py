"""Counts against numbers derived by hand, and what counting must leave alone."""

import io
import json

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from separable.cost import count, profile
from separable.errors import InputError
from separable.layers import SeparableConv1d, SeparableConv2d, SeparableConvTranspose2d


def only(counted, name, kind):
    (layer,) = [layer for layer in counted.layers if (layer.name, layer.kind) == (name, kind)]
    return layer


def kinds(counted):
    return {layer.name: layer.kind for layer in counted.layers if layer.macs}


class Shared(nn.Module):
    """One linear layer called twice, and an embedding whose weight is also the head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.mix = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.mix(self.mix(self.embed(tokens))))


class Attention(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class Stateful(nn.Module):
    """Keeps its last input, counts its calls, and holds a tensor that is neither a parameter nor a buffer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.calls, self.last, self.scale = 0, None, torch.tensor([2.0])

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x
        self.scale.mul_(2)
        return self.norm(self.conv(x)) * self.scale + torch.arange(5, dtype=torch.float32)


def test_dense_convolution_by_hand():
    counted = count(nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.zeros(2, 3, 9, 11))
    layer = counted.layers[0]
    assert layer.output_shape == (2, 8, 5, 6)
    assert layer.kind == "dense"
    assert layer.macs == counted.macs == 2 * 5 * 6 * 8 * (3 * 3 * 3)
    assert layer.params == 8 * 3 * 3 * 3 + 8
    assert layer.bytes == 4 * (2 * 3 * 9 * 11 + 8 * 27 + 8 + 2 * 8 * 5 * 6)
    assert layer.intensity == 2 * layer.macs / layer.bytes
    assert layer.other_ops == 0


@pytest.mark.parametrize(
    ("layer", "shape", "kind", "macs"),
    [
        (nn.Conv1d(4, 6, 5), (1, 4, 12), "dense", 8 * 6 * 4 * 5),
        (nn.Conv3d(2, 4, (1, 3, 3)), (1, 2, 3, 5, 5), "dense", 3 * 3 * 3 * 4 * 2 * 9),
        (nn.Conv2d(4, 8, 1), (1, 4, 5, 5), "pointwise", 25 * 32),
        (nn.Conv2d(4, 8, 3, groups=4), (1, 4, 5, 5), "depthwise", 9 * 8 * 9),
        (nn.Conv2d(8, 4, 3, groups=4), (1, 8, 5, 5), "depthwise", 9 * 4 * 2 * 9),  # sums two filtered channels
        (nn.Conv2d(8, 8, 3, groups=2), (1, 8, 5, 5), "grouped", 9 * 8 * 4 * 9),
        (nn.Conv2d(2, 3, 3, dilation=2, padding=2), (1, 2, 6, 6), "dense", 36 * 3 * 2 * 9),
        (nn.ConvTranspose1d(4, 6, 4, stride=2), (1, 4, 7), "transposed", 7 * 4 * 6 * 4),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 3, 3), "transposed", 2 * 9 * 4 * 3 * 4),
        (nn.ConvTranspose3d(2, 2, 3), (1, 2, 2, 2, 2), "transposed", 8 * 4 * 27),
        (nn.Linear(5, 7), (2, 3, 5), "linear", 6 * 35),
        (nn.Linear(5, 7, bias=False), (5,), "linear", 35),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_macs_and_kind_by_hand(layer, shape, kind, macs):
    counted = count(layer, torch.zeros(shape))
    assert [(row.kind, row.macs) for row in counted.layers if row.macs] == [(kind, macs)]


def test_separable_layers_show_as_their_halves():
    model = nn.Sequential(
        SeparableConv2d(8, 16, 3, padding="same", activation="relu"),
        SeparableConv2d(16, 4, 3, order="pointwise_first", depth_multiplier=2, inner_norm=nn.BatchNorm2d),
        SeparableConvTranspose2d(4, 6, 2, stride=2),
    )
    counted = count(model, torch.zeros(1, 8, 9, 9))
    assert kinds(counted) == {
        "0.conv_dw": "depthwise",
        "0.conv_pw": "pointwise",
        "1.conv_pw": "pointwise",
        "1.conv_dw": "depthwise",
        "2.conv_dw": "transposed",
        "2.conv_pw": "pointwise",
    }
    assert only(counted, "0.conv_dw", "depthwise").macs == 81 * 8 * 9
    assert only(counted, "0.conv_pw", "pointwise").macs == 81 * 8 * 16
    assert only(counted, "1.conv_dw", "depthwise").macs == 49 * 4 * 2 * 9
    assert only(counted, "0", "activation").other_ops == 81 * 16


def test_the_papers_ratio_holds():
    x, k, out = torch.zeros(1, 32, 10, 10), 3, 64
    dense = count(nn.Conv2d(32, out, k, padding=1, bias=False), x).macs
    separable = count(SeparableConv2d(32, out, k, padding=1, bias=False), x).macs
    assert separable / dense == pytest.approx(1 / out + 1 / k**2)


def test_attention_by_hand():
    q, k, v = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 7, 4)
    layer = count(Attention(), (q, k, v)).layers[0]
    assert (layer.kind, layer.macs) == ("attention", 2 * 3 * 5 * 7 * (8 + 4))
    assert layer.bytes == 4 * (q.numel() + k.numel() + v.numel() + 2 * 3 * 5 * 4)  # the scores need not be stored
    assert layer.other_ops == 6 * 2 * 3 * 5 * 7
    assert layer.training_macs == layer.macs  # nothing here is trained


def test_multihead_attention_shows_its_projections_and_its_products():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    counted = count(layer, torch.zeros(3, 5, 8))  # torch's fused inference path would hide all of it
    assert only(counted, "self_attn", "linear").macs == 15 * 8 * 24
    assert only(counted, "self_attn.out_proj", "linear").macs == 15 * 64
    assert only(counted, "self_attn", "attention").macs == 3 * 2 * (5 * 5 * 4) * 2
    assert only(counted, "linear1", "linear").macs == 15 * 8 * 16
    assert counted.params == sum(p.numel() for p in layer.parameters())


def test_other_operations_by_hand():
    x = torch.zeros(1, 4, 6, 6)
    n = x.numel()
    model = nn.Sequential(
        nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Softmax(1)
    ).eval()
    counted = count(model, x)
    assert [(layer.kind, layer.other_ops) for layer in counted.layers] == [
        ("norm", 2 * n),  # one multiply, one add with stored statistics
        ("norm", 6 * n),
        ("activation", n),
        ("pool", 4 * 9 * 9),
        ("pool", 36),
        ("activation", 5 * 4),
    ]
    assert counted.macs == 0
    assert counted.layers[2].bytes == 2 * 4 * n
    assert only(count(nn.BatchNorm2d(4).train(), x), "", "norm").other_ops == 6 * n


def test_a_lookup_reads_what_it_returns():
    layer = count(nn.Embedding(1000, 16), torch.zeros(2, 3, dtype=torch.long)).layers[0]
    assert layer.bytes == 6 * 8 + 2 * 6 * 16 * 4
    assert layer.params == 16000


def test_shared_weights_count_once_and_repeated_calls_count_each_time():
    counted = count(Shared(), torch.zeros(1, 3, dtype=torch.long))
    assert counted.params == 40 + 16
    mix = only(counted, "mix", "linear")
    assert (mix.calls, mix.macs, mix.params) == (2, 2 * 3 * 16, 16)
    assert only(counted, "head", "linear").macs == 3 * 40


def test_parameters_that_the_pass_does_not_use_are_counted_and_named():
    model = nn.Sequential(nn.Linear(4, 4))
    model.add_module("spare", nn.Identity())
    model.spare.extra = nn.Linear(3, 3)
    counted = count(model, torch.zeros(1, 4))
    assert counted.params == 20 + 12
    assert only(counted, "spare.extra", "unused").params == 12


def test_training_step_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1))
    counted = count(model, torch.zeros(1, 3, 6, 6))
    first, second = 16 * 8 * 27, 16 * 32
    assert counted.layers[0].training_macs == 2 * first  # forward and weight: the image needs no gradient
    assert counted.layers[2].training_macs == 3 * second
    assert count(model, torch.zeros(1, 3, 6, 6, requires_grad=True)).layers[0].training_macs == 3 * first
    model[0].requires_grad_(False)
    counted = count(model, torch.zeros(1, 3, 6, 6))
    assert counted.layers[0].training_macs == first  # nothing before it is trained either
    assert counted.layers[2].training_macs == 2 * second
    model[0].requires_grad_(True)
    model[2].requires_grad_(False)
    assert count(model, torch.zeros(1, 3, 6, 6)).layers[2].training_macs == 2 * second  # the gradient passes through


def test_gradients_stop_at_detach():
    class Cut(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).detach())

    counted = count(Cut(nn.Linear(4, 4), nn.Linear(4, 4)), torch.zeros(1, 4))
    assert counted.layers[1].training_macs == 2 * 16


def test_nothing_is_computed():
    counted = count(nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 1, 1).expand(1, 3, 10**5, 10**5))
    assert counted.macs == (10**5 - 2) ** 2 * 8 * 27


def test_the_model_is_left_as_it_was():
    model = Stateful().train()
    model.norm.running_mean.fill_(3)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    first = count(model, torch.full((2, 3, 7, 7), float("nan")))
    assert (model.calls, model.last, model.scale.item()) == (0, None, 2.0)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        torch.testing.assert_close(tensor, before[name][1])
    assert not model.conv._forward_hooks
    assert not nn.modules.module._global_forward_hooks
    assert count(model, torch.zeros(2, 3, 7, 7)) == first  # values do not matter


def test_counts_on_any_device_and_type_and_inside_inference_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 2)).eval()
    expected = count(model, torch.zeros(1, 3, 7, 7))
    assert count(model.to("meta"), torch.zeros(1, 3, 7, 7)) == expected
    with torch.inference_mode():
        assert count(model, torch.zeros(1, 3, 7, 7)) == expected
    half = count(model.to(torch.bfloat16), torch.zeros(1, 3, 7, 7, dtype=torch.bfloat16))
    assert (half.macs, half.training_macs) == (expected.macs, expected.training_macs)
    assert half.bytes == expected.bytes // 2


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
def test_old_weight_norm_and_parametrizations_keep_their_layers_name():
    for wrap in (nn.utils.weight_norm, nn.utils.parametrizations.weight_norm):
        model = nn.Sequential(wrap(nn.Conv1d(3, 4, 3)), nn.ReLU())
        weight = model[0].weight
        counted = count(model, torch.zeros(1, 3, 8))
        assert counted.macs == 6 * 4 * 9
        assert kinds(counted)
        assert all(name.startswith("0") for name in kinds(counted))
        assert counted.params == sum(p.numel() for p in model.parameters())
        assert model[0].weight.device.type == weight.device.type == "cpu"


def test_table_and_json_say_the_same():
    counted = count(SeparableConv1d(8, 16, 5, padding="causal"), torch.zeros(1, 8, 20))
    data = json.loads(json.dumps(counted.to_json()))
    assert data["macs"] == counted.macs == sum(layer["macs"] for layer in data["layers"]) == 20 * (8 * 5 + 128)
    assert data["layers"][-1]["intensity"] == counted.layers[-1].intensity
    text = io.StringIO()
    Console(file=text, width=120).print(counted.table())
    for said in ("conv_dw", "depthwise", "conv_pw", "pointwise", "total"):
        assert said in text.getvalue()


class Refuses(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(5, 4, 3))

    def forward(self, x):
        return self.body(x)


class Looks(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "example", "said"),
    [
        (
            Refuses(),
            torch.zeros(1, 3, 8, 8),
            r"example = float32 \[1, 3, 8, 8\]: layer 'body.1' \(Conv2d\(5, 4, .*\) given \[1, 4, 6, 6\] refuses it: .",
        ),
        (nn.Linear(3, 3), torch.zeros(2, 4), r"Linear\(.*\) given \[2, 4\] refuses it"),
        (nn.Linear(3, 3), torch.zeros(2, 3).long(), r"int64 \[2, 3\].*must be of one type"),
        (nn.Conv2d(3, 3, 7), torch.zeros(1, 3, 5, 5), r"given \[1, 3, 5, 5\] refuses it: .*[Kk]ernel"),
        (nn.Linear(3, 3), (torch.zeros(2, 3), torch.zeros(2, 3)), r"float32 \[2, 3\], float32 \[2, 3\].*TypeError"),
        (nn.Embedding(3, 3), torch.zeros(2, 4), r"example = float32 \[2, 4\]"),
        (nn.Linear(3, 3), [[1.0, 2.0, 3.0]], r"example = list: must be a tensor"),
        (nn.Linear(3, 3), (), r"example = tuple: must be a tensor"),
        (nn.Linear(3, 3), None, r"example = NoneType: must be a tensor"),
        (torch.relu, torch.zeros(1), r"model = .*: must be a torch.nn.Module"),
        (nn.LazyLinear(3), torch.zeros(1, 3), r"model = weight: has no shape yet"),
        (Looks(), torch.zeros(3), r"Looks\(\) given \[3\] reads values, .* in .*test_count\.py, line \d+ \(Tensor"),
    ],
)
def test_mistakes_are_told_in_one_sentence(model, example, said):
    with pytest.raises(InputError, match=said) as error:
        count(model, example)
    assert "\n" not in str(error.value)
    assert not nn.modules.module._global_forward_hooks


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
def test_what_is_counted_is_the_path_that_users_run(order, monkeypatch):
    """A separable layer is one call, unless a half is hooked; to watch it must not change that."""
    layer = SeparableConv2d(3, 4, 3, padding=1, order=order)
    monkeypatch.setattr(SeparableConv2d, "_one_after_the_other", lambda *_: pytest.fail("the halves ran by themselves"))
    model, x = nn.Sequential(layer), torch.rand(1, 3, 6, 6)
    counted = count(model, x)
    assert [(row.name, row.kind) for row in counted.layers if row.macs] == [
        (f"0.{half}", kind)
        for half, kind in sorted(
            [("conv_dw", "depthwise"), ("conv_pw", "pointwise")], reverse=order != "depthwise_first"
        )
    ]
    assert {row.count.name for row in profile(model, x, repeats=1).layers} >= {"0.conv_dw", "0.conv_pw"}
    assert "forward" not in vars(layer)


def test_an_error_that_the_network_catches_does_not_move_what_follows():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.wrong, self.right = nn.Conv2d(5, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            try:
                return self.wrong(x)
            except RuntimeError:
                return self.right(x).relu()

    rows = count(nn.Sequential(Tries()), torch.zeros(1, 3, 5, 5)).layers
    assert [(row.name, row.kind) for row in rows if row.kind != "unused"] == [("0.right", "dense"), ("0", "activation")]


def test_a_forward_of_the_instance_is_watched_and_given_back():
    model = nn.Sequential(nn.Linear(3, 3))
    own = model[0].forward = lambda x: nn.functional.linear(x, model[0].weight)
    profile(model, torch.zeros(1, 3), repeats=1)
    assert vars(model[0])["forward"] is own


def test_the_network_inside_a_compiled_one_is_counted_and_measured():
    network, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(1, 3, 5, 5)
    assert count(torch.compile(network), x).to_json() == count(network, x).to_json()
    assert [layer.count.name for layer in profile(torch.compile(network), x, repeats=1).layers] == ["0", "1"]
