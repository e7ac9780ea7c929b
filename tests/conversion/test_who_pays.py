"""Who pays: planted faults come out first, counts are those of plain loops, and the networks stay as they are."""

import copy
import json

import pytest
import torch
from torch import nn

from separable.conversion import calibrate, survey, thin
from separable.conversion.who_pays import who_pays
from separable.conversion.who_pays.swaps import differing, evaluation_copy, swapped
from separable.errors import InputError


@pytest.fixture(scope="module")
def digits():
    """Real digits: 900 to learn from, 897 to compare on."""
    loaded = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(loaded.images, dtype=torch.float32).unsqueeze(1)[order] / 16
    return x, torch.tensor(loaded.target)[order]


@pytest.fixture(scope="module")
def dense(digits):
    x, y = digits
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    for _ in range(4):
        for part in torch.randperm(900).split(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def converted(digits, dense):
    forms = {"4": ("pointwise, dense", 3), "7": ("polyadic", 14)}
    return calibrate(survey(dense, digits[0][:64]), forms)[0]


@pytest.fixture(scope="module")
def found(digits, dense, converted):
    x, y = (part[900:] for part in digits)
    names = [f"{i}.png" for i in range(len(x))]
    data = ((x[i : i + 100], y[i : i + 100], names[i : i + 100]) for i in range(0, len(x), 100))  # read once
    ink = x.flatten(1).mean(1)
    slices = {"ink": ["much" if much else "little" for much in ink > ink.median()], "first": {"0.png", "3.png"}}
    return who_pays(dense, converted, data, slices=slices, classes=[f"digit {i}" for i in range(10)])


def test_counts_are_those_of_plain_loops(found, digits, dense, converted):
    x, y = (part[900:] for part in digits)
    with torch.no_grad():
        before, after = dense(x).argmax(1).tolist(), converted(x).argmax(1).tolist()
    assert found.measure == "accuracy"
    for group in found.classes:
        of_class = [
            (b, a) for b, a, label in zip(before, after, y.tolist(), strict=True) if group.name == f"digit {label}"
        ]
        digit = int(group.name[-1])
        assert group.examples == len(of_class)
        assert group.lost == sum(b == digit and a != digit for b, a in of_class)
        assert group.won == sum(b != digit and a == digit for b, a in of_class)
        assert group.dense == pytest.approx(sum(b == digit for b, _ in of_class) / len(of_class))
        assert group.converted == pytest.approx(sum(a == digit for _, a in of_class) / len(of_class))
        assert group.loss == pytest.approx(group.dense - group.converted)
        assert group.low <= group.loss <= group.high
    assert [g.loss for g in found.classes] == sorted((g.loss for g in found.classes), reverse=True)
    assert sum(g.examples for g in found.classes) == found.overall.examples == 897
    ink = x.flatten(1).mean(1)
    much = int((ink > ink.median()).sum())
    assert {g.name: g.examples for g in found.slices} == {"ink: much": much, "ink: little": 897 - much, "first": 2}
    changed = {i for i in range(len(y)) if before[i] != after[i]}
    assert {one.index for one in found.changed} == changed
    assert changed
    for one in found.changed:
        assert (one.dense, one.converted) == (f"digit {before[one.index]}", f"digit {after[one.index]}")
        assert (one.file, one.label) == (f"{one.index}.png", f"digit {int(y[one.index])}")
    with torch.no_grad():
        first = found.changed[0]
        sure = dense(x[first.index : first.index + 1]).softmax(1).max()
    assert first.dense_probability == pytest.approx(float(sure), rel=1e-4)


def test_tables_and_plain_values_hold_everything(found):
    data = json.loads(json.dumps(found.to_json()))
    assert data["changed_examples"]["lost"] == len(found.lost)
    assert [layer["name"] for layer in data["layers"]] == [layer.name for layer in found.layers]
    titles = [table.title for table in found.tables(most=3)]
    assert [title.split(",")[0] for title in titles] == [
        "What classes lose", "What slices lose", "Examples whose answer changed", "Layers taken back one at a time",
    ]  # fmt: skip
    pictures = found.pictures()
    assert set(pictures) <= {one.index for one in found.changed}
    assert all(picture.shape == (8, 8) and picture.dtype == torch.uint8 for picture in pictures.values())


def test_all_layers_that_a_conversion_changed_are_tried_with_the_norms_it_adjusted(dense, converted):
    layers = differing(dense, converted)
    changed = [name for name, module in dense.named_modules()
               if isinstance(module, nn.Conv2d) and type(converted.get_submodule(name)) is not nn.Conv2d]  # fmt: skip
    assert changed
    assert set(changed) <= set(layers)
    norm = {"0": "1", "4": "5"}
    for name, modules in layers.items():
        assert modules in ([name], [name, norm.get(name)])
    everything = [module for modules in layers.values() for module in modules]
    with swapped(evaluation_copy("converted", converted), dense, everything) as restored:
        x = torch.rand(4, 1, 8, 8)
        torch.testing.assert_close(restored(x), dense(x))


def test_a_damaged_layer_is_the_one_responsible(digits, dense, converted):
    x, y = (part[900:] for part in digits)
    damaged = copy.deepcopy(converted)
    with torch.no_grad():
        for parameter in damaged[7].parameters():
            parameter.add_(1.2 * parameter.std() * torch.randn_like(parameter))
    found = who_pays(dense, damaged, [(x, y)])
    assert found.overall.loss > 0.03
    assert found.layers[0].name == "7"
    assert found.layers[0].low > 0
    assert found.layers[0].recovered > 2 * max(layer.recovered for layer in found.layers[1:])
    assert found.layers[0].regained > found.layers[0].broken


def test_a_damaged_class_pays_most(digits, dense):
    x, y = (part[900:] for part in digits)
    damaged = copy.deepcopy(dense)
    with torch.no_grad():
        damaged[10].bias[7] -= 6
    found = who_pays(dense, damaged, [(x, y)])
    assert found.classes[0].name == "7"
    assert found.classes[0].p < 0.001
    assert all(group.p > 0.05 or group.loss < 0 for group in found.classes[1:])
    (layer,) = found.layers
    assert (layer.name, layer.modules) == ("10", ["10"])
    assert layer.recovered == pytest.approx(found.overall.loss)
    assert layer.difference == pytest.approx(1)
    assert (layer.groups[0]["kind"], layer.groups[0]["name"]) == ("class", "7")
    assert layer.groups[0]["recovered"] == pytest.approx(found.classes[0].loss)


def test_without_labels_classes_are_the_dense_networks_answers(digits, dense, converted):
    x = digits[0][900:]
    found = who_pays(dense, converted, x)
    with torch.no_grad():
        before, after = dense(x).argmax(1), converted(x).argmax(1)
    assert found.measure == "agreement"
    assert found.overall.loss == pytest.approx(float((before != after).double().mean()))
    assert {g.name: g.examples for g in found.classes} == {
        str(i): int((before == i).sum()) for i in range(10) if (before == i).any()
    }
    assert all(one.kind == "lost" and one.label is None for one in found.changed)
    assert all(layer.broken >= 0 for layer in found.layers)


def test_examples_without_a_label_are_left_out(digits, dense, converted):
    x, y = digits[0][900:964], digits[1][900:964].clone()
    y[::4] = -1
    found = who_pays(dense, converted, [(x[:32], y[:32]), (x[32:], y[32:])], slices={"some": [0, 1, 2, 63]})
    assert (found.overall.examples, found.unlabelled) == (48, 16)
    assert found.slices[0].examples == 3
    whole = who_pays(dense, converted, [(x[y >= 0], y[y >= 0])])
    assert found.overall == whole.overall


class Maps(nn.Module):
    """Two inputs; a dict of a map and a list of numbers, as detectors give them. Writes into its input."""

    def __init__(self):
        super().__init__()
        self.pad = nn.ZeroPad2d(1)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)

    def forward(self, image, shift):
        image.add_(shift[:, None, None, None])
        x = self.first(self.pad(image)).relu()
        return {"map": self.second(x).sigmoid(), "numbers": [x.mean((2, 3)), x.amax((1, 2, 3))]}


