"""A network goes in, a cheaper one that gives nearly the same comes out, and bad input is told in one sentence."""

import copy
import json
import re
import statistics
import threading

import networks
import pytest
import torch
from networks import conv, settled, smooth, smooth_of
from torch import nn

from separable import cost, progress, runtimes
from separable.conversion import Study, convert, study, timing
from separable.conversion.forms import FORMS
from separable.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images():
    return smooth(96, 14)


@pytest.fixture
def dense(images):
    return settled(networks.Residual(), images)


@pytest.fixture(autouse=True)
def _one_runtime(monkeypatch):
    """Results are timed in torch alone, but where a test asks for more."""
    monkeypatch.setattr(study, "_COMPARED", ("torch",))


def converted(network, x, budget, **options):
    return convert(network, x, budget, target="torch", **options)


@torch.no_grad()
def error(network, reference, x):
    given, wanted = network(x.clone()), reference(x.clone())
    return float((given - wanted).square().mean() / wanted.var(0).mean())


@pytest.mark.parametrize("measure", ["macs", "params"])
@pytest.mark.parametrize("share", [0.8, 0.6])
def test_a_budget_is_kept_and_counted_on_the_result(untimed, dense, images, measure, share):
    done = converted(dense, images, {measure: share})
    counted = cost.count(done.model, images[:1])
    assert done.macs_after == counted.macs
    assert done.params_after == counted.params
    assert getattr(done, f"{measure}_after") <= share * getattr(done, f"{measure}_before")
    assert all(getattr(layer, f"{measure}_after") <= getattr(layer, f"{measure}_before") for layer in done.layers)


def test_several_budgets_are_kept_at_once(untimed, dense, images):
    done = converted(dense, images, {"macs": 0.8, "params": 0.5})
    assert done.macs_after <= 0.8 * done.macs_before
    assert done.params_after <= 0.5 * done.params_before


def test_what_the_layers_say_adds_up_to_the_whole(untimed, dense, images):
    done = converted(dense, images, {"macs": 0.5})
    for measure in ("macs", "params"):
        saved = sum(getattr(layer, f"{measure}_before") - getattr(layer, f"{measure}_after") for layer in done.layers)
        whole = getattr(done, f"{measure}_before") - getattr(done, f"{measure}_after")
        assert saved == whole, measure


def test_a_count_is_a_budget_too(untimed, dense, images):
    limit = cost.count(dense, images[:1]).macs * 7 // 10
    assert 0.9 * limit < converted(dense, images, {"macs": limit}).macs_after <= limit


def test_a_budget_of_one_changes_nothing_that_shows(untimed, dense, images):
    done = converted(dense, images, {"macs": 1.0})
    assert done.macs_after <= done.macs_before
    assert error(done.model, dense, images) < 1e-4


def test_more_budget_means_less_error(untimed, dense, images):
    study = Study(dense, images, target="torch")
    errors = [error(study.convert({"macs": share}).model, dense, images) for share in (0.9, 0.6, 0.4)]
    assert errors[0] < errors[1] < errors[2] < 0.5, errors


def test_one_study_gives_what_each_conversion_gives(untimed, dense, images):
    study = Study(dense, images, target="torch")
    study.convert({"macs": 0.4})
    again, alone = study.convert({"macs": 0.6}), converted(dense, images, {"macs": 0.6})
    assert again.layers == alone.layers
    torch.testing.assert_close(again.model.state_dict(), alone.model.state_dict())


