"""A walk runs until it pauses, goes on with the answer it is given, and leaves no thread behind, however it ends."""

import signal
import threading
import time
import weakref

import pytest
import torch
from torch import nn

from separable.conversion import watch
from separable.conversion.streams import Walk, own_structure


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert not set(threading.enumerate()) - before, "a walk left its thread behind"


def counting(walk):
    total = 0
    for i in range(3):
        total += walk.pause(i)
    walk.pause(total)


def test_pauses_hand_out_values_and_take_answers():
    walk = Walk(counting)
    assert [walk.resume(), walk.resume(10), walk.resume(20), walk.resume(30)] == [0, 1, 2, 60]
    assert not walk.over
    assert walk.resume() is None
    assert walk.over
    assert walk.resume() is None, "what is over stays over"
    walk.close()


def test_none_is_an_answer():
    def run(walk):
        assert walk.pause(1) is None

    walk = Walk(run)
    walk.resume()
    assert walk.resume(None) is None
    walk.close()


def test_an_error_inside_reaches_who_resumes():
    def run(walk):
        walk.pause(1)
        raise LookupError("inside")

    walk = Walk(run)
    walk.resume()
    with pytest.raises(LookupError, match="inside"):
        walk.resume()
    assert walk.over
    walk.close()


def test_closing_ends_a_walk_at_its_pause_and_cleans_up_within():
    cleaned = []

    def run(walk):
        try:
            walk.pause(1)
        except Exception:
            cleaned.append("caught as an error of the network's own")
        finally:
            cleaned.append("finally")

    walk = Walk(run)
    walk.resume()
    walk.close()
    assert cleaned == ["finally"]
    walk.close()


def test_a_walk_that_never_began_is_closed_at_once():
    Walk(counting).close()


def test_one_walk_at_a_time_runs():
    running, most = [0], [0]

    def run(walk):
        for _ in range(5):
            running[0] += 1
            most[0] = max(most[0], running[0])
            time.sleep(0.001)
            running[0] -= 1
            walk.pause(None)

    walks = [Walk(run) for _ in range(4)]
    for _ in range(6):
        for walk in walks:
            walk.resume()
    assert most == [1]
    for walk in walks:
        walk.close()


def test_gradients_are_off_inside():
    found = []
    walk = Walk(lambda walk: found.append(torch.is_grad_enabled()))
    walk.resume()
    walk.close()
    assert found == [False]


@pytest.fixture
def interrupts(monkeypatch):
    """SIGINT raises KeyboardInterrupt, as it does outside of test runners."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("then", ["pauses", "ends", "fails"])
def test_an_interruption_while_a_walk_works_leaves_a_walk_that_can_be_closed(interrupts, then):
    """Ctrl-C reaches the main thread, which waits, while the walk's thread still computes."""
    main = threading.get_ident()

    def run(walk):
        walk.pause(1)
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)
        if then == "pauses":
            walk.pause("nobody waits for this")
        elif then == "fails":
            raise LookupError("nobody waits for this")

    walk = Walk(run)
    walk.resume()
    with pytest.raises(KeyboardInterrupt):
        walk.resume()
    walk.close()


def test_an_own_structure_shares_values_and_nothing_else():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    mine = own_structure(network)
    assert all(a is b for a, b in zip(mine.parameters(), network.parameters(), strict=True))
    assert all(a is b for a, b in zip(mine.buffers(), network.buffers(), strict=True))
    mine[0] = nn.Identity()
    mine[1].kept = 1
    assert isinstance(network[0], nn.Conv2d)
    assert not hasattr(network[1], "kept")


def test_who_watches_a_network_keeps_none_of_its_maps():
    readers, seen = watch.Readers(), []
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))

    def follow(module, args, output):
        readers.follow("map", output)
        seen.append(weakref.ref(output))

    for layer in network:
        layer.register_forward_hook(follow)
    with torch.no_grad(), readers:
        result = network(torch.randn(1, 3, 8, 8))
        assert readers.name_of(result) == "map"
    assert [reference() is not None for reference in seen] == [False, False, True]
    del result
    assert not readers._followed
