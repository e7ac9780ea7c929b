"""A run can be killed, stopped, limited in time and continued; its folder is whole at every moment and its own."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from separable import progress
from separable.conversion import distill
from separable.conversion.distillation import run as loop
from separable.conversion.distillation import state
from separable.errors import InputError


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def networks():
    torch.manual_seed(0)
    return network(), network().eval()


class Images:
    """Five batches of 16 an epoch, in a new order and shifted by random numbers each time, as a loader gives them."""

    def __init__(self, at=None, act=None):
        self.x = torch.randn(80, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        self.at, self.act, self.given = at, act, 0

    def __len__(self):
        return 5

    def __iter__(self):
        for part in torch.randperm(80).split(16):
            self.given += 1
            if self.given == self.at:
                self.act()
            yield self.x[part].roll(int(torch.randint(8, ())), 3)


class SlowImages(Images):
    def __iter__(self):
        for part in super().__iter__():
            time.sleep(0.05)
            yield part


def run(data, **options):
    student, teacher = networks()
    torch.manual_seed(5)
    _, history = distill(student, teacher, data, Images().x[:32], epochs=3, **options)
    return student, history


def same(history, expected):
    plain = [[{**epoch.to_json(), "seconds": 0} for epoch in one] for one in (history, expected)]
    return plain[0] == plain[1]


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads({threads})
sys.path.insert(0, {tests!r})
from separable.conversion.distillation import run as loop
import test_distill_run as here
loop._CHECKPOINT_EVERY_S = 0.0
here.run(here.Images(at=13, act=lambda: os.kill(os.getpid(), signal.SIGKILL)), checkpoint={folder!r})
"""


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    """Killed in the fourth step of the second epoch, with dropout, batch norm and shuffling by torch's generator."""
    folder = tmp_path / "run"
    text = KILLED.format(threads=torch.get_num_threads(), tests=str(Path(__file__).parent), folder=str(folder))
    killed = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = torch.load(folder / state.NAME, weights_only=True)
    assert (kept["epoch"], kept["done"], kept["step"]) == (2, 3, 8)
    student, history = run(Images(), checkpoint=folder, resume=True)
    expected, whole = run(Images())
    assert same(history, whole)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name


def test_a_finished_run_gives_its_result_again(tmp_path):
    student, history = run(Images(), checkpoint=tmp_path)
    data = Images()
    again, same_history = run(data, checkpoint=tmp_path, resume=True)
    assert same(history, same_history)
    assert data.given <= 5  # the look at both networks alone
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))


def interrupt():
    raise KeyboardInterrupt


def test_ctrl_c_keeps_the_best_and_what_came_before(tmp_path, capsys):
    student, teacher = networks()
    with pytest.raises(KeyboardInterrupt), progress.shown():
        distill(student, teacher, Images(13, interrupt), Images().x[:32], epochs=3, checkpoint=tmp_path)
    assert "interrupted in epoch" in capsys.readouterr().err
    kept = torch.load(tmp_path / state.NAME, weights_only=True)
    assert all(torch.equal(kept["best"][name], tensor) for name, tensor in student.state_dict().items())
    assert student.training


def test_a_loss_that_is_not_finite_leaves_the_best(monkeypatch):
    """Weights broken in the middle of the second epoch do not reach the caller."""
    student, teacher = networks()

    def breaks():
        with torch.no_grad():
            student[0].weight.fill_(float("nan"))

    with pytest.raises(InputError, match=r"^learning_rate = 0.001: the loss is not finite in epoch 2"):
        distill(student, teacher, Images(10, breaks), epochs=3)
    assert all(bool(torch.isfinite(p).all()) for p in student.parameters())


def test_patience_stops_a_run_that_no_longer_gets_better():
    _, teacher = networks()
    _, history = distill(copy.deepcopy(teacher), teacher, Images(), Images().x, epochs=50, patience=2)
    assert len(history) <= 5


def test_a_time_limit_ends_the_schedule_in_time():
    """Slow batches: of a hundred epochs few fit, and the last steps are small."""
    student, teacher = networks()
    rates, set_rate = [], loop.steps.set_rate
    data = Images()
    data.__class__ = type(
        "Slow", (Images,), {"__iter__": lambda self: (time.sleep(0.05) or b for b in list(Images.__iter__(self)))}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.steps, "set_rate", lambda o, rate: (rates.append(rate), set_rate(o, rate)))
        began = time.monotonic()
        _, history = distill(student, teacher, data, Images().x[:32], epochs=100, minutes=2.0 / 60)
    assert time.monotonic() - began < 6
    assert 2 <= len(history) < 50
    assert rates[-1] < 0.1 * max(rates)
    assert history[-1].validation_loss is not None


def test_curves_are_written_beside_the_checkpoint(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, history = run(Images(), checkpoint=tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    found = [event.value for event in events.Scalars("epoch/validation_loss")]
    assert found == pytest.approx([epoch.validation_loss for epoch in history[1:]])
    assert {"train/loss", "train/learning_rate"} <= set(events.Tags()["scalars"])


def test_progress_tells_the_time_left_and_each_epoch(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    with progress.shown():
        run(Images())
    said = capsys.readouterr().err
    assert "distilling: 3 of 15, 0 s left" in said or "distilling: 3 of 15, 1 s left" in said
    assert "epoch 3 of 3: loss" in said
    assert "agrees with the teacher on" in said


def other_teacher(folder):
    torch.manual_seed(9)
    distill(networks()[0], network(), Images(), Images().x[:32], epochs=3, checkpoint=folder, resume=True)


FOLDERS = {
    "begun already": (lambda folder: run(Images(), checkpoint=folder), "holds a checkpoint of an earlier run"),
    "other epochs": (
        lambda folder: distill(*networks(), Images(), epochs=4, checkpoint=folder, resume=True),
        "is of another run: epochs was 3 and is 4",
    ),
    "another teacher": (other_teacher, "is of another run: the teacher is another network"),
    "another student": (
        lambda folder: distill(
            nn.Sequential(network()), networks()[1], Images(), epochs=3, checkpoint=folder, resume=True
        ),
        "is of another run: the student is another network",
    ),
    "no checkpoint": (
        lambda folder: run(Images(), checkpoint=folder.parent, resume=True),
        "holds other files and no distillation.pt",
    ),
    "a file": (
        lambda folder: run(Images(), checkpoint=folder / state.NAME),
        "must be a folder, or a name that is free",
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(Images(), checkpoint=folder)
    return folder


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_not_of_this_run_is_refused(finished, case):
    before = (finished / state.NAME).read_bytes()
    call, sentence = FOLDERS[case]
    with pytest.raises(InputError, match=f"^checkpoint = .*{sentence}"):
        call(finished)
    assert (finished / state.NAME).read_bytes() == before


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / state.NAME).write_bytes(b"something else")
    with pytest.raises(InputError, match=r"^checkpoint = .*: cannot be read: "):
        run(Images(), checkpoint=tmp_path, resume=True)


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    os.makedirs(tmp_path / ".part-12345678-distillation.pt")
    _, history = run(Images(), checkpoint=tmp_path, resume=True)
    assert len(history) == 4