def test_the_given_network_and_its_modes_are_left_alone(untimed, dense, images):
    dense.train()
    dense.bn2.eval()
    dense.bn1.requires_grad_(False)
    dense.conv2.requires_grad_(False)
    state, kept = copy.deepcopy(dense.state_dict()), images.clone()
    done = converted(dense, images, {"macs": 0.5})
    assert dense.training
    assert not dense.bn2.training
    assert torch.equal(images, kept)
    assert all(torch.equal(state[name], value) for name, value in dense.state_dict().items())
    assert done.model.training
    assert not done.model.bn2.training
    assert any(isinstance(module, nn.Sequential) for module in (done.model.conv1, done.model.conv2, done.model.conv3))
    frozen = {name for name, p in done.model.named_parameters() if not p.requires_grad}
    assert {name.partition(".")[0] for name in frozen} == {"bn1", "conv2"}
    assert not {p.data_ptr() for p in done.model.parameters()} & {p.data_ptr() for p in dense.parameters()}


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Sequential(nn.Conv1d(4, 24, 9), nn.ReLU(), nn.Conv1d(24, 24, 9), nn.ReLU()), (48, 4, 40)),
        (nn.Sequential(nn.Conv3d(2, 12, 3), nn.ReLU(), nn.Conv3d(12, 12, 3)), (8, 2, 7, 7, 7)),
        (nn.Sequential(nn.ConvTranspose1d(6, 12, 8, stride=4), nn.ReLU(), nn.Conv1d(12, 8, 5)), (48, 6, 9)),
        (nn.Sequential(conv(8, 16, groups=2), nn.ReLU(), conv(16, 16, groups=4)), (32, 8, 9, 9)),
        (nn.Conv2d(8, 16, 3, padding="same"), (32, 8, 9, 9)),
    ],
    ids=["1-D", "3-D", "transposed", "groups", "a layer alone"],
)
def test_dimensions_directions_and_groups(untimed, network, shape):
    x = smooth_of(shape)
    done = converted(network.eval(), x, {"macs": 0.7})
    assert any(layer.form for layer in done.layers)
    assert done.macs_after <= 0.7 * done.macs_before
    assert error(done.model, network, x) < 0.3


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_kind_of_network_is_converted(untimed, name):
    x = smooth(32)
    network = settled(networks.NETWORKS[name](), x)
    done = converted(network, x, {"macs": 0.6})
    assert done.macs_after <= 0.6 * done.macs_before
    assert cost.count(done.model, x[:1]).macs == done.macs_after
    assert type(done.model) is type(network)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_are_kept(untimed, dense, images, dtype):
    done = converted(copy.deepcopy(dense).to(dtype), images, {"macs": 0.6})
    assert {p.dtype for p in done.model.parameters()} == {dtype}
    assert error(done.model.float(), dense, images) < 0.3


def test_a_layer_run_twice_and_one_under_two_names_are_converted_once(untimed):
    x = smooth(32)
    done = converted(networks.Twice().eval(), x, {"macs": 0.4})
    assert done.model.again is done.model.alias
    assert [layer.name for layer in done.layers] == ["first", "again", "last"]
    assert done.layers[1].form
    assert done.macs_after <= 0.4 * done.macs_before


def test_norms_without_statistics_or_constants_are_survived(untimed):
    x = smooth(48)
    network = nn.Sequential(
        conv(3, 12), nn.BatchNorm2d(12, track_running_stats=False), conv(12, 12), nn.BatchNorm2d(12, affine=False),
        nn.ReLU(), conv(12, 12), nn.GroupNorm(3, 12), conv(12, 8), nn.InstanceNorm2d(8),
    )  # fmt: skip
    done = converted(settled(network, x), x, {"macs": 0.6})
    assert error(done.model, network, x) < 0.6


def test_pairs_a_generator_and_a_tensor_give_the_same(untimed, dense, images):
    labels = torch.zeros(len(images))
    pairs = [(images[:64], labels[:64]), (images[64:], labels[64:])]
    found = [converted(dense, data, {"macs": 0.6}) for data in (pairs, (pair for pair in pairs), images)]
    assert found[0].layers == found[1].layers == found[2].layers
    for other in found[1:]:
        torch.testing.assert_close(other.model(images), found[0].model(images))


@pytest.mark.parametrize("measure", ["macs", "params"])
def test_a_budget_out_of_reach_is_refused_before_anything_is_fitted(untimed, dense, images, measure, monkeypatch):
    study = Study(dense, images, target="torch")
    whole = getattr(study.survey, measure)
    with pytest.raises(InputError, match=rf"the least {measure} this network can have is [\d,]+ of ") as caught:
        study.convert({measure: 2})
    least = int(re.search(r"is ([\d,]+) of", str(caught.value)).group(1).replace(",", ""))
    done = converted(dense, images, {measure: least})
    assert getattr(done, f"{measure}_after") == least, "the least that is told can be had"

    for form in FORMS.values():
        monkeypatch.setattr(form, "start", lambda *_: pytest.fail("a form was fitted"))
        monkeypatch.setattr(form, "losses", lambda *_: pytest.fail("a form was fitted"))
    for amount in (0.001, 2, least - 1):
        with pytest.raises(InputError, match="cannot be met"):
            study.convert({measure: amount})
    for amount in (whole + 1, 1e12):
        with pytest.raises(InputError, match=f"is more than the dense network's {whole:,}; there is nothing to conv"):
            study.convert({measure: amount})