def test_outputs_that_are_no_classes_are_compared_by_their_error():
    dense = Maps()
    converted = copy.deepcopy(dense)
    with torch.no_grad():
        converted.first.weight.mul_(1.3)
        converted.second.weight.mul_(1.01)
    x, shift = torch.rand(20, 3, 9, 9), torch.rand(20)
    before = x.clone()
    found = who_pays(dense, converted, [((x[:12], shift[:12]), None), ((x[12:], shift[12:]), None)])
    torch.testing.assert_close(x, before)
    assert found.measure == "error"
    assert not found.classes
    assert not found.changed
    with torch.no_grad():
        ours, theirs = (net(x.clone(), shift) for net in (converted, dense))
    flat = [[out["map"].flatten(1), out["numbers"][0], out["numbers"][1][:, None]] for out in (ours, theirs)]
    shares = [(c - d).square().mean(1) / d.square().mean() for c, d in zip(*flat, strict=True)]
    expected = torch.stack(shares).mean(0).sqrt()
    assert found.overall.loss == pytest.approx(float(expected.mean()), rel=1e-4)
    assert found.far[0].error == pytest.approx(float(expected.max()), rel=1e-4)
    assert found.far[0].index == int(expected.argmax())
    assert [layer.name for layer in found.layers] == ["first", "second"]
    assert found.layers[0].difference > 0.95
    assert found.layers[0].low > 0


