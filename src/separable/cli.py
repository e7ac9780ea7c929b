"""The command line: parse, call, print. Every import of weight happens inside a command, so that --help is instant.

Exit code 0: done. 2: the user's mistake, told in one sentence. 1: ours. Results go to standard output, progress and
errors to standard error; --json prints the same result for a program to read.
"""

import json as json_format
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from separable.errors import InputError, first_line

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

INTERRUPTED = 130
SEVERAL = ("--batch", "--threads", "--runtimes")  # options whose values stand one after the other
IMAGES, TEXT, SOUND = "Images", "Sentences", "Sounds"  # headings of the help
SOURCE = "A saved folder, timm:NAME, torchvision:NAME, or FILE.py:FACTORY."
Source = Annotated[str, typer.Argument(help=SOURCE)]
Weights = Annotated[Path | None, typer.Option(help="A .safetensors or torch file (tensors only) for the source.")]
Data = Annotated[Path, typer.Option(help="A folder or tar of class/*.png, split folders or not, or idx files.")]
Encoding = Annotated[str | None, typer.Option(help="Of the file; utf-8 where not given.", rich_help_panel=TEXT)]
TextColumn = Annotated[str | None, typer.Option(help="Column or key of the text.", rich_help_panel=TEXT)]
Split = Annotated[str | None, typer.Option(help="Which split folder, where it has several.", rich_help_panel=IMAGES)]
Size = Annotated[str | None, typer.Option(help="Image size, as 224 or 240x320.", rich_help_panel=IMAGES)]
Mean = Annotated[
    str | None, typer.Option(help="Mean of each channel, values 0..1, as 0.4,0.5,0.4.", rich_help_panel=IMAGES)
]
Std = Annotated[str | None, typer.Option(help="Standard deviation of each channel.", rich_help_panel=IMAGES)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Out = Annotated[Path, typer.Option(help="Where to write; must not exist or be empty.")]
Overwrite = Annotated[bool, typer.Option(help="Replace what stands there already.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads; torch's own choice where not given.")]


class Several(TyperCommand):
    """A command some of whose options take several values: `--batch 1 8` says what `--batch 1 --batch 8` does."""

    def parse_args(self, ctx, args):
        spelled, option = [], ""
        for i, word in enumerate(args):
            if option and args[i - 1] != option and _is_value(option, word):
                spelled.append(option)
            elif args[i - 1] != option:
                option = word if word in SEVERAL else ""
            spelled.append(word)
        return super().parse_args(ctx, spelled)


@app.callback()
def common(debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")] = False):
    """Depthwise separable convolution that delivers in practice what its arithmetic promises."""


@app.command()
def profile(
    source: Source,
    weights: Weights = None,
    shape: Annotated[str | None, typer.Option(help="Shape of the input, batch first, as 1,3,224,224.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write one self-contained page with plots.")] = None,
    threads: Threads = None,
    json: Json = False,
):
    """Say what a network costs, layer by layer: on paper, on this machine, and made separable."""
    from separable.commands import profile as job

    show(job.run(source, weights, shape, html, threads), json)


@app.command()
def convert(
    source: Source,
    data: Data,
    out: Out,
    budget: Annotated[
        str | None,
        typer.Option(help="latency=0.6 (if not given), macs=0.5, params=0.5, accuracy=-0.5; or several."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Where it will run: accelerate (where not given), onnxruntime, openvino, torch.")
    ] = None,
    threads: Threads = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in the batch that is timed.")] = 1,
    weights: Weights = None,
    split: Split = None,
    test: Annotated[Path | None, typer.Option(help="Labelled images: accuracy before and after, and who pays.")] = None,
    test_split: Annotated[str | None, typer.Option(help="Which split folder of --test, where it has several.")] = None,
    slices: Annotated[Path | None, typer.Option(help="CSV of file,slice: named parts of --test.")] = None,
    pareto: Annotated[bool, typer.Option("--pareto", help="Also draw accuracy on --test against time.")] = False,
    samples: Annotated[int, typer.Option(min=1, help="Images to calibrate on.")] = 1024,
    distill: Annotated[int, typer.Option(min=0, help="Epochs of fine-tuning against the dense network.")] = 0,
    distill_minutes: Annotated[float | None, typer.Option(help="Time limit for distillation, in minutes.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop distillation after this many epochs without improvement.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted conversion.")] = False,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    seed: Annotated[int, typer.Option(help="Which images are drawn, and every other draw.")] = 0,
    overwrite: Overwrite = False,
    json: Json = False,
):
    """Make a trained dense network separable and faster under a budget; time it, save it and export it."""
    from separable.commands import convert as job

    asked: dict[str, Any] = {"budget": budget, "target": target, "threads": threads, "batch": batch, "weights": weights}
    asked |= {"split": split, "test": test, "test_split": test_split, "slices": slices, "pareto": pareto}
    asked |= {
        "samples": samples,
        "distill": distill,
        "distill_minutes": distill_minutes,
        "patience": patience,
        "resume": resume,
    }
    images = {"size": size, "mean": mean, "std": std}
    asked |= {"samples": samples, "seed": seed, "overwrite": overwrite}
    show(job.run(job.Options(source, data, out, **asked, images=images)), json)


@app.command(cls=Several)
def benchmark(
    sources: Annotated[list[str], typer.Argument(metavar="A [B ...]", help=f"{SOURCE} B is compared with A.")],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Sizes, as 1 8; 1 where not given.")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Numbers, as 1 2; 1 where not given.")] = None,
    runtimes: Annotated[list[str] | None, typer.Option(help="Which, as docs/runtimes.md names them; all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each network in each runtime.")] = 15,
    data: Annotated[str | None, typer.Option(help="Labelled images to measure top-1 on.")] = None,
    split: Split = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="Shape of the input, batch first; again for each further input.")
    ] = None,
    weights: Annotated[
        list[Path] | None, typer.Option(help="A file for each network that is no saved folder, in their order.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write one self-contained page with plots.")] = None,
    json: Json = False,
):
    """Time networks side by side in every runtime: milliseconds, memory, size, and accuracy where data is given."""
    from separable.commands import benchmark as job

    several = (weights or [], batch or [], threads or [], shape or [], runtimes or [])
    images = {"size": size, "mean": mean, "std": std}
    show(job.run(job.Options(sources, *several, rounds, images, data, split, out)), json)


