"""The loop of `distill`: step after step, validate, keep the best, write checkpoints, end in time."""

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from separable.conversion.batches import describe
from separable.conversion.distillation import networks as networks
from separable.conversion.distillation import state as state
from separable.conversion.distillation import steps as steps
from separable.conversion.distillation.data import Source
from separable.conversion.distillation.history import Epoch, History, Measured
from separable.conversion.distillation.look import look
from separable.conversion.distillation.loss import Loss, Objective
from separable.conversion.distillation.processes import Processes
from separable.errors import InputError
from separable.progress import duration, say, track

_CHECKPOINT_EVERY_S = 120.0
_CURVE_EVERY = 20  # steps between two points
_NO_LABELS = "needs batches of (inputs, labels), some not negative"


@dataclass
class Settings:
    """What `distill` was asked for; it says what each is."""

    epochs: int
    learning_rate: float
    temperature: float
    label_weight: float
    freeze_norms: bool
    loss: Loss | None
    features: Any
    feature_weight: float
    minutes: float | None
    patience: int | None
    checkpoint: Path | None
    resume: bool

    def identity(self, train: Source) -> dict[str, Any]:
        """What decides the numbers of a run."""
        names = ("epochs", "learning_rate", "temperature", "label_weight", "freeze_norms", "feature_weight")
        chosen = self.features if isinstance(self.features, bool) else list(self.features)
        loss: Any = "a function" if callable(self.loss) else self.loss
        if isinstance(loss, Mapping):
            loss = {name: "a function" if callable(one) else one for name, one in loss.items()}
        plain = {name: getattr(self, name) for name in names}
        return {**plain, "features": chosen, "loss": loss, "batches of train": train.batches}


