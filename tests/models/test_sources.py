"""Where networks come from, and what a wrong source is told."""

import copy
import inspect
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from separable.errors import InputError
from separable.models import import_timm, import_torchvision, read_model

GOOD = """
    import torch
    from torch import nn

    def small():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())

    def of_width(width, depth, bias=True):
        return nn.Linear(width, width)

    class Net(nn.Module):
        def forward(self, x):
            return x

    ready = nn.Linear(2, 3)
    number = 3

    def wrong():
        return 3
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="nets.py"):
        file = tmp_path / name
        file.write_text(textwrap.dedent(text))
        return file

    return write


def test_timm_brings_its_image_settings():
    source = read_model("timm:mobilenetv3_small_100")
    assert source.input_shape == (3, 224, 224)
    assert source.preparation == {
        "size": (224, 224),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
    }
    assert not source.model.training


def test_a_timm_network_of_299_pixels_says_so():
    source = read_model("timm:legacy_xception")
    assert source.input_shape == (3, 299, 299)
    assert source.preparation["mean"] == (0.5, 0.5, 0.5)


def test_torchvision_brings_its_image_settings():
    source = read_model("torchvision:mobilenet_v3_small")
    assert source.input_shape == (3, 224, 224)
    assert source.preparation["size"] == (224, 224)
    assert source.preparation["mean"] == (0.485, 0.456, 0.406)
    assert source.preparation["interpolation"] == "bilinear"
    assert source.preparation["crop_pct"] == pytest.approx(224 / 256)
    with torch.no_grad():
        assert source.model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("factory", ["small", "Net", "ready"])
def test_a_file_gives_a_function_s_a_class_s_or_its_own_network(write, factory):
    source = read_model(f"{write(GOOD)}:{factory}")
    assert isinstance(source.model, nn.Module)
    assert source.name == factory
    assert not source.model.training
    assert source.preparation is None


def test_weights_are_loaded_into_the_network(write, tmp_path):
    torch.manual_seed(7)
    weights = nn.Linear(2, 3).state_dict()
    torch.save(weights, tmp_path / "w.pt")
    source = read_model(f"{write(GOOD)}:ready", tmp_path / "w.pt")
    assert torch.equal(source.model.weight, weights["weight"])


def test_a_file_s_preprocess_comes_along_as_it_is(write):
    source = read_model(f"{write(GOOD + '    preprocess = dict(mean=(0.5,), std=(0.5,))')}:small")
    assert source.preparation == {"mean": (0.5,), "std": (0.5,)}
    source = read_model(f"{write(GOOD + '    preprocess = lambda image: (image, 1)')}:small")
    assert source.preparation("x") == ("x", 1)


def test_a_file_may_import_its_neighbours_and_leaves_the_path_as_it_was(write):
    write("from torch import nn\nlayer = nn.Linear", "neighbour_of_nets.py")
    file = write("import neighbour_of_nets\n\ndef net():\n    return neighbour_of_nets.layer(2, 2)\n")
    before = list(sys.path)
    assert isinstance(read_model(f"{file}:net").model, nn.Linear)
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("timm:mobilenetv2_10", "timm has no such network; did you mean mobilenetv2_1"),
        ("timm:resnet18.no_such_tag", "no_such_tag"),
        ("timm:hf-hub:timm/resnet18", "timm has no such network"),
        ("torchvision:resnet8", "torchvision has no such image classifier; did you mean resnet18"),
        ("torchvision:maskrcnn_resnet50_fpn", "torchvision has no such image classifier"),
        ("resnet18", "must be timm:NAME, torchvision:NAME or FILE.py:FACTORY"),
        ("keras:resnet", "must be timm:NAME, torchvision:NAME or FILE.py:FACTORY"),
        ("", "must be timm:NAME"),
        ("nowhere.py:net", "there is no file nowhere.py"),
    ],
)
def test_an_unknown_source_is_told_what_there_is(source, rule):
    with pytest.raises(InputError, match=rule):
        read_model(source)


@pytest.mark.parametrize(
    ("factory", "rule"),
    [
        (":smal", "nets.py has no 'smal'; it has small, of_width, Net, ready, wrong"),
        ("", "names no factory; write FILE.py:FACTORY; it has small"),
        (":of_width", "of_width needs width, depth; a factory is called without arguments"),
        (":wrong", r"wrong\(\) returned int; it must return a torch.nn.Module"),
        (":number", "number is int; it must be a torch.nn.Module or return one"),
    ],
)
def test_a_factory_that_cannot_serve_is_told_why(write, factory, rule):
    with pytest.raises(InputError, match=rule):
        read_model(f"{write(GOOD)}{factory}")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("x = 1\ny = x / 0\n", "line 2 of nets.py fails with ZeroDivisionError: division by zero"),
        ("x = 1\n\ndef net(:\n", "line 3 of nets.py fails with SyntaxError"),
        ("import nothing_of_that_name\n", "line 1 of nets.py fails with ModuleNotFoundError"),
        ("import sys\nsys.exit(3)\n", "line 2 of nets.py fails with SystemExit"),
        ("def net():\n    return missing\n", "line 2 of nets.py fails with NameError"),
        ("from torch import nn\ndef net():\n    return nn.Linear('a', 2)\n", "line 3 of nets.py fails with TypeError"),
        ("preprocess = 3\nfrom torch.nn import Identity as net", "defines preprocess as int; it must be a dict"),
    ],
)
def test_an_error_in_the_file_is_told_with_its_line(write, text, rule):
    with pytest.raises(InputError, match=rule) as caught:
        read_model(f"{write(text)}:net")
    assert "\n" not in str(caught.value)


def test_a_relative_file_that_imports_torchvision_is_read_in_a_fresh_process(write):
    """Whatever torchvision's build: where it does not match torch's, the file's own import would fail."""
    file = write(
        "import torchvision\n\ndef net():\n    return torchvision.models.resnet18()\n\ndef wrong():\n    0 / 0\n"
    )
    program = """
        from separable.models import read_model
        print(sum(p.numel() for p in read_model("nets.py:net").model.parameters()))
        try:
            read_model("nets.py:wrong")
        except ValueError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=file.parent)
    assert done.stdout.splitlines() == [
        "11689512",
        "source = nets.py:wrong: line 7 of nets.py fails with ZeroDivisionError: division by zero",
    ], done.stderr


USES_NEIGHBOUR = """
    import sys
    from torch import nn
    from parts import Part
    from kit.inner import WIDTH

    def small():
        import late_part
        return nn.Sequential(Part(), nn.Linear(WIDTH, late_part.WIDTH))