def test_images_of_several_sizes_and_inputs_by_name_are_read():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, pixels, scale=None):
            return {"logits": self.head(self.conv(pixels).mean((2, 3))), "scale": scale}

    dense, converted = Named(), Named()
    data = [{"pixels": torch.randn(6, 3, n, n), "scale": 2, "labels": torch.randint(4, (6,))} for n in (5, 8, 6)]
    found = who_pays(dense, converted, data)
    assert (found.measure, found.overall.examples, found.tried.examples) == ("accuracy", 18, 18)


def toys(seed=0):
    """Random networks in two layers, the second much the more damaged, and examples near the borders of classes."""
    torch.manual_seed(seed)
    dense = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5))
    converted = copy.deepcopy(dense)
    with torch.no_grad():
        converted[0].weight.add_(0.02 * torch.randn(24, 12))
        converted[2].weight.add_(0.06 * torch.randn(5, 24))
    return dense, converted, torch.randn(1500, 12)


def test_a_sample_estimates_what_all_examples_give_without_bias():
    dense, converted, x = toys()
    noisy = [(x, (dense(x) + 0.4 * torch.randn(1500, 5)).argmax(1))]  # labels that the dense network misses often
    whole = {layer.name: layer for layer in who_pays(dense, converted, noisy, swap_examples=1500).layers}
    runs = [who_pays(dense, converted, noisy, swap_examples=150, seed=seed) for seed in range(40)]
    for name, layer in whole.items():
        found = [next(one for one in run.layers if one.name == name) for run in runs]
        values = torch.tensor([one.recovered for one in found], dtype=torch.float64)
        margin = 3.5 * float(values.std()) / len(runs) ** 0.5
        assert float(values.mean()) == pytest.approx(layer.recovered, abs=margin)
        assert sum(one.low <= layer.recovered <= one.high for one in found) >= 34
    assert all(run.tried.examples <= 150 and run.tried.changed >= 75 for run in runs)
    changed = (dense(x).argmax(1) != converted(x).argmax(1)).nonzero().flatten()
    alone = who_pays(dense, converted, [(x[changed], noisy[0][1][changed])], swap_examples=1500)
    broken = {layer.name: layer.broken for layer in alone.layers}
    assert broken["0"] < whole["0"].broken  # what changed examples alone would not have shown


def test_time_ends_the_trials_with_every_layer_on_the_same_examples():
    dense, converted, x = toys()
    found = who_pays(dense, converted, x, swap_seconds=1e-9)
    assert not found.tried.complete
    assert found.tried.examples == 16
    assert 0 < found.tried.changed < 16
    assert all(layer.recovered is not None for layer in found.layers)


class Stops(nn.Module):
    """Passes its input through until it has run `left` times; then it is as if somebody pressed Ctrl-C."""

    left = 10**9
    error: type[BaseException] = KeyboardInterrupt

    def forward(self, x):
        type(self).left -= 1
        if type(self).left < 0:
            raise type(self).error("stopped")
        return x


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_networks_stay_as_they_are_whenever_the_work_is_interrupted(error, monkeypatch):
    dense, converted, x = toys()
    dense, converted = nn.Sequential(*dense, Stops()), nn.Sequential(*converted, Stops())
    converted.train()
    converted[0].eval()
    before = [(name, module, module.training) for name, module in converted.named_modules()]
    weights = {name: tensor.clone() for name, tensor in converted.state_dict().items()}
    pointers = [parameter.data_ptr() for parameter in converted.parameters()]
    monkeypatch.setattr(Stops, "error", error)
    for left in (0, 1, 49, 50, 52):  # in the comparison; then while a layer is swapped
        monkeypatch.setattr(Stops, "left", left)
        with pytest.raises(error):
            who_pays(dense, converted, x)
        assert [(name, module, module.training) for name, module in converted.named_modules()] == before
        assert [parameter.data_ptr() for parameter in converted.parameters()] == pointers
        assert all(torch.equal(tensor, weights[name]) for name, tensor in converted.state_dict().items())


def test_a_swap_takes_a_shared_module_back_under_every_name():
    shared, new = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    dense, converted = nn.Sequential(shared, nn.ReLU(), shared), nn.Sequential(new, nn.ReLU(), new)
    assert differing(dense, converted) == {"0": ["0"]}
    x = torch.randn(1, 4, 6, 6)
    with swapped(converted, dense, ["0"]) as network:
        torch.testing.assert_close(network(x), dense(x))
    assert converted[0] is new
    assert converted[2] is new
    with swapped(converted, dense, [""]) as network:
        assert network is dense


