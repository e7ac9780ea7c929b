"""A saved network comes back without its code: same names and outputs, trainable; nothing else comes in with it."""

import copy
import importlib
import json
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from separable import layers, store
from separable.data import Preparation
from separable.errors import InputError
from separable.functional import depthwise_conv2d
from separable.store.tensors import write as write_tensors


class ShortcutA(nn.Module):
    """ResNet-20's shortcut without parameters (He et al. 2015, option A): every second pixel, channels padded."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.channels = channels

    def forward(self, x):
        half = self.channels // 2
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half), "constant", 0)
        return F.relu(self.bn(self.conv(x)) + shortcut)


class Functional(nn.Module):
    """As many ways of calling as fit in one forward: functions, operators, methods, shapes, several outputs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 1, 3, 3))
        self.gamma = nn.Parameter(torch.ones(8))
        self.register_buffer("shift", torch.randn(8), persistent=False)
        self.scale = torch.tensor(0.5)  # a plain attribute

    def forward(self, x, power=2, mask=None):
        batch, channels, height, width = x.shape
        x = depthwise_conv2d(x, self.weight, padding="same") * self.scale
        a, b = torch.chunk(x, 2, dim=1)
        a, b = a.sigmoid(), F.silu(b) ** power
        x = torch.cat([a, b], 1) + F.hardswish(x) - x.mean((2, 3), keepdim=True)
        x = F.layer_norm(x.permute(0, 2, 3, 1), (channels,), self.gamma, self.shift).permute(0, 3, 1, 2)
        x = F.interpolate(x, scale_factor=2, mode="nearest")[..., 1:, :-1]
        if mask is not None:
            x = x * mask
        y = F.adaptive_avg_pool2d(F.max_pool2d(x, 2), (2, 2)).reshape(batch, channels * 4)
        q = x.flatten(2).transpose(1, 2)
        z = F.scaled_dot_product_attention(q, q, q)
        w = torch.einsum("blc,bmc->blm", q, z).softmax(-1).split(5, dim=1)[0]
        return {"pooled": y, "both": (z.view(batch, -1), w), "height": height * width}


class FlagsInForward(nn.Module):
    """Dropout and batch norm as functions, which read the module's mode themselves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        x = F.dropout(x, 0.5, self.training)
        return F.batch_norm(x, self.mean, self.var, training=self.training)


class Shared(nn.Module):
    """A layer called twice, a module under two names, and a weight that two layers share."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.mix = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.again = self.mix
        self.unused = nn.Linear(3, 2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.memory = nn.LSTM(6, 6, batch_first=True)

    def forward(self, ids):
        x = self.again(self.mix(self.embed(ids)))
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.memory(x)[0])


def separable_net():
    return nn.Sequential(
        layers.SeparableConv2d(3, 8, 3, stride=2, padding="same", inner_norm=nn.BatchNorm2d, inner_activation="relu"),
        layers.SeparableConv2d(8, 6, 3, padding=((1, 0), (0, 2)), order="pointwise_first", norm=nn.BatchNorm2d),
        layers.SeparableConvTranspose2d(6, 4, 4, stride=2, padding=1, activation="silu", depth_multiplier=2),
        layers.DepthwiseConv2d(4, 8, 3, padding=1, padding_mode="circular", activation="gelu", bias=False),
        layers.GatedSeparableConv2d(8, 4, 3),
        nn.GroupNorm(2, 4, eps=1e-3),
        nn.PReLU(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(4, 2),
    )


NETWORKS = {
    "option A": (lambda: ShortcutA(4), torch.zeros(1, 4, 8, 8)),
    "functional": (Functional, torch.zeros(1, 8, 4, 6)),
    "flags": (FlagsInForward, torch.zeros(1, 4, 3, 3)),
    "shared": (Shared, torch.tensor([[1, 5, 3, 10]])),
    "separable": (separable_net, torch.zeros(1, 3, 9, 12)),
    "one layer": (lambda: layers.SeparableConv1d(4, 6, 3, padding="causal"), torch.zeros(1, 4, 9)),
    "readings": (lambda: nn.Sequential(layers.StackedConv2d(3, 4, 3)), torch.zeros(1, 3, 5, 5)),
}


def first(outputs):
    return outputs if isinstance(outputs, torch.Tensor) else outputs["pooled"]


def batch_like(example, size=3):
    if example.is_floating_point():
        return torch.randn(size, *example.shape[1:])
    return example.repeat(size, *[1] * (example.dim() - 1))


def assert_trains_alike(model, loaded, x):
    """One step of training: the same outputs, gradients and running statistics."""
    for network in (model, loaded):
        network.train()
        torch.manual_seed(0)
        network.output = first(network(x))
        network.output.square().mean().backward() if network.output.requires_grad else None
    torch.testing.assert_close(loaded.output, model.output)
    ours, theirs = dict(loaded.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name].grad, parameter.grad, msg=name)
    del model.output, loaded.output
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_comes_back_equal_and_trainable(case, tmp_path):
    factory, example = NETWORKS[case]
    model, x = factory(), batch_like(example)
    store.save(model, tmp_path / "net", example=example)
    loaded = store.load(tmp_path / "net")
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    model.eval()
    torch.testing.assert_close(first(loaded(x)), first(model(x)), rtol=0, atol=0)
    assert_trains_alike(model, loaded, x)


