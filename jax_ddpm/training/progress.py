"""The schedule of validations, checkpoints and sample grids; the progress bar and the rows of metrics.jsonl."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
from tqdm import tqdm

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.noise_levels import level_text, symbol
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training.run_folder import MetricsLog
from jax_ddpm.waiting import ticking

MIN_DEFAULT_INTERVAL = 500  # steps between two validations or checkpoints, unless the user sets an interval
DEFAULT_SNAPSHOTS = 32  # of the power-function averages in a run, at most, unless the user sets an interval
MAX_CHECKPOINT_TIME_FRACTION = 0.1  # of the time for writing checkpoints, unless the user sets an interval
SPIKE_FACTOR = 5.0  # a loss this many times its running mean is logged


class Intervals:
    """The steps after which a validation, evaluation, checkpoint, snapshot of averages or sample grid is due."""

    def __init__(self, config: RunConfig, steps_per_epoch: int, total_steps: int, validates: bool):
        output = config.output
        default_interval = steps_per_epoch * -(-MIN_DEFAULT_INTERVAL // steps_per_epoch)  # whole epochs
        self.total = total_steps
        self.every_validation = (output.validate_every or default_interval) if validates else 0
        self.every_evaluation = output.evaluate_every
        self.every_checkpoint = output.checkpoint_every or default_interval
        self.every_snapshot = 0
        if config.training.power_ema:
            self.every_snapshot = output.power_ema_every or -(-total_steps // DEFAULT_SNAPSHOTS)
        self.every_samples = [e for e in (output.sample_every, output.sample_every_epochs * steps_per_epoch) if e]

    def validation(self, step: int) -> bool:
        return bool(self.every_validation) and (step % self.every_validation == 0 or step == self.total)

    def evaluation(self, step: int) -> bool:
        return bool(self.every_evaluation) and (step % self.every_evaluation == 0 or step == self.total)

    def row(self, step: int) -> bool:
        """Whether the row of metrics.jsonl waits for a validation or an evaluation."""
        return self.validation(step) or self.evaluation(step)

    def checkpoint(self, step: int) -> bool:
        return step % self.every_checkpoint == 0 or step == self.total

    def snapshot(self, step: int) -> bool:
        return bool(self.every_snapshot) and (step % self.every_snapshot == 0 or step == self.total)

    def samples(self, step: int) -> bool:
        return any(step % every == 0 for every in self.every_samples) and step != self.total

    def is_due(self, step: int) -> bool:
        return self.row(step) or self.checkpoint(step) or self.snapshot(step) or self.samples(step)

    def next(self, step: int) -> int:
        """The next step > `step` at which something is due; at most the last step of the run."""
        every = (self.every_validation, self.every_evaluation, self.every_checkpoint, self.every_snapshot)
        return min([self.total, *(step - step % e + e for e in (*every, *self.every_samples) if e)])


class CheckpointPolicy:
    """Decides whether a due checkpoint is written. As a context manager, it measures how long the writing takes.

    On an accelerator, writing a checkpoint can take longer than the steps between two checkpoints.
    """

    def __init__(self, config: RunConfig, total_steps: int):
        self.output, self.total = config.output, total_steps
        self.seconds, self.last_end = 0.0, time.perf_counter()

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_) -> None:
        self.last_end = time.perf_counter()
        self.seconds = self.last_end - self.start

    def should_save(self, step: int, is_saving: bool) -> bool:
        """Whether to write the checkpoint of `step`.

        Always True at the intervals that the user set, and at the last step. Otherwise True if no write is running and
        the last write took at most MAX_CHECKPOINT_TIME_FRACTION of the time that has passed since it ended.

        is_saving: whether the previous checkpoint is still being written; a new one would have to wait for it.
        """
        chosen = bool(self.output.keep_every) and step % self.output.keep_every == 0
        if self.output.checkpoint_every or chosen or step == self.total:
            return True
        return not is_saving and self.seconds <= MAX_CHECKPOINT_TIME_FRACTION * (time.perf_counter() - self.last_end)


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
        levels: Callable[[int], np.ndarray],
        log: Callable[[str], None],
    ):
        self.levels = levels  # levels(step): the noise levels drawn in that step, counted from 0
        self.skipped_in_a_row = 0
        self.config, self.metrics_log, self.log = config, metrics_log, log
        self.steps_per_epoch, self.intervals, self.total = steps_per_epoch, intervals, total
        self.timing_start: tuple[int, float] | None = None  # step and time after the first dispatch, which compiles
        self.announced = False
        self.pause_start: float | None = None
        self.row_time, self.row_step, self.mean_loss, self.speed = time.perf_counter(), start, None, None
        self.start_time = self.update_time = self.row_time
        self.bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            mininterval=0.5 if sys.stderr.isatty() else 10,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            postfix="compiling the training step",
        )
        self.compiling = ExitStack()
        self.compiling.enter_context(ticking(self.bar))

    def update(self, step: int, n: int, metrics: Mapping) -> None:
        """Record the metrics of the n steps after `step`, and move the bar. Waits for the device.

        metrics: by name, an array with at least n values. Raises UserError after `max_skipped` skipped steps in a row.
        """
        values = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        now = time.perf_counter()
        for i in range(n):
            step_metrics = {name: float(value[i]) for name, value in values.items()}
            self.metrics_log.add({"step": step + i + 1, **step_metrics})
            self.check_step(step + i, step_metrics)
            if (step + i + 1) % self.config.output.log_every == 0 and not self.intervals.row(step + i + 1):
                self.write_row(step + i + 1, self.update_time + (now - self.update_time) * (i + 1) / n)
        self.update_time = now
        left, speed = "", ""
        if self.timing_start is None:
            self.compiling.close()
            self.timing_start = (step + n, now)
            if now - self.start_time > 2:
                self.log(f"The first {steps(n)}, with compilation, took {duration(now - self.start_time)}.")
        else:
            seconds = (now - self.timing_start[1]) / (step + n - self.timing_start[0])
            self.speed = self.config.training.batch_size / seconds
            left = f"{tqdm.format_interval(seconds * (self.total - step - n))} left, "
            speed = f", {self.speed:,.0f} images/s"
            if not self.announced and (step + n - self.timing_start[0] >= 10 or now - self.timing_start[1] > 10):
                self.announce(seconds, step + n)
        loss = "not finite" if self.mean_loss is None else f"{self.mean_loss:.4f}"
        self.bar.set_postfix_str(f"{left}loss {loss}{speed}", refresh=False)
        self.bar.update(n)

    def check_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log a skipped step, or a loss far above its running mean."""
        loss = metrics["loss"]
        if not metrics["skipped"]:
            self.skipped_in_a_row = 0
            mean = loss if self.mean_loss is None else self.mean_loss
            if loss > SPIKE_FACTOR * mean:
                self.log(f"Step {step + 1:,}: the loss, {loss:.4g}, is {loss / mean:.0f} times its recent mean.")
            self.mean_loss = 0.95 * mean + 0.05 * loss
            return
        self.skipped_in_a_row += 1
        levels = list(map(level_text, np.sort(self.levels(step))))
        found = f"loss {loss:g}, gradient norm {metrics['grad_norm']:g}, "
        found += f"{symbol(self.config.diffusion)} = {' '.join(levels[:8])}"
        found += f" ... {levels[-1]}" if len(levels) > 8 else ""
        self.log(f"Step {step + 1:,} was skipped because its loss or gradient is not finite: {found}.")
        if self.skipped_in_a_row >= self.config.training.max_skipped:
            raise UserError(
                f"The last {self.skipped_in_a_row} steps, up to {step + 1}, were skipped: {found}.\n"
                "The newest checkpoint is not affected. "
                f"jax-ddpm train --replay-step {step + 1} shows what happens in it; a lower learning rate may help."
            )

    def announce(self, seconds: float, step: int) -> None:
        self.announced = True
        left = seconds * (self.total - step)
        self.log(f"Expecting {duration(left)} of training at {seconds:.3g} s a step.")

    def write_row(self, step: int, now: float | None = None, **extra) -> None:
        """Write a row for the steps since the last row. now: the time at which `step` was done."""
        now = now or self.pause_start or time.perf_counter()
        images = (step - self.row_step) * self.config.training.batch_size
        self.row_step, elapsed, self.row_time = step, now - self.row_time, now
        epoch = (step - 1) // self.steps_per_epoch
        self.metrics_log.write_row(epoch, images_per_second=round(images / max(elapsed, 1e-9), 1), **extra)

    @contextmanager
    def pause(self):
        """Time spent inside does not count as training."""
        self.pause_start = time.perf_counter()
        yield
        seconds, self.pause_start = time.perf_counter() - self.pause_start, None
        self.row_time += seconds
        self.update_time += seconds
        if self.timing_start is not None:
            self.timing_start = (self.timing_start[0], self.timing_start[1] + seconds)

    def close(self) -> None:
        self.compiling.close()
        self.bar.close()


def steps(n: int) -> str:
    return f"{n} steps" if n > 1 else "step"


def duration(seconds: float) -> str:
    """A duration as text: in seconds below 90 s, minutes below 90 min, hours below 48 h, else days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
