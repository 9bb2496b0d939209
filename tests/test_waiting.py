"""The clocks of progress bars go on while nothing is counted."""

import io
import sys
import time

import pytest
from tqdm import tqdm

import jax_ddpm
from jax_ddpm import waiting
from jax_ddpm.training.pictures import Pictures


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_is_redrawn_while_nothing_is_counted(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with tqdm(total=5, delay=0.5, postfix="compiling", file=terminal) as bar, waiting.ticking(bar):
        assert terminal.getvalue() == ""
        time.sleep(1.3)
        assert "0/5 [00:01" in terminal.getvalue() and "compiling" in terminal.getvalue()


def test_waiting_is_removed_at_the_end_and_by_errors(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyError), waiting.waiting("compiling"):
        raise KeyError
    assert "compiling [00:00]" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r") and "\n" not in terminal.getvalue()


@pytest.mark.parametrize("of_run, allowed", [(0.0, 10.0), (60.0, 30.0), (3600.0, 50.0)])
def test_the_final_grid_takes_at_most_half_the_time_of_a_run(of_run, allowed, tmp_path):
    pictures = Pictures(tmp_path, None, jax_ddpm.preset("digits"), (8, 8, 1))
    pictures.limit_seconds(of_run)
    assert pictures.max_seconds == allowed
