"""Results are whole or absent, whatever happens while they are written."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from unittest import mock

import pytest

from separable import atomic
from separable.atomic import folder_beside, write_beside
from separable.errors import InputError


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_a_file_appears_whole_under_its_name(tmp_path):
    with write_beside(tmp_path / "new" / "table.csv") as beside:
        beside.write_text("a,b")
        assert beside.suffix == ".csv"
        assert not (tmp_path / "new" / "table.csv").exists()
    assert (tmp_path / "new" / "table.csv").read_text() == "a,b"
    assert names(tmp_path / "new") == ["table.csv"]


def test_an_error_while_writing_keeps_the_earlier_file(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("before")
    with pytest.raises(TypeError), write_beside(file) as beside:
        beside.write_text(7)
    assert file.read_text() == "before"
    assert names(tmp_path) == ["table.csv"]


def test_a_file_is_replaced_only_when_allowed(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("before")
    with pytest.raises(InputError, match=r"table\.csv: exists already"), write_beside(file, overwrite=False):
        pass
    assert file.read_text() == "before"


def test_a_folder_where_a_file_belongs_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder; name a file"), write_beside(tmp_path):
        pass


def test_a_write_that_the_system_stops_is_one_sentence_and_leaves_nothing(tmp_path):
    code = """if True:
        import resource, sys
        from separable.atomic import write_beside
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with write_beside(sys.argv[1]) as beside:
            beside.write_bytes(bytes(5000))
    """
    result = run(code, tmp_path / "weights.bin")
    assert "InputError: out = " in result.stderr
    assert "could not be written: File too large; nothing was left behind" in result.stderr
    assert names(tmp_path) == []


def test_folders_made_for_a_result_that_fails_go_again_and_others_stay(tmp_path):
    (tmp_path / "mine").mkdir()
    for writer in (write_beside, folder_beside):
        with pytest.raises(RuntimeError), writer(tmp_path / "mine" / "new" / "newer" / "result"):
            raise RuntimeError
        assert names(tmp_path) == ["mine"]
        assert names(tmp_path / "mine") == []
    with pytest.raises(RuntimeError), write_beside(tmp_path / "new" / "result") as beside:
        raise RuntimeError(beside.with_name("someone else's").touch())
    assert names(tmp_path / "new") == ["someone else's"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_result_written_inside_another_is_told_under_the_name_that_was_asked_for(number, tmp_path):
    stop, out = OSError(number, "no more"), tmp_path / "out"
    with pytest.raises(InputError) as caught, folder_beside(out, argument="--out") as outer, folder_beside(outer):
        raise stop
    assert str(caught.value) == f"--out = {out}: could not be written: no more; nothing was left behind"
    with pytest.raises(InputError) as caught, folder_beside(out) as outer, write_beside(outer / "page.html"):
        raise stop
    assert str(caught.value).startswith(f"out = {out / 'page.html'}: could not be written")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error", [OSError("a model's own"), BrokenPipeError(errno.EPIPE, "Broken pipe"), InputError("data", "x", "is bad")]
)
def test_an_error_about_something_else_passes_as_it_is(error, tmp_path):
    for writer in (write_beside, folder_beside):
        with pytest.raises(type(error)) as caught, writer(tmp_path / "out"):
            raise error
        assert caught.value is error


def test_a_file_that_the_work_misses_is_not_taken_for_the_result(tmp_path):
    with pytest.raises(FileNotFoundError), write_beside(tmp_path / "out.csv"):
        (tmp_path / "input.csv").read_text()


def test_what_is_synced_is_open_for_writing_as_windows_asks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    modes = []
    monkeypatch.setattr("os.fsync", lambda fd: modes.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE))
    with write_beside(tmp_path / "out") as beside:
        beside.write_text("kept")
    assert modes == [os.O_RDWR]
    assert (tmp_path / "out").read_text() == "kept"


def test_a_killed_process_leaves_no_result_under_the_name(tmp_path):
    code = """if True:
        import os, signal, sys
        from separable.atomic import folder_beside
        with folder_beside(sys.argv[1]) as beside:
            (beside / "model.json").write_text("{")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    result = run(code, tmp_path / "out")
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with folder_beside(tmp_path / "out") as beside:  # and what is left is in nobody's way
        (beside / "model.json").write_text("{}")
    assert (tmp_path / "out" / "model.json").read_text() == "{}"


def test_a_folder_that_is_not_empty_is_refused_before_any_work(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="not empty"), folder_beside(tmp_path):
        pytest.fail("the work must not begin")
    with pytest.raises(InputError, match=r"holds no model\.json"), folder_beside(tmp_path, overwrite=True):
        pytest.fail("a folder of someone else's must not be replaced")
    assert names(tmp_path) == ["mine.txt"]


def write(out, text, meanwhile=lambda: None, **options):
    """A result of one file; `meanwhile` happens before it is moved to its place."""
    with folder_beside(out, **options) as beside:
        (beside / "model.json").write_text(text)
        meanwhile()


@pytest.mark.parametrize("looks", [1, 0])
def test_a_result_that_someone_else_puts_there_meanwhile_is_kept(looks, tmp_path, monkeypatch):
    out, check = tmp_path / "out", atomic.check_folder

    def meanwhile():
        write(out, "first")
        calls = iter([check] if looks else [lambda *_, **__: None, check])  # without one: it came after the last look
        monkeypatch.setattr(atomic, "check_folder", lambda *args, **options: next(calls)(*args, **options))

    with pytest.raises(InputError) as caught:
        write(out, "late", meanwhile)
    assert str(caught.value) == f"out = {out}: is a folder that is not empty; choose another or allow overwriting"
    assert (out / "model.json").read_text() == "first"
    assert names(tmp_path) == ["out"]


def test_overwriting_spares_what_is_no_earlier_result_also_when_it_comes_meanwhile(tmp_path):
    mine = tmp_path / "out" / "mine.txt"

    def meanwhile():
        mine.parent.mkdir()
        mine.write_text("kept")

    with pytest.raises(InputError, match=r"holds no model\.json"):
        write(tmp_path / "out", "late", meanwhile, overwrite=True)
    assert mine.read_text() == "kept"
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_filled_and_an_earlier_result_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with folder_beside(out) as beside:
        (beside / "model.json").write_text("1")
        (beside / "old.txt").write_text("1")
    with folder_beside(out, overwrite=True) as beside:
        (beside / "model.json").write_text("2")
    assert names(out) == ["model.json"]
    assert (out / "model.json").read_text() == "2"
    assert names(tmp_path) == ["out"]


def test_an_error_in_a_replacement_keeps_the_earlier_folder(tmp_path):
    out = tmp_path / "out"
    with folder_beside(out) as beside:
        (beside / "model.json").write_text("1")
    with pytest.raises(RuntimeError), folder_beside(out, overwrite=True) as beside:
        raise RuntimeError
    assert (out / "model.json").read_text() == "1"
    assert names(tmp_path) == ["out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"), folder_beside(tmp_path / "out"):
        pass


def test_a_removed_folder_is_gone_under_its_name_before_its_files_are_deleted(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    atomic.remove_folder(folder)  # not there: nothing to do
    folder.mkdir()
    (folder / "file").write_text("text")
    monkeypatch.setattr(shutil, "rmtree", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        atomic.remove_folder(folder)
    assert not folder.exists()
