"""The command line as a user meets it: results, JSON, and one sentence with the right exit code for each mistake."""

import io
import json
import re
import signal
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

import separable
from separable import cli

FACTORY = """
import torch
from torch import nn

preprocess = {"size": 16, "mean": [0.5], "std": [0.25]}

def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))

def unconvertible():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 3))

class fixed(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).repeat(1, 3).reshape(1, -1)

def nan():
    net = network()
    with torch.no_grad():
        net[-1].weight.fill_(float("nan"))
    return net

def colour():
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def double():
    return network().double()

bare = None
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with FILE.py, images of three classes in two splits (one damaged), and a saved, converted network."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("cli")
    (folder / "net.py").write_text(FACTORY)
    settings = 'preprocess = {"size": 16, "mean": [0.5], "std": [0.25]}'
    (folder / "bare.py").write_text(FACTORY.replace(settings, ""))
    (folder / "function.py").write_text(FACTORY.replace(settings, "def preprocess(image):\n    return None"))
    drawn = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("test", 4)):
        for label in range(3):
            (folder / "images" / split / f"class{label}").mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 80 * (label + 1), (20, 20), dtype=torch.uint8, generator=drawn)
                Image.fromarray(pixels.numpy()).save(folder / "images" / split / f"class{label}" / f"{i}.png")
    (folder / "other.csv").write_text("file,slice\nnight.png,dark\n")
    (folder / "one").mkdir()
    Image.new("L", (20, 20)).save(folder / "one" / "0.png")
    (folder / "images" / "train" / "class0" / "broken.png").write_bytes(b"not an image")
    done = start(
        "convert", f"{folder}/net.py:network", "--data", f"{folder}/images", "--split", "train", "--budget", "macs=0.7",
        "--out", f"{folder}/out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def start(*arguments: object) -> subprocess.CompletedProcess:
    """The command in a process of its own, as a shell starts it: once for each command, and where it must be fresh."""
    command = [sys.executable, "-m", "separable", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def run(*arguments: object) -> subprocess.CompletedProcess:
    """The same within this process, which spares the seconds in which a new one imports torch."""
    words, out, err, threads = (
        ["separable", *map(str, arguments)],
        io.StringIO(),
        io.StringIO(),
        torch.get_num_threads(),
    )
    try:
        with mock.patch.object(sys, "argv", words), redirect_stdout(out), redirect_stderr(err), ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("default")  # as in a process; pytest makes errors of some
            cli.main()
    except SystemExit as end:
        return subprocess.CompletedProcess(words, end.code or 0, out.getvalue(), err.getvalue())
    finally:
        torch.set_num_threads(threads)
    raise AssertionError("main() always exits")


def test_convert_writes_a_folder_that_needs_nothing_else(place):
    names = {file.name for file in (place / "out").iterdir()}
    assert names == {"model.json", "model.safetensors", "model.onnx", "report.html"}
    network = separable.load(place / "out")
    x = torch.randn(2, 1, 16, 16)
    import onnxruntime

    session = onnxruntime.InferenceSession(place / "out" / "model.onnx")
    (exported,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(exported), network(x).detach(), rtol=1e-4, atol=1e-5)
    about = separable.store.read_about(place / "out")
    assert sum(p.numel() for p in network.parameters()) == about["conversion"]["params_after"]


def test_convert_keeps_the_budget_counts_the_damaged_image_and_asks_who_pays(place, tmp_path):
    slices = "".join(f"class{label}/{i}.png,{'odd' if i % 2 else 'even'}\n" for label in range(3) for i in range(4))
    (tmp_path / "slices.csv").write_text(f"file,slice\n{slices}")
    done = run(
        "convert", f"{place}/net.py:network", "--data", f"{place}/images", "--split", "train", "--budget",
        "macs=0.6,params=0.9", "--target", "onnxruntime", "--threads", "1", "--batch", "40", "--test",
        f"{place}/images/test", "--slices", tmp_path / "slices.csv", "--distill", "2", "--distill-minutes", "1",
        "--patience", "1", "--out", tmp_path / "o", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    conversion = result["conversion"]
    assert conversion["macs_after"] <= 0.6 * conversion["macs_before"]
    assert conversion["params_after"] <= 0.9 * conversion["params_before"]
    assert conversion["images"] == 36
    assert (conversion["target"], conversion["batch"], conversion["comparison"]["threads"]) == ("onnxruntime", 40, 1)
    rows = {(row["network"], row["runtime"]): row["ms"] for row in conversion["comparison"]["rows"]}
    assert all(rows[name, runtime] > 0 for name in ("dense", "separable") for runtime in ("torch", "onnxruntime"))
    assert [file for file, _ in result["skipped"]] == ["train/class0/broken.png"]
    assert set(result["measured"]["top1"]) == {"dense", "separable", "distilled"}
    assert {group["name"] for group in result["who_pays"]["slices"]} == {"odd", "even"}
    assert {group["name"] for group in result["who_pays"]["classes"]} <= {"class0", "class1", "class2"}
    assert result["preparation"]["size"] == [16, 16]
    assert (result["interrupted"], result["out"]) == (False, str(tmp_path / "o"))
    page = (tmp_path / "o" / "report.html").read_text()
    for heading in ("Dense and separable in the same runtime", "What each class loses", "What each slice loses"):
        assert heading in page
    assert result["headline"] in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "slices.csv"]  # the distillation has ended


def test_convert_ends_with_the_line_that_matters(place, tmp_path):
    done = run(
        "convert", f"{place}/net.py:network", "--data", place / "images" / "train", "--budget", "macs=0.7", "--target",
        "torch", "--test", place / "images" / "test", "--out", tmp_path / "o",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    beside = r"([\d.]+ times as fast as|Slower: it takes [\d.]+ times as long as) the fastest dense network here"
    assert re.fullmatch(rf"{beside}, (the same accuracy|[\d.]+ points (lost|gained)) \(torch.*, batch 1, .*\)", last)
    assert "Milliseconds a call" in done.stdout
    assert "What classes lose" in done.stdout


def test_convert_draws_accuracy_against_time_and_keeps_an_accuracy(place, tmp_path, monkeypatch):
    from separable.conversion import study

    monkeypatch.setattr(study, "PARETO", (1.0,))
    monkeypatch.setattr(study, "_HALVINGS", 1)
    pareto = study.Study.pareto
    monkeypatch.setattr(study.Study, "pareto", lambda self: [self.convert({"macs": 0.7}), *pareto(self, (1.0,))])
    done = run(
        "convert", f"{place}/net.py:network", "--data", place / "images" / "train", "--budget", "accuracy=-50",
        "--target", "onnxruntime", "--samples", "30", "--test", place / "images" / "test", "--pareto", "--out",
        tmp_path / "o", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["pareto"][0]["name"] == "dense"
    assert len(result["pareto"]) >= 2
    assert all(0 <= one["top1"] <= 1 and one["ms"] > 0 for one in result["pareto"])
    assert "Accuracy against time" in (tmp_path / "o" / "report.html").read_text()


def test_what_fails_after_the_conversion_does_not_lose_it(place, tmp_path, monkeypatch):
    from separable import conversion

    refusal = separable.InputError("data", "labels", "mean nothing")
    monkeypatch.setattr(conversion, "who_pays", mock.Mock(side_effect=refusal))
    done = run(
        "convert", f"{place}/net.py:network", "--data", place / "images" / "train", "--budget", "macs=0.7", "--target",
        "torch", "--test", place / "images" / "test", "--out", tmp_path / "o",
    )  # fmt: skip
    assert done.returncode == 2
    assert f"mean nothing; the network as it was until then is saved in {tmp_path}/o" in done.stderr
    assert separable.load(tmp_path / "o")(torch.zeros(1, 1, 16, 16)).shape == (1, 3)


def distilled_until(place, out, monkeypatch, error, *more):
    """`convert --distill 3`, stopped by an error at the end of the second epoch."""
    from separable.conversion.distillation import history

    with monkeypatch.context() as patch:
        patch.setattr("separable.conversion.timing.time_options", lambda *_: None)  # the same plan every time
        if error is not None:
            describe = history.Epoch.describe

            def stopped(epoch, epochs):
                if epoch.epoch == 2:
                    raise error
                return describe(epoch, epochs)

            patch.setattr(history.Epoch, "describe", stopped)
        return run(
            "convert", f"{place}/net.py:network", "--data", place / "images" / "train", "--budget", "macs=0.7",
            "--target", "torch", "--distill", "3", "--out", out, "--json", *more,
        )  # fmt: skip


INTERRUPTED = """
import signal
from separable import cli
from separable.conversion import timing
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the test runner has done to it
timing.time_options = lambda *_: None
cli.main()
"""


def interrupted_in_fitting(place, out):
    """The same command in a process of its own, with Ctrl-C as soon as the options of all layers are known."""
    command = [sys.executable, "-c", INTERRUPTED, "convert", f"{place}/net.py:network", "--data",
               place / "images" / "train", "--budget", "macs=0.7", "--target", "torch", "--distill", "3", "--out",
               out]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (Path(f"{out}.converting") / "conversion" / "table.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def test_a_conversion_stopped_twice_goes_on_where_it_was(place, tmp_path, monkeypatch):
    """By Ctrl-C in fitting, and by what nobody expects in distillation."""
    stopped = interrupted_in_fitting(place, tmp_path / "o")
    assert stopped.returncode == 130, stopped.stderr
    sentence = (
        f"Interrupted: what was done is kept in {tmp_path}/o.converting, and the same command with --resume goes on."
    )
    assert stopped.stdout.strip() == sentence
    assert "Traceback" not in stopped.stderr
    assert "stopped" not in stopped.stderr
    killed = distilled_until(place, tmp_path / "o", monkeypatch, OSError("killed"), "--resume")
    assert killed.returncode == 1
    assert "weighing layers" not in killed.stderr
    assert not (tmp_path / "o").exists()
    anew = distilled_until(place, tmp_path / "o", monkeypatch, None)
    assert anew.returncode == 2
    assert "go on with --resume" in anew.stderr
    other = distilled_until(place, tmp_path / "o", monkeypatch, None, "--resume", "--seed", "5")
    assert other.returncode == 2
    assert "was begun with --seed 0, not 5" in other.stderr
    resumed = distilled_until(place, tmp_path / "o", monkeypatch, None, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on with what" in resumed.stderr
    assert "weighing layers" not in resumed.stderr
    assert "timing in turns" not in resumed.stderr
    assert separable.load(tmp_path / "o")(torch.zeros(1, 1, 16, 16)).shape == (1, 3)
    assert not (tmp_path / "o.converting").exists()


def test_an_interrupted_distillation_is_written_as_it_is_then(place, tmp_path, monkeypatch):
    done = distilled_until(place, tmp_path / "o", monkeypatch, KeyboardInterrupt())
    assert done.returncode == 130, done.stderr
    assert "interrupted: writing the network as it is now" in done.stderr
    assert "stopped" not in done.stderr
    assert json.loads(done.stdout)["interrupted"] is True
    assert separable.load(tmp_path / "o")(torch.zeros(1, 1, 16, 16)).shape == (1, 3)
    assert (tmp_path / "o.converting" / "distillation").is_dir()
    again = distilled_until(place, tmp_path / "o", monkeypatch, None, "--resume", "--overwrite")
    assert again.returncode == 0, again.stderr
    assert not (tmp_path / "o.converting").exists()


def convert_in(place, out, *more):
    return run(
        "convert", f"{place}/net.py:network", "--data", place / "images" / "train", "--target", "torch", "--out", out,
        *more,
    )  # fmt: skip


def unread(patch):
    """Images are not read, for what is refused is refused before."""
    patch.setattr("separable.commands.convert.open_images", lambda *_, **__: pytest.fail("images were read"))


@pytest.mark.parametrize("options", [(), ("--overwrite",), ("--resume",), ("--resume", "--overwrite")])
def test_a_folder_of_other_things_beside_the_result_is_never_deleted(place, tmp_path, monkeypatch, options):
    thesis = tmp_path / "o.converting" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    unread(monkeypatch)
    done = convert_in(place, tmp_path / "o", *options)
    assert done.returncode == 2
    assert "holds no asked.json, so it is no earlier result" in done.stderr
    assert thesis.read_text() == "years of work"


def test_an_earlier_conversion_is_refused_before_images_are_read(place, tmp_path, monkeypatch):
    (tmp_path / "o.converting").mkdir()
    (tmp_path / "o.converting" / "asked.json").write_text('{"--seed": 5}')
    unread(monkeypatch)
    for options, sentence in (
        ((), "go on with --resume, or begin anew"),
        (("--resume",), "ask for the same, or begin"),
    ):
        done = convert_in(place, tmp_path / "o", *options)
        assert done.returncode == 2
        assert sentence in done.stderr
    stop = mock.Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr("separable.commands.convert.open_images", stop)
    done = convert_in(place, tmp_path / "o", "--overwrite")
    assert done.returncode == 130
    assert done.stdout.strip() == f"Interrupted before anything was done; {tmp_path}/o.converting is as it was."


def test_a_refused_latency_keeps_all_but_times_and_another_budget_goes_on(place, tmp_path, monkeypatch):
    monkeypatch.setattr("separable.conversion.Study.share_of_time", lambda *_: 0.9)
    done = convert_in(place, tmp_path / "o", "--budget", "latency=0.5")
    assert done.returncode == 2
    assert f"what forms lose is kept in {tmp_path}/o.converting: with --resume only times are" in done.stderr
    kept = tmp_path / "o.converting" / "conversion"
    table = json.loads((kept / "table.json").read_text())
    assert {option["ms"] for many in table.values() for option in many} == {None}
    assert not list(kept.glob("**/dense.json"))
    again = convert_in(place, tmp_path / "o", "--budget", "latency=0.5", "--resume")
    assert again.returncode == 2
    assert "weighing layers" not in again.stderr
    assert "timing forms" in again.stderr
    other = convert_in(place, tmp_path / "o", "--budget", "macs=0.7", "--resume")
    assert other.returncode == 0, other.stderr
    assert "weighing layers" not in other.stderr
    assert not (tmp_path / "o.converting").exists()


def test_evaluate_uses_the_preparation_that_was_saved(place):
    done = start("evaluate", place / "out", place / "images", "--split", "test", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["preparation"]["mean"] == [0.5]
    assert result["images"] == 12
    assert sum(map(sum, result["confusion"])) == 12
    assert list(result["rows"]) == ["class0", "class1", "class2"]
    # the same network, read and prepared by hand
    network, right = separable.load(place / "out"), 0
    images = separable.data.open_images(place / "images", {"size": 16, "mean": [0.5], "std": [0.25]}, "test")
    for image, label in images:
        right += int(network(image[None]).argmax()) == label
    assert result["top1"] == pytest.approx(right / 12)


def test_a_network_in_double_precision_is_fed_its_own_type(place):
    done = run("evaluate", f"{place}/net.py:double", "--data", place / "images" / "test", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 12


def test_profile_prints_a_table_and_writes_a_page(place, tmp_path):
    page = tmp_path / "page.html"
    done = start("profile", place / "out", "--html", page, "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b[36]\.conv", done.stdout), done.stdout
    assert done.stdout.strip().endswith(f"Page written: {page}")
    assert "<svg" in page.read_text()


def test_profile_counts_a_timm_network_exactly():
    done = run("profile", "timm:mobilenetv2_100", "--shape", "1,3,224,224", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["macs"], result["params"]) == (300_774_272, 3_504_872)


def test_benchmark_puts_networks_side_by_side_in_fresh_processes(place, tmp_path):
    page = tmp_path / "page.html"
    done = run(
        "benchmark", f"{place}/net.py:network", place / "out", "--batch", "3", "--threads", "1", "2", "--rounds", "2",
        "--runtimes", "torch", "onnxruntime", "--data", place / "images", "--split", "test", "--out", page, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    dense, converted = result["networks"]
    assert (dense["name"], converted["name"]) == ("network", "out")
    assert converted["macs"] < 0.7 * dense["macs"]
    assert converted["file_bytes"] == (place / "out" / "model.safetensors").stat().st_size
    evaluated = json.loads(run("evaluate", place / "out", place / "images", "--split", "test", "--json").stdout)
    assert converted["accuracy"] == {"top1": evaluated["top1"], "images": 12, "skipped": 0}
    assert [(part["threads"], part["batch"]) for part in result["measured"]] == [(1, 3), (2, 3)]
    for part in result["measured"]:
        assert [(row["network"], row["runtime"]) for row in part["rows"]] == [
            (name, runtime) for name in ("network", "out") for runtime in ("torch", "onnxruntime")
        ]
        assert all(0 < row["low_ms"] <= row["ms"] <= row["high_ms"] and row["error"] < 1e-4 for row in part["rows"])
        assert not sys.platform.startswith("linux") or all(row["memory_bytes"] > 0 for row in part["rows"])
    first, second = result["conclusions"]
    beside = r"out (is|takes) [\d.]+ times as (fast|long) as the fastest network here"
    assert re.match(beside + r" \(.*batch 3, one thread\); (the same accuracy|[\d.]+ points (lost|gained))", first)
    told = page.read_text()
    assert told.count("<svg") == 2
    assert second in told


def test_benchmark_of_one_network_of_several_inputs_ends_with_its_fastest_runtime(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class pair(nn.Module):\n"
        "    def forward(self, image, row):\n"
        "        return {'image': image * 2, 'row': row.softmax(1)}\n"
    )
    done = run("benchmark", f"{tmp_path}/net.py:pair", "--shape", "1,3,4,4", "--shape", "1,5", "--batch", "1", "2",
               "--runtimes", "torch,onnxruntime", "--rounds", "1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "one thread, batch 2" in done.stdout
    for batch, line in enumerate(done.stdout.splitlines()[-2:], 1):
        end = rf"pair takes [\d.]+ ms in (torch|onnxruntime), its fastest here \(batch {batch}, one thread\)"
        assert re.fullmatch(end, line)


def test_benchmark_refuses_a_runtime_that_was_asked_for_and_is_not_here(place, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = run("benchmark", place / "out", "--runtimes", "torch", "openvino default")
    reason = "openvino is not installed; add it with: pip install openvino"
    assert done.returncode == 2
    assert done.stderr == f"separable: --runtimes = openvino default: cannot be used here: {reason}\n"


def test_benchmark_takes_several_values_after_an_option_and_leaves_sources_alone():
    import typer.main

    command = typer.main.get_command(cli.app).commands["benchmark"]
    words = ["--batch", "1", "8", "a", "--threads", "2", "b", "--batch", "16", "--runtimes", "torch",
             "openvino default", "c"]  # fmt: skip
    read = command.make_context("benchmark", words).params
    assert (read["batch"], read["threads"], read["sources"]) == ([1, 8, 16], [2], ["a", "b", "c"])
    assert read["runtimes"] == ["torch", "openvino default"]


def test_export_writes_onnx_from_a_saved_folder(place, tmp_path):
    done = start("export", place / "out", "--out", tmp_path / "net.onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size_bytes"] == (tmp_path / "net.onnx").stat().st_size


def test_train_goes_the_way_of_the_recipe_from_files_to_a_saved_network(tmp_path):
    lines = [f"{word} rises@up\n{word} falls@down\n" for word in ("oil", "gold", "bread", "milk", "rent", "pay") * 6]
    (tmp_path / "said.txt").write_text("".join(lines))
    done = start("train", "text", "--train", tmp_path / "said.txt", "--out", tmp_path / "o", "--epochs", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "o" / "results.json").read_text())
    assert (tmp_path / "o" / "network").is_dir()


def test_predict_names_images_by_the_converted_network_and_keeps_the_reader_waiting_for_none(place):
    files = sorted(map(str, (place / "images" / "test").rglob("*.png")))
    done = start("predict", place / "out", place / "images" / "test")
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == files
    command = f"{sys.executable} -m separable.cli predict {place}/out {place}/images/test | head -1"
    piped = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
    assert len(piped.stdout.splitlines()) == 1
    assert "Broken" not in piped.stderr
    assert "unexpected" not in piped.stderr


def test_doctor_tells_versions_as_json():
    from separable import _native

    told = json.loads(run("doctor", "--json").stdout)["system"]
    assert told["torch"] == torch.__version__
    assert told["bfloat16 products"].startswith("none") != _native.has_bfloat16()


def test_doctor_tells_of_missing_kernels_once_and_with_the_remedy(monkeypatch):
    monkeypatch.setenv("SEPARABLE_NATIVE", "/nowhere/libseparable.so")
    done, why = start("doctor"), "SEPARABLE_NATIVE names /nowhere/libseparable.so, which is not there"
    assert done.stdout.splitlines()[-1] == f"No native kernels, torch's own run instead, slower: {why}."
    assert done.stdout.count(why) == 1
    assert not done.stderr
    assert json.loads(start("doctor", "--json").stdout)["missing"]["native kernels"] == why


def test_doctor_tells_of_an_instruction_set_that_was_asked_for(monkeypatch):
    from separable import _native

    if len(_native.isas()) < 2:
        pytest.skip("no two instruction sets to choose from here")
    best, *_, lowest = _native.isas()
    monkeypatch.setenv("SEPARABLE_ISA", lowest)
    asked = start("doctor")
    assert f"SEPARABLE_ISA asks for {lowest}, unset it for {best}" in asked.stdout
    assert "none (it takes avx512" in asked.stdout
    assert asked.stdout.splitlines()[-1].startswith(("Nothing is missing", "Missing"))
    monkeypatch.setenv("SEPARABLE_ISA", "nonsense")
    refused = start("doctor")
    names = ", ".join(_native.isas())
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"separable: SEPARABLE_ISA = nonsense: must be one of {names} here, or unset\n"


def test_doctor_explains_which_way_a_shape_takes():
    from separable import _native

    told = json.loads(run("doctor", "--explain", "16x96x56x56", "--kernel", "7", "--json").stdout)
    assert len(told["ways"]) == 8  # in two layouts: inference and three directions of training
    assert all(row["way"] == ("reference" if _native.missing else "native") and row["why"] for row in told["ways"])
    assert _native.missing or sum("measured" in row["why"] for row in told["ways"]) == 6
    told = json.loads(run("doctor", "--explain", "1x96x56x56", "--json").stdout)
    ways = {(row["layout"], row["for"]): row["way"] for row in told["ways"]}
    assert ways["channels-last", "inference"] == "reference"  # torch's forward is as fast
    assert "must be N x C x sizes" in run("doctor", "--explain", "16x96").stderr


def test_doctor_and_profile_name_layers_with_subnormal_numbers(place, tmp_path):
    network = separable.load(place / "out")
    name = next(name for name, _ in network.named_parameters() if name.count(".") > 1 and name.endswith(".weight"))
    clean = run("doctor", place / "out")
    assert clean.returncode == 0, clean.stderr
    assert clean.stdout.startswith("None of the weights, and of its activations")
    with torch.no_grad():
        network.get_parameter(name)[0] = 1e-39
    separable.save(network, tmp_path / "small", example=torch.zeros(1, 1, 16, 16))
    told = run("doctor", tmp_path / "small")
    assert name.removesuffix(".weight") in told.stdout
    assert "torch.set_flush_denormal(True)" in told.stdout.splitlines()[-1]
    for command in ("doctor", "profile"):
        rows = json.loads(run(command, tmp_path / "small", "--json").stdout)["subnormal"]
        assert (rows[0]["layer"], rows[0]["tensor"]) == (name.removesuffix(".weight"), "weight")
        assert 0 < rows[0]["share"] < 1
    page = tmp_path / "page.html"
    run("profile", tmp_path / "small", "--html", page)
    assert "Subnormal numbers" in page.read_text()


@pytest.mark.parametrize(
    "command", ["", "profile", "convert", "benchmark", "evaluate", "predict", "export", "demo", "doctor", "train"]
)
def test_help_names_every_command_and_imports_no_torch(command):
    code = (
        f"import sys; sys.argv = {['separable', *command.split(), '--help']!r}\n"
        "from separable.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage: separable" in done.stdout


MISTAKES = {
    "no such network": (["profile", "timm:mobilenetv9"], "mobilenetv9"),
    "no such file": (["profile", "nowhere.py:net"], "nowhere.py"),
    "no such factory": (["profile", "{place}/net.py:missing"], "network"),
    "not a network": (["profile", "{place}/net.py:bare", "--shape", "1,1,8,8"], "bare"),
    "shape unknown": (["profile", "{place}/net.py:network"], "--shape"),
    "shape not numbers": (["profile", "{place}/net.py:network", "--shape", "1,a"], "--shape = 1,a"),
    "shape that does not fit": (["profile", "{place}/net.py:network", "--shape", "1,3,16,16"], "layer '0'"),
    "no such data": (["evaluate", "{place}/out", "--data", "nowhere"], "nowhere"),
    "split not chosen": (["evaluate", "{place}/out", "--data", "{place}/images"], "test"),
    "budget not a pair": (["convert", "{place}/net.py:network", "--data", "{place}/images/train", "--budget", "half",
                           "--out", "{tmp}/o"], "--budget = half"),
    "budget out of reach": (["convert", "{place}/net.py:network", "--data", "{place}/images/train", "--budget",
                             "macs=0.01", "--out", "{tmp}/o"], "cannot be met"),
    "budget named twice": (["convert", "{place}/net.py:network", "--data", "nowhere", "--budget", "macs=0.5,macs=0.4",
                            "--out", "{tmp}/o"], "names macs twice"),
    "budget of no number": (["convert", "{place}/net.py:network", "--data", "nowhere", "--budget", "macs=0.5,params=x",
                             "--out", "{tmp}/o"], "--budget = macs=0.5,params=x: must be KEY=NUMBER"),
    "budget of more time": (["convert", "{place}/net.py:network", "--data", "nowhere", "--budget", "latency=2",
                             "--out", "{tmp}/o"], "at most 1"),
    "no such target": (["convert", "{place}/net.py:network", "--data", "nowhere", "--target", "tensorrt", "--out",
                        "{tmp}/o"], "--target = tensorrt: must be one of"),
    "slices of no test": (["convert", "{place}/net.py:network", "--data", "nowhere", "--slices", "a.csv", "--out",
                           "{tmp}/o"], "--slices = a.csv: goes with --test"),
    "slices that are not there": (["convert", "{place}/net.py:network", "--data", "nowhere", "--test", "nowhere",
                                   "--slices", "a.csv", "--out", "{tmp}/o"], "--slices = a.csv: cannot be read"),
    "slices of other files": (["convert", "{place}/net.py:network", "--data", "{place}/images/train", "--test",
                               "{place}/images/test", "--slices", "{place}/other.csv", "--out", "{tmp}/o"],
                              "names no file of --test, as night.png; its images are called as class0/0.png"),
    "accuracy against time of no test": (["convert", "{place}/net.py:network", "--data", "nowhere", "--pareto", "--out",
                                          "{tmp}/o"], "--pareto = given: needs --test"),
    "an accuracy to be gained": (["convert", "{place}/net.py:network", "--data", "nowhere", "--budget", "accuracy=2",
                                  "--out", "{tmp}/o"], "accuracy is what may be lost"),
    "patience without distillation": (["convert", "{place}/net.py:network", "--data", "nowhere", "--patience", "2",
                                       "--out", "{tmp}/o"], "--patience = 2: goes with --distill"),
    "no time to distil": (["convert", "{place}/net.py:network", "--data", "nowhere", "--distill", "2",
                           "--distill-minutes", "-1", "--out", "{tmp}/o"], "--distill-minutes = -1.0: must be"),
    "nothing to convert": (["convert", "{place}/net.py:unconvertible", "--data", "{place}/images/train", "--out",
                            "{tmp}/o"], "convol"),
    "folder taken": (["convert", "{place}/net.py:network", "--data", "{place}/images/train", "--out", "{place}/out"],
                     "not empty"),
    "mean without std": (["convert", "timm:mobilenetv1_100", "--data", "{place}/images/train", "--mean", "a", "--out",
                          "{tmp}/o"], "--mean = a"),
    "weights that do not fit": (["profile", "timm:mobilenetv1_100", "--weights", "{place}/out/model.safetensors"],
                                "conv_stem"),
    "weights for a saved folder": (["profile", "{place}/out", "--weights", "{place}/out/model.safetensors"],
                                   "brings its own"),
    "option out of range": (["profile", "{place}/out", "--threads", "0"], "--threads = 0: "),
    "option not a number": (["profile", "{place}/out", "--threads", "two"], "--threads = two: "),
    "option missing": (["convert", "{place}/net.py:network", "--out", "{tmp}/o"], "--data"),
    "no such command": (["acelerate"], "acelerate"),
    "budget of an unknown kind": (["convert", "{place}/net.py:network", "--data", "nowhere", "--budget", "flops=0.5",
                                   "--out", "{tmp}/o"], "--budget = flops=0.5"),
    "only the size of unknown images": (["convert", "{place}/bare.py:network", "--data", "{place}/images/train",
                                         "--size", "16", "--out", "{tmp}/o"], "--mean, --std"),
    "size over a function": (["evaluate", "{place}/function.py:network", "--data", "{place}/images/test", "--size",
                              "8"], "preprocess"),
    "page in no folder": (["profile", "{place}/out", "--html", "{tmp}/no/page.html"], "--html = "),
    "a shape of no network": (["doctor", "--shape", "1,1,16,16"], "--shape = 1,1,16,16: goes with a network"),
    "a network to explain": (["doctor", "{place}/out", "--explain", "1x8x8x8"], "--explain = 1x8x8x8: is of one layer"),
    "threads beyond reason": (["profile", "{place}/out", "--threads", "9999"], "--threads = 9999"),
    "a shape that no memory holds": (["profile", "{place}/out", "--shape", "1,1,20000000,20000000"], "--shape = "),
    "a folder that is not there": (["evaluate", "smal", "--data", "{place}/images/test"], "a saved folder"),
    "one class number too few": (["evaluate", "timm:mobilenetv3_small_100", "--data", "{place}/images/test", "--size",
                                  "32"], "has 3 classes"),
    "batch written into it": (["evaluate", "{place}/net.py:fixed", "--data", "{place}/images/test"], "[1, 36]"),
    "weights that are not numbers": (["evaluate", "{place}/net.py:nan", "--data", "{place}/images/test"], "NaN"),
    "channels that do not fit": (["evaluate", "{place}/net.py:colour", "--data", "{place}/images/test"], "refuses it"),
    "one image to distil on": (["convert", "{place}/net.py:network", "--data", "{place}/one", "--distill", "1", "--out",
                                "{tmp}/o"], "--distill = 1: needs at least two"),
    "nothing to evaluate on": (["evaluate", "{place}/out"], "DATA = none"),
    "an option of another task": (["evaluate", "{place}/out", "{place}/images/test", "--unknown-label", "oos"],
                                  "--unknown-label = oos: does not go with a network for image"),
    "nothing to predict": (["predict", "{place}/out"], "INPUT = none"),
    "no such input": (["predict", "{place}/out", "nowhere.png"], "INPUT = nowhere.png"),
    "no such recipe": (["train", "sound"], "TASK = sound"),
    "a setting that is neither yes nor no": (["train", "text", "--out", "{tmp}/o", "--strict", "perhaps"],
                                             "strict = perhaps: must be yes or no"),
    "no such setting": (["train", "text", "--out", "{tmp}/o", "--colour", "red"], "--colour"),
    "setting left out": (["train", "text", "--train", "a.csv"], "--out"),
    "setting not a number": (["train", "tokens", "--out", "{tmp}/o", "--epochs", "few"], "epochs = few"),
    "no such training data": (["train", "tokens", "--out", "{tmp}/o", "--train", "nowhere"], "nowhere"),
    "no such runtime": (["benchmark", "{place}/out", "--runtimes", "tensorrt"], "--runtimes = tensorrt: must be one"),
    "weights left over": (["benchmark", "{place}/out", "--weights", "{place}/out/model.safetensors"], "left over"),
    "a split of no data": (["benchmark", "{place}/out", "--split", "test"], "--split = test: goes with --data"),
    "no shape to run": (["benchmark", "{place}/out", "{place}/bare.py:network"], "--shape = not given: network does"),
    "a shape that one refuses": (["benchmark", "{place}/out", "{place}/net.py:colour", "--size", "8"], "layer '0'"),
    "a batch of none": (["benchmark", "{place}/out", "--batch", "1", "0"], "--batch = "),
    "a page that is a folder": (["benchmark", "{place}/out", "--out", "{tmp}"], "--out = "),
    "one to benchmark that is not there": (["benchmark", "{place}/out", "smal"], "SOURCE = smal"),
    "export over a file": (["export", "{place}/out", "--out", "{place}/net.py"], "exists already"),
}  # fmt: skip


def test_a_mistake_ends_a_process_of_its_own_with_2():
    done = start("profile", "nowhere.py:net")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"separable: .*nowhere\.py.*\n", done.stderr)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(mistake, place, tmp_path):
    arguments, told = MISTAKES[mistake]
    before = sorted(place.rglob("*"))
    done = run(*(a.format(place=place, tmp=tmp_path) for a in arguments))
    lines = [line for line in done.stderr.splitlines() if line.startswith("separable: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()
    assert [p for p in sorted(place.rglob("*")) if "__pycache__" not in str(p)] == [
        p for p in before if "__pycache__" not in str(p)
    ]


def test_our_own_fault_exits_with_1_and_debug_shows_where(monkeypatch, capsys):
    from separable.commands import doctor

    monkeypatch.setattr(doctor, "run", lambda: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["separable", "doctor"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("separable: unexpected ZeroDivisionError: division by zero")
    monkeypatch.setattr(sys, "argv", ["separable", "doctor", "--debug"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_ctrl_c_says_that_nothing_is_left_behind(monkeypatch):
    from separable.commands import doctor

    monkeypatch.setattr(doctor, "run", mock.Mock(side_effect=KeyboardInterrupt))
    done = run("doctor")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip() == "separable: stopped; nothing that was not finished is left behind"


def test_a_network_that_cannot_be_saved_is_refused_before_the_work_with_its_line(place, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "preprocess = {'size': 16, 'mean': [0.5], 'std': [0.25]}\n"
        "class net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(1, 3, 3)\n"
        "    def forward(self, x):\n"
        "        y = self.conv(x).mean((2, 3))\n"
        "        return y if y.sum() > 0 else -y\n"
    )
    done = run("convert", f"{tmp_path}/net.py:net", "--data", place / "images" / "train", "--out", tmp_path / "o")
    assert done.returncode == 2
    assert re.search(r"net\.py\W.*\b9\b", done.stderr), done.stderr
    assert "comparing forms" not in done.stderr
    assert not (tmp_path / "o").exists()


def test_a_form_that_fails_at_the_end_does_not_lose_the_network(place, tmp_path, monkeypatch):
    from separable.commands import convert as job

    exported = []

    def export(*args, **kwargs):
        if exported:
            raise separable.InputError("file", "model.onnx", "differs from torch")
        exported.append(real(*args, **kwargs))

    real = job.export_onnx
    monkeypatch.setattr(job, "export_onnx", export)
    options = job.Options(f"{place}/net.py:network", place / "images" / "train", tmp_path / "o", "macs=0.7", "torch")
    with pytest.raises(separable.InputError, match=r"is saved in .*differs from torch"):
        job.run(options)
    assert separable.load(tmp_path / "o")(torch.zeros(1, 1, 16, 16)).shape == (1, 3)


def test_a_function_as_preprocess_is_saved_as_settings(place, tmp_path):
    (tmp_path / "net.py").write_text(
        FACTORY.replace(
            'preprocess = {"size": 16, "mean": [0.5], "std": [0.25]}',
            "def preprocess(image):\n"
            "    pixels = torch.tensor(list(image.convert('L').resize((16, 16)).getdata()), dtype=torch.float32)\n"
            "    return (pixels.reshape(1, 16, 16) / 255 - 0.4) / 0.2",
        )
    )
    done = run(
        "convert", f"{tmp_path}/net.py:network", "--data", place / "images" / "train", "--budget", "macs=0.7",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    preparation = json.loads(done.stdout)["preparation"]
    assert preparation["size"] == [16, 16]
    assert preparation["interpolation"] == "bicubic"
    assert preparation["mean"] == pytest.approx([0.4], abs=1e-4)
    assert preparation["std"] == pytest.approx([0.2], abs=1e-4)


def test_a_network_without_preparation_asks_for_it(place, tmp_path):
    (tmp_path / "net.py").write_text(FACTORY.replace("preprocess", "unused"))
    arguments = ["convert", f"{tmp_path}/net.py:network", "--data", place / "images" / "train", "--out", tmp_path / "o"]
    arguments += ["--budget", "macs=0.7"]
    done = run(*arguments)
    assert done.returncode == 2
    assert "--mean, --std" in done.stderr
    assert run(*arguments, "--size", "16", "--mean", "0.5", "--std", "0.25").returncode == 0


def test_torch_files_are_read_as_data_and_never_run(place, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path(tmp_path / "owned").write_text, ("x",))

    torch.save({"state_dict": Hostile()}, tmp_path / "bad.pt")
    done = run("profile", f"{place}/net.py:network", "--shape", "1,1,16,16", "--weights", tmp_path / "bad.pt")
    assert done.returncode == 2
    assert not (tmp_path / "owned").exists()
    good = nn.Sequential(nn.Conv2d(1, 8, 3)).state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in good.items()}}, tmp_path / "short.pt")
    done = run("profile", f"{place}/net.py:network", "--shape", "1,1,16,16", "--weights", tmp_path / "short.pt")
    assert done.returncode == 2
    assert "missing" in done.stderr