class Run:
    """One student, one teacher, one schedule."""

    def __init__(
        self, pair: networks.Pair, train: Source, validation: Source | None, settings: Settings, processes: Processes
    ):
        self.pair, self.settings, self.processes = pair, settings, processes
        self.train, self.validation = train, validation
        self.kept = state.Checkpoints(settings.checkpoint, settings.resume, processes.writes)
        self.clock = steps.Clock(settings.minutes)
        self.history = History(validation is not None)
        self.best = state.copy_of(pair.twin)
        self.epoch, self.done, self.step = 1, 0, 0  # of the next batch: epoch, place in it, place in the whole
        self.steps = settings.epochs * train.batches
        self.sums = [0.0, 0.0]  # of this epoch: losses, examples
        self.has_seen_labels = self.is_over = False
        self.epoch_began = time.monotonic()

    def __call__(self) -> list[Epoch]:
        settings, pair = self.settings, self.pair
        if settings.label_weight and self.train.has_labels() is False:
            raise InputError("label_weight", settings.label_weight, _NO_LABELS)
        self.processes.align(pair.twin)
        about = state.identity(pair.student, pair.teacher, settings.identity(self.train)) if self.kept.folder else {}
        found = self.kept.load(about)
        objective = Objective(settings.loss, settings.temperature, settings.label_weight)
        features = settings.features if settings.feature_weight else False
        self.look = look(pair, self.train, self.validation, objective, features)
        seen = found["look"] if found else self.processes.object(self.look.state())
        self.look.take_up(seen, pair)
        pair.prepare(bool(self.look.features.names))
        self.optimizer = steps.optimizer(pair.twin, self.look.scales, settings.learning_rate)
        if found:
            self._take_up(found)
        elif self.validation is not None:
            self._validate(Epoch(0, None))
            if self.clock.share() >= 1:
                rule = f"is less than validation takes, {duration(self.clock.reserved_s)}; give fewer examples to it"
                raise InputError("minutes", settings.minutes, rule)
        self.caller = self.processes.averaging(pair.twin)
        self.curves = self.kept.curves(self.step)
        try:
            self._train(found)
        finally:
            self.curves.close()
            del self.caller  # what averages gradients holds the group of processes, whose owner may close it now
        return self.history.epochs

    def _train(self, found: dict[str, Any] | None) -> None:
        student, minutes = self.pair.twin, self.settings.minutes
        what = "distilling" if minutes is None else f"distilling, at most {minutes:g} min"
        try:
            for raw in track(self._batches(found), what, self.steps, done=self.step):
                self._step(raw)
        except KeyboardInterrupt:
            if self.validation is not None:
                student.load_state_dict(self.best)
            where = "; resume=True continues from the last checkpoint" if self.kept.folder else ""
            say(f"interrupted in epoch {self.epoch}: the student holds {self.history.held()}{where}")
            raise
        except InputError:
            student.load_state_dict(self.best)
            raise
        student.load_state_dict(self.best)

    def _batches(self, found: dict[str, Any] | None) -> Iterator[Any]:
        """Batch after batch of all epochs, each epoch ended before the next begins."""
        while self.epoch <= self.settings.epochs and not self.is_over:
            skipped, self.epoch_began = self.done, time.monotonic()
            if found and skipped:  # in the middle of an epoch: its batches come again, those that are done unused
                state.set_random_state(found["epoch_random"])
            else:
                self.processes.seed()
            self.epoch_random = state.random_state()
            networks.set_training(self.pair.twin, self.settings.freeze_norms)
            batches = self.train.epoch(self.epoch)
            for _ in itertools.islice(batches, skipped):
                pass
            if found and skipped:
                state.set_random_state(found["random"])
            found = None
            for raw in batches:
                if self._is_time_up():
                    self.is_over = True
                    break
                yield raw
                if time.monotonic() - self.kept.written > _CHECKPOINT_EVERY_S:
                    self._keep()
            self._end_epoch()

    def _is_time_up(self) -> bool:
        return self.settings.minutes is not None and self.processes.same(self.clock.share()) >= 1

    def _step(self, raw: Any) -> None:
        batch = self.pair.read(raw, self.train, self.processes)
        if not batch.examples:
            return
        with self.look.features.open():
            target = self.pair.teach(batch, "train")
            given = self.pair.give(self.caller, batch, "train")
            loss, has_labels = self.look.objective.of(given, target, batch.labels)
            if self.look.features.names:
                loss = loss + self.settings.feature_weight * self.look.size * self.look.features.loss()
        if not torch.isfinite(loss):
            self._refuse_loss()
        self.optimizer.zero_grad()
        (loss * self.processes.weight(batch.examples)).backward()
        rate = self.settings.learning_rate * self._factor()
        steps.set_rate(self.optimizer, rate)
        self.optimizer.step()
        value = float(loss.detach())
        if self.step % _CURVE_EVERY == 0:
            self.curves.add(self.step, {"train/loss": value, "train/learning_rate": rate})
        self.has_seen_labels |= has_labels
        self.sums = [self.sums[0] + value * batch.examples, self.sums[1] + batch.examples]
        self.step, self.done = self.step + 1, self.done + 1

    def _factor(self) -> float:
        timed = 0.0 if self.settings.minutes is None else self.processes.same(self.clock.share())
        return steps.factor(max(self.step, int(timed * self.steps)), self.steps)

    def _refuse_loss(self) -> None:
        if not self.step:
            name = type(self.pair.student).__name__
            raise InputError("student", name, "has a loss that is not finite before any step")
        rule = f"the loss is not finite in epoch {self.epoch}; lower it"
        raise InputError("learning_rate", self.settings.learning_rate, rule)

    def _end_epoch(self) -> None:
        total, examples = self.processes.sum(self.sums)
        if not examples and not self.is_over:
            raise InputError("train", describe(self.train.data), "holds no examples")
        self.has_seen_labels = bool(self.processes.sum([float(self.has_seen_labels)])[0])
        if self.settings.label_weight and not self.has_seen_labels and not self.is_over:
            raise InputError("label_weight", self.settings.label_weight, _NO_LABELS)
        if not examples:  # time was up as the epoch began
            return self._keep()
        self.processes.align(self.pair.twin)
        self._validate(Epoch(self.epoch, total / examples))
        self.epoch, self.done, self.sums = self.epoch + 1, 0, [0.0, 0.0]
        patience = self.settings.patience
        if patience is not None and self.history.epochs_since_best() >= patience:
            say(f"stopped early: no better epoch in {patience}")
            self.is_over = True
        self._keep()

    def _validate(self, epoch: Epoch) -> None:
        """Measure the student, write the epoch down, and keep the student if none was better."""
        began = time.monotonic()
        if self.validation is not None:
            self._measure(epoch)
        self.clock.reserved_s, epoch.seconds = time.monotonic() - began, time.monotonic() - self.epoch_began
        if self.history.add(epoch):
            self.best = state.copy_of(self.pair.twin)
        say(epoch.describe(self.settings.epochs))
        if epoch.epoch:
            self.curves.add(epoch.epoch, epoch.numbers())

    @torch.no_grad()
    def _measure(self, epoch: Epoch) -> None:
        assert self.validation is not None
        self.pair.twin.eval()
        found, count, objective = Measured(), self.processes.count, self.look.objective
        for number, raw in enumerate(self.validation.epoch()):
            if number % count == self.processes.rank or self.validation.is_shared_out:
                batch = self.pair.read(raw, self.validation)
                target = self.pair.teach(batch, "validation")
                given = self.pair.give(self.pair.twin, batch, "validation")
                objective.measure(given, target, batch.labels, batch.examples, found)
        found.add_up(self.processes, objective.names)
        if not found.examples:
            raise InputError("validation", describe(self.validation.data), "holds no examples")
        found.into(epoch)

    _COUNTERS = ("epoch", "done", "step", "sums", "has_seen_labels", "is_over", "best", "epoch_random")

    def _keep(self) -> None:
        """Write a checkpoint, where one is wanted."""
        if self.kept.folder is None:
            return
        self.kept.save(
            {
                **{name: getattr(self, name) for name in self._COUNTERS},
                "clock": [self.clock.spent_s(), self.clock.reserved_s],
                "history": [epoch.to_json() for epoch in self.history],
                "student": self.pair.twin.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "look": self.look.state(),
                "random": state.random_state(),
            }
        )

    def _take_up(self, found: dict[str, Any]) -> None:
        """Put everything as a checkpoint has it."""
        for name in self._COUNTERS:
            setattr(self, name, found[name])
        self.history.epochs = [Epoch(**epoch) for epoch in found["history"]]
        self.clock.resume(*found["clock"])
        self.pair.twin.load_state_dict(found["student"])
        self.optimizer.load_state_dict(found["optimizer"])
        state.set_random_state(found["random"])
        say(f"resumed in epoch {min(self.epoch, self.settings.epochs)}, after {self.step} steps")