def leasts(study):
    """The least of each measure, as the refusals tell it."""
    found = {}
    for measure in ("macs", "params"):
        with pytest.raises(InputError) as caught:
            study.convert({measure: 2})
        found[measure] = int(re.search(r"is ([\d,]+) of", str(caught.value)).group(1).replace(",", ""))
    return found


def test_the_leasts_of_two_budgets_are_met_at_once_where_the_same_forms_have_them(untimed, dense, images):
    study = Study(dense, images, target="torch")
    least = leasts(study)
    done = study.convert(least)
    assert (done.macs_after, done.params_after) == (least["macs"], least["params"])


def test_the_leasts_of_two_budgets_are_refused_where_they_are_of_different_forms(untimed):
    """Where a layer skips most positions, axis by axis has the least multiply-adds, and polyadic the least weights."""
    study = Study(conv(8, 4, stride=3, bias=False).eval(), smooth_of((32, 8, 15, 15)), target="torch")
    least = leasts(study)
    with pytest.raises(InputError, match="cannot be met by macs and params at once"):
        study.convert(least)
    assert study.convert({"macs": least["macs"]}).params_after > least["params"]


@pytest.fixture
def slow_forms(monkeypatch):
    """Every form is slower than the dense layer, as on a processor that is best at dense kernels."""

    def time_options(survey, table, target, yardstick_s, keep):
        for many in table.values():
            for option in many:
                option.ms = 1.0 if option.form is None else 2.0

    monkeypatch.setattr(timing, "time_options", time_options)


def test_nothing_is_converted_where_every_form_is_slower_and_one_sentence_says_so(slow_forms, dense, images):
    done = converted(dense, images, {"macs": 1.0})
    assert all(layer.form is None for layer in done.layers)
    assert done.headline().startswith("Nothing was converted: no form of any layer that the budget allows")
    torch.testing.assert_close(done.model(images), dense(images))


def test_a_budget_of_macs_that_needs_slower_layers_is_kept_and_told(slow_forms, dense, images, capsys):
    with progress.shown():
        done = converted(dense, images, {"macs": 0.5})
    assert done.macs_after <= 0.5 * done.macs_before
    assert "needs layers that are slower in torch than the dense ones" in capsys.readouterr().err


@pytest.fixture
def wide():
    """Half of its work is faster on any machine."""
    layers = [conv(3, 96), nn.ReLU(), conv(96, 96), nn.ReLU(), conv(96, 96), nn.ReLU(), conv(96, 8)]
    return nn.Sequential(*layers).eval()


def test_a_latency_budget_out_of_reach_says_the_best_and_what_to_do(wide, images):
    with pytest.raises(
        InputError, match=r"the fastest network found takes .* of the fastest dense network's"
    ) as caught:
        converted(wide, images, {"latency": 1e-3})
    assert "measured on this machine as it was; where it was busy, try again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_nothing_is_faster_a_latency_budget_gives_the_dense_network(slow_forms, dense, images, monkeypatch):
    monkeypatch.setattr(Study, "share_of_time", lambda self, plan: 1.2)
    done = converted(dense, images, {"latency": 0.5})
    assert all(layer.form is None for layer in done.layers)
    assert done.headline().startswith("Nothing was converted")
    torch.testing.assert_close(done.model(images), dense(images))


def test_a_latency_budget_that_the_fitted_network_misses_is_planned_again(untimed, wide, images, monkeypatch):
    """The whole network takes longer than its plan on random weights did, at first."""
    found, seen = Study(wide, images, target="torch"), []
    for many in found.table.values():
        for option in many:
            option.ms = option.macs / 1e6
    whole = Study._finished

    def slower_at_first(self, *made):
        done = whole(self, *made)
        share = 1.5 if not seen else 0.8
        for row in done.comparison.rows:
            if row.network == "separable":
                fastest = done.comparison.fastest("dense").rounds_ms
                row.rounds_ms = [[share * statistics.median(turn)] for turn in fastest]
        seen.append(done)
        return done

    monkeypatch.setattr(Study, "_finished", slower_at_first)
    monkeypatch.setattr(
        Study, "share_of_time", lambda self, plan: sum(o.macs for o in plan.values()) / found.survey.macs
    )
    done = found.convert({"latency": 0.8})
    assert len(seen) == 2
    assert done is seen[1]
    assert done.share == pytest.approx(0.8)
    assert done.macs_after < seen[0].macs_after


