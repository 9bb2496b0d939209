"""What is saved comes back to the last bit, or is refused by name; and what is kept."""

import json
import resource
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.run_config import OutputConfig
from jax_ddpm.training import checkpoint
from jax_ddpm.training.checkpoint import Checkpoints

STATE = {
    "weights": jnp.asarray(np.random.default_rng(0).standard_normal((64, 33)), jnp.float32),
    "odd": jnp.asarray([-0.0, jnp.inf, 1e-45, jnp.nan], jnp.float32),
    "count": jnp.int32(7),
}


def record(best=None):
    return {"pending": [{"step": 3, "loss": 0.1 + 0.2}], "best": best and {"step": best, "validation_loss": 1 / 3}}


def checkpoints(folder, said=None, keep=2, keep_every=0):
    policy = OutputConfig(keep_checkpoints=keep, keep_every=keep_every)
    return Checkpoints(folder / "checkpoints", policy, (said if said is not None else []).append)


def saved(folder, steps=(8, 16), **settings):
    them = checkpoints(folder, **settings)
    for step in steps:
        them.save(step, plus(STATE, step), record())
    them.wait()
    return them


def plus(state, number):
    return jax.tree.map(lambda x: x + number, state)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_every_bit_comes_back(tmp_path):
    them = checkpoints(tmp_path)
    them.save(5, STATE, record(best=5))
    them.wait()
    step, state, found = them.restore_newest(jax.tree.map(jnp.zeros_like, STATE))
    assert step == 5 and bits(state) == bits(STATE) and found == record(best=5)


def test_what_is_restored_can_be_donated(tmp_path):
    """jax#18617: else the first step after a resume holds the state twice."""
    state = saved(tmp_path).restore_newest(STATE)[1]
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_the_newest_the_best_and_every_nth_are_kept(tmp_path):
    them = checkpoints(tmp_path, keep=2, keep_every=10)
    for step, best in ((4, 4), (8, 4), (10, 4), (12, 4), (16, 16), (18, 16), (20, 16), (22, 16), (24, 16)):
        them.save(step, STATE, record(best))
    them.wait()
    assert them.steps() == [4, 10, 16, 20, 22, 24]  # 4 is the best of 10, which stays


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "bit flipped": lambda folder: flip(largest(folder)),
    "truncated": lambda folder: largest(folder).write_bytes(largest(folder).read_bytes()[:-7]),
    "emptied": lambda folder: largest(folder).write_bytes(b""),
    "missing": lambda folder: largest(folder).unlink(),
    "record changed": lambda folder: flip(folder / "record.json"),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest truncated": lambda folder: (folder / "manifest.json").write_text('{"state/_META'),
    "manifest of another kind": lambda folder: (folder / "manifest.json").write_text("[]"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_one_before_is_used(kind, tmp_path):
    said = []
    them = saved(tmp_path, said=said)
    DAMAGE[kind](tmp_path / "checkpoints" / "16")
    step, state, _ = them.restore_newest(STATE)
    assert step == 8 and bits(state) == bits(plus(STATE, 8))
    assert len(said) == 1 and "step 16 is damaged" in said[0]
    DAMAGE[kind](tmp_path / "checkpoints" / "8")
    with pytest.raises(UserError, match="are damaged"):
        them.restore_newest(STATE)
    them.save(16, STATE, record())  # takes the place of the damaged one
    them.wait()
    assert bits(them.restore_newest(STATE)[1]) == bits(STATE)


def test_another_state_does_not_fit(tmp_path):
    with pytest.raises(UserError, match="cannot be restored"):
        saved(tmp_path).restore_newest({**STATE, "weights": jnp.zeros((3, 3))})


def test_drafts_do_not_count_and_are_removed(tmp_path):
    them = saved(tmp_path)
    (tmp_path / "checkpoints" / ".24").mkdir()
    (tmp_path / "checkpoints" / ".24" / "record.json").write_text("{}")
    assert them.steps() == [8, 16]
    them.remove_incomplete()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["16", "8"]


@contextmanager
def files_of_at_most(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("size", "foreseen"), [(0, True), (6000, True), (400, False)])
def test_a_full_disk_costs_only_the_new_checkpoint(size, foreseen, tmp_path, monkeypatch):
    if not foreseen:  # there was room, and then there was none
        monkeypatch.setattr(checkpoint, "check_disk_space", lambda folder, size: None)
    said = []
    them = saved(tmp_path, said=said)
    with files_of_at_most(size):
        them.save(24, STATE, record())
        them.wait()
    assert len(said) == 1 and "step 24 could not be saved" in said[0] and "newest checkpoint is of step 16" in said[0]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["16", "8"]
    assert them.restore_newest(STATE)[0] == 16
    them.save(24, STATE, record())
    them.wait()
    assert them.restore_newest(STATE)[0] == 24
    assert json.loads((tmp_path / "checkpoints/24/record.json").read_text()) == record()
