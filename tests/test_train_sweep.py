"""--sweep: names and values, folders, what is trained, what a second call skips."""

import json
from pathlib import Path

import pytest

from jax_ddpm.commands import compare, train_torch
from jax_ddpm.commands.train_sweep import plan_sweep, sweep
from jax_ddpm.spec.errors import UserError, messages_of_commands
from jax_ddpm.training.run_folder import config_json

BASE = ["--steps", "2", "--widths", "32", "--time-width", "32"]


@pytest.fixture
def compared(monkeypatch):
    calls = []
    monkeypatch.setattr(compare, "main", lambda arguments, prog: calls.append(arguments))
    return calls


class Trainer:
    """Writes config.json, as a training does at its start, and fails or is interrupted in some folders."""

    def __init__(self, **errors):
        self.calls, self.errors = [], errors

    def __call__(self, config, folder, resume):
        self.calls.append((folder.name, resume, config.training.seed, config.training.learning_rate))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(config_json(folder, config))
        if error := self.errors.get(folder.name.replace("-", "_")):
            raise error
        return folder


def test_each_combination_is_trained_and_compared(tmp_path, compared, capsys):
    words, trainer = ["--sweep", "seed=0,1", "learning_rate=1e-4,2e-4"], Trainer()
    sweep([*BASE, *words, "--out", str(tmp_path)], "", trainer)
    names = [f"seed-{seed}_learning_rate-{rate}" for seed in (0, 1) for rate in ("1e-4", "2e-4")]
    expected = [(seed, rate) for seed in (0, 1) for rate in (1e-4, 2e-4)]
    assert trainer.calls == [(name, False, *values) for name, values in zip(names, expected, strict=True)]
    assert compared == [[*(str(tmp_path / name) for name in names), "--out", str(tmp_path / "compare.html")]]
    assert "Run 4 of 4: " in capsys.readouterr().out


def test_a_second_call_skips_what_is_finished_and_resumes_the_rest(tmp_path, compared):
    arguments = [*BASE, "--sweep", "seed=0,1,2", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        sweep(arguments, "", Trainer(seed_1=KeyboardInterrupt()))
    again = Trainer()
    sweep(arguments, "", again)
    assert [call[:2] for call in again.calls] == [("seed-1", True), ("seed-2", False)]
    longer = Trainer()
    sweep(["--steps", "3", *BASE[2:], *arguments[len(BASE) :]], "", longer)
    assert [call[:2] for call in longer.calls] == [(f"seed-{seed}", True) for seed in range(3)]
    assert len(compared) == 2 and set(json.loads((tmp_path / "sweep.json").read_text())) == {
        "seed-0",
        "seed-1",
        "seed-2",
    }


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, compared):
    trainer = Trainer(seed_0=UserError("20 steps in a row\nwere skipped."))
    with pytest.raises(UserError, match=r"^1 of 3 runs failed\. seed-0: 20 steps in a row were skipped\.$"):
        sweep([*BASE, "--sweep", "seed=0,1,2", "--out", str(tmp_path)], "", trainer)
    assert len(trainer.calls) == 3 and len(compared[0]) == 4


def test_values_of_other_kinds_and_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    out, runs = plan_sweep([*BASE[:2], "--sweep=ema=true,false", "widths=32,32 64", "--time-width", "32"], "")
    assert out == Path("runs/digits-digits-sweep") and not list(tmp_path.iterdir())
    assert [(run.config.training.ema, run.config.network.widths) for run in runs] == [
        *((True, (32,)), (True, (32, 64)), (False, (32,)), (False, (32, 64)))
    ]
    assert runs[1].folder.name == "ema-true_widths-32-64"
    assert [run.config.preset for run in plan_sweep(["--sweep", "preset=tiny,digits"], "")[1]] == ["tiny", "digits"]


MISTAKES = {
    ("seeds=0,1",): "There is no setting seeds: did you mean seed?",
    ("seed",): "sweep = seed: expected NAME=VALUE,VALUE,... such as seed=0,1,2.",
    ("seed=0,,1",): "sweep = seed=0,,1: expected NAME=VALUE",
    ("seed=0,-1",): "seed = -1: expected an integer from 0 to",
    ("seed=0,0",): "sweep = seed=0,0: expected different values",
    ("seed=0", "seed=1"): "sweep = seed=1: seed is given twice.",
    ("ema=yes,no",): "ema = yes: expected true or false.",
    ("learning_rate=1,0",): "learning_rate = 0.0: expected more than 0.",
    ("seed=0,1", "--resume"): "give its command again, without --resume.",
    (): "sweep has no settings",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_found_before_the_first_run(words, tmp_path):
    trainer = Trainer()
    with pytest.raises(UserError) as caught, messages_of_commands():
        sweep(["--out", str(tmp_path), "--lr-schedule", "constant", "--sweep", *words], "", trainer)
    assert MISTAKES[words] in str(caught.value) and str(caught.value).count("\n") <= 1
    assert trainer.calls == [] and not list(tmp_path.iterdir())


def test_the_pytorch_trainer_has_none():
    with pytest.raises(UserError, match="has no sweeps"):
        train_torch.main(["--sweep", "seed=0,1"], "")