def test_a_target_that_refuses_the_dense_network_is_one_sentence(wide, images, monkeypatch):
    found = Study(wide, images, target="torch")
    rows = [
        runtimes.Timed("dense", "torch", problem="gives another output"),
        runtimes.Timed("dense", "onnxruntime", [[1.0]]),
    ]
    monkeypatch.setattr(found, "dense_comparison", lambda: runtimes.Comparison(rows, {}, threads=1, rounds=1))
    with pytest.raises(InputError, match=r"target = torch: cannot run the dense network: gives another output"):
        found.convert({"latency": 0.5})


def test_a_latency_budget_takes_only_forms_that_are_faster_than_their_layers(wide, images):
    found = Study(wide, images, target="torch")
    done = found.convert({"latency": 0.8})
    assert any(layer.form for layer in done.layers)
    assert all(layer.ms_after < layer.ms_before for layer in done.layers if layer.form)
    assert done.dense_ms > 0
    assert done.ms > 0


@pytest.mark.parametrize("target", timing.TARGETS)
def test_each_target_converts_and_is_compared_with_the_fastest_dense_network(dense, images, target, monkeypatch):
    reason = runtimes.why_not(target)
    if reason:
        pytest.skip(reason)
    monkeypatch.setattr(study, "_COMPARED", ("torch", "accelerate", "onnxruntime", "openvino"))
    done = convert(dense, images, {"macs": 0.6}, target=target)
    assert done.target == target
    assert done.macs_after <= 0.6 * done.macs_before
    dense_rows = [row.ms for row in done.comparison.rows if row.network == "dense" and row.ms]
    assert done.dense_ms == min(dense_rows)
    assert done.ms == done.comparison.of("separable", target).ms
    assert done.times_as_fast == done.comparison.times_as_fast(done.comparison.of("separable", target))
    assert re.search(rf"\({target}( against \w+)?, batch 1, one thread\)", done.headline())


def test_the_example_decides_what_is_counted_and_timed(untimed, dense, images):
    done = converted(dense, images, {"macs": 0.6}, example=torch.randn(4, 3, 28, 28))
    assert done.macs_before == cost.count(dense, torch.randn(1, 3, 28, 28)).macs
    assert done.batch == 4
    assert done.macs_after <= 0.6 * done.macs_before


@pytest.mark.parametrize(("examples", "told"), [(1, "calibrated on 1 example;"), (63, "on 63 examples;"), (64, None)])
def test_few_examples_are_warned_of_where_progress_is_shown(dense, images, examples, told, capsys):
    with progress.shown():
        Study(dense, images[:examples], target="torch")
    lines = [line for line in capsys.readouterr().err.splitlines() if "some hundreds are needed" in line]
    assert len(lines) == (told is not None)
    assert told is None or told in lines[0]


def test_one_example_is_enough_for_a_network_that_works(untimed, dense, images):
    done = converted(dense, images[:1], {"macs": 0.6})
    assert done.macs_after <= 0.6 * done.macs_before
    assert done.model(images).isfinite().all()


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_inputs_that_never_vary_give_a_finite_network(untimed, dense, images, value):
    done = converted(dense, torch.full_like(images, value), {"macs": 0.6})
    assert done.macs_after <= 0.6 * done.macs_before
    assert all(tensor.isfinite().all() for tensor in done.model.state_dict().values())


def test_dead_channels_and_layers_of_zeros_give_a_finite_network(untimed, dense, images):
    with torch.no_grad():
        dense.bn1.bias.fill_(-50)
        dense.conv3.weight.zero_()
    done = converted(dense, images, {"macs": 0.6})
    assert all(tensor.isfinite().all() for tensor in done.model.state_dict().values())
    assert done.model(images).isfinite().all()


def test_a_result_is_shown_as_a_table_and_as_plain_values(untimed, dense, images):
    done = converted(dense, images, {"macs": 0.6})
    values = json.loads(json.dumps(done.to_json(), allow_nan=False))
    assert values["macs_before"] == done.macs_before
    assert len(values["layers"]) == 6
    table = done.table()
    assert table.row_count == len(done.layers) == 6
    assert "ms in torch before" in [column.header for column in table.columns]


