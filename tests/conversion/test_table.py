"""The table holds every layer as it is and each form that costs less, with what it costs and what it loses."""

import itertools

import networks
import pytest
import torch
from networks import settled, smooth
from torch import nn

from separable import cost
from separable.conversion import chain, survey
from separable.conversion.forms import FORMS
from separable.conversion.table import options
from separable.conversion.weigh import change, outputs_of, tabulate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    x = smooth(24)
    return survey(settled(networks.UNet(), x), x)


def test_the_first_option_is_the_layer_itself(found):
    for site in found.convertible:
        dense = options(found, site)[0]
        assert (dense.form, dense.macs, dense.params, dense.loss) == (None, site.macs, site.params, 0)


def test_every_other_costs_less_than_the_layer_and_what_its_chain_does(found):
    for site in found.convertible:
        conv, (given, made) = found.conv(site), site.sizes[0]
        many = options(found, site, fit=False)
        assert {option.form for option in many} > {"polyadic", "depthwise first", "pointwise, dense"}
        for option in many[1::7]:
            layer = chain.assemble(conv, FORMS[option.form], option.rank, None, torch.zeros(conv.out_channels))
            x = torch.zeros(1, conv.in_channels, *given)
            counted = cost.count(layer, x)
            assert (option.macs, counted.macs) == (counted.macs, option.macs)
            expected = counted.params if site.takes_bias(conv) else counted.params - conv.out_channels
            assert option.params == expected
            assert layer(x).shape[2:] == made
        assert all(option.macs < site.macs and option.params < site.params for option in many[1:])


def test_more_of_a_form_costs_more_and_loses_less(found):
    for site in found.convertible:
        many = options(found, site)
        for form in FORMS:
            mine = [option for option in many if option.form == form]
            assert [o.rank for o in mine] == sorted({o.rank for o in mine})
            assert [o.macs for o in mine] == sorted(o.macs for o in mine)
            slack = 1e-6 if form != "polyadic" else 0.05
            for less, more in itertools.pairwise(mine):
                assert more.loss <= less.loss + slack, form
            assert all(0 <= o.loss <= 1 + 1e-6 for o in mine)


def test_without_a_fit_costs_are_the_same_and_nothing_is_decomposed(found, monkeypatch):
    site = found.convertible[1]
    fitted = options(found, site)
    for form in FORMS.values():
        monkeypatch.setattr(form, "start", lambda *_: pytest.fail("a form was fitted"))
        monkeypatch.setattr(form, "losses", lambda *_: pytest.fail("a form was fitted"))
    bare = options(found, site, fit=False)
    assert [(o.form, o.rank, o.macs, o.params) for o in bare] == [(o.form, o.rank, o.macs, o.params) for o in fitted]


def test_a_probe_leaves_the_network_as_it_was(found):
    before = {key: value.clone() for key, value in found.model.state_dict().items()}
    table = tabulate(found)
    assert list(found.model.state_dict()) == list(before)
    assert all(torch.equal(before[key], value) for key, value in found.model.state_dict().items())
    assert all(option.change > 0 for many in table.values() for option in many if option.loss > 0)
    assert all(many[0].change == 0 for many in table.values())


def test_a_layer_that_the_output_hardly_shows_weighs_less():
    class Faint(nn.Module):
        def __init__(self):
            super().__init__()
            self.loud, self.faint, self.mid = networks.conv(3, 8), networks.conv(3, 8), networks.conv(3, 8)

        def forward(self, x):
            return self.loud(x).tanh() + 0.3 * self.mid(x).tanh() + 1e-3 * self.faint(x).tanh()

    found = survey(Faint().eval(), smooth(24))
    table = tabulate(found)
    each = {name: max(o.change / o.loss for o in many if o.loss > 0.05) for name, many in table.items()}
    assert each["faint"] < each["mid"] < each["loud"]


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_kind_of_network_has_a_table(name):
    x = smooth(12)
    found = survey(settled(networks.NETWORKS[name](), x), x)
    table = tabulate(found)
    assert list(table) == [site.name for site in found.convertible]
    assert all(len(many) > 1 for many in table.values())


def test_layers_that_the_output_does_not_show_are_still_compared_by_their_losses():
    class Silent(networks.Writing):
        def forward(self, x):
            return super().forward(x) * 0

    table = tabulate(survey(Silent().eval(), smooth(8)))
    assert all(option.change > 0 for many in table.values() for option in many if option.loss > 1e-6)


def test_outputs_are_found_in_any_structure():
    a, b = torch.ones(2), torch.zeros(3)
    assert len(outputs_of({"a": [a, (b, {"c": a})], "n": 3, "i": torch.tensor(1)})) == 3
    assert outputs_of(None) == []


def test_a_change_is_a_share_of_the_variance_of_each_output():
    dense = [torch.randn(50, 4), 100 * torch.randn(50, 2)]
    shifted = [dense[0] + 0.5 * dense[0].std(0), dense[1]]
    assert change(dense, dense) == 0
    assert change(shifted, dense) == pytest.approx(0.25 / 2, rel=0.1)
