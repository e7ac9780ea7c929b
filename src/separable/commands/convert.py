"""A trained dense network in, a folder out: separable, calibrated, timed, measured, saved, exported, compared."""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from separable import atomic, conversion, report, store
from separable.commands import distilling
from separable.commands.budget import as_typed, parse_budget
from separable.commands.convert_work import Options, Work
from separable.commands.converted import summary, times_table
from separable.commands.evaluate import accuracy, check_classes, logits_of
from separable.commands.network import Network, open_network, preparation_of
from separable.commands.pareto import pareto, pareto_table
from separable.commands.profile import check_threads
from separable.commands.result import Result
from separable.commands.unfinished import Unfinished, folder_of
from separable.conversion import Study, timing
from separable.conversion.layer_table import layer_table
from separable.conversion.plan import DEFAULT
from separable.data import ImageSet, open_images
from separable.errors import InputError, need
from separable.export import export_onnx
from separable.progress import say

_BATCH_SIZE = 128
_JUDGED = 2048  # labelled images beyond --samples, for a budget of accuracy
_LISTED = 10  # rows of each table of who pays; the page has all
INTERRUPTED = 130


def run(options: Options) -> Result:
    """Convert, distil where asked, and write one folder that needs nothing else; what stops it loses nothing."""
    work: Work | None = None
    try:
        work = opened(options)
        return made(work)
    except KeyboardInterrupt:
        folder = folder_of(options.out)
        if not folder.exists():
            raise
        closing = f"Interrupted: what was done is kept in {folder}, and the same command with --resume goes on."
        if work is None or not work.unfinished.begun:
            closing = f"Interrupted before anything was done; {folder} is as it was."
        return Result({"interrupted": True, "unfinished": str(folder)}, [], closing, INTERRUPTED)


def made(work: Work) -> Result:
    options, unfinished = work.options, work.unfinished
    dense_sizes = rehearse(work.network.model, work.calibration[:1])
    unfinished.begin()
    network = converted(work)
    work.stages = {"dense": work.network.model, "separable": network}
    is_changed = any(layer["form"] for layer in work.conversion["layers"])
    interrupted, failure = False, None
    try:
        if work.test is not None:
            ask_who_pays(work, is_changed)
        if work.study is not None and work.test is not None and options.pareto:
            work.points = pareto(work.study, work.top1["dense"], work.test)
        if options.distill and is_changed:
            work.stages["separable"], work.stages["distilled"] = copy.deepcopy(network), network
            distilling.distill(network, work.network.model, work.images, options, unfinished)
            if work.test is not None:
                work.top1["distilled"] = top1(work, "distilled")
    except KeyboardInterrupt:
        interrupted = True
        say("interrupted: writing the network as it is now")
    except InputError as error:
        failure = error
    sizes = {"dense": dense_sizes, "separable": write(work)}
    if failure is not None:
        rule = f"{failure.rule}; the network as it was until then is saved in {options.out}"
        raise InputError(failure.argument, failure.value, rule) from failure
    if not interrupted:
        unfinished.remove()
    return told(work, sizes, interrupted)


def opened(options: Options) -> Work:
    """Everything that the options name; what can be refused before the work is."""
    atomic.check_folder(options.out, overwrite=options.overwrite, argument="--out")
    budget = dict(DEFAULT) if options.budget is None else parse_budget(options.budget)
    with as_typed({"target": ("--target", options.target)}):
        target = timing.check_target(options.target)
    if options.threads is not None:
        check_threads(options.threads)
        torch.set_num_threads(options.threads)
    distilling.check(options)
    if options.slices is not None and options.test is None:
        raise InputError("--slices", options.slices, "goes with --test, the labelled images that it divides")
    if options.pareto and options.test is None:
        raise InputError("--pareto", "given", "needs --test, on which accuracy is measured")
    with as_typed({"slices": ("--slices", options.slices)}):
        slices = None if options.slices is None else conversion.read_slices(options.slices)
    unfinished = unfinished_of(options, budget, target)
    network = open_network(options.source, options.weights)
    preparation = preparation_of(network, **{"size": None, "mean": None, "std": None, **options.images})
    for package in ("jinja2", "matplotlib"):
        need(package, "deploy", "for the page")
    images = open_images(options.data, preparation, options.split, classes=network.classes or None)
    test = None
    if options.test is not None:
        classes = images.classes or network.classes or None
        test = open_images(options.test, images.preparation, options.test_split, classes=classes)
        test.require_labels()
        check_test(network, test, slices)
    if options.distill and len(images) < 2:
        raise InputError("--distill", options.distill, "needs at least two images: one to train on, one to choose on")
    if "accuracy" in budget:
        images.require_labels()
    wanted = options.samples + (_JUDGED if "accuracy" in budget else 0)
    read = list(images.batches(_BATCH_SIZE, wanted, options.seed, "reading images to calibrate on"))
    calibration, labels = (torch.cat([batch[i] for batch in read]) for i in range(2))
    return Work(options, network, images, test, slices, budget, target, unfinished, calibration, labels)


def check_test(network: Network, test: ImageSet, slices: Mapping[str, set[str]] | None) -> None:
    """Refuse before the work test images that the dense network has no classes for, and slices of other files."""
    inputs, labels = next(test.batches(2, 2, description="looking at test images"))
    check_classes(network, test, logits_of(network.model, inputs, labels).shape[1])
    names = set(test.names)
    for name, files in (slices or {}).items():
        if not files & names:
            example = f"{min(files)}; its images are called as {test.names[0]}"
            raise InputError("--slices", name, f"names no file of --test, as {example}")


