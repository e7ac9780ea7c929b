"""A block that gives its input but for what its layers add can go, whole; what stands behind it takes the loss back."""

import copy
import itertools
import random

import pytest
import torch
from networks import Concatenated, Keeping, Shortcut, conv, settled, smooth
from torch import nn

from separable import cost
from separable.conversion import Study, calibrate, survey, timing, who_pays
from separable.conversion.distillation import features
from separable.conversion.kept import Kept
from separable.conversion.plan import cheapest, choose
from separable.conversion.removal import REMOVED
from separable.conversion.table import Option, every_option
from separable.conversion.weigh import change, outputs_of, tabulate
from separable.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


class Bottleneck(nn.Module):
    """Most of its layers have one tap, and so no options of their own; attention to channels stands before the sum."""

    def __init__(self, channels=8, inner=4, last=nn.ReLU):
        super().__init__()
        self.less, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv, self.bn2 = conv(inner, inner, bias=False), nn.BatchNorm2d(inner)
        self.more, self.bn3 = nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1), nn.Sigmoid()
        )
        self.last = last()

    def forward(self, x):
        y = torch.relu(self.bn2(self.conv(torch.relu(self.bn1(self.less(x))))))
        y = self.bn3(self.more(y))
        return self.last(y * self.attention(y) + x)


class Basic(nn.Module):
    def __init__(self, inputs=8, outputs=8, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride=stride, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, bias=False), nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        y += self.short(x)
        return torch.relu_(y)