@pytest.mark.parametrize("case", NETWORKS)
def test_a_loaded_network_can_be_saved_copied_and_pickled_again(case, tmp_path):
    factory, example = NETWORKS[case]
    store.save(factory(), tmp_path / "net", example=example)
    loaded, x = store.load(tmp_path / "net"), batch_like(example)
    store.save(loaded, tmp_path / "again", example=example)
    copies = [store.load(tmp_path / "again"), copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))]
    for other in copies:
        assert list(other.state_dict()) == list(loaded.state_dict())
        torch.testing.assert_close(first(other(x)), first(loaded(x)), rtol=0, atol=0)
        assert_trains_alike(copy.deepcopy(loaded), other, x)


def test_what_is_shared_stays_shared(tmp_path):
    store.save(Shared(), tmp_path / "net", example=torch.tensor([[1, 2]]))
    loaded = store.load(tmp_path / "net")
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.again is loaded.mix
    assert "head.weight" not in load_file(tmp_path / "net" / "model.safetensors")


def test_containers_and_frozen_weights_come_back_as_they_were(tmp_path):
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.ModuleDict({"a-b": nn.Linear(2, 2)})["a-b"])
    model[0][0].weight.requires_grad_(False)
    store.save(model, tmp_path / "net")
    loaded = store.load(tmp_path / "net")
    assert isinstance(loaded.get_submodule("0"), nn.Sequential)
    assert not loaded.get_parameter("0.0.weight").requires_grad
    assert loaded.get_parameter("0.0.bias").requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_dtype_is_kept(dtype, tmp_path):
    model = separable_net().to(dtype)
    store.save(model, tmp_path / "net", example=torch.zeros(1, 3, 9, 12, dtype=dtype))
    loaded = store.load(tmp_path / "net")
    assert {name: value.dtype for name, value in loaded.state_dict().items()} == {
        name: value.dtype for name, value in model.state_dict().items()
    }
    assert store.read_about(tmp_path / "net")["input_dtype"] == str(dtype).removeprefix("torch.")


def test_loading_needs_no_code_of_the_network(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch.nn as nn\n"
        "class Mine(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 4, 3)\n"
        "    def forward(self, x):\n"
        "        return self.conv(x).relu()\n"
    )
    write = "import mine, separable, torch; separable.save(mine.Mine(), 'net', example=torch.zeros(1, 3, 5, 5))"
    read = """
    import pickle, sys, torch, separable
    def refuse(*_, **__): raise AssertionError("pickle was used")
    pickle.load = pickle.loads = pickle.Unpickler = refuse
    print(list(separable.load('net').state_dict()), 'mine' in sys.modules)
    """
    subprocess.run([sys.executable, "-c", write], cwd=tmp_path, check=True)
    (tmp_path / "mine.py").unlink()
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(read)], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "['conv.weight', 'conv.bias'] False"


def test_the_model_that_is_saved_stays_as_it_is(tmp_path):
    model = Functional().train()
    before = (dict(vars(model)), [id(p) for p in model.parameters()])
    store.save(model, tmp_path / "net", example=torch.zeros(1, 8, 4, 6))
    assert model.training
    assert dict(vars(model)) == before[0]
    assert [id(p) for p in model.parameters()] == before[1]


def test_what_is_known_is_kept_beside_the_network(tmp_path):
    about = {"preparation": Preparation((8, 8)), "classes": ["ä", "b"], "top1": 0.9, "input_shape": [1, 3, 8, 8]}
    store.save(nn.Conv2d(3, 2, 3), tmp_path / "net", about=about)
    known = store.read_about(tmp_path / "net")
    assert Preparation.from_json(known["preparation"]) == Preparation((8, 8))
    assert (known["classes"], known["top1"], known["input_shape"]) == (["ä", "b"], 0.9, [1, 3, 8, 8])
    assert known["versions"]["torch"] == torch.__version__
    with pytest.raises(InputError, match="about = dict: must hold plain JSON"):
        store.save(nn.ReLU(), tmp_path / "other", about={"x": {1, 2}})
    with pytest.raises(InputError, match="must hold plain JSON"):
        store.save(nn.ReLU(), tmp_path / "other", about={"x": float("nan")})


