"""The page of a real profile: every layer, every saving, and no measured time without its name."""

import pytest
import torch
from torch import nn

from separable import cost
from separable.layers import SeparableConv2d
from separable.report import profile_page


@pytest.fixture(scope="module")
def data():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), SeparableConv2d(8, 4, 3), nn.Flatten(), nn.Linear(4, 2)
    )
    return cost.profile(model, torch.rand(2, 8, 5, 5), repeats=2).to_json()


def test_a_profile_becomes_a_page_that_names_every_layer(data, tmp_path):
    text = profile_page({"network": "small <net>", **data}, tmp_path / "page.html").read_text()
    assert "<h1>small &lt;net&gt;</h1>" in text
    for layer in data["layers"]:
        assert f"<th scope='row'>{layer['name']}</th>" in text
        assert f"{layer['measured_ms']:.3f}" in text
    assert "What separable layers would save" in text
    assert f"{data['layers'][0]['separable']['ms_ratio']:.0%}" in text
    assert text.count("<svg") == 2
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "").replace(
        'xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )


def test_a_network_without_dense_layers_has_no_section_on_savings(data, tmp_path):
    layers = [{**layer, "separable": None} for layer in data["layers"]]
    text = profile_page({**data, "layers": layers}, tmp_path / "page.html").read_text()
    assert "What separable layers would save" not in text


def test_many_layers_share_one_bar(data, tmp_path):
    many = [{**data["layers"][0], "name": f"layer{i}"} for i in range(60)]
    text = profile_page({**data, "layers": many}, tmp_path / "page.html").read_text()
    assert "29 smaller layers" in text
