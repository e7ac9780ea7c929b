"""A recipe in processes of its own: to its end, killed in the middle of an epoch, or several that train together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from separable.recipes import command_line, learning, running

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def finish(words: list[str]) -> subprocess.CompletedProcess:
    """Run `python WORDS...` to its end, which must be a good one."""
    done = subprocess.run(
        [sys.executable, *words], env=ONE_THREAD, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done


def here(recipe: ModuleType, given: list[str]) -> dict:
    """Run a recipe in this process, as it would run in one of its own, which takes seconds to start."""
    torch.set_num_threads(1)
    return recipe.main(command_line.parse(recipe.Settings, given))


def kill_in_mid_epoch(words: list[str], out: Path) -> None:
    """Run `python WORDS...`, which writes to `out`, and kill it (SIGKILL) as soon as a checkpoint is there."""
    process = subprocess.Popen([sys.executable, *words], env=ONE_THREAD, stderr=subprocess.DEVNULL)
    while not (out / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (out / "results.json").exists()


def together(recipe: ModuleType, given: list[str], monkeypatch) -> list[running.L.LightningModule]:
    """What `recipe.main` would train in each of two processes that torchrun launches, batches of two epochs planned."""
    modules: list[running.L.LightningModule] = []
    with monkeypatch.context() as changed:
        changed.setattr(learning, "train", lambda module, *_, **__: modules.append(module))
        for rank in (0, 1):
            changed.setattr(running, "world", lambda rank=rank: (rank, 2))
            recipe.main(command_line.parse(recipe.Settings, [*given, "--devices", "2"]))
            modules[-1].plans = [[sorted(map(int, batch)) for batch in modules[-1].plan(epoch)] for epoch in (1, 0)]
    return modules


def check_shares(recipe: ModuleType, given: list[str], count: int, monkeypatch) -> None:
    """In each epoch every one of `count` items is in one batch of one process, but for a last batch without partner."""
    first, second = (module.plans for module in together(recipe, given, monkeypatch))
    assert first[0] != first[1], "each epoch has its own order"
    for ours, others in zip(first, second, strict=True):
        assert len(ours) == len(others) > 1
        seen = [number for batch in (*ours, *others) for number in batch]
        assert len(seen) == len(set(seen)) <= count
        assert count - len(seen) <= 2 * max(map(len, ours))


def check_one_step(recipe: ModuleType, given: list[str], count: int, monkeypatch) -> None:
    """Two processes whose epoch is one batch each make of all `count` items the step that one process makes of both.

    Only one of them tells what came of it.
    """
    given = [*given, "--epochs", "1", "--average", "0"]
    launched = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", recipe.__name__]
    done = finish([*launched, *given, "--devices", "2"])
    assert done.stdout.splitlines().count("valid") == 1

    torch.set_num_threads(1)  # as they had: sums in another order are other sums
    out = command_line.parse(recipe.Settings, given).out
    modules = together(recipe, [*given, "--out", str(out.with_name("again"))], monkeypatch)
    (ours,), (others,) = (module.plans[1] for module in modules)
    assert len({*ours, *others}) == len(ours) + len(others) == count
    for rank, module in enumerate(modules):
        monkeypatch.setattr(running, "world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(running.L.LightningModule, "global_rank", rank)
        monkeypatch.setattr(module, "log", lambda *_, **__: None)
        with running.reproducible():  # by the kernels that a run takes
            module.training_step(0, 0).backward()
    network, settings = modules[0], modules[0].settings
    for parameter, other in zip(network.parameters(), modules[1].parameters(), strict=True):
        if parameter.grad is not None:
            parameter.grad = (parameter.grad + other.grad) / 2
    optimizer = network.configure_optimizers()["optimizer"]
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], settings.clip)
    optimizer.step()
    made = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(made, dict(network.state_dict()), rtol=1e-5, atol=1e-7)


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())
