"""Weights files: what is understood, what is refused, and that nothing is ever half loaded or run."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import real_data
from separable.errors import InputError
from separable.models import load_weights
from separable.models.weights import read_state


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


class Destroyer:
    """Pickled, it is a call that its reader would make."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def saved():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return network().state_dict()


def assert_loaded(model, state):
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


WRAPPINGS = {
    "plain": lambda state: state,
    "under state_dict": lambda state: {"epoch": 3, "state_dict": state, "best": 0.9},
    "under model": lambda state: {"model": state},
    "under net": lambda state: {"net": state, "acc": 91.0},
    "nested twice": lambda state: {"model": {"state_dict": state}},
    "DataParallel": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "compiled inside DataParallel": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "compiled in part": lambda state: {key.replace("0.", "0._orig_mod.", 1): value for key, value in state.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("legacy", [False, True])
def test_understands_a_torch_file(tmp_path, saved, wrapping, legacy):
    file = tmp_path / "weights.pt"
    torch.save(WRAPPINGS[wrapping](saved), file, _use_new_zipfile_serialization=not legacy)
    model = network()
    load_weights(model, file)
    assert_loaded(model, saved)


def test_understands_safetensors(tmp_path, saved):
    file = tmp_path / "weights.safetensors"
    save_file({f"module.{key}": value for key, value in saved.items()}, file)
    model = network()
    load_weights(model, str(file))
    assert_loaded(model, saved)


def test_keeps_a_prefix_that_the_model_has_too(tmp_path, saved):
    model = nn.Module()
    model.module = network()
    file = tmp_path / "weights.pt"
    torch.save({f"module.{key}": value for key, value in saved.items()}, file)
    load_weights(model, file)
    assert_loaded(model.module, saved)


def test_num_batches_tracked_may_be_absent(tmp_path, saved):
    del saved["1.num_batches_tracked"]
    file = tmp_path / "weights.pt"
    torch.save(saved, file)
    model = network()
    load_weights(model, file)
    assert torch.equal(model[0].weight, saved["0.weight"])


def test_values_take_the_model_s_dtype(tmp_path, saved):
    file = tmp_path / "weights.pt"
    torch.save({key: value.half() if value.is_floating_point() else value for key, value in saved.items()}, file)
    model = network()
    load_weights(model, file)
    assert model[0].weight.dtype == torch.float32
    torch.testing.assert_close(model[0].weight, saved["0.weight"], rtol=1e-3, atol=1e-3)


def test_tells_every_kind_of_misfit_and_loads_nothing(tmp_path, saved):
    del saved["0.bias"]
    saved["3.weight"] = torch.zeros(10, 4)
    saved["4.weight"] = torch.zeros(1)
    file = tmp_path / "weights.pt"
    torch.save(saved, file)
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(model, file)
    assert "1 missing (0.bias)" in str(caught.value)
    assert "1 unexpected (4.weight)" in str(caught.value)
    assert "1 of another shape (3.weight [10, 4] for [2, 4])" in str(caught.value)
    assert_loaded(model, before)


def test_many_misfits_are_counted_and_a_few_shown(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({f"layer{i}.weight": torch.zeros(1) for i in range(40)}, file)
    with pytest.raises(
        InputError, match=r"40 unexpected \(layer0.weight, layer1.weight, layer2.weight, layer3.weight, \.\.\.\)"
    ):
        load_weights(network(), file)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_refused_by_name_and_not_run(tmp_path, saved, legacy):
    mark, file = tmp_path / "destroyed", tmp_path / "weights.pt"
    torch.save({"state_dict": saved, "extra": Destroyer(mark)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        InputError, match=r"was refused: it holds Python objects \(posix.mkdir\), and reading those would run code"
    ):
        load_weights(network(), file)
    assert not mark.exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    mark, file = tmp_path / "destroyed", tmp_path / "weights.pt"
    file.write_bytes(pickle.dumps(Destroyer(mark)))
    with pytest.raises(InputError, match="was refused"):
        load_weights(network(), file)
    assert not mark.exists()


def test_a_pickled_module_is_refused_with_the_way_out(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save(network(), file)
    with pytest.raises(InputError, match=r"save weights alone, with torch.save\(model.state_dict\(\), file\)"):
        load_weights(network(), file)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "noise"])
def test_a_damaged_file_is_one_clear_sentence(tmp_path, saved, name, damage):
    file = tmp_path / name
    save_file(saved, file) if name.endswith("safetensors") else torch.save(saved, file)
    whole = file.read_bytes()
    noise = bytes(torch.randint(0, 256, (4096,), dtype=torch.uint8).tolist())
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello world", "noise": noise}[damage])
    with pytest.raises(InputError, match=r"is damaged|is not a readable safetensors file|was refused") as caught:
        load_weights(network(), file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({"epoch": 3}, "holds no state_dict"),
        ([torch.zeros(2)], "holds no state_dict"),
        (torch.zeros(2), "holds no state"),
    ],
)
def test_a_file_without_weights_says_so(tmp_path, content, rule):
    file = tmp_path / "weights.pt"
    torch.save(content, file)
    with pytest.raises(InputError, match="holds no state_dict"):
        load_weights(network(), file)


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path, saved):
    content = dict(saved)
    content["state_dict"] = content
    torch.save(content, tmp_path / "loop.pt")
    with pytest.raises(InputError, match=r"loop\.pt: nests its weights more than 8 deep, or in themselves"):
        load_weights(network(), tmp_path / "loop.pt")


def test_a_missing_file_and_a_folder_say_so(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        load_weights(network(), tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match="is a folder"):
        load_weights(network(), tmp_path)


@pytest.mark.data
def test_a_released_checkpoint_holds_the_same_weights_as_its_plain_tensors():
    folder = real_data.folder("cifar10")
    released = read_state(folder / "resnet20-12fca82f.th")
    plain = read_state(folder / "resnet20.safetensors")
    learned = {key for key in plain if not key.endswith("num_batches_tracked")}  # the release is older than that count
    assert {f"module.{key}" for key in learned} <= released.keys()
    for key in learned:
        assert torch.equal(released[f"module.{key}"], plain[key]), key
    counted = sum(plain[key].numel() for key in learned if "running" not in key)
    assert counted == 269_722
