"""The training loop. It knows no teacher and no data set: what to minimise and what to judge by are given to it.

Every random number is drawn from (seed, epoch, step), so that a training that was killed goes on from the last epoch
as if nothing had happened, with the same weights to the bit on the same machine and number of threads.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.inputs import Training
from edgekit.stages.train import checkpoint as disk
from edgekit.stages.train.ahead import ahead
from edgekit.stages.train.average import Average, tensors_of
from edgekit.stages.train.guard import deterministic, memory_named
from edgekit.stages.train.schedule import Schedule

Array = NDArray[Any]
Objective = Callable[[nn.Module, tuple[Tensor, ...], Tensor | None], Tensor]
Augment = Callable[[tuple[Array, ...], np.random.Generator], tuple[Array, ...]]
# Seconds between two messages within an epoch.
_TELL_EVERY: Final = 2.0


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        epoch: from 1; 0 is the network as it was given.
        loss: mean over the steps; NaN for epoch 0.
        value: of the metric, with averaged weights.
        learning_rate: of its last step.
    """

    epoch: int
    loss: float
    value: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """A finished training.

    Attributes:
        history: epoch 0 first.
        best: the epoch whose weights the network was left with.
    """

    history: tuple[Epoch, ...]
    best: Epoch


def fit(
    student: nn.Module,
    *,
    objective: Objective,
    training: Training,
    judge: Callable[[nn.Module], float],
    higher_is_better: bool,
    schedule: Schedule,
    checkpoint: Path,
    step: Callable[[str], None],
    augment: Augment | None = None,
    metric: str = "metric",
    table: str = "train",
) -> Fitted:
    """Train a network in place, or go on with a training that was interrupted.

    Args:
        student: on the schedule's device, in its layout; left with the best weights, in evaluation mode.
        objective: loss (a scalar) of (network, inputs, labels or None), called under autocast.
        training: what to train on.
        judge: value of the network, called in evaluation mode without gradients.
        higher_is_better: of the judge's values.
        schedule: how long and how fast.
        checkpoint: file that holds the state after every epoch.
        step: told of the progress; may raise to stop.
        augment: changes a batch of inputs by random numbers that it is given.
        metric: what the judge's values are called.
        table: of the recipe that the learning rate stands in, for messages.

    Returns:
        The history and the best epoch; the network is never left worse, by the judge, than it was given.

    Raises:
        UsageError: the loss stopped being a number, or memory ran out; the checkpoint is kept.
    """
    run = _Run(
        student,
        objective,
        training,
        judge,
        higher_is_better,
        schedule,
        checkpoint,
        step,
        augment,
        metric,
        table,
    )
    with torch.random.fork_rng(devices=_cuda(schedule)), deterministic(), memory_named(schedule.batch_size):
        run.start()
        while not run.finished():
            run.one_epoch()
        return run.end()


def _cuda(schedule: Schedule) -> list[torch.device]:
    device = torch.device(schedule.device)
    return [device] if device.type == "cuda" else []