@app.command()
def evaluate(
    source: Source,
    given: Annotated[str | None, typer.Argument(metavar="DATA", help="Labelled data of the network's task.")] = None,
    data: Annotated[str | None, typer.Option(help="The same as DATA.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write one self-contained page.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse data of which something cannot be used.")] = False,
    weights: Weights = None,
    split: Split = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="256 where not given.", rich_help_panel=IMAGES)] = None,
    encoding: Encoding = None,
    text_column: TextColumn = None,
    label_column: Annotated[str | None, typer.Option(help="Column or key of the label.", rich_help_panel=TEXT)] = None,
    unknown_label: Annotated[
        str | None, typer.Option(help="The label that stands for none of the classes.", rich_help_panel=TEXT)
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="What a path says, as in training; see docs/recipes.md.", rich_help_panel=SOUND)
    ] = None,
    part: Annotated[str | None, typer.Option(help="Which sounds, as take=0-4.", rich_help_panel=SOUND)] = None,
    json: Json = False,
):
    """Measure a network on labelled data: images of any source, or the task a recipe trained it for."""
    from separable.commands import evaluate as job

    images = {"weights": weights, "split": split, "size": size, "mean": mean, "std": std, "batch_size": batch_size}
    words = {"encoding": encoding, "text_column": text_column, "label_column": label_column}
    options = images | words | {"unknown_label": unknown_label, "names": names, "part": part, "strict": strict or None}
    show(job.run(source, one_of(given, data), options, html), json)


