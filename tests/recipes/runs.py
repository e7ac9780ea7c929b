"""A recipe in processes of its own: to its end, killed in the middle of an epoch, or several that train together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def finish(words: list[str]) -> subprocess.CompletedProcess:
    """Run `python WORDS...` to its end, which must be a good one."""
    done = subprocess.run(
        [sys.executable, *words], env=ONE_THREAD, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done


def kill_in_mid_epoch(words: list[str], out: Path) -> None:
    """Run `python WORDS...`, which writes to `out`, and kill it (SIGKILL) as soon as a checkpoint is there."""
    process = subprocess.Popen([sys.executable, *words], env=ONE_THREAD, stderr=subprocess.DEVNULL)
    while not (out / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (out / "results.json").exists()


def finish_together(words: list[str]) -> None:
    """Run `python WORDS...` as the two processes of one training, by torchrun."""
    finish(["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *words])


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())
