"""A network run over all data at once, halted at each layer.

Each batch runs in a thread of its own, one of them at a time, and pauses where a layer's fit needs what it holds. So
one pass over the data serves every layer, each fitted to what the layers before it really give.
"""

import copy
import queue
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class _Closed(BaseException):
    """Ends a walk that nobody resumes."""


class Walk:
    """A function that runs in a thread of its own and pauses where it calls `pause`."""

    def __init__(self, function: Callable[["Walk"], Any]):
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._started = self.over = False

    def _run(self, function: Callable[["Walk"], Any]) -> None:
        try:
            with torch.no_grad():
                result = function(self)
            self._news.put(("over", result))
        except _Closed:
            self._news.put(("over", None))
        except BaseException as error:  # handed to whoever resumes
            self._news.put(("failed", error))

    def pause(self, value: Any) -> Any:
        """Called within the walk: hand out a value, wait, and give what `resume` was given."""
        self._news.put(("paused", value))
        del value  # whoever resumes may drop it while this waits
        answer = self._answers.get()
        if answer is _Closed:
            raise _Closed
        return answer

    def resume(self, answer: Any = None) -> Any:
        """Go on until the next pause and give what it hands out; None once the function is over."""
        if self.over:
            return None
        if self._started:
            self._answers.put(answer)
        else:
            self._started = True
            self._thread.start()
        what, value = self._news.get()
        self.over = what != "paused"
        if what == "failed":
            raise value
        return value if what == "paused" else None

    def close(self) -> None:
        """End the walk at its next pause and wait for its thread, also after an interruption of `resume`."""
        if self._thread.ident is not None:
            self._answers.put(_Closed)
            self._thread.join()
        self.over = True


def own_structure(model: nn.Module) -> nn.Module:
    """A copy of the modules on the same parameters and buffers: each walk may keep what it likes on its modules."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