def residual() -> nn.Sequential:
    return nn.Sequential(
        conv(3, 8), nn.ReLU(), Basic(), Basic(), Basic(8, 12, stride=2), Bottleneck(12), conv(12, 6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


@pytest.fixture
def seen():
    torch.manual_seed(0)
    images = smooth(48, 12)
    return survey(settled(residual(), images), images)


def remove(found, name):
    return dict.fromkeys(found.blocks[name].layers, (REMOVED, 0))


def test_blocks_that_keep_the_shape_are_found_and_no_others(seen):
    assert {name: block.layers for name, block in seen.blocks.items()} == {
        "2": ("2.conv1", "2.conv2"), "3": ("3.conv1", "3.conv2"), "5": ("5.conv",),
    }  # fmt: skip
    assert all(type(block.stand_in) is nn.Identity for block in seen.blocks.values()), "their inputs are rectified"


@pytest.mark.parametrize("network", [Shortcut, Concatenated, Keeping])
def test_networks_without_such_modules_have_none(network):
    images = smooth(8, 10)
    assert survey(settled(network(), images), images).blocks == {}


def test_the_relu_of_a_block_stays_where_its_input_has_none():
    images = smooth(16, 10)
    network = nn.Sequential(conv(3, 8), Bottleneck(), conv(8, 8), Bottleneck(last=nn.Identity))
    found = survey(settled(network, images), images)
    assert [type(block.stand_in) for block in found.blocks.values()] == [nn.ReLU, nn.Identity]


def test_a_block_that_runs_twice_or_is_looked_into_stays():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block = conv(3, 8), Basic()

        def forward(self, x):
            return self.block(self.block(torch.relu(self.stem(x))))

    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block = conv(3, 8), Basic()

        def forward(self, x):
            return self.block(torch.relu(self.stem(x))) * self.block.bn1.eps

    for network in (Twice(), Looking()):
        images = smooth(8, 10)
        assert survey(settled(network, images), images).blocks == {}


def test_a_block_that_shares_a_layer_or_a_weight_stays():
    layer, weight = residual(), residual()
    layer[3].conv1 = layer[2].conv1
    weight[3].conv1.weight = weight[2].conv1.weight
    for network in (layer, weight):
        images = smooth(8, 12)
        assert list(survey(settled(network, images), images).blocks) == ["5"]


def test_an_example_of_zeros_finds_the_same_blocks():
    images = smooth(16, 12)
    network = settled(residual(), images)
    for parameter in network[0].parameters():
        nn.init.zeros_(parameter)
    found = survey(network, images, example=torch.zeros(1, 3, 12, 12))
    assert list(found.blocks) == ["2", "3", "5"]
    assert type(found.blocks["2"].stand_in) is nn.ReLU, "nothing tells that its input is rectified"


def test_a_stand_in_does_not_let_others_write_into_a_shortcut():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.last = conv(3, 8), Bottleneck(last=nn.Identity), conv(8, 8)

        def forward(self, x):
            x = self.stem(x)
            y = self.block(x)
            return self.last(y.relu_()) + x

    images = smooth(16, 10)
    assert survey(settled(Writing(), images), images).blocks == {}


def test_what_a_block_that_goes_cost_is_what_is_saved(seen):
    table = every_option(seen, fit=False)
    for gone in itertools.chain.from_iterable(itertools.combinations(seen.blocks, n) for n in range(4)):
        plan = {name: many[0] for name, many in table.items()}
        for name in gone:
            for layer in seen.blocks[name].layers:
                plan[layer] = next(o for o in table[layer] if o.form == REMOVED)
        counted = cost.count(timing.network(seen, plan), seen.example)
        for measure, whole in (("macs", seen.macs), ("params", seen.params)):
            saved = sum(getattr(table[n][0], measure) - getattr(plan[n], measure) for n in plan)
            assert getattr(counted, measure) == whole - saved
    least = cost.count(timing.network(seen, cheapest(table, "macs")), seen.example).macs
    assert least < seen.macs - sum(block.macs for block in seen.blocks.values())


def test_a_block_that_adds_nothing_goes_first_and_nothing_is_lost():
    torch.manual_seed(0)
    images = smooth(48, 12)
    network = settled(residual(), images)
    nn.init.zeros_(network[3].bn2.weight)
    nn.init.zeros_(network[3].bn2.bias)
    study = Study(network, images, target="torch")
    study._table = tabulate(study.survey)  # without times, which depend on the machine
    table = study.table
    block = study.survey.blocks["3"]
    plan = choose(table, {"macs": sum(many[0].macs for many in table.values()) - block.macs})
    assert all(plan[layer].form == REMOVED for layer in block.layers)
    made, _ = study.fit(plan)
    assert isinstance(made[3], nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(made(images), network(images), rtol=1e-2, atol=1e-2)


def test_layers_behind_take_back_what_a_block_lost(seen):
    unseen = smooth(64, 12)
    dense = outputs_of(seen.model(unseen))
    made, errors = calibrate(seen, remove(seen, "2"))
    assert isinstance(made[2], nn.Identity)
    assert {"3.conv1", "3.conv2", "6"} <= set(errors), "dense layers behind are fitted anew"
    assert [type(made[3].conv1), type(made[6])] == [nn.Conv2d, nn.Conv2d], "and stay layers"
    bare = copy.deepcopy(seen.model)
    bare[2] = nn.Identity()
    repaired, broken = (change(outputs_of(network(unseen)), dense) for network in (made, bare))
    assert repaired < 0.5 * broken


def test_all_layers_of_a_block_go_or_it_is_refused(seen):
    with pytest.raises(InputError, match="goes only with all layers of a block"):
        calibrate(seen, {"2.conv1": (REMOVED, 0)})
    with pytest.raises(InputError, match="goes only with all layers of a block"):
        calibrate(seen, {"6": (REMOVED, 0)})
    with pytest.raises(InputError, match="chosen = 6: polyadc: must be one of polyadic"):
        calibrate(seen, {"6": ("polyadc", 4)})


def test_what_became_of_each_layer_is_told(seen, monkeypatch):
    images = torch.cat([batch.tensors()[0] for batch in seen.inputs])
    study = Study(seen.model, images, target="torch")
    study._table = tabulate(study.survey)
    plan = {name: many[0] for name, many in study.table.items()}
    plan |= {n: next(o for o in study.table[n] if o.form == REMOVED) for n in study.survey.blocks["5"].layers}
    done = study._finished(plan, *study.fit(plan))
    rows = {layer.name: layer for layer in done.layers}
    for name in ("5.less", "5.conv", "5.more", "5.attention.1"):
        assert (rows[name].form, rows[name].macs_after, rows[name].params_after) == (REMOVED, 0, 0)
    assert rows["6"].note == "dense, fitted anew behind layers that changed"
    assert rows["6"].error is not None
    assert rows["3.conv1"].error is None
    assert all(min(row.macs_after, row.params_after) >= 0 for row in done.layers)


def test_parameters_of_new_biases_are_counted():
    torch.manual_seed(0)
    images = smooth(48, 12)
    blocks = [Bottleneck(8), conv(8, 8, bias=False), nn.ReLU(), conv(8, 8, bias=False)]
    network = settled(nn.Sequential(conv(3, 8), nn.ReLU(), *blocks), images)
    study = Study(network, images, target="torch")
    study._table = tabulate(study.survey)
    for share in (0.9, 0.7, 0.5):
        done = study.convert({"params": share})
        assert done.params_after <= share * done.params_before


def test_a_removal_that_was_stopped_goes_on_to_the_same_network(seen, tmp_path):
    chosen = remove(seen, "2") | {"6": ("dense, pointwise", 3)}
    whole, errors = calibrate(seen, chosen)
    kept = Kept(tmp_path)
    calibrate(seen, chosen, kept)
    for file in sorted(tmp_path.iterdir())[::2]:
        file.unlink()
    again, found = calibrate(seen, chosen, kept)
    assert found == errors
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_who_pays_takes_a_block_back_whole(seen):
    made, _ = calibrate(seen, remove(seen, "2"))
    found = who_pays(seen.model, made, [(smooth(32, 12), torch.arange(32) % 5)])
    back = next(layer for layer in found.layers if layer.name == "2")
    assert (back.modules, back.note) == (["2"], "")


def test_distillation_matches_what_both_networks_have(seen):
    made, _ = calibrate(seen, remove(seen, "2"))
    ours, theirs = (features.Watch(one, keep=features.shape_of) for one in (made, seen.model))
    with ours.open(), theirs.open():
        made(smooth(4, 12))
        seen.model(smooth(4, 12))
    chosen = features.choose(made, seen.model, ours, theirs)
    assert chosen[0].startswith("3."), "what runs behind the block that went"


@pytest.mark.parametrize("seed", range(20))
def test_ties_of_several_layers_hold_or_none_does(seed):
    draw = random.Random(seed)
    names = [f"layer{i}" for i in range(4)]
    table = {}
    for name in names:
        table[name] = [Option(None, 0, 100, 10)]
        table[name] += [Option("form", r, 25 * r, 2 * r, change=draw.uniform(0, 3) / r) for r in (1, 2, 3)]
    for i, name in enumerate(names[:3]):
        other = 0 if i else -draw.randint(0, 60)
        table[name].append(Option(REMOVED, 0, other, other // 10, change=0 if i else draw.uniform(0, 3),
                                  tied=tuple(names[:3])))  # fmt: skip
    for share in (0.8, 0.5, 0.2):
        limit = share * 400
        plans = [dict(zip(names, plan, strict=True)) for plan in itertools.product(*table.values())]
        whole = [p for p in plans if sum(p[n].form == REMOVED for n in names[:3]) in (0, 3)]
        kept = [p for p in whole if sum(o.macs for o in p.values()) <= limit]
        found = choose(table, {"macs": limit})
        assert found in whole
        least = min(sum(o.change for o in plan.values()) for plan in kept)
        assert sum(o.change for o in found.values()) <= least * 1.002 + 1e-9
