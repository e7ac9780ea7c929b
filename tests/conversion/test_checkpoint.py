"""A conversion that is stopped at any moment goes on to the network that it would have made, and says whose it is."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import networks
import pytest
import torch
from networks import settled, smooth
from torch import nn

from separable import atomic
from separable.conversion import Study, calibrate, checkpoint, convert, kept, study, timing
from separable.errors import InputError
from separable.inputs import Inputs

pytestmark = pytest.mark.usefixtures("one_thread")

BUDGET = {"macs": 0.5}


@pytest.fixture(autouse=True)
def _one_runtime(monkeypatch):
    monkeypatch.setattr(study, "_COMPARED", ("torch",))
    monkeypatch.setattr(study, "_SECONDS", 0.1)


def given(name="u-net"):
    torch.manual_seed(0)
    images = smooth(32, 10)
    return settled(networks.NETWORKS[name](), images), images


def converted(folder=None, name="u-net", resume=True):
    network, images = given(name)
    return convert(network, images, BUDGET, target="torch", checkpoint=folder, resume=resume and folder is not None)


def assert_same(done, expected):
    assert [(one.form, one.rank, one.error) for one in done.layers] == [
        (one.form, one.rank, one.error) for one in expected.layers
    ]
    state = done.model.state_dict()
    for name, tensor in expected.model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


class Stop(BaseException):
    """In the place of a kill."""


def stop_after(files, patch):
    """Nothing more is written, and nothing done, once so many files are kept."""
    written, write = [], atomic.write_beside

    @contextlib.contextmanager
    def counted(path, **options):
        if len(written) == files:
            raise Stop
        with write(path, **options) as beside:
            yield beside
        written.append(path)

    patch.setattr(atomic, "write_beside", counted)


@pytest.mark.parametrize("name", ["sums of sums", "shortcut after, in place", "twice"])
def test_stopped_again_and_again_it_comes_to_the_same_network(untimed, monkeypatch, tmp_path, name):
    """Chains, fewer channels, norms, sums with shortcuts that are written into, layers that run twice."""
    expected = converted(name=name)
    fitted = sum(layer.error is not None for layer in expected.layers)
    for _ in range(1 + fitted // 2):  # before the first layer, then before every other one
        with monkeypatch.context() as patch:
            stop_after(2, patch)
            with pytest.raises(Stop):
                converted(tmp_path, name)
    assert_same(converted(tmp_path, name), expected)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == fitted


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the test runner has done to it
from separable.conversion import study, timing
study._COMPARED, study._SECONDS, timing.time_options = ("torch",), 0.1, lambda *_: None
import test_checkpoint as here
replace, left = os.replace, [int(sys.argv[1])]
def kill(beside, path):
    if left[0] == 0:
        os.kill(os.getpid(), signal.{signal})
    left[0] -= 1
    replace(beside, path)
os.replace = kill
here.converted({folder!r})
"""


def test_killed_and_interrupted_processes_leave_what_the_next_goes_on_with(untimed, tmp_path):
    """One is killed as the first layer takes its name, the other interrupted as the second one does."""
    folder = tmp_path / "o"
    for files, how in ((3, "SIGKILL"), (1, "SIGINT")):
        text = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder), signal=how)
        done = subprocess.run([sys.executable, "-c", text, str(files)], capture_output=True, text=True, check=False)
        assert done.returncode == -getattr(signal, how), done.stderr
    assert {path.name for path in folder.glob("*.json")} == {"study.json", "table.json", "yardstick.json"}
    assert len(list(folder.glob("*/*.safetensors"))) == 2  # the handler of SIGINT runs after the renaming
    assert_same(converted(folder), converted())