def test_work_that_differs_in_training_is_said(tmp_path):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return (self.a(x), self.b(x)) if self.training else self.a(x)

    with pytest.warns(UserWarning, match="Auxiliary does other work in training than in evaluation"):
        store.save(Auxiliary(), tmp_path / "net", example=torch.zeros(1, 2))
    assert "b.weight" in store.load(tmp_path / "net").state_dict()


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class Foreign(nn.Module):
    def forward(self, x):
        return torch.linalg.inv(x)


class Loops(nn.Module):
    def forward(self, x):
        return sum(row for row in x)


class HasAttribute(nn.Module):
    def forward(self, x):
        return x.real


class Sizes(nn.Module):
    def forward(self, x):
        return x + torch.zeros(x.shape[0], 2)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (Branches(), "`if x.sum() > 0:`"),
        (Foreign(), "`return torch.linalg.inv(x)` calls linalg_inv, which a saved network may not"),
        (Loops(), "`return sum(row for row in x)`"),
        (HasAttribute(), "`return x.real`: reads .real, which a saved network may not"),
        (Sizes(), "`return x + torch.zeros(x.shape[0], 2)`"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_written_down_is_refused_with_its_line(model, line, tmp_path):
    with pytest.raises(InputError) as told:
        store.save(nn.Sequential(nn.ReLU(), model), tmp_path / "net")
    assert "model = Sequential: cannot be saved: " in str(told.value)
    assert "test_store.py:" in str(told.value)
    assert line in str(told.value)
    assert not any(tmp_path.iterdir())


def test_what_acts_outside_of_forward_is_refused(tmp_path):
    hooked, normed = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    hooked[0].register_forward_hook(lambda module, inputs, output: output * 2)
    torch.nn.utils.parametrizations.weight_norm(normed[0])
    with pytest.raises(InputError, match="module 0 has forward hooks; remove them"):
        store.save(hooked, tmp_path / "net")
    with pytest.raises(InputError, match="module 0 has parametrizations; take them off with"):
        store.save(normed, tmp_path / "net")
    with pytest.raises(InputError, match=r"0\.weight has no values in memory"):
        store.save(nn.Sequential(nn.Linear(2, 2, device="meta")), tmp_path / "net")


def test_a_changed_subclass_is_followed_into_and_an_unchanged_one_is_the_class_itself(tmp_path):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(nn.Linear):
        pass

    model = nn.Sequential(Doubled(3, 3), Renamed(3, 3))
    store.save(model, tmp_path / "net", example=torch.zeros(1, 3))
    loaded, x = store.load(tmp_path / "net"), torch.randn(3, 3)
    torch.testing.assert_close(loaded(x), model(x))
    assert type(loaded.get_submodule("1")) is nn.Linear


def test_a_batch_written_into_the_graph_is_found_before_anything_is_written(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x + torch.zeros(2, 4)

    with pytest.raises(InputError, match="the network fails on it: The size of tensor"):
        store.save(Fixed(), tmp_path / "net", example=torch.zeros(2, 4))
    assert not any(tmp_path.iterdir())


def test_a_network_that_comes_back_different_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setitem(store.capture.__globals__["FUNCTION_NAMES"], torch.sin, "torch.cos")

    class Sine(nn.Module):
        def forward(self, x):
            return torch.sin(x)

    with pytest.raises(InputError, match="loaded again, at batch 1, the outputs differ by"):
        store.save(Sine(), tmp_path / "net", example=torch.zeros(1, 4))
    assert not any(tmp_path.iterdir())


def test_a_taken_folder_is_kept_unless_it_is_an_earlier_network(tmp_path):
    store.save(nn.Linear(2, 2), tmp_path / "net")
    with pytest.raises(InputError, match="not empty"):
        store.save(nn.Linear(2, 3), tmp_path / "net")
    assert store.load(tmp_path / "net").out_features == 2
    store.save(nn.Linear(2, 3), tmp_path / "net", overwrite=True)
    assert store.load(tmp_path / "net").out_features == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["net"]


CORE_ONLY = """
import sys
for name in {absent!r}:
    sys.modules[name] = None
import torch, separable
from torch import nn
from separable.cost import count
torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
x = torch.randn(8, 3, 6, 6)
assert count(net, x).macs
student = separable.convert(net, x, {{"macs": 0.8}}).model
data = [(x, torch.randint(0, 4, (8,)))]
separable.distill(student, net, data, data, epochs=1)
separable.save(student.eval(), sys.argv[1], example=x)
assert torch.equal(separable.load(sys.argv[1])(x), student(x))
print("done")
"""
ABSENT = ("PIL", "matplotlib", "jinja2", "onnx", "onnxruntime", "onnxscript", "timm", "torchvision")


def test_the_core_counts_converts_trains_saves_and_loads_with_nothing_else_installed(tmp_path):
    code = CORE_ONLY.format(absent=ABSENT)
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "net"], capture_output=True, text=True)
    assert result.stdout == "done\n", result.stderr


