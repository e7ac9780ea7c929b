"""Exported files: standard operators, any batch, torch's outputs; whatever cannot be so is refused."""

import json
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from separable import layers
from separable.data import Preparation
from separable.errors import InputError
from separable.export import export_onnx
from separable.models.sources import import_timm

IMAGES = {
    "separable": layers.SeparableConv2d(4, 6, 3, padding=1, inner_activation="relu", activation="silu"),
    "pointwise first": layers.SeparableConv2d(4, 6, 3, order="pointwise_first", depth_multiplier=2),
    "norms": layers.SeparableConv2d(4, 6, 3, inner_norm=nn.BatchNorm2d, norm=nn.BatchNorm2d, activation="hard_swish"),
    "same, stride 2, even kernel": layers.SeparableConv2d(4, 6, (2, 4), stride=2, padding="same"),
    "asymmetric": layers.DepthwiseConv2d(4, 8, (3, 5), padding=((2, 0), (1, 3))),
    "reflected": layers.DepthwiseConv2d(4, 4, 3, padding=1, padding_mode="reflect", activation="gelu"),
    "transposed": layers.SeparableConvTranspose2d(4, 6, 4, stride=2, padding=1),
    "transposed, pointwise first": layers.SeparableConvTranspose2d(
        4, 6, 3, 2, 1, 1, order="pointwise_first", depth_multiplier=2, activation="relu6"
    ),
}
SEQUENCES = {
    "causal": layers.SeparableConv1d(4, 6, 4, dilation=2, padding="causal"),
    "causal, stride 2": layers.DepthwiseConv1d(4, 4, 4, stride=2, padding="causal"),
    "same, stride 3": layers.DepthwiseConv1d(4, 4, 5, stride=3, padding="same"),
    "transposed": layers.SeparableConvTranspose1d(4, 6, 5, stride=3, output_padding=1),
}
VOLUMES = {
    "same": layers.SeparableConv3d(4, 6, 3, stride=(1, 2, 2), padding="same"),
    "transposed": layers.SeparableConvTranspose3d(4, 6, 3, stride=2),
}


class Beside(nn.Module):
    """All of the layers on one input."""

    def __init__(self, cases):
        super().__init__()
        self.cases = nn.ModuleList(cases.values())

    def forward(self, x):
        return [case(x) for case in self.cases]


def run(file, x):
    return onnxruntime.InferenceSession(str(file)).run(None, {"input": x.numpy()})


@pytest.mark.parametrize(
    ("cases", "shape"), [(IMAGES, (4, 9, 8)), (SEQUENCES, (4, 17)), (VOLUMES, (4, 3, 6, 5))], ids=("2-D", "1-D", "3-D")
)
def test_every_kind_of_layer_gives_torchs_outputs_at_any_batch(cases, shape, tmp_path):
    model, file = Beside(cases), tmp_path / "layers.onnx"
    export_onnx(model, torch.zeros(1, *shape), file)
    assert model.training
    model.eval()
    for batch in (1, 5):
        x = torch.randn(batch, *shape)
        for name, actual, expected in zip(cases, run(file, x), model(x), strict=True):
            np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
    assert {node.domain for node in onnx.load(file).graph.node} == {""}


def test_a_timm_network_is_one_file_and_stays_in_its_mode(tmp_path, capfd):
    model = import_timm().create_model("lcnet_035").train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        export_onnx(model, torch.zeros(2, 3, 64, 64), tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")
    assert not told
    assert [module.training for module in model.modules()] == modes
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_what_is_known_about_the_network_travels_in_the_file(tmp_path):
    about = {"classes": ["a", "ü"], "preparation": Preparation((8, 8))}
    export_onnx(nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 8, 8), tmp_path / "net.onnx", about=about)
    kept = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert kept["classes"] == ["a", "ü"]
    assert Preparation.from_json(kept["preparation"]) == Preparation((8, 8))


def test_several_inputs_and_double_precision(tmp_path):
    class Two(nn.Module):
        def forward(self, a, b):
            return {"sum": a + b, "product": (a * b).mean(1)}

    export_onnx(Two().double(), (torch.zeros(1, 4, dtype=torch.float64),) * 2, tmp_path / "two.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "two.onnx"))
    feeds = {entry.name: np.full((3, 4), i + 2.0) for i, entry in enumerate(session.get_inputs())}
    assert [output.tolist() for output in session.run(None, feeds)] == [[[5.0] * 4] * 3, [6.0] * 3]


def test_token_numbers_are_taken_from_the_example(tmp_path):
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2))
    export_onnx(model, torch.tensor([[0, 4, 2]]), tmp_path / "net.onnx")
    assert run(tmp_path / "net.onnx", torch.tensor([[4, 4, 4]] * 7))[0].shape == (7, 2)


def test_a_batch_written_into_the_network_is_refused(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x * x.shape[0] if x.shape[0] == 2 else x

    with pytest.raises(InputError, match="model = Fixed: was exported, but onnxruntime cannot run it at batch 1: "):
        export_onnx(Fixed(), torch.zeros(2, 8), tmp_path / "net.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("join", "shape"), [(lambda x: x.reshape(1, -1), "[1, 24]"), (torch.sum, "[]")])
def test_a_network_that_joins_the_samples_of_a_batch_is_refused(join, shape, tmp_path):
    class Joins(nn.Module):
        def forward(self, x):
            return x, join(x)

    with pytest.raises(InputError) as caught:
        export_onnx(Joins(), torch.zeros(2, 8), tmp_path / "net.onnx")
    batch = 3 if shape == "[1, 24]" else 1
    rule = f"gives an output of shape {shape} at batch {batch}; each must have the batch first"
    assert str(caught.value) == f"model = Joins: {rule}"
    assert not any(tmp_path.iterdir())


def test_random_output_is_not_called_equal(tmp_path):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    with pytest.raises(InputError, match="onnxruntime disagrees at batch 1: the outputs differ by"):
        export_onnx(Noisy(), torch.zeros(2, 8), tmp_path / "net.onnx")
    assert not any(tmp_path.iterdir())


def test_an_operator_of_someone_elses_is_named(tmp_path):
    @torch.library.custom_op("separable_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)

    class Custom(nn.Module):
        def forward(self, x):
            return F.relu(twice(x))

    with pytest.raises(InputError, match="twice"):
        export_onnx(Custom(), torch.zeros(2, 8), tmp_path / "net.onnx")
    assert not any(tmp_path.iterdir())


def test_what_is_no_network_or_no_example_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^model = 3: must be a torch\.nn\.Module"):
        export_onnx(3, torch.zeros(1, 2), tmp_path / "net.onnx")
    with pytest.raises(InputError, match=r"^example = None: must be a tensor"):
        export_onnx(nn.Linear(2, 3), None, tmp_path / "net.onnx")


def test_a_missing_package_is_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime: is .*needed to export; .*pip install 'separable\[deploy\]'"):
        export_onnx(nn.ReLU(), torch.zeros(1, 2), tmp_path / "net.onnx")


def test_an_existing_file_is_kept_where_it_must_not_be_overwritten(tmp_path):
    file = tmp_path / "net.onnx"
    file.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export_onnx(nn.ReLU(), torch.zeros(1, 2), file, overwrite=False)
    assert file.read_text() == "mine"
