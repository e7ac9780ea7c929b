"""Progress is silent in a library call, and tells how far it is and how long it will take where it is shown."""

import pytest

from separable import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by ten seconds each time it is read."""
    seconds = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))


def test_a_library_call_is_silent(capsys):
    assert list(progress.track(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_lines_tell_the_time_left(capsys, clock):
    with progress.shown():
        assert list(progress.track([1, 2, 3, 4], "counting")) == [1, 2, 3, 4]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "counting: 1 of 4, 30 s left",
        "counting: 2 of 4, 20 s left",
        "counting: 3 of 4, 10 s left",
        "counting: 4 done",
    ]


def test_work_done_before_counts_but_not_for_the_pace(capsys, clock):
    with progress.shown():
        list(progress.track([1, 2], "counting", 10, done=7))
    assert capsys.readouterr().err.splitlines()[0] == "counting: 8 of 10, 20 s left"


def test_without_an_end_there_is_no_time_left(capsys, clock):
    with progress.shown():
        list(progress.track(iter("abc"), "counting"))
    assert capsys.readouterr().err.splitlines()[0] == "counting: 1"


def test_nothing_is_shown_inside_hidden(capsys, clock):
    with progress.shown(), progress.hidden():
        list(progress.track([1, 2], "counting"))
        progress.say("words")
    assert capsys.readouterr().err == ""