DTYPES = (
    *("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "bfloat16"),
    *("float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2"),
)


def test_tensors_of_every_dtype_and_shape_are_written_as_safetensors_reads_them(tmp_path):
    tensors = {}
    for name in DTYPES:
        for shape in ((), (0,), (3, 0, 2), (5,), (2, 3)):
            values = torch.randint(0, 2, shape).to(getattr(torch, name))
            tensors[f"{name} {shape}"] = values
    write_tensors(tmp_path / "all.safetensors", tensors)
    read = load_file(tmp_path / "all.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype, name
        assert read[name].shape == tensor.shape, name
        assert read[name].tolist() == tensor.tolist(), name
    write_tensors(tmp_path / "none.safetensors", {})
    assert load_file(tmp_path / "none.safetensors") == {}
    with pytest.raises(InputError, match=r"holds no torch\.complex128"):
        write_tensors(tmp_path / "wide.safetensors", {"z": torch.zeros(2, dtype=torch.complex128)})


@pytest.mark.skipif(os.name != "posix", reason="the mode of a file is POSIX's")
def test_the_files_have_the_mode_that_the_user_gives_his_files(tmp_path):
    before = os.umask(0o026)
    try:
        store.save(nn.Linear(2, 3), tmp_path / "net")
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "net").iterdir()} == {"0o640"}


def test_what_is_no_network_or_no_path_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^model = 3: must be a torch\.nn\.Module"):
        store.save(3, tmp_path / "net")
    with pytest.raises(InputError, match=r"^folder = None: must be a path"):
        store.save(nn.Linear(2, 3), None)
    for read in (store.load, store.read_about):
        with pytest.raises(InputError, match=r"^folder = None: must be a path"):
            read(None)
    assert not any(tmp_path.iterdir())


def test_a_users_folder_called_torch_is_not_the_framework(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "branching_net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def forward(self, x):\n"
        "        return x if x.sum() > 0 else -x\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "torch")
    model = importlib.import_module("branching_net").Net()
    with pytest.raises(InputError, match=r"branching_net\.py:6: `return x if"):
        store.save(model, tmp_path / "net")


def test_a_full_disk_leaves_nothing(tmp_path):
    code = """if True:
        import resource, sys, torch, separable
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        separable.save(torch.nn.Linear(100, 100), sys.argv[1])
    """
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "net"], capture_output=True, text=True)
    assert "InputError: folder = " in result.stderr
    assert "could not be written: File too large; nothing was left behind" in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.fixture
def saved(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(2, 3, 5, 5))
    store.save(model, tmp_path / "net", example=torch.zeros(1, 3, 5, 5))
    return tmp_path / "net"


def edited(folder, change):
    document = json.loads((folder / "model.json").read_text())
    change(document)
    (folder / "model.json").write_text(json.dumps(document))
    return folder