def test_what_was_measured_is_not_measured_again(monkeypatch, tmp_path):
    """A plan is made of times: taken again they would make another."""
    network, images = given("residual")
    options = {"target": "torch", "checkpoint": tmp_path, "resume": True}
    budget = {"latency": 1.0, "macs": 0.7}
    monkeypatch.setattr(Study, "_share_of_time", lambda *_: 0.97)
    first = Study(network, images, **options)
    done = first.convert(budget)
    monkeypatch.setattr(timing._Clock, "options_ms", lambda *_: pytest.fail("timed again"))
    monkeypatch.setattr(study, "tabulate", lambda *_: pytest.fail("compared again"))
    monkeypatch.setattr(Study, "_share_of_time", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(Study, "_compared", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(sys.modules[calibrate.__module__], "_fitted", lambda *_: pytest.fail("fitted again"))
    second = Study(network, images, **options)
    again = second.convert(budget)
    assert second.table == first.table
    assert again.to_json() == done.to_json()
    assert_same(again, done)


def test_a_refused_latency_is_measured_anew_and_nothing_else_is(monkeypatch, tmp_path):
    """On the times that were kept it would be refused for ever, though the machine is no longer busy."""
    network, images = given("residual")
    options = {"target": "torch", "checkpoint": tmp_path, "resume": True}
    shares, measured = [0.9], []
    monkeypatch.setattr(Study, "_share_of_time", lambda *_: measured.append(shares[0]) or shares[0])
    with pytest.raises(InputError, match="cannot be met"):
        convert(network, images, {"latency": 0.5}, **options)
    assert not [*tmp_path.glob("dense.json"), *tmp_path.glob("*/share.json")]
    monkeypatch.setattr(study, "tabulate", lambda *_: pytest.fail("compared again"))
    shares[0] = 0.49
    found = Study(network, images, **options)
    found.convert({"latency": 0.5})
    assert measured[-1] == 0.49
    before = found.table
    losses = [option.change for many in before.values() for option in many]
    found.forget_times()
    assert [option.change for many in found.table.values() for option in many] == losses
    assert all(many[0].ms for many in found.table.values())


def test_timing_goes_on_at_the_layer_where_it_was_stopped(monkeypatch, tmp_path):
    network, images = given("shortcut before")
    timed, options_ms, stops = [], timing._Clock.options_ms, [1]

    def counted(clock, site, *rest):
        if len(timed) == stops[0]:
            raise Stop
        timed.append(site.name)
        return options_ms(clock, site, *rest)

    monkeypatch.setattr(timing._Clock, "options_ms", counted)
    with pytest.raises(Stop):
        Study(network, images, target="torch", checkpoint=tmp_path).table  # noqa: B018
    stops[0] = 99
    table = Study(network, images, target="torch", checkpoint=tmp_path, resume=True).table
    assert len(timed) == len(set(timed))
    assert all(many[0].ms for many in table.values())


def test_damaged_files_are_made_again(untimed, tmp_path):
    expected = converted(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "study.json"]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for i, path in enumerate(sorted(files)):
        whole = path.read_bytes()
        path.write_bytes((whole[: len(whole) // 2], b"", b"{}")[i % 3])
    assert_same(converted(tmp_path), expected)


def test_a_layer_of_another_shape_is_made_again(untimed, tmp_path):
    expected = converted(tmp_path)
    first, second, *_ = sorted(tmp_path.glob("*/*.safetensors"), key=lambda path: path.stat().st_size)[::-1]
    shutil.copy(first, second)
    assert_same(converted(tmp_path), expected)


def other_network(options):
    with torch.no_grad():
        options["model"].out.weight[0, 0, 0, 0] += 1e-3


def other_code(options):
    """The same weights, and the same words about its layers."""
    kind = type(options["model"])
    forward = {"forward": lambda self, x: 1.01 * kind.forward(self, x)}
    options["model"].__class__ = type(kind.__name__, (kind,), forward)


def other_runtimes(_):
    study._COMPARED = ("torch", "torch channels-last")


def other_data(options):
    options["data"][5, 0, 0, 0] += 1e-3


REFUSED = {
    "of another network": (other_network, "belongs to another network; pass the one it was started with"),
    "of other code": (other_code, "belongs to another network"),
    "of other runtimes": (
        other_runtimes,
        r"runtimes was torch [\d.+a-z]+ and is torch [\d.+a-z]+, torch channels-last",
    ),
    "of other data": (other_data, "belongs to other data; pass the one it was"),
    "of fewer data": (lambda options: options.update(samples=16), "belongs to other data"),
    "of another example": (lambda options: options.update(example=options["data"][:2]), "belongs to another example"),
    "of other threads": (lambda _: torch.set_num_threads(2), "belongs to another conversion: threads was 1 and is 2"),
    "not to be resumed": (lambda options: options.update(resume=False), "holds an earlier conversion; continue it"),
    "nowhere": (lambda options: options.update(checkpoint=None), "^resume = True: needs checkpoint=FOLDER"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder that knows whose it is."""
    folder = tmp_path_factory.mktemp("begun")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    network, images = given()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "_COMPARED", ("torch",))
        Study(network, images, target="torch", checkpoint=folder)
    torch.set_num_threads(before)
    return folder


@pytest.mark.parametrize(("change", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_folder_of_something_else_is_refused(begun, change, sentence):
    network, images = given()
    options = {"model": network, "data": images, "target": "torch", "checkpoint": begun, "resume": True}
    change(options)
    with pytest.raises(InputError, match=sentence):
        Study(**options)


def test_a_folder_of_other_files_or_a_damaged_one_is_refused(begun, tmp_path):
    network, images = given()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other files and no study\.json; choose another folder"):
        Study(network, images, target="torch", checkpoint=tmp_path, resume=True)
    shutil.copytree(begun, tmp_path / "o")
    for text in ("", '{"format"', "[1]", json.dumps({"format": 0})):
        (tmp_path / "o" / checkpoint.NAME).write_text(text)
        with pytest.raises(InputError, match=r"cannot be read|belongs to another conversion: format was 0"):
            Study(network, images, target="torch", checkpoint=tmp_path / "o", resume=True)


def test_a_network_that_throws_dice_goes_on_too(untimed, tmp_path):
    _, images = given()
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), Dice())
    for resume in (False, True):
        Study(network, images, target="torch", checkpoint=tmp_path, resume=resume)


class Dice(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_inputs_are_known_by_names_plain_values_and_tensors():
    x, y = torch.zeros(2, 3), torch.ones(2, 3)
    many = [{"a": x, "b": y}, {"a": y, "b": x}, {"a": x, "c": y}, (x, y), {"a": x, "b": y, "scale": 2}]
    assert len({checkpoint._values(Inputs.of(given)) for given in many}) == len(many)
    assert checkpoint._values(Inputs.of(many[0])) == checkpoint._values(Inputs.of({"a": x.clone(), "b": y.clone()}))


def test_digests_tell_values_types_and_shapes_apart():
    zeros = [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(6), torch.ones(6)]
    assert len({kept.digest(tensor) for tensor in zeros}) == len(zeros)
    strided = torch.arange(6.0).view(2, 3).mT
    assert kept.digest(strided) == kept.digest(strided.contiguous())
    assert kept.digest(torch.tensor(1.0)) != kept.digest(torch.tensor(2.0, dtype=torch.bfloat16))