@app.command()
def predict(
    source: Source,
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Files, folders, sentences, or -.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write there rather than to standard output.")] = None,
    weights: Weights = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    encoding: Encoding = None,
    text_column: TextColumn = None,
    columns: Annotated[
        bool | None, typer.Option("--columns/--sentences", help="What files hold.", rich_help_panel="Words")
    ] = None,
    every: Annotated[
        float | None, typer.Option(help="Stream, and say every so many seconds what is heard.", rich_help_panel=SOUND)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
):
    """Say what a network makes of images, sentences, words or sounds that nobody has labelled."""
    from separable.commands import predict as job

    options: dict[str, Any] = {"weights": weights, "size": size, "mean": mean, "std": std, "encoding": encoding}
    options |= {"text_column": text_column, "columns": columns, "every": every}
    job.run(source, inputs or [], options, out, json)


@app.command()
def export(
    source: Source,
    out: Annotated[Path, typer.Option(help="The .onnx file to write.")],
    weights: Weights = None,
    shape: Annotated[str | None, typer.Option(help="Shape of the input, batch first, as 1,3,224,224.")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
):
    """Write ONNX of standard operators, batch free, compared with torch before it is called done."""
    from separable.commands import export as job

    show(job.run(source, out, weights, shape, overwrite), json)


# what follows TASK is the recipe's own to read, --help included
@app.command(context_settings={"allow_extra_args": True, "allow_interspersed_args": False})
def train(context: typer.Context, task: Annotated[str, typer.Argument(help="image, tokens, text or audio.")]):
    """Train by a recipe: `separable train TASK --help` lists its settings."""
    from separable.commands import train as job

    show(job.run(task, [a for a in context.args if a != "--json"]), "--json" in context.args)


@app.command()
def demo(out: Out = Path("separable-demo"), overwrite: Overwrite = False, seed: int = 0, json: Json = False):
    """Train a small dense network on real digits, make it separable, and show what that saved."""
    from separable.commands import demo as job

    show(job.run(out, overwrite, seed), json)


@app.command()
def doctor(
    source: Annotated[
        str | None,
        typer.Argument(help=f"{SOURCE} Then of this network alone."),
    ] = None,
    weights: Weights = None,
    shape: Annotated[str | None, typer.Option(help="With SOURCE: shape of its input, batch first.")] = None,
    explain: Annotated[
        str | None, typer.Option(help="Say which way a depthwise convolution of this input takes.")
    ] = None,
    kernel: Annotated[int, typer.Option(help="With --explain: taps in each dimension.")] = 3,
    stride: Annotated[int, typer.Option(help="With --explain.")] = 1,
    multiplier: Annotated[int, typer.Option(help="With --explain: outputs of each input channel.")] = 1,
    bfloat16: Annotated[bool, typer.Option(help="With --explain: bfloat16 instead of float32.")] = False,
    json: Json = False,
):
    """Say what this installation has, what it lacks, and what that costs; or with --explain which kernel runs.

    With SOURCE, name the layers of a network whose numbers are so small (below 1e-38) that processors are slow.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that are not there: the answer tells of them
        from separable.commands import doctor as job

    if source is None:
        for option, value in (("--weights", weights), ("--shape", shape)):
            if value is not None:
                raise InputError(option, value, "goes with a network; name it, as separable doctor SOURCE")
        show(job.run() if explain is None else job.explain(explain, kernel, stride, multiplier, bfloat16), json)
    elif explain is not None:
        raise InputError("--explain", explain, "is of one layer, which needs no SOURCE")
    else:
        show(job.network(source, weights, shape), json)


def _is_value(option: str, word: str) -> bool:
    """Whether a word that follows an option's values is one more of them, and not a SOURCE."""
    if option == "--runtimes":
        from separable.runtimes import NAMES

        return word in NAMES
    return word.isdigit()


def one_of(given: str | None, data: str | None) -> str:
    """DATA, as an argument or an option."""
    if (given is None) == (data is None):
        raise InputError("DATA", given or "none", "must be given once, behind the network or as --data")
    return given or data or ""


def show(result, json: bool) -> None:
    _print(result, json)
    if result.code:
        raise SystemExit(result.code)


def _print(result, json: bool) -> None:
    if json:
        print(json_format.dumps(result.data, indent=2))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)  # a pipe has no width of its own
    for table in result.tables:
        console.print(table)
    if result.closing:
        print(result.closing)


def main() -> None:
    """Entry point of `separable`; --debug may stand anywhere."""
    from separable import progress

    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        with progress.shown():
            code = app(arguments, prog_name="separable", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if len(arguments) < len(sys.argv) - 1:
            raise
        sentence, code = explain(error, arguments)
        print(f"separable: {sentence}", file=sys.stderr)
    if code == INTERRUPTED:  # typer makes that of Ctrl-C, or lets it through
        print("separable: stopped; nothing that was not finished is left behind", file=sys.stderr)
    raise SystemExit(code or 0)


def explain(error: Exception, arguments: list[str]) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, InputError):
        return str(error), 2
    if hasattr(error, "format_message"):  # what typer refuses; it keeps the class to itself
        message = error.format_message().rstrip(".")
        names = [name for name in getattr(getattr(error, "param", None), "opts", []) if name in arguments[:-1]]
        if names:  # it leaves out the value
            message = f"{names[0]} = {arguments[arguments.index(names[0]) + 1]}: {message.partition(': ')[2]}"
        return f"{message}; `separable --help` and `separable COMMAND --help` tell what there is", 2
    return f"unexpected {type(error).__name__}: {first_line(error)} (run again with --debug for the stack trace)", 1


if __name__ == "__main__":
    main()
