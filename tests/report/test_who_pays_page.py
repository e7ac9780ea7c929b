"""The page says who pays: every class, slice, changed example and layer, with pictures, whatever was measured."""

import copy
import re

import pytest
import torch
from torch import nn

from separable.conversion.who_pays import who_pays
from separable.report import write_page
from separable.report.who_pays_page import who_pays_facts, who_pays_page, who_pays_sections

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 6))
    converted = copy.deepcopy(dense)
    with torch.no_grad():
        converted[0].weight.add_(0.1 * torch.randn_like(converted[0].weight))
        converted[3].bias[2] -= 0.3
    return dense, converted, torch.randn(300, 3, 8, 8)


def text(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_a_page_of_labelled_images_shows_classes_slices_examples_and_layers(networks, tmp_path):
    dense, converted, x = networks
    with torch.no_grad():
        labels = (dense(x) + 0.1 * torch.randn(300, 6)).argmax(1)
    names = [f"<{i}>.png" for i in range(300)]
    found = who_pays(
        dense, converted, [(x, labels, names)], classes=list("abcdef"), slices={"half": range(150)}, swap_examples=200
    )
    page = who_pays_page(found.to_json(), tmp_path / "page.html", found.pictures()).read_text()
    said = text(page)
    for heading in ("What each class loses", "What each slice loses", "Examples that changed", "Layers responsible"):
        assert heading in said
    assert f"{len(found.lost)} answers were lost" in said
    assert "Estimated from 200 of 300 examples" in said
    assert "Changed examples alone would flatter every layer" in said
    shown = (
        min(24, len(found.lost)) + min(24, len(found.won)) + min(24, len(found.changed) - len(found.lost + found.won))
    )
    assert page.count("data:image/png;base64,") == shown > 0
    assert f"&lt;{found.lost[0].index}&gt;.png" in page
    for layer in found.layers:
        assert f"{layer.name}: {100 * layer.recovered:.4g}" in page  # the tip of its point
    for group in found.classes:
        assert f"{group.name}: {100 * group.loss:.4g}" in page
    assert who_pays_facts(found.to_json())[1][1].endswith(f"class {found.classes[0].name}")


def test_pages_without_labels_without_pictures_and_of_errors_are_whole(networks, tmp_path):
    dense, converted, x = networks
    unlabelled = who_pays(dense, converted, x).to_json()
    page = write_page(tmp_path / "agreement.html", "t", who_pays_sections(unlabelled)).read_text()
    assert "Whether a changed answer is better or worse is not known" in text(page)
    assert "data:image/png" not in page
    errors = who_pays(dense[:3], converted[:3], x, slices={"few": [0]}, answers="values")
    page = write_page(tmp_path / "e.html", "t", who_pays_sections(errors.to_json(), errors.pictures())).read_text()
    assert "relative error" in page
    assert page.count("data:image/png") == 24
    same = who_pays(dense, dense, x[:20]).to_json()
    assert "No answer changed." in text(write_page(tmp_path / "same.html", "t", who_pays_sections(same)).read_text())


def test_a_layer_that_cannot_be_taken_back_stands_in_the_table_with_its_reason(networks, tmp_path):
    dense, _, x = networks
    other = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 6))
    found = who_pays(dense, other, x[:20])
    assert all(layer.note for layer in found.layers)
    page = write_page(tmp_path / "page.html", "t", who_pays_sections(found.to_json())).read_text()
    assert "cannot be taken back alone" in page


def test_pictures_undo_the_preparation_and_stay_small():
    dense = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3))
    other = nn.Sequential(dense[0], dense[1], nn.Linear(48, 3))
    image = torch.rand(3, 200, 100)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.25)
    prepared = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    found = who_pays(dense, other, prepared[None], answers="values")
    picture = found.pictures(mean, std)[0]
    assert picture.shape == (96, 48, 3)
    assert abs(float(picture.float().mean()) / 255 - float(image.mean())) < 0.02
    assert found.pictures()[0].shape == (96, 48, 3)
    assert who_pays(dense[1:], other[1:], torch.rand(5, 48)).pictures() == {}
