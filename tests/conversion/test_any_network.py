"""Every kind of network is converted, of one input or several, and what cannot be is listed with its reason."""

import copy

import kinds
import pytest
import torch
from networks import smooth
from torch import nn
from torch.utils import _pytree as pytree

from separable import cost, runtimes
from separable.conversion import Study, calibrate, convert, distill, study, survey
from separable.conversion.judge import Judge
from separable.conversion.weigh import change, outputs_of
from separable.errors import InputError
from separable.inputs import Inputs

pytestmark = pytest.mark.usefixtures("one_thread", "untimed")


@pytest.fixture(autouse=True)
def _one_runtime(monkeypatch):
    monkeypatch.setattr(study, "_COMPARED", ("torch",))
    monkeypatch.setattr(study, "_ROUNDS", 1)


def settled(network, x):
    network.train()
    with torch.no_grad():
        for _ in range(10):
            x.call(network)
    return network.eval()


def structure(outputs):
    leaves, spec = pytree.tree_flatten(outputs)
    return spec, [leaf.shape for leaf in leaves]


@pytest.mark.parametrize("kind", kinds.KINDS)
@torch.no_grad()
def test_every_kind_is_converted(kind):
    make, draw = kinds.KINDS[kind]
    given = draw()
    x = Inputs.of(given)
    dense = settled(make(), x)
    kept, state = copy.deepcopy(x), copy.deepcopy(dense.state_dict())
    found = Study(dense, given if isinstance(given, torch.Tensor) else [(given, None)], target="torch")
    wanted = x.call(dense)
    for share in (0.95, 0.55):
        done = found.convert({"macs": share})
        made = x.call(done.model)
        assert structure(made) == structure(wanted)
        if share == 0.95:  # without training, half of a random network's work is more than can be spared
            assert change(outputs_of(made), outputs_of(wanted)) < 0.15
        assert done.macs_after == cost.count(done.model, x[:1]).macs <= share * done.macs_before
        assert any(layer.form for layer in done.layers)
        assert all(layer.form or layer.note for layer in done.layers)
        assert not any(row.problem for row in done.comparison.rows)
    assert sum(site.macs for site in found.survey.sites) <= done.macs_before
    assert all(torch.equal(state[name], value) for name, value in dense.state_dict().items())
    assert all(map(torch.equal, x.tensors(), kept.tensors()))


def test_layers_that_nothing_can_stand_in_for_are_listed_with_their_reasons():
    x = Inputs.of(smooth(12))
    dense = settled(kinds.LookedInto(), x)
    done = convert(dense, x.args[0], {"macs": 0.95}, target="torch")
    notes = {layer.name: layer.note for layer in done.layers}
    assert notes["first"] == "the network uses the layer itself (such as its weight), not only its output"
    assert notes["hooked"] == "it has hooks of its own"
    assert notes["up"] == "it is called with more than its input"
    assert notes["computed"].startswith("a parametrization computes its weight")
    assert notes["function 0"] == "it is called as a function, not as a module"
    assert [layer.name for layer in done.layers if layer.form] == ["last"]


class Strict(nn.Module):
    """Says in an error of its own that its layer must be a convolution."""

    class Refused(Exception):
        pass

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        if not isinstance(self.first, nn.Conv2d):
            raise self.Refused
        return self.last(self.first(x))


def test_a_trial_may_fail_by_any_error():
    kept = {site.name: site.kept for site in survey(Strict().eval(), smooth(12)).sites}
    assert kept["first"].startswith("the network uses the layer itself")
    assert kept["last"] is None


def test_a_network_that_a_training_step_left_its_graph_on_is_copied():
    network = kinds.WeightNorm()
    network.last(network.layers(kinds.smooth_of((4, 2, 40)))).sum().backward()
    assert len(survey(network.eval(), kinds.smooth_of((4, 2, 40))).convertible) == 3


def test_every_runtime_takes_several_inputs():
    image, depth = kinds.image_and_depth()
    network = kinds.TwoInputs().eval()
    for given in ((image, depth), kinds.named()):
        names = [name for name in runtimes.NAMES if name != "compile" and runtimes.why_not(name) is None]
        found = runtimes.compare({"a": network}, {"a": given}, names=names, rounds=1)
        assert [row.runtime for row in found.rows if not row.problem] == names


def test_accuracy_is_judged_on_several_inputs_of_any_sizes():
    network = kinds.TwoInputs().eval()
    sized = [kinds.image_and_depth(), (smooth(10, 16), kinds.smooth_of((10, 1, 16, 16)).double())]
    with torch.no_grad():
        labels = [network(a.clone(), b.float().clone()).argmax(1) for a, b in sized]
    labels[1][:, :4] = (labels[1][:, :4] + 1) % 8  # a quarter of each map
    judge = Judge([(x, y) for x, y in zip(sized, labels, strict=True)], samples=20)
    assert judge.fitted == 20
    assert judge.accuracy(network) == pytest.approx((4 + 10 * 0.75) / 14)