class _Run:
    """The state of a training between two epochs, and how it moves on."""

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        training: Training,
        judge: Callable[[nn.Module], float],
        higher_is_better: bool,
        schedule: Schedule,
        checkpoint: Path,
        step: Callable[[str], None],
        augment: Augment | None,
        metric: str,
        table: str,
    ) -> None:
        self.student, self.objective, self.training, self.judge = student, objective, training, judge
        self.higher_is_better, self.schedule, self.checkpoint = higher_is_better, schedule, checkpoint
        self.step, self.augment, self.metric, self.table = step, augment, metric, table
        self.batch = min(schedule.batch_size, training.n)
        # What does not fill a batch is left out, another rest every epoch: small batches make bad statistics.
        self.steps = training.n // self.batch
        self.optimizer = schedule.optimizer_of(student)
        self.learned = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.average = Average(student) if schedule.ema else None
        self.epoch, self.updates, self.stale = 0, 0, 0
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = Epoch(0, math.nan, math.nan, 0.0)
        self.began, self.seconds_per_step = time.monotonic(), 0.0
        self.fingerprint = _fingerprint(student, training, schedule)

    def start(self) -> None:
        """Take up the state on disk, or judge the network as it is."""
        state = disk.load(self.checkpoint, self.fingerprint)
        if state is not None:
            self._restore(state)
            return
        self.step(f"epoch 0 of {self.schedule.epochs} · judging")
        self._take_in(0, math.nan, 0.0)

    def finished(self) -> bool:
        """All epochs are done, or nothing has become better for too long."""
        patience = self.schedule.patience
        return self.epoch >= self.schedule.epochs or (patience is not None and self.stale >= patience)

    def one_epoch(self) -> None:
        """Train for one epoch, judge, and save."""
        number = self.epoch + 1
        self.student.train()
        self.began, told, total = time.monotonic(), time.monotonic(), 0.0
        rate = 0.0
        with closing(ahead(self._batches(number))) as batches:
            for i, (arrays, truth) in enumerate(batches):
                inputs = tuple(self._placed(a) for a in arrays)
                labels = None if truth is None else self._placed(truth)
                rate = self.schedule.rate(self.epoch * self.steps + i, self.steps * self.schedule.epochs)
                total += self._one_step(number, i, rate, inputs, labels)
                if (now := time.monotonic()) - told > _TELL_EVERY:
                    told, self.seconds_per_step = now, (now - self.began) / (i + 1)
                    self._tell(number, total / (i + 1), i + 1)
        self.seconds_per_step = (time.monotonic() - self.began) / self.steps
        self._take_in(number, total / self.steps, rate)
        self._tell(number, total / self.steps, self.steps)

    def end(self) -> Fitted:
        """Leave the best weights in the network."""
        _write(self.student, self.best)
        self.student.eval()
        return Fitted(tuple(self.history), self.best_epoch)

    def _batches(self, epoch: int) -> Generator[tuple[tuple[Array, ...], Array | None]]:
        random = np.random.default_rng([self.schedule.seed, epoch])
        order = random.permutation(self.training.n)[: self.steps * self.batch]
        for i, (raw, labels) in enumerate(self.training.batches(order, self.batch)):
            drawn = np.random.default_rng([self.schedule.seed, epoch, i])
            yield raw if self.augment is None else self.augment(raw, drawn), labels

    def _placed(self, array: Array) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.schedule.device)
        if self.schedule.channels_last and tensor.dim() == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _one_step(
        self, epoch: int, i: int, rate: float, inputs: tuple[Tensor, ...], labels: Tensor | None
    ) -> float:
        # Dropout draws from torch's own generator.
        drawn = np.random.SeedSequence([self.schedule.seed, epoch, i]).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(drawn))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        with self.schedule.autocast():
            loss = self.objective(self.student, inputs, labels)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learned, self.schedule.clip)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise self._diverged(epoch, i, rate, value)
        self.optimizer.step()
        self.updates += 1
        if self.average is not None:
            self.average.update(self.schedule.decay(self.updates))
        return value

    def _take_in(self, epoch: int, loss: float, rate: float) -> None:
        """Judge the averaged weights; keep them where they are the best so far, and save everything."""
        if self.average is not None:
            self.average.swap()
        self.student.eval()
        with torch.no_grad():
            value = self.judge(self.student)
        sign = 1.0 if self.higher_is_better else -1.0
        ahead = sign * (value - self.best_epoch.value) if self.history else math.inf
        this = Epoch(epoch, loss, value, rate)
        # Of equals the later is the better trained one; but it is no reason for patience.
        if ahead >= 0 or math.isnan(self.best_epoch.value):
            self.best_epoch = this
            self.best = {name: t.detach().clone() for name, t in tensors_of(self.student).items()}
        self.stale = 0 if ahead > 0 else self.stale + 1
        if self.average is not None:
            self.average.swap()
        self.history.append(this)
        self.epoch = epoch
        disk.save(self.checkpoint, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "epoch": self.epoch,
            "updates": self.updates,
            "stale": self.stale,
            "history": [[e.epoch, e.loss, e.value, e.learning_rate] for e in self.history],
            "best_epoch": self.best_epoch.epoch,
            "best": self.best,
            "weights": {name: t.detach() for name, t in tensors_of(self.student).items()},
            "average": None if self.average is None else self.average.tensors,
            "optimizer": self.optimizer.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.updates, self.stale = state["epoch"], state["updates"], state["stale"]
        self.history = [Epoch(*row) for row in state["history"]]
        self.best_epoch = next(e for e in self.history if e.epoch == state["best_epoch"])
        self.best = state["best"]
        _write(self.student, state["weights"])
        if self.average is not None:
            self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _tell(self, epoch: int, loss: float, done: int) -> None:
        """`epoch 3 of 30 · loss 0.412 · top1 0.9031 (best 0.9040) · 12 min left`."""
        last = self.history[-1].value
        left = self.steps * (self.schedule.epochs - epoch + 1) - done
        self.step(
            f"epoch {epoch} of {self.schedule.epochs} · loss {loss:.3f} · {self.metric} {last:.4f} "
            f"(best {self.best_epoch.value:.4f}) · {_duration(left * self.seconds_per_step)} left"
        )

    def _diverged(self, epoch: int, i: int, rate: float, loss: float) -> UsageError:
        kept = f"the state after epoch {epoch - 1} is kept in {self.checkpoint}"
        return UsageError(
            f"the loss is {loss:.4g} in step {i + 1} of epoch {epoch}, at a learning rate of {rate:.3g}",
            expected="a loss and gradients that are finite numbers",
            way_out=f"Lower `learning_rate` in [{self.table}] of the recipe (it was "
            f"{self.schedule.learning_rate:g}), or "
            f'set precision = "float32"; {kept}.',
        )


def _fingerprint(student: nn.Module, training: Training, schedule: Schedule) -> str:
    """Of what must be the same for a training to go on: the network as it was given, the samples, the schedule."""
    total = hashlib.sha256(f"{schedule.digest()} {training.n} {training.sha256}".encode())
    for name, tensor in tensors_of(student).items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(plain.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _write(module: nn.Module, values: dict[str, Tensor]) -> None:
    own = tensors_of(module)
    with torch.no_grad():
        for name, value in values.items():
            own[name].data.copy_(value)


def _duration(seconds: float) -> str:
    """For people: "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