@pytest.mark.parametrize("measure", ["macs", "latency"])
def test_the_callers_random_numbers_stay_as_they_are(dense, images, measure, monkeypatch):
    share = Study._share_of_time
    monkeypatch.setattr(Study, "_share_of_time", lambda *given: min(share(*given), 0.9))  # also on a busy machine
    before = torch.get_rng_state()
    converted(dense, images, {measure: 0.9})
    assert torch.equal(torch.get_rng_state(), before)


def test_the_callers_modes_of_torch_are_no_hindrance(untimed, dense, images):
    plain = converted(dense, images, {"macs": 0.6})
    with torch.inference_mode():
        inferred = converted(dense, images.clone(), {"macs": 0.6})
    torch.testing.assert_close(inferred.model(images), plain.model(images))
    inferred.model.train()(images).sum().backward()


def test_the_network_inside_a_compiled_one_is_converted(untimed, dense, images):
    done, plain = (converted(network, images, {"macs": 0.6}) for network in (torch.compile(dense), dense))
    assert type(done.model) is networks.Residual
    torch.testing.assert_close(done.model(images), plain.model(images))


def test_an_interruption_leaves_the_study_usable_and_no_thread(untimed, dense, images, monkeypatch):
    found, before = Study(dense, images, target="torch"), set(threading.enumerate())
    with monkeypatch.context() as patched:
        patched.setattr("separable.conversion.fitting.fit_rows", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            found.convert({"macs": 0.6})
    assert set(threading.enumerate()) == before
    assert found.convert({"macs": 0.6}).layers == converted(dense, images, {"macs": 0.6}).layers


def _interrupt(*_, **__):
    raise KeyboardInterrupt


def nan_inside(network):
    with torch.no_grad():
        network.conv2.weight[0] = float("nan")
    return network


BAD = {
    "no data": (lambda n, x: converted(n, x[:0], {"macs": 0.5}), "holds no examples"),
    "no batches": (lambda n, x: converted(n, [], {"macs": 0.5}), "holds no examples"),
    "not data": (lambda n, x: converted(n, "images", {"macs": 0.5}), "must be a tensor"),
    "not tensors": (lambda n, x: converted(n, [1, 2], {"macs": 0.5}), "data = int: each batch must be inputs or"),
    "channels": (lambda n, x: converted(n, x[:, :1], {"macs": 0.5}), "conv1 reads 3 channels and is given 1"),
    "rank": (lambda n, x: converted(n, x.mean((1, 2, 3)), {"macs": 0.5}), "data"),
    "dtype": (lambda n, x: converted(n, (x * 9).to(torch.uint8), {"macs": 0.5}), "the model cannot read it"),
    "example": (lambda n, x: converted(n, x, {"macs": 0.5}, example=x[:, :2]), "example"),
    "nan data": (lambda n, x: converted(n, torch.full_like(x, float("nan")), {"macs": 0.5}), "NaN or infinite"),
    "infinite data": (lambda n, x: converted(n, x / 0, {"macs": 0.5}), "NaN or infinite"),
    "nan inside": (lambda n, x: converted(nan_inside(n), x, {"macs": 0.5}), "conv2 gives NaN or infinite values"),
    "out of reach": (lambda n, x: converted(n, x, {"macs": 0.01}), r"the least macs this network can have is 0\.\d+"),
    "unknown budget": (lambda n, x: converted(n, x, {"flops": 0.5}), "must hold one or several of"),
    "nothing to convert": (lambda n, x: converted(nn.Conv2d(3, 4, 1), x, {"macs": 0.5}), "no convolution that can be"),
    "no convolution": (lambda n, x: converted(nn.Flatten(), x, {"macs": 0.5}), "runs no convolution"),
    "not a model": (lambda n, x: converted(lambda x: x, x, {"macs": 0.5}), "torch.nn.Module"),
    "on meta": (lambda n, x: converted(n.to("meta"), x, {"macs": 0.5}), "Residual: is on the meta device and has no"),
    "data on meta": (lambda n, x: converted(n, x.to("meta"), {"macs": 0.5}), "is on the meta device and has no values"),
    "no samples": (lambda n, x: converted(n, x, {"macs": 0.5}, samples=0), "at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(untimed, dense, images, case):
    call, sentence = BAD[case]
    with pytest.raises(InputError, match=sentence) as caught:
        call(dense, images)
    assert "\n" not in str(caught.value)