JUDGED = {
    "no labels": ([(smooth(8), None)], "needs batches of \\(inputs, labels\\), labels whole numbers"),
    "a tensor": (smooth(8), "needs batches of \\(inputs, labels\\)"),
    "three": ([(smooth(3), torch.zeros(3).long())], "has 3 labelled examples; a budget of accuracy needs at least 4"),
    "one": ([{"x": smooth(1), "labels": torch.zeros(1).long()}], "has 1 labelled example; a budget of"),
    "samples in words": ([(smooth(8), torch.zeros(8).long())], "^samples = x: must be a whole number"),
}


@pytest.mark.parametrize("case", JUDGED)
def test_a_budget_of_accuracy_says_what_it_needs(case):
    data, sentence = JUDGED[case]
    samples = "x" if case == "samples in words" else 4
    with pytest.raises(InputError, match=sentence):
        Study(kinds.TwoInputs().eval(), data, judged=True, target="torch", samples=samples)


def test_an_endless_loader_is_read_as_far_as_samples_go():
    read = []

    def endless():
        while True:
            read.append(smooth(12))
            yield read[-1], None

    found = Study(settled(kinds.SqueezeExcite(), Inputs.of(smooth(12))), endless(), target="torch", samples=30)
    assert found.survey.examples == 30
    assert len(read) == 3


def test_labels_in_a_dict_are_no_input_of_the_network_unless_it_stands_in_a_pair():
    given = kinds.named()
    labels = torch.randint(8, (24,))
    dense = settled(kinds.TwoInputs(), Inputs.of(given))
    convert(dense, [given | {"labels": labels}], {"macs": 0.95}, target="torch")
    judge = Judge([given | {"labels": labels.view(-1, 1, 1).expand(-1, 12, 12)}], samples=20)
    assert sum(len(held) for _, held in judge.held) == 4
    distill(copy.deepcopy(dense), dense, [given | {"labels": labels}], epochs=1)
    with pytest.raises(InputError, match=r"the model cannot read it: .*labels"):
        convert(dense, [(given | {"labels": labels}, None)], {"macs": 0.95}, target="torch")


BAD = {
    "other numbers": (lambda a, b: [((a, b[:5]), None)], r"data = inputs of \[24, 5\] examples: all inputs of a batch"),
    "one missing": (lambda a, b: a, r"data = tensor of shape \[2, 3, 12, 12\]: the model cannot read it: .*depth"),
    "one too many": (lambda a, b: [((a, b, a), None)], r"tensors of shapes .* the model cannot read it"),
    "another name": (lambda a, b: [({"image": a, "depths": b}, None)], "the model cannot read it: .*depths"),
    "a pair is inputs and labels": (lambda a, b: [(a, b)], "the model cannot read it: .*depth"),
    "NaN in the second": (lambda a, b: [((a, b / 0), None)], "holds NaN or infinite values"),
    "wrong shape": (lambda a, b: [((b, a), None)], "image reads 3 channels and is given 1"),
    "nothing": (lambda a, b: [((), None)], "data = nothing: each batch must be inputs or"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs_are_one_sentence(case):
    make, sentence = BAD[case]
    with pytest.raises(InputError, match=sentence) as caught:
        convert(kinds.TwoInputs().eval(), make(*kinds.image_and_depth()), {"macs": 0.5}, target="torch")
    assert "\n" not in str(caught.value)


def test_a_bad_example_and_a_runtime_that_is_missing_are_one_sentence(monkeypatch):
    image, depth = kinds.image_and_depth()
    data, network = [((image, depth), None)], kinds.TwoInputs().eval()
    with pytest.raises(InputError, match=r"example = tensor of shape .*: the model cannot read it"):
        convert(network, data, {"macs": 0.5}, example=image, target="torch")
    with pytest.raises(InputError, match=r"example = inputs of \[24, 1\] examples"):
        convert(network, data, {"macs": 0.5}, example=(image, depth[:1]), target="torch")
    monkeypatch.setattr(runtimes.names.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="target = openvino: cannot be used here: openvino is not installed"):
        convert(network, data, {"macs": 0.5}, target="openvino")


def test_channels_that_tell_each_other_do_not_make_a_fit_run_away():
    """Ranks beyond what the data holds cost nothing and change nothing."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv1d(2, 12, 3, padding=1), nn.Conv1d(12, 24, 3, padding=1), nn.Tanh()).eval()
    found = survey(network, kinds.smooth_of((24, 2, 40)))
    for rank in range(6, 13):
        _, errors = calibrate(found, {"1": ("pointwise, dense", rank)})
        assert errors["1"] < 1e-4, rank