"""


@pytest.fixture
def two_folders(tmp_path, write):
    """net.py twice, alike; their neighbours of the same names differ, and only the first has late_part."""
    for folder, width in (("one", 3), ("two", 5)):
        (tmp_path / folder / "kit").mkdir(parents=True)
        write(USES_NEIGHBOUR, f"{folder}/net.py")
        write(
            "from torch import nn\nclass Part(nn.Linear):\n"
            f"    def __init__(self):\n        super().__init__(2, {width})",
            f"{folder}/parts.py",
        )
        write(f"WIDTH = {width}", f"{folder}/kit/inner.py")
        (tmp_path / folder / "kit" / "__init__.py").touch()
    write("WIDTH = 7", "one/late_part.py")
    yield tmp_path
    for name in ("parts", "kit", "kit.inner", "late_part"):
        sys.modules.pop(name, None)


def test_files_of_one_name_have_their_own_neighbours(two_folders, write):
    one = read_model(f"{two_folders}/one/net.py:small").model
    with pytest.raises(InputError, match="ModuleNotFoundError: No module named 'late_part'"):
        read_model(f"{two_folders}/two/net.py:small")
    write("WIDTH = 11", "two/late_part.py")
    two = read_model(f"{two_folders}/two/net.py:small").model
    assert [(layer.in_features, layer.out_features) for layer in one] == [(2, 3), (3, 7)]
    assert [(layer.in_features, layer.out_features) for layer in two] == [(2, 5), (5, 11)]
    assert pickle.loads(pickle.dumps(two))[0].out_features == 5
    assert copy.deepcopy(one)[0].out_features == 3
    again = read_model(f"{two_folders}/one/net.py:small").model
    assert again[0].out_features == 3


def test_files_of_one_name_are_two_modules_and_their_networks_can_be_pickled(tmp_path, write):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(
            GOOD + "\n    class Own(nn.Linear):\n        def __init__(self):\n            super().__init__(2, 2)"
            f"\n            self.folder = '{folder}'",
            f"{folder}/nets.py",
        )
    one, two = (read_model(f"{tmp_path}/{folder}/nets.py:Own").model for folder in ("one", "two"))
    for model, folder in ((one, "one"), (two, "two")):
        assert pickle.loads(pickle.dumps(model)).folder == folder
        assert f"self.folder = '{folder}'" in inspect.getsource(type(model))


def test_a_file_that_fails_leaves_nothing_behind_and_may_change_the_path(write):
    before = set(sys.modules), list(sys.path)
    file = write("import sys\nsys.path.pop(0)\nraise OSError")
    with pytest.raises(InputError, match=r"line 3 of nets\.py fails with OSError"):
        read_model(f"{file}:small")
    assert (set(sys.modules), sys.path) == before


def test_a_syntax_error_in_a_neighbour_is_told_with_the_line_that_imports_it(write):
    write("\n\n\n\ndef broken(:\n", "broken_neighbour.py")
    file = write("import sys\nimport broken_neighbour\n")
    with pytest.raises(InputError, match=r"line 2 of nets\.py fails with SyntaxError"):
        read_model(f"{file}:net")


def test_a_torchvision_that_fails_for_another_reason_is_not_hidden(monkeypatch, tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('the disk is on fire')")
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        import_torchvision()


def test_a_missing_package_names_the_extra_to_install(monkeypatch):
    for package in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"torchvision: is not installed .*pip install 'separable\[recipes\]'"):
        import_torchvision()
    with pytest.raises(InputError, match="is not installed"):
        import_timm()
