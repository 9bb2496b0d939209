"""When things are due in a run, and what a person sees of it meanwhile."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training.run_folder import MetricsLog

APART = 500  # steps at least between two validations or checkpoints, where the user sets no interval
SHARE = 0.1  # of the time, that checkpoints may take where the user sets no interval
SPIKE = 5.0  # times the running mean of the loss


class Intervals:
    """The steps after which a validation, a checkpoint or a sample grid is due."""

    def __init__(self, config: RunConfig, steps_per_epoch: int, total_steps: int, validates: bool):
        epochs = steps_per_epoch * -(-APART // steps_per_epoch)  # one epoch, or as many as make APART steps
        output = config.output
        self.total = total_steps
        self.every_validation = (output.validate_every or epochs) if validates else 0
        self.every_checkpoint = output.checkpoint_every or epochs
        self.every_samples = [e for e in (output.sample_every, output.sample_every_epochs * steps_per_epoch) if e]

    def validation(self, step: int) -> bool:
        return bool(self.every_validation) and (step % self.every_validation == 0 or step == self.total)

    def checkpoint(self, step: int) -> bool:
        return step % self.every_checkpoint == 0 or step == self.total

    def samples(self, step: int) -> bool:
        return any(step % every == 0 for every in self.every_samples) and step != self.total

    def is_due(self, step: int) -> bool:
        return self.validation(step) or self.checkpoint(step) or self.samples(step)

    def next(self, step: int) -> int:
        """The first step after `step` after which something is due; the last step of all at the latest."""
        every = [e for e in (self.every_validation, self.every_checkpoint, *self.every_samples) if e]
        return min([self.total, *(step - step % e + e for e in every)])


class Saving:
    """Whether a checkpoint that is due is made, and a context for making it.

    On an accelerator some hundred steps may take less time than that does.
    """

    def __init__(self, config: RunConfig, total_steps: int):
        self.output, self.total = config.output, total_steps
        self.seconds, self.last = 0.0, time.perf_counter()

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_) -> None:
        self.last = time.perf_counter()
        self.seconds = self.last - self.began

    def wants(self, step: int, writing: bool) -> bool:
        """Always what the user chose and the last; others if they take, like the one before, SHARE of the time at most.

        writing: whether the one before is still being written, for which another would wait.
        """
        chosen = bool(self.output.keep_every) and step % self.output.keep_every == 0
        if self.output.checkpoint_every or chosen or step == self.total:
            return True
        return not writing and self.seconds <= SHARE * (time.perf_counter() - self.last)


class Progress:
    """Turns the metrics of each dispatch into a progress bar and rows of metrics.jsonl."""

    def __init__(
        self,
        start: int,
        total: int,
        config: RunConfig,
        metrics_log: MetricsLog,
        steps_per_epoch: int,
        intervals: Intervals,
        timesteps: Callable[[int], np.ndarray],
        log: Callable[[str], None],
    ):
        self.timesteps = timesteps  # timesteps(step): those that step `step`, from 0, draws
        self.skipped_in_a_row = 0
        self.config, self.metrics_log, self.log = config, metrics_log, log
        self.steps_per_epoch, self.intervals, self.total = steps_per_epoch, intervals, total
        self.first: tuple[int, float] | None = None  # step and time after the first dispatch, which compiles
        self.announced = False
        self.paused: float | None = None  # since when
        self.row_time, self.row_step, self.shown_loss, self.speed = time.perf_counter(), start, None, None
        self.read_time = self.row_time
        self.bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            mininterval=0.5 if sys.stderr.isatty() else 10,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]",
        )

    def read(self, step: int, n: int, metrics: Mapping) -> None:
        """Take in the figures of the n steps after `step`, arrays (n or more,) by name; waits for them.

        UserError once `max_skipped` steps in a row were skipped.
        """
        values = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        now = time.perf_counter()
        for i in range(n):
            figures = {name: float(value[i]) for name, value in values.items()}
            self.metrics_log.add({"step": step + i + 1, **figures})
            self.judge(step + i, figures)
            if (step + i + 1) % self.config.output.log_every == 0 and not self.intervals.validation(step + i + 1):
                self.row(step + i + 1, self.read_time + (now - self.read_time) * (i + 1) / n)
        self.read_time = now
        if self.first is None:
            self.first = (step + n, now)
        else:
            seconds = (now - self.first[1]) / (step + n - self.first[0])
            self.speed = self.config.training.batch_size / seconds
            if not self.announced and (step + n - self.first[0] >= 10 or now - self.first[1] > 10):
                self.announce(seconds, step + n)
        speed = "" if self.speed is None else f", {self.speed:,.0f} images/s"
        loss = "not finite" if self.shown_loss is None else f"{self.shown_loss:.4f}"
        self.bar.set_postfix_str(f"loss {loss}{speed}", refresh=False)
        self.bar.update(n)

    def judge(self, step: int, figures: Mapping[str, float]) -> None:
        """Tell of a skipped step and of a loss that springs up."""
        loss = figures["loss"]
        if not figures["skipped"]:
            self.skipped_in_a_row = 0
            mean = loss if self.shown_loss is None else self.shown_loss
            if loss > SPIKE * mean:
                self.log(f"Step {step + 1:,}: the loss, {loss:.4g}, is {loss / mean:.0f} times its recent mean.")
            self.shown_loss = 0.95 * mean + 0.05 * loss
            return
        self.skipped_in_a_row += 1
        t = np.sort(self.timesteps(step))
        found = f"loss {loss:g}, gradient norm {figures['grad_norm']:g}, t = {' '.join(map(str, t[:8]))}"
        found += f" ... {t[-1]}" if len(t) > 8 else ""
        self.log(f"Step {step + 1:,} was skipped, since its loss or gradient is not finite: {found}.")
        if self.skipped_in_a_row >= self.config.training.max_skipped:
            raise UserError(
                f"The last {self.skipped_in_a_row} steps, up to {step + 1}, were skipped: {found}.\n"
                "The newest checkpoint is as good as before. "
                f"--replay-step {step + 1} looks into this step; a lower --learning-rate may help."
            )

    def announce(self, seconds: float, step: int) -> None:
        self.announced = True
        left = seconds * (self.total - step)
        self.log(f"Expecting {duration(left)} of training at {seconds:.3g} s a step.")

    def row(self, step: int, now: float | None = None, **extra) -> None:
        """Write the row of the steps since the last one; `now`: when `step` was done."""
        now = now or self.paused or time.perf_counter()
        images = (step - self.row_step) * self.config.training.batch_size
        self.row_step, elapsed, self.row_time = step, now - self.row_time, now
        epoch = (step - 1) // self.steps_per_epoch
        self.metrics_log.write_row(epoch, images_per_second=round(images / max(elapsed, 1e-9), 1), **extra)

    @contextmanager
    def pause(self):
        """Time spent inside does not count as training."""
        self.paused = time.perf_counter()
        yield
        away, self.paused = time.perf_counter() - self.paused, None
        self.row_time += away
        self.read_time += away
        if self.first is not None:
            self.first = (self.first[0], self.first[1] + away)

    def close(self) -> None:
        self.bar.close()


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