def test_a_block_that_is_gone_is_taken_back_whole_and_a_padding_with_the_layer_after_it():
    def block():
        return nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

    dense = nn.Sequential(block(), block(), nn.ReLU())
    converted = copy.deepcopy(dense)
    converted[0] = nn.Identity()
    converted[1][0], converted[1][1] = nn.Identity(), nn.Conv2d(4, 4, 3, padding=1)
    converted[1][2].running_mean.add_(1)
    assert differing(dense, converted) == {"0": ["0"], "1.1": ["1.0", "1.1", "1.2"]}
    assert differing(dense, copy.deepcopy(dense)) == {}


def test_layers_between_which_channels_went_are_taken_back_together():
    x = torch.randn(24, 3, 8, 8)
    dense = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 4),
    ).eval()  # fmt: skip
    converted, _ = calibrate(survey(dense, x), {"0": (thin.FIRST, 4), "3": (thin.SECOND, 4)})
    assert differing(dense, converted) == {"0": ["0", "1", "3", "4"]}
    with swapped(converted, dense, ["0", "1", "3", "4"]) as network:
        torch.testing.assert_close(network(x), dense(x))


def test_a_layer_that_cannot_be_taken_back_alone_says_why():
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4, 3))
    converted = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Flatten(), dense[3])
    found = who_pays(dense, converted, torch.randn(20, 3, 5, 5), layers={"both": ["0", "1"], "first": ["0"]})
    assert found.layers[0].name == "both"
    assert found.layers[0].difference == pytest.approx(1)
    assert "cannot be taken back alone: " in found.layers[1].note
    assert found.tables()[-1].row_count == 2


def test_networks_that_agree_lose_nothing_and_have_no_layer_to_blame():
    dense, _, x = toys()
    found = who_pays(dense, copy.deepcopy(dense), x[:30])
    assert (found.overall.loss, found.overall.low) == (0, 0)
    assert found.overall.high > 0.05
    assert not found.changed
    assert not found.layers
    json.dumps(found.to_json())


DENSE, CONVERTED, X = toys()
Y = torch.randint(5, (len(X),))


class Broken(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(DENSE(x))


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((DENSE, CONVERTED, []), {}, "data = a list: holds no examples"),
        ((DENSE, CONVERTED, "images"), {}, "data = a str: must be a tensor or an iterable of batches"),
        ((DENSE, CONVERTED, [3]), {}, "data = int: holds no inputs"),
        ((DENSE, CONVERTED, [(X, Y[:3])]), {}, "must be as many as the inputs, 1500"),
        ((DENSE, CONVERTED, [(X, Y, "abc")]), {}, "must be 1500 names"),
        ((DENSE, CONVERTED, [(X, Y + 1)]), {}, "label 5: must be less than 5"),
        ((DENSE, CONVERTED, [(X, Y[:, None])]), {}, "must be class numbers"),
        ((DENSE, CONVERTED, [(X[:5], None), (X[5:], Y[5:])]), {}, "none in the first batch and some later"),
        ((DENSE, CONVERTED, torch.randn(4, 7)), {}, "the converted network cannot read it"),
        ((DENSE, CONVERTED, X * torch.nan), {}, "holds NaN or infinite values"),
        ((DENSE, Broken(lambda y: y[:, :3]), X), {}, "outputs of shapes \\[\\[64, 3\\]\\]: must be as the dense"),
        ((DENSE, Broken(lambda y: y / 0), X), {}, "converted = output, a tensor .*: holds NaN or infinite values"),
        ((DENSE, Broken(lambda y: y[0]), X), {}, "must have the 64 examples of the batch in its first dimension"),
        ((DENSE, "net", X), {}, "converted = str: must be a torch.nn.Module"),
        ((DENSE, CONVERTED, X), {"classes": ["a", "b"]}, "classes = 2 names: must have one for class 4"),
        ((DENSE, CONVERTED, X), {"layers": ["9"]}, "layers = 9: is the name of no module of the dense network"),
        ((DENSE, CONVERTED, X), {"layers": 3}, "layers = 3: must be names of modules"),
        ((DENSE, CONVERTED, X), {"answers": "maps"}, 'answers = maps: must be "auto"'),
        (
            (Maps(), Maps(), [((torch.rand(2, 3, 5, 5), torch.rand(2)), None)]),
            {"answers": "classes"},
            "needs one output",
        ),
        ((DENSE, CONVERTED, X), {"swap_examples": 1}, "swap_examples = 1: must be a whole number of at least 2"),
        ((DENSE, CONVERTED, X), {"swap_seconds": 0}, "swap_seconds = 0: must be a positive number"),
        ((DENSE, CONVERTED, X), {"slices": {"none": [False] * 1500}}, "slices = none: holds no example"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(arguments, options, said):
    with pytest.raises(InputError, match=said) as raised:
        who_pays(*arguments, **options)
    assert "\n" not in str(raised.value)