def unfinished_of(options: Options, budget: dict[str, float], target: str) -> Unfinished:
    asked = {
        "source": options.source,
        "--weights": None if options.weights is None else str(options.weights),
        "--data": str(options.data),
        "--split": options.split,
        "--budget": budget,
        "--target": target,
        "--threads": options.threads,
        "--batch": options.batch,
        "--samples": options.samples,
        "--seed": options.seed,
        "--distill": options.distill,
        **{f"--{name}": value for name, value in options.images.items()},
    }
    return Unfinished(options.out, asked, resume=options.resume, overwrite=options.overwrite)


def rehearse(dense: nn.Module, example: Tensor) -> dict[str, int]:
    """Write the dense network as the separable one will be: what cannot be written is refused before the work."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            store.save(dense, folder, example=example)
            return export(dense, example, {}, Path(folder))
        except InputError as error:
            raise InputError("source", type(dense).__name__, f"cannot be saved and exported: {error.rule}") from error


def converted(work: Work) -> nn.Module:
    """The network before distillation, and how it came about; what was found out before it was stopped is taken up."""
    options, dense, unfinished = work.options, work.network.model, work.unfinished
    asked = options.budget or ",".join(f"{key}={value:g}" for key, value in work.budget.items())
    say(f"Converting {work.network.name} to {asked}, calibrated on {len(work.calibration)} images")
    typed: dict[str, tuple[str, object]] = {"budget": ("--budget", asked), "target": ("--target", work.target)}
    typed |= {"data": ("--data", options.data)}
    typed |= {"checkpoint": ("--resume" if options.resume else "--out", unfinished.folder)}
    try:
        with as_typed(typed):
            work.study = Study(
                dense, work.data, example=work.example, samples=options.samples, target=work.target,
                judged="accuracy" in work.budget, checkpoint=unfinished.conversion, resume=True,
            )  # fmt: skip
            done = work.study.convert(work.budget)
    except InputError as error:
        if (error.argument, error.value) == typed["checkpoint"]:  # it is of other images, the disk is full, ...
            raise
        if error.argument == "--budget" and work.study is not None and (unfinished.conversion / "table.json").exists():
            work.study.forget_times()
            unfinished.open_to_another_budget()
            kept = f"what forms lose is kept in {unfinished.folder}: with --resume only times are measured anew"
            raise InputError(error.argument, error.value, f"{error.rule}; {kept}") from error
        unfinished.remove()  # what was asked for cannot be had, and is not asked for again
        raise
    work.conversion = {
        "budget": work.budget, "images": len(work.calibration), "seed": options.seed, **done.to_json(),
    }  # fmt: skip
    return done.model


def ask_who_pays(work: Work, is_changed: bool) -> None:
    """Accuracy before and after, and of a network that differs, who loses what."""
    assert work.test is not None
    if not is_changed:
        work.top1["dense"] = work.top1["separable"] = top1(work, "dense")
        return
    say("Asking who pays, on the test images")
    batches = work.test.named_batches(256, description="testing dense and separable")
    names = work.images.classes or work.network.classes or None
    with as_typed({"slices": ("--slices", work.options.slices), "data": ("--test", work.options.test)}):
        dense, network = work.stages["dense"], work.stages["separable"]
        work.pays = conversion.who_pays(dense, network, batches, classes=names, slices=work.slices, answers="classes")
    overall = work.pays.overall
    if overall.dense is not None and overall.converted is not None:
        work.top1["dense"], work.top1["separable"] = overall.dense, overall.converted


def top1(work: Work, stage: str) -> float:
    assert work.test is not None
    return accuracy(work.stages[stage], work.test.batches(256, description=f"testing {stage}")).top1


def write(work: Work) -> dict[str, int]:
    """The folder, whole or not at all; both forms are loaded again and compared before it takes its name."""
    options, model, failure = work.options, list(work.stages.values())[-1], None
    about, example, preparation = work.about(), work.calibration[:1], work.images.preparation
    pictures = {} if work.pays is None else work.pays.pictures(preparation.mean, preparation.std)
    with atomic.folder_beside(options.out, overwrite=options.overwrite, argument="--out") as beside:
        store.save(model, beside, example=example, about=about)
        report.conversion_page({**about, **work.measured()}, beside / "report.html", pictures)
        try:
            return export(model, example, about, beside)
        except InputError as error:
            failure = error  # the network is trained and saved: it is kept, without the form that failed
    rule = f"the network is saved in {options.out}, without it: {failure.rule}"
    raise InputError("model.onnx", "could not be written", rule) from failure


def export(model: nn.Module, example: Tensor, about: dict[str, Any], folder: Path) -> dict[str, int]:
    """model.onnx beside the saved network; the size of each file in bytes."""
    export_onnx(model, example, folder / "model.onnx", about=about)
    return {file.name: file.stat().st_size for file in sorted(folder.glob("model.*"))}


def told(work: Work, sizes: dict[str, dict[str, int]], interrupted: bool) -> Result:
    options, about = work.options, work.about()
    skipped = {*work.images.skipped, *(work.test.skipped if work.test else [])}
    data = {
        **about, **work.measured(), "out": str(options.out), "file_bytes": sizes, "skipped": sorted(skipped),
        "interrupted": interrupted,
    }  # fmt: skip
    tables = [layer_table(work.conversion), summary(about, sizes), times_table(work.conversion)]
    tables += [pareto_table(work.points)] if work.points else []
    tables += work.pays.tables(_LISTED) if work.pays else []
    closing = f"Written to {options.out}: model.safetensors, model.json, model.onnx, report.html\n{work.last_line()}"
    if interrupted:
        closing = f"Interrupted; the same command with --resume --overwrite goes on.\n{closing}"
    return Result(data, tables, closing, INTERRUPTED if interrupted else 0)
