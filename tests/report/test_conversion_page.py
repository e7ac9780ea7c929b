"""The page of a converted network says where its milliseconds come from, layer by layer and runtime by runtime."""

import copy
import re

import pytest
import torch
from torch import nn

from separable import conversion
from separable.conversion.who_pays import who_pays
from separable.report import conversion_page, demo_page
from separable.report.comparison_parts import by_speed, comparison_parts

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(576, 4)
    )
    x = torch.randn(64, 3, 8, 8)
    return dense.eval(), conversion.convert(dense.eval(), x, {"macs": 0.6}, target="torch"), x


def data_of(done):
    told = {"budget": {"macs": 0.6}, "images": 64, "seed": 0, **done.to_json()}
    return {"source": "net <a>", "headline": "2.00 times as fast", "conversion": told}


def words(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_layers_and_runtimes_stand_with_their_milliseconds(made, tmp_path):
    _, done, _ = made
    page = conversion_page(data_of(done), tmp_path / "page.html").read_text()
    said = words(page)
    assert "<h1>net &lt;a&gt;, made separable</h1>" in page
    assert "2.00 times as fast." in said
    for layer in done.layers:
        assert f"<th scope='row'>{layer.name}</th>" in page
        assert layer.form is None or f"{layer.form} {layer.rank}" in said.replace("  ", " ")
        assert layer.ms_before is None or f"{layer.ms_before:.3f}" in said
    for row in done.comparison.rows:
        assert row.ms is None or f"{row.ms:.3f}" in said
    assert "Milliseconds of each layer in torch" in said
    assert page.count("<svg") == 2


def test_layers_that_were_not_timed_are_drawn_by_their_multiply_adds(made, tmp_path):
    data = data_of(made[1])
    data["conversion"]["layers"] = [
        {**one, "ms_before": None, "ms_after": None} for one in data["conversion"]["layers"]
    ]
    assert "Multiply-adds of each layer" in conversion_page(data, tmp_path / "page.html").read_text()


def test_who_pays_follows_and_says_when_it_was_asked(made, tmp_path):
    dense, done, x = made
    with torch.no_grad():
        labels = dense(x).argmax(1)
    pays = who_pays(dense, done.model, [(x, labels)]).to_json()
    data = {
        **data_of(done),
        "who_pays": pays,
        "measured": {"top1": {"dense": 1.0, "separable": 0.9, "distilled": 0.95}},
    }
    said = words(conversion_page(data, tmp_path / "page.html").read_text())
    for heading in ("What each class loses", "Layers responsible", "Before and after distillation"):
        assert heading in said
    assert "95.00%" in said


def test_runtimes_come_in_the_order_of_what_matters(made):
    comparison = copy.deepcopy(made[1].comparison.to_json())
    named = ["torch", "openvino", "onnxruntime", "accelerate"]
    row = comparison["rows"][0]
    comparison["rows"] = [{**row, "runtime": name} for name in named]
    comparison["fastest"] = {"dense": "accelerate"}
    assert by_speed(comparison, "dense") == ["accelerate", "torch", "onnxruntime", "openvino"]
    assert by_speed(comparison, "other")[:2] == ["torch", "onnxruntime"]
    shown = words("".join(comparison_parts(comparison, "t", by_speed(comparison, "dense"))))
    assert shown.rindex("accelerate dense") < shown.rindex("openvino dense")
    assert "peak MB" not in shown


def test_the_demos_page_shows_its_networks_in_each_runtime(made, tmp_path):
    told = data_of(made[1])
    row = {
        "top1": 0.9,
        "params": 100,
        "macs": 2_000_000,
        "file_bytes": 4000,
        "ms": {"torch": 0.25, "onnxruntime": None},
    }
    data = {
        "networks": {"dense": row, "separable": {**row, "ms": {"torch": 0.125}}},
        "split": {"train": 1, "validation": 2, "test": 3},
        "seed": 0,
        "comparison": told["conversion"]["comparison"],
        "shown_in": ["torch", "onnxruntime"],
        "times_as_fast": 2.0,
        "headline": "2.00 times as fast",
        "dense_validation_top1": 0.9,
        "history": [{"epoch": 0, "accuracy": 0.8}, {"epoch": 1, "accuracy": 0.9}],
        "conversion": told["conversion"],
    }
    said = words(demo_page(data, tmp_path / "page.html").read_text())
    assert "ms an image, torch 0.250 0.125" in said
    assert "as fast as the fastest dense network here 2.00×" in said
