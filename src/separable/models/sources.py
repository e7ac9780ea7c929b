"""Where a network comes from: timm:NAME, torchvision:NAME or FILE.py:FACTORY, with weights from a file.

Nothing is downloaded: a network arrives with random weights unless a weights file is given. FILE.py is the user's own
code and is executed; a weights file is data and never is (see weights.py).
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from separable.errors import InputError, first_line, need
from separable.models.weights import load_weights

_FORMS = "must be timm:NAME, torchvision:NAME or FILE.py:FACTORY"
_detection_operators: list[torch.library.Library] = []  # a Library takes its operators along when it is collected
_neighbours: dict[str, tuple[Path, ModuleType]] = {}  # what lies beside a FILE.py, by the name it was imported under


@dataclass
class Source:
    """A network and what its source says about it.

    preparation: image settings {"size": (H, W), "mean", "std", "interpolation", "crop_pct"} from timm ("crop_mode" too)
    or torchvision; `preprocess` of FILE.py, a dict of such settings or a callable; None where the source says nothing.
    input_shape: (C, H, W) where the source says so.
    """

    model: nn.Module
    name: str
    preparation: dict[str, Any] | Callable | None = None
    input_shape: tuple[int, int, int] | None = None


def read_model(source: str, weights: str | Path | None = None) -> Source:
    """The network that `source` names, in evaluation mode.

    Args:
        source: "timm:NAME", "torchvision:NAME" (its image classifiers), or "FILE.py:FACTORY", where FACTORY is a
            function or class that returns a torch.nn.Module and needs no arguments, or a module itself.
        weights: a .safetensors or torch file for it; see `load_weights`.

    Raises:
        InputError: no such network, file or factory (near names are told); code in FILE.py fails (with its line).

    >>> read_model("timm:mobilenetv1_100").input_shape
    (3, 224, 224)
    """
    kind, colon, name = source.partition(":")
    if colon and kind == "timm":
        found = _from_timm(source, name)
    elif colon and kind == "torchvision":
        found = _from_torchvision(source, name)
    else:
        file, _, factory = source.rpartition(":")
        if source.endswith(".py"):  # no factory named: the error below says which there are
            file, factory = source, ""
        if not file.endswith(".py"):
            raise InputError("source", source, _FORMS)
        found = _from_file(source, Path(file), factory)
    if weights is not None:
        load_weights(found.model, weights)
    found.model.eval()
    return found


def import_torchvision() -> ModuleType:
    """torchvision, also where its build does not match torch's.

    A torchvision compiled for another build of torch cannot load its C++ operators, and then fails while Python merely
    describes two of them (nms and qnms, of object detection). With those two names declared, everything that is plain
    Python works, which is all of its classifiers and transforms. A matching pair never comes here.
    """
    try:
        return need("torchvision", "recipes", "to read its networks")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _detection_operators.append(library)
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """timm, which imports torchvision as it loads."""
    import_torchvision()
    return need("timm", "recipes", "to read its networks")


def _from_timm(source: str, name: str) -> Source:
    timm = import_timm()
    if not timm.is_model(name):
        raise InputError("source", source, f"timm has no such network{_near(name, timm.list_models())}")
    try:
        model = timm.create_model(name, pretrained=False)
    except RuntimeError as error:  # the part after the dot names a set of weights
        if "pretrained tag" not in str(error):
            raise
        raise InputError("source", source, first_line(error)) from None
    settings = timm.data.resolve_model_data_config(model)
    keep = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    size = settings["input_size"]  # (C, H, W)
    return Source(model, name, {"size": size[1:], **{key: settings[key] for key in keep}}, size)


def _from_torchvision(source: str, name: str) -> Source:
    models = import_torchvision().models
    names = models.list_models(module=models)  # classifiers: the others fetch a backbone when they are made
    if name not in names:
        raise InputError("source", source, f"torchvision has no such image classifier{_near(name, names)}")
    settings = models.get_model_weights(name).DEFAULT.transforms()
    crop, resize = settings.crop_size[0], settings.resize_size[0]
    preparation = {
        "size": (crop, crop),
        "mean": tuple(settings.mean),
        "std": tuple(settings.std),
        "interpolation": settings.interpolation.value,
        "crop_pct": crop / resize,
    }
    return Source(models.get_model(name, weights=None), name, preparation, (3, crop, crop))


def _from_file(source: str, file: Path, factory: str) -> Source:
    if not file.is_file():
        raise InputError("source", source, f"there is no file {file}")
    module = _execute(source, file)
    own = [name for name, value in vars(module).items() if _offers_network(value, module)]
    if not factory or not hasattr(module, factory):
        what = f"{file.name} has no '{factory}'" if factory else "names no factory; write FILE.py:FACTORY"
        listed = f"; it has {', '.join(own)}" if own else "; it defines no function or class"
        raise InputError("source", source, what + listed)
    made = getattr(module, factory)
    if not isinstance(made, nn.Module):
        made = _call(source, file, factory, made)
    preparation = getattr(module, "preprocess", None)
    if not (preparation is None or isinstance(preparation, dict) or callable(preparation)):
        rule = f"{file.name} defines preprocess as {type(preparation).__name__}; it must be a dict or a function"
        raise InputError("source", source, rule)
    return Source(made, factory, preparation)


def _execute(source: str, file: Path) -> ModuleType:
    path = file.resolve()  # two files of one name are two modules
    name = f"separable_source_{file.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError("source", source, "cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    if re.search(r"\b(timm|torchvision)\b", file.read_text(errors="replace")):
        with suppress(InputError):  # not installed: the file's own import says so, with its line
            import_torchvision()
    earlier = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up there
    try:
        with _mistakes_told(source, file), _beside(file):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if earlier is not None:
            sys.modules[name] = earlier
        raise
    return module


def _call(source: str, file: Path, name: str, factory: Any) -> nn.Module:
    if not callable(factory):
        rule = f"{name} is {type(factory).__name__}; it must be a torch.nn.Module or return one"
        raise InputError("source", source, rule)
    needed = [
        p.name
        for p in inspect.signature(factory).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        rule = f"{name} needs {', '.join(needed)}; a factory is called without arguments, so give them defaults"
        raise InputError("source", source, rule)
    with _mistakes_told(source, file), _beside(file):
        made = factory()
    if not isinstance(made, nn.Module):
        raise InputError("source", source, f"{name}() returned {type(made).__name__}; it must return a torch.nn.Module")
    return made


@contextmanager
def _mistakes_told(source: str, file: Path) -> Iterator[None]:
    """An error in the user's code becomes one sentence with the last line of his file that was reached."""
    try:
        yield
    except (Exception, SystemExit) as error:
        reached = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            reached.append((error.filename, error.lineno))
        line = next((line for name, line in reversed(reached) if Path(name).resolve() == file.resolve()), None)
        where = f"line {line} of {file.name}" if line else file.name
        rule = f"{where} fails with {type(error).__name__}: {first_line(error)}"
        raise InputError("source", source, rule) from error


