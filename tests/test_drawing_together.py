"""`--distributed` of sample and evaluate: several processes draw one set of images."""

import json

import numpy as np
import pytest

from jax_ddpm.commands import evaluate, sample
from jax_ddpm.commands.together import settings, without_hosts
from jax_ddpm.sampling import processes, samplers
from jax_ddpm.spec.errors import UserError
from tests.test_distributed import FLAGS, ended, start, trained


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_process_draws_a_contiguous_part(count):
    indices = np.arange(10, 17)
    parts = [processes.own_part(indices, i, count) for i in range(count)]
    assert len({len(part) for part in parts}) == 1
    np.testing.assert_array_equal(np.concatenate(parts)[:7], indices)


def test_all_processes_get_all_images_in_order(monkeypatch):
    """Two processes, one after the other: what one gathers is computed from what each would draw."""
    drawn, kept = [], []

    def draw(indices):
        drawn.append(indices.tolist())
        return np.float32(indices)[:, None]

    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr(processes.jax, "process_index", lambda process=process: process)
        together = []
        monkeypatch.setattr(
            processes.multihost_utils,
            "process_allgather",
            lambda part, tiled, together=together: np.concatenate(
                [np.float32(processes.own_part(batch, i, 2))[:, None] for i in range(2) for batch in together[-1:]]
            ),
        )
        with processes.drawing_together():
            assert processes.num_drawing() == 2 and processes.writes() == (process == 0)
            gather = processes.drawn_by_all

            def recording(draw, together=together, gather=gather):
                return lambda indices: (together.append(indices), gather(draw)(indices))[1]

            monkeypatch.setattr(samplers, "drawn_by_all", recording)
            images = samplers.sample_in_batches(draw, 11, 4, lambda indices, x: kept.append(len(x)))
        np.testing.assert_array_equal(images[:, 0], np.arange(11))
    assert processes.num_drawing() == 1
    assert drawn == [[0, 1, 2, 3], [8, 9, 10, 10], [4, 5, 6, 7], [10, 10, 10, 10]] and kept == [8, 8, 8, 8]


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (sample, ["--model", "x", "--out", "x.gif"], "A .gif is drawn in one process: omit"),
        (sample, ["--model", "x", "--framework", "torch"], "torch is drawn in one process: omit"),
        (evaluate, ["x", "--sweep", "seed=1,2"], "sweep is drawn in one process: omit"),
        (evaluate, ["x", "--checkpoints", "all"], "checkpoints is drawn in one process: omit"),
    ],
)
def test_what_one_process_draws(command, words, message):
    with pytest.raises(UserError, match=message):
        command.main([*words, "--distributed"], "")
    with pytest.raises(UserError, match="is for work of several processes: add"):
        command.main(["x"] * (command is evaluate) + ["--model", "x"] * (command is sample) + ["--processes", "2"], "")


def test_the_command_to_start_again():
    words = ["--model", "runs/x", "--distributed", "--coordinator", "h:1", "--processes=2", "--process-id", "0"]
    assert without_hosts([*words, "--seed", "3"]) == ["--model", "runs/x", "--seed", "3"]
    assert settings({"seed": 3, "out": "a", "sampling": {"eta": 0.5}}) == {"seed": 3, "eta": 0.5}


# Two processes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("drawn") / "run", *FLAGS.split(), processes=1, devices=1)


def drawn(path, *flags, script="sample.py", **how):
    codes, said = ended(start(path, *flags, script=script, **how))
    assert not any(codes), said
    assert not any(said[1:]), "only process 0 says something"
    return said[0]


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--num-images 11 --batch-size 2", "--seeds 5,3,8 --sampler ddim --num-steps 7"])
def test_two_processes_draw_the_pictures_of_one(run, tmp_path, flags):
    flags = ["--model", run, *flags.split()]
    drawn(tmp_path / "one.npz", *flags, processes=1, devices=1)
    said = drawn(tmp_path / "two.npz", *flags, processes=2, devices=1)
    assert "Saved " in said and str(tmp_path / "two.npz") in said
    one, two = (np.load(tmp_path / name) for name in ("one.npz", "two.npz"))
    np.testing.assert_allclose(two["x0"], one["x0"], atol=1e-5)
    np.testing.assert_array_equal(two["images"], one["images"])


@pytest.mark.slow
def test_two_processes_are_scored_as_one(run, tmp_path):
    flags = [run, "--num-images", 22, "--batch-size", 4, "--num-steps", 4, "--sampler", "ddim", "--features", "pixels"]
    drawn(tmp_path / "one.json", *flags, "--seed", 1, script="evaluate.py", processes=1, devices=1)
    folder = next((run / "evaluation" / "samples").iterdir())
    one = np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])
    for path in sorted(folder.glob("*.npy"))[2:]:  # the two processes go on after the first 8 images
        path.unlink()
    said = drawn(tmp_path / "two.json", *flags, "--seed", 1, script="evaluate.py", processes=2, devices=1)
    assert "Wrote the scores" in said
    two = np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])
    np.testing.assert_array_equal(one, two)
    scores = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")]
    assert scores[0]["fid"] == pytest.approx(scores[1]["fid"], rel=1e-6)


@pytest.mark.slow
def test_processes_that_differ_or_fail_all_end(run, tmp_path):
    flags = ["--model", run, "--num-images", 4]
    codes, said = ended(start(tmp_path / "a.npz", *flags, script="sample.py", devices=1, of_last=["--seed", 7]))
    assert codes == [2, 2] and said[0] == said[1]
    assert said[0].startswith("The processes of this drawing differ: seed is 0 in process 0 (on ")
    broken = ["--model", tmp_path / "nothing"]
    codes, said = ended(start(tmp_path / "b.npz", *flags, script="sample.py", devices=1, of_last=broken))
    assert codes == [2, 2] and "Process 1 (on " in said[0] and "nothing" in said[0]
    assert not list(tmp_path.glob("*.npz"))