def test_missing_and_damaged_files_are_told(saved, tmp_path):
    with pytest.raises(InputError, match=r"holds no saved network \(no model\.json\)"):
        store.load(tmp_path)
    weights = (saved / "model.safetensors").read_bytes()
    for damage in (weights[:-10], b"\xff" * 100, b"", weights[:6]):
        (saved / "model.safetensors").write_bytes(damage)
        with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
            store.load(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        store.load(saved)
    for text in ("{", "[" * 100_000, "\xff"):
        (saved / "model.json").write_text(text, encoding="latin-1")
        with pytest.raises(InputError, match=r"model\.json is damaged"):
            store.load(saved)
    (saved / "model.json").write_text("{}")
    with pytest.raises(InputError, match="is no description of a network"):
        store.read_about(saved)


def test_another_version_is_told(saved):
    with pytest.raises(InputError, match="is of format 2, and this version reads 1; a newer separable may read it"):
        store.load(edited(saved, lambda d: d.update(version=2)))


def test_weights_that_do_not_fit_are_named(saved):
    file = saved / "model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if k != "1.running_var"}, file)
    with pytest.raises(InputError, match=r"the weights lack 1\.running_var"):
        store.load(saved)
    save_file(weights | {"more": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="the weights hold 1 that no module takes: more"):
        store.load(saved)
    save_file(weights | {"0.weight": torch.zeros(4, 3, 5, 5)}, file)
    with pytest.raises(InputError, match=r"0\.weight has shape \[4, 3, 5, 5\], and its module takes \[4, 3, 3, 3\]"):
        store.load(saved)


def node(**changes):
    return lambda d: d["nodes"].insert(1, {"name": "evil", "op": "call_function", "target": "torch.add"} | changes)


def module(path, description):
    return lambda d: d["modules"].update({path: description})


HOSTILE = {
    "os.system": node(target="os.system", args=["true"]),
    "torch.load": node(target="torch.load", args=["x"]),
    "eval by method": node(op="call_method", target="__reduce_ex__", args=[{"node": "input_1"}]),
    "a method of a string": node(op="call_method", target="format", args=["{0.__class__}"]),
    "getattr chain": node(target="getattr", args=[{"node": "input_1"}, "__class__"]),
    "getattr of no node": node(target="getattr", args=["x", "shape"]),
    "getattr named by a node": node(target="getattr", args=[{"node": "input_1"}, {"node": "input_1"}]),
    "code in a name": node(name="x=__import__('os')", args=[1, 1]),
    "code in a keyword": node(args=[1, 1], kwargs={"x=1)#": 1}),
    "code in a placeholder": node(op="placeholder", target="x=print(1)"),
    "self as a name": node(op="placeholder", name="self", target="self"),
    "a dunder path": node(op="get_attr", target="__class__"),
    "a path that is none": node(op="get_attr", target="0.weight'); print('"),
    "an attribute that is no tensor": node(op="get_attr", target="0.forward"),
    "an unknown node": node(args=[{"node": "nowhere"}, 1]),
    "an unknown kind of value": node(args=[{"code": "1"}]),
    "a huge number": node(args=[2**70, 1]),
    "deep nesting": node(args=[json.loads("[" * 50 + "]" * 50)]),
    "no operation": node(op="exec", target="1"),
    "a container called": lambda d: (
        d["modules"].update(box={"class": "Sequential"}),
        node(op="call_module", target="box")(d),
    ),
    "a foreign class": module("0", {"class": "subprocess.Popen", "arguments": {"args": "true"}}),
    "a class by path": module("0", {"class": "torch.nn.modules.conv.Conv2d", "arguments": {}}),
    "an argument that is none": module("0", {"class": "torch.nn.ReLU", "arguments": {"hook": 1}}),
    "no arguments": module("0", {"class": "torch.nn.Conv2d", "arguments": {}}),
    "a million layers": module(
        "9", {"class": "torch.nn.LSTM", "arguments": {"input_size": 1, "hidden_size": 1, "num_layers": 1000000}}
    ),
    "huge sizes": module(
        "4", {"class": "torch.nn.Linear", "arguments": {"in_features": 2**39, "out_features": 2**39, "bias": True}}
    ),
    "a module over forward": module("forward", {"class": "Module"}),
    "a module over a dunder": module("__class__", {"class": "Module"}),
    "a tensor over a method": lambda d: d["tensors"].update({"0.forward": {"kind": "buffer", "same_as": "0.bias"}}),
    "a tensor of no module": lambda d: d["tensors"].update({"9.x": {"kind": "buffer", "same_as": "0.bias"}}),
    "a name for the class": lambda d: d.update(name="X(object): pass\nimport os #"),
    "nodes that are none": lambda d: d.update(nodes={"a": 1}),
    "modules that are none": lambda d: d["modules"].update({"0": 7}),
    "an alias of nothing": module("9", {"same_as": "0.0"}),
    "modules in a circle": lambda d: d["modules"].update(
        {"a": {"class": "Module"}, "b": {"class": "Module"}, "a.b": {"same_as": "b"}, "b.a": {"same_as": "a"}}
    ),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_description_is_refused(attack, saved, capsys):
    with pytest.raises(InputError, match=r"model\.json describes no network"):
        store.load(edited(saved, HOSTILE[attack]))
    assert capsys.readouterr().out == ""
