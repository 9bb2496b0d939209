"""What the doctor says and where it points: lines of the code, one sentence for one mistake, hints, progress, codes."""

import linecache
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from jax_ddpm import doctor
from jax_ddpm.commands import doctor as command
from jax_ddpm.commands import main as commands
from jax_ddpm.doctor import progress, source
from jax_ddpm.spec.errors import UserError


class TheirBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.skip, self.last = nn.LayerNorm(4), nn.Identity(), nn.Linear(4, 4)

    def forward(self, x, t):
        return self.skip(x) + self.last(nn.functional.silu(self.norm(x)) + nn.functional.silu(t))


class Block(nnx.Module):
    def __init__(self, wrong, rngs):
        self.wrong = wrong
        self.norm = nnx.LayerNorm(4, epsilon=1e-5, use_fast_variance=wrong == "warning", rngs=rngs)
        self.last = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x, t):
        normal = self.norm(x)
        h = nnx.silu(normal) + (t if self.wrong == "time" else nnx.silu(t))
        h = self.last(h)  # here
        if self.wrong == "skip":
            x = normal
        return x + h


class Theirs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.between, self.b = TheirBlock(), nn.Linear(4, 4), TheirBlock()

    def forward(self, x, t):
        return self.b(self.between(self.a(x, t)), t)


class Ours(nnx.Module):
    def __init__(self, wrong=""):
        self.a, self.b = Block(wrong, nnx.Rngs(0)), Block(wrong, nnx.Rngs(1))
        self.between = nnx.Linear(4, 4, rngs=nnx.Rngs(2))

    def __call__(self, x, t):
        return self.b(self.between(self.a(x, t)), t)


def compared(wrong, **options):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    return doctor.compare(Theirs(), Ours(wrong), inputs, **options)


def line_of(text):
    lines = Path(__file__).read_text("utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_a_mistake_in_a_class_is_one_sentence_with_its_line_and_names_of_that_code():
    text = str(compared("time", probes=False))
    assert text.startswith("In the code between a.norm and a.last (Linear): ours leaves out SiLU. Write ")
    assert "jax.nn.silu(t)." in text
    assert f"See test_doctor_text.py, line {line_of('# here')} and above.\nThe same holds for b.last." in text
    assert "Other places" not in text


def test_an_identity_is_not_named():
    text = str(compared("skip", probes=False))
    assert "In the code of a (TheirBlock, ours Block), which makes its output" in text and "skip" not in text
    assert "theirs the input of a" in text and "The same holds for b." in text


def test_warnings_of_a_kind_are_one_sentence():
    (sentence,) = compared("warning", gradients=False).warning_sentences
    assert sentence.startswith("2 layers (LayerNorm): ours computes the variance") and "can wait" not in sentence


def test_the_stages_are_told():
    stages = []
    compared("", progress=stages.append)
    assert stages == sorted(set(stages), key=stages.index) and "The gradients are compared" in stages


def test_progress_is_quiet_for_short_runs(monkeypatch):
    lines = []
    with progress.Progress(lines.append) as stage:
        stage("one")
        monkeypatch.setattr(progress, "QUIET_SECONDS", 0)
        assert lines == []
        stage("two")
    assert lines == ["two ... (0 s)"]


def test_a_missing_argument_and_channels_last_have_a_hint():
    x = np.zeros((2, 4, 4, 3))
    with pytest.raises(UserError, match=r"missing 1 .* 't'\nGive one more input, such as inputs=\(x, t\)\."):
        doctor.compare(Theirs(), Ours(), x)
    with pytest.raises(UserError, match=r"channels first: x of \(2, 3, 4, 4\)\."):
        doctor.compare(nn.Conv2d(3, 3, 1), nnx.Conv(3, 3, (1, 1), rngs=nnx.Rngs(0)), x)


def test_a_crash_is_no_difference(monkeypatch, capsys):
    def crash(*_):
        raise KeyError("in the doctor")

    monkeypatch.setattr(command, "main", crash)
    with pytest.raises(SystemExit) as end:
        commands.run("doctor", [], "jax-ddpm doctor")
    assert end.value.code == 70 and "KeyError" in capsys.readouterr().err


CELL = """class Net:
    def __init__(self):
        self.norm = None

    def __call__(self, x):
        return self.norm(x)
"""


def test_the_line_of_a_class_in_a_notebook_is_found(monkeypatch):
    name, made = "/tmp/ipykernel_1/2.py", {}  # as Jupyter names a cell, whose text it keeps in linecache
    monkeypatch.setitem(linecache.cache, name, (len(CELL), None, CELL.splitlines(keepends=True), name))
    exec(compile(CELL, name, "exec"), made)
    net = made["Net"]()
    assert source.line_in(net, "__call__", source.called("norm")) == "the notebook's cell, line 6"
    assert source.line_in(net, "__init__", source.made("norm")) == "the notebook's cell, line 3"