@contextmanager
def _beside(file: Path) -> Iterator[None]:
    """Let FILE.py import the files beside it, as it could if it were run.

    They stay imported, for pickling, but are out of sight of a FILE.py in another folder, which may have neighbours of
    the same names; those then take the names over.
    """
    folder = file.resolve().parent
    foreign = {name: module for name, (home, module) in _neighbours.items() if home != folder}
    foreign = {name: module for name, module in foreign.items() if sys.modules.get(name) is module}
    for name in foreign:
        del sys.modules[name]
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()  # a file may be younger than the last look into its folder
    try:
        yield
    finally:
        with suppress(ValueError):  # FILE.py took it away itself
            sys.path.remove(str(folder))
        new = [name for name in sys.modules if name not in before and _lies_in(folder, name)]
        _neighbours.update({name: (folder, sys.modules[name]) for name in new})
        taken = {name.partition(".")[0] for name in sys.modules}
        sys.modules.update({name: module for name, module in foreign.items() if name.partition(".")[0] not in taken})


def _lies_in(folder: Path, name: str) -> bool:
    """Whether the module, or the package it belongs to, was found in the folder itself."""
    top = sys.modules.get(name.partition(".")[0])
    places = [getattr(top, "__file__", None), *getattr(top, "__path__", ())]
    return any(isinstance(place, str) and Path(place).parent == folder for place in places)


def _offers_network(value: Any, module: ModuleType) -> bool:
    own = inspect.isroutine(value) or inspect.isclass(value)
    return isinstance(value, nn.Module) or (own and value.__module__ == module.__name__)


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
