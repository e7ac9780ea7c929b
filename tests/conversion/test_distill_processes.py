"""Two processes of torch's own launcher train as one does on the whole batches."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from separable.conversion import distill
from separable.conversion.distillation.data import Source
from separable.conversion.distillation.processes import Processes

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
import test_distill_processes as here
if sys.argv[3] == "joined":
    dist.init_process_group("gloo")
print("rank", json.dumps(here.run(checkpoint=sys.argv[1])), flush=True)
if sys.argv[3] == "joined":
    dist.barrier()  # one that leaves early takes its connections with it
    dist.destroy_process_group()  # who opens a group closes it: torch may abort at exit otherwise
"""


def run(**options):
    """A network with a branch that takes no part in the output; the last batch is smaller and odd."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    student = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    student.unused = nn.Linear(2, 2)
    student.forward = lambda x: student[3](student[2](student[1](student[0](x))))
    x = torch.randn(45, 3, 8, 8)
    data = [*x[:32].split(16), x[32:]]
    _, history = distill(student, teacher, data, data, epochs=3, **options)
    sums = [float(p.detach().double().sum()) for p in student.parameters()]
    return {"losses": [e.loss for e in history], "validation": [e.validation_loss for e in history], "sums": sums}


@pytest.mark.parametrize("start", ["launched", "joined"])
def test_two_processes_do_what_one_does(tmp_path, start):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, *command, str(folder), __file__.rpartition("/")[0], start], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line.removeprefix("rank ")) for line in done.stdout.splitlines() if line.startswith("rank ")]
    assert len(found) == 2
    expected = run()
    for one in found:
        for name in ("validation", "sums"):
            assert one[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
        assert one["losses"][1:] == pytest.approx(expected["losses"][1:], rel=1e-4)
    kept = torch.load(folder / "distillation.pt", weights_only=True)
    assert [epoch["epoch"] for epoch in kept["history"]] == [0, 1, 2, 3]


def test_a_sampler_that_shares_out_is_told_the_epoch():
    x = torch.arange(8.0).view(8, 1)
    sampler = DistributedSampler(x, num_replicas=2, rank=0)
    source = Source(DataLoader(x, batch_size=4, sampler=sampler), "train")
    assert source.is_shared_out
    first, second, again = (torch.cat(list(source.epoch(number))).tolist() for number in (1, 2, 1))
    assert first == again != second
    assert not Source(DataLoader(x), "train").is_shared_out


def test_one_process_is_left_alone():
    alone, network = Processes(), nn.Linear(2, 2)
    assert alone.averaging(network) is network
    assert (alone.writes, alone.weight(3), alone.sum([1.0, 2.0]), alone.same(2.0)) == (True, 1.0, [1.0, 2.0], 2.0)
