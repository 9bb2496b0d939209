"""`jax-ddpm compare`: a table and a page of several runs."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from jax_ddpm.evaluation.results import Result, append_result
from jax_ddpm.sampling.samplers import ANCESTRAL
from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.training.compare import draw_same_seeds
from jax_ddpm.training.compare_scores import notes_on_scores, scores_table
from jax_ddpm.weights import Model
from tests import browser
from tests.commands import refusal, succeed
from tests.test_kept_samples import INFO, SAMPLER, model_of
from tests.test_page import carried, needs_browser, picture


def changed_copy(source, target, change):
    """A copy of a run's folder whose config.json `change` has edited."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.fixture(scope="module")
def runs(command_run, tmp_path_factory):
    """Two runs of the same weights: the second claims another learning rate and half the losses, and has results."""
    base = tmp_path_factory.mktemp("runs")
    first = changed_copy(command_run[0], base / "first", lambda config: None)
    second = changed_copy(first, base / "second <script>", lambda c: c["training"].update(learning_rate=0.5))
    rows = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"loss": row["loss"] / 2, "fid_pixels": 30.0 / (number + 1), "fid_pixels_floor": 1.0}
    (second / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    features, reference = {"name": "classifier", "fingerprint": "ab"}, {"name": "train:digits", "fingerprint": "cd"}
    scores = {
        "fid": 3.25,
        "fid_interval": [3.0, 3.5],
        "num_images": 1000,
        "floor": {"fid": 1.5},
        "bits_per_dimension": {
            "bound": {"value": 5.1, "standard_error": 0.03, "num_images": 180, "num_timesteps": 50},
        },
        "extractor": features,
        "reference": reference,
    }
    append_result(second, Result(3, "ema", SamplerConfig(), 0, scores | {"fid": 7.5}, 9.0))
    append_result(second, Result(6, "ema", SamplerConfig(), 0, scores, 9.0))
    return first, second


def table_of(said: str) -> dict[str, list[str]]:
    lines = [re.split(r"  +", line.strip()) for line in said.splitlines()]
    return {name: values for name, *values in lines if values}


def test_a_table_and_a_page(runs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "new folder" / "page.html"
    flags = ("--num-images", 2, "--seed", 3, "--sampler", "ddim", "--num-steps", 4, "--out", out)
    said = succeed(capsys, monkeypatch, "compare.py", *runs, *flags)
    table = table_of(said)
    assert table["training.learning_rate"] == ["0.001", "0.5"] and "training.seed" not in table
    assert table["steps"] == ["6", "6"] and len(set(table["parameters"])) == 1
    ours, theirs = map(float, table["training loss, last"])
    np.testing.assert_allclose(theirs, ours / 2, rtol=1e-3)
    assert table["FID by classifier to train:digits"] == ["-", "3.25 [3, 3.5]"]
    assert "KID" not in table and table["FID of held-out images"] == ["-", "1.5"]
    assert table["images"] == ["-", "1,000"] and table["weights"] == ["-", "ema, step 6"]
    assert table["bits per dimension, bound"] == ["-", "5.100 +- 0.030"]
    assert table["held-out images"] == ["-", "180, each at 50 timesteps"]
    assert table["FID by pixels, during the training"] == ["-", "10, step 6"]
    data = carried(out.read_text())
    assert [part["title"] for part in data["tables"]] == ["Results", "Settings that differ"]
    assert data["tables"][1]["rows"] == [["training.learning_rate", "0.001", "0.5"]]
    first, second = ([picture(image["src"]) for image in row["images"]] for row in data["strips"]["rows"])
    np.testing.assert_array_equal(first, second)  # the same weights, from the same noise
    assert len(first) == 2 and first[0].shape == (48, 48, 3) and first[0].std() > 1
    loss = data["charts"][0]
    assert [line["name"] for line in loss["series"]] == ["first", "second <script>"]
    assert {line["colour"] for line in loss["series"]} == {"first", "second"}
    assert out.read_text().count("<script") == 2
    (curve,) = data["charts"][-1]["series"]
    assert (curve["name"], curve["x"], curve["y"]) == ("second <script>", [3, 6], [7.5, 3.25])
    again = data["strips"]["command"]
    assert again.startswith("jax-ddpm compare ") and "--num-steps 4" in again and "--batch-size" not in again


def result(fid, sampler=ANCESTRAL, **diffusion):
    kinds = {part: {"name": part, "fingerprint": "0"} for part in ("extractor", "reference")}
    values = Result(9, "ema", sampler, 0, {"fid": fid, "num_images": 10, **kinds}, 1.0).as_dict()
    return {**values, "diffusion": diffusion}


def test_results_that_were_drawn_alike_are_side_by_side():
    def shown(*results):
        runs = [SimpleNamespace(results=each, rows=[]) for each in results]
        rows = [row for row in scores_table(runs) if row[0].startswith(("FID by", "    sampler"))]
        return [row[1:] for row in rows], notes_on_scores(runs)

    ddim = SamplerConfig(sampler="ddim", num_steps=50, eta=0.5)
    ways = ["ddpm, T steps", "ddim, 50 steps, eta 0.5, clip state"]
    first = [result(5.0), result(4.0), result(3.0, ddim, clip="state")]
    alike, notes = shown(first, [result(2.0, clip="x0")])
    assert (alike, notes) == ([["4", "2"], [ways[0]] * 2], [])
    unlike, notes = shown([first[2]], [result(2.0)], [])
    assert unlike == [["3", "2", "-"], [ways[1], ways[0], "-"]]
    assert notes == ["Samples for the FID by extractor were drawn in different ways: do not compare these FIDs."]


def test_runs_that_do_not_compare_are_said(runs, tmp_path, capsys, monkeypatch):
    other = changed_copy(runs[0], tmp_path / "other", lambda c: c["diffusion"].update(objective="v"))
    record = json.loads((other / "data.json").read_text())
    (other / "data.json").write_text(json.dumps({**record, "fingerprint": "f" * 64}))
    (other / "model.safetensors").write_bytes(b"damaged")
    shutil.rmtree(other / "checkpoints")
    said = succeed(
        capsys, monkeypatch, "compare.py", runs[0], other, "--num-images", 0, "--out", tmp_path / "page.html"
    )
    assert "The model of other cannot be loaded: " in said
    assert "different images, so their losses and scores do not compare" in said and "(hash ffffffff)" in said
    assert "differ in objective, so their losses do not compare" in said
    assert carried((tmp_path / "page.html").read_text())["strips"] is None


def test_pictures_are_of_one_image_size():
    small = model_of(0)
    large = Model(small.network, replace(INFO, image_shape=(8, 8, 1)))
    runs = [SimpleNamespace(name=name, model=model) for name, model in (("a", None), ("b", small), ("c", large))]
    drawn, notes = draw_same_seeds(runs, 2, SAMPLER)
    assert {name: images.shape for name, images in drawn.items()} == {"b": (2, 4, 4, 1)}
    assert notes == ["No pictures of c: its images are 8 x 8 x 1, those of b 4 x 4 x 1."]


def test_a_run_without_a_record_of_its_images(runs, tmp_path, capsys, monkeypatch):
    """As earlier versions left them: names and sizes of the data sets are compared."""
    older = changed_copy(runs[0], tmp_path / "older", lambda c: c["diffusion"].update(beta_end=0.3))
    (older / "data.json").unlink()
    said = succeed(capsys, monkeypatch, "compare.py", *runs, older, "--num-images", 0, "--out", tmp_path / "page.html")
    assert "different images" not in said and "differ in beta_end, so" in said


def bits(count):
    found = {"value": 5.0, "standard_error": 0.1, "num_images": count, "num_timesteps": 50}
    return {"weights": "ema", "scores": {"bits_per_dimension": {"bound": found}}}


def test_what_is_no_run(runs, tmp_path, capsys, monkeypatch):
    assert "two runs or more" in refusal(capsys, monkeypatch, "compare.py", runs[0])
    assert "is no run" in refusal(capsys, monkeypatch, "compare.py", runs[0], tmp_path)
    notes = notes_on_scores([SimpleNamespace(results=[bits(count)]) for count in (10, 20)])
    assert notes == ["The bits per dimension (bound) are of different images or timesteps: do not compare them."]
    assert "num_steps = 21" in refusal(capsys, monkeypatch, "compare.py", *runs, "--num-steps", 21)
    assert "num_images = -1" in refusal(capsys, monkeypatch, "compare.py", *runs, "--num-images", -1)


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_the_page_opens(runs, tmp_path, capsys, monkeypatch, width, scheme):
    out = tmp_path / "page.html"
    succeed(capsys, monkeypatch, "compare.py", *runs, "--num-images", 2, "--num-steps", 4, "--out", out)
    window = browser.Browser(tmp_path / "profile")
    try:
        window.open(out.as_uri(), width=width, scheme=scheme)
        assert window.complaints() == []
        assert window.run("[...document.querySelectorAll('h2')].map((node) => node.textContent)") == [
            *("Results", "Settings that differ", "The same seeds", "Curves"),
        ]
        assert window.run("document.documentElement.scrollWidth <= innerWidth")
        assert window.run("[...document.images].every((image) => image.naturalWidth > 0 && image.alt)")
    finally:
        window.close()
