"""`jax-ddpm evaluate` and its functions: numbers that algebra knows, every kind of input, and wrong input."""

import hashlib
import json
import re
import shutil
import urllib.error
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jax_ddpm import data
from jax_ddpm.evaluation import (
    Scores,
    Statistics,
    distances,
    evaluate,
    inception_file,
    make_reference,
    open_images,
    score,
    sweep,
)
from jax_ddpm.evaluation.extractors import PIXELS, open_extractor
from jax_ddpm.evaluation.image_sets import image_set
from jax_ddpm.evaluation.results import read_results
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError
from tests.commands import refusal, succeed

DIGITS = ("--features", "pixels", "--num-images", "12")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", 8)


@pytest.fixture(scope="module")
def run(command_run, tmp_path_factory):
    """A copy of a run of digits: evaluations write into it."""
    return shutil.copytree(command_run[0], tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def random_images(seed, count, shape=(4, 4, 1), low=50, high=200):
    return np.random.default_rng(seed).integers(low, high, (count, *shape), dtype=np.uint8)


def test_a_set_against_itself():
    images = random_images(0, 60)
    found = evaluate(images, images, "pixels")
    assert found.fid == pytest.approx(0, abs=1e-9) and found.fid_interval[0] < 0.1
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert (found.num_images, found.num_reference, found.floor) == (60, 60, None)
    assert any("no held-out images" in note for note in found.notes)


def test_a_shift_costs_its_square():
    """Every pixel 10 levels brighter: |10 / 127.5|^2 for each of the 16 pixels, and covariances that are equal."""
    images = random_images(0, 60)
    found = evaluate(images + np.uint8(10), images, "pixels")
    assert found.fid == pytest.approx(16 * (10 / 127.5) ** 2, rel=1e-9)
    low, high = found.fid_interval
    assert low < found.fid < high


def test_what_distances_says_is_what_is_reported(digits):
    """The columns are those of `distances` for the features of the images and of the reference."""
    real, drawn = digits.train, digits.validation[:40]
    found = evaluate(drawn, digits, "pixels")
    of = lambda images: images.reshape(len(images), -1) / 127.5 - 1  # noqa: E731
    assert found.fid == pytest.approx(distances.fid(*map(distances.statistics, (of(drawn), of(real)))), rel=1e-6)
    assert found.floor.num_images == 40 and found.floor.fid > 0 and found.floor.floor is None
    assert found.num_reference == len(real)
    assert found.extractor["fingerprint"] == PIXELS.fingerprint
    again = json.loads(json.dumps(found.as_dict()))
    assert again["fid"] == found.fid and again["floor"]["num_images"] == 40
    assert all(
        part in str(found) for part in (f"{found.fid:.4g}", "1,617", "pixels", found.reference["fingerprint"][:8])
    )
    assert f"<td>{found.precision:.3f}</td>" in found._repr_html_()


def test_statistics_in_blocks_are_those_of_all_at_once():
    features = np.random.default_rng(0).standard_normal((50, 6)) * 0.01 + 1000
    one, two = distances.statistics(features), distances.statistics_of_blocks(np.split(features, [7, 8, 30]))
    np.testing.assert_allclose(two.mu, one.mu, rtol=1e-13)
    np.testing.assert_allclose(two.sigma, one.sigma, atol=1e-15)
    assert two.count == 50


@pytest.mark.parametrize("count", [30, 8], ids=["more images than features", "fewer images than features"])
def test_the_interval_is_that_of_fids_of_redrawn_images(count):
    draw = np.random.default_rng(0)
    features, reference = draw.standard_normal((count, 12)), distances.statistics(draw.standard_normal((40, 12)) + 1)
    rows = np.random.default_rng(5)
    drawn = [
        distances.fid(distances.statistics(features[rows.integers(count, size=count)]), reference) for _ in range(20)
    ]
    shift = distances.fid(distances.statistics(features), reference) - np.mean(drawn)
    expected = np.maximum(0, np.quantile(drawn, (0.025, 0.975)) + shift)
    assert distances.fid_interval(features, reference, 20, seed=5) == pytest.approx(tuple(expected), rel=1e-8)


def test_all_kinds_of_input_give_the_same_numbers(digits, tmp_path):
    images, labels = digits.validation[:30], digits.validation_labels[:30]
    np.savez(tmp_path / "ours.npz", images=images, x0=images / 127.5 - 1)
    np.savez(tmp_path / "openai.npz", images, labels)
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / "pictures" / f"{number:03}.png")
    reference = make_reference(open_images("train:digits", (8, 8, 1)), PIXELS)
    found = [score(open_images(str(tmp_path / name)), reference) for name in ("ours.npz", "openai.npz", "pictures")]
    assert found[0] == found[2] and found[0].fid > 0
    assert replace(found[1], classes=(), notes=found[0].notes) == found[0]  # arr_1 are labels: a table of the classes
    assert [each.num_images for each in found[1].classes] == np.bincount(labels)[np.unique(labels)].tolist()
    assert np.array_equal(open_images(str(tmp_path / "openai.npz")).labels, labels)
    assert score(PIXELS(images), reference).fid == found[0].fid
    distances.save_statistics(tmp_path / "statistics.npz", distances.statistics(PIXELS(images)))
    only = score(open_images(str(tmp_path / "statistics.npz")), reference)
    assert only.fid == pytest.approx(found[0].fid, rel=1e-12) and only.kid is None
    assert any("need images" in note for note in only.notes)


def test_a_split_of_a_data_set_has_the_other_one_as_held_out_images():
    validation = open_images("validation:digits", (8, 8, 1))
    assert (validation.count, validation.held_out.name) == (180, "train:digits")
    assert validation.fingerprint != open_images("train:digits", (8, 8, 1)).fingerprint
    assert open_images("train:digits", (12, 10, 1)).image_shape == (12, 10, 1), "data sets are resized"


def test_features_of_a_reference_are_kept_on_disk(tmp_path):
    calls = []

    def function(images):
        calls.append(len(images))
        return images.reshape(len(images), -1)[:, :3].astype(np.float32)

    extractor = PIXELS.__class__("mine", "three pixels", "1" * 64, function)
    images = random_images(0, 20)
    one = make_reference(image_set(images), extractor, tmp_path)
    computed = len(calls)
    two = make_reference(image_set(images), extractor, tmp_path)
    assert len(calls) == computed and np.array_equal(one.features, two.features)
    assert np.array_equal(one.statistics.sigma, two.statistics.sigma) and two.statistics.count == 20
    make_reference(image_set(random_images(1, 20)), extractor, tmp_path)
    assert len(calls) > computed, "other images are not taken for these"
    for path in (tmp_path / "evaluation").iterdir():
        path.write_bytes(b"damaged")
    said = []
    assert make_reference(image_set(images), extractor, tmp_path, log=said.append).count == 20
    assert "damaged" in " ".join(said)


OWN = """
import numpy as np

def brightness(images):
    return images.mean(axis=(1, 2))

def wrong(images):
    return images.mean()

def broken(images):
    return images["x"]

def nan(images):
    return np.full((len(images), 2), np.nan)
"""


def test_a_function_of_ones_own(tmp_path):
    (tmp_path / "mine_features.py").write_text(OWN)
    images = random_images(0, 40)
    found = evaluate(images + np.uint8(5), images, f"{tmp_path}/mine_features.py:brightness")
    assert found.fid == pytest.approx(25, rel=1e-9)
    again = evaluate(images + np.uint8(5), images, lambda images: images.mean(axis=(1, 2)))
    assert again.fid == pytest.approx(25, rel=1e-9) and "lambda" in again.extractor["name"]
    for name, expected in (("wrong", "returns float64 ()"), ("broken", "fails: IndexError"), ("nan", "not finite")):
        with pytest.raises(UserError, match=re.escape(expected)):
            evaluate(images, images, f"{tmp_path}/mine_features.py:{name}")


def test_too_many_features_for_a_covariance(monkeypatch, tmp_path):
    monkeypatch.setattr("jax_ddpm.evaluation.reference.MAX_FEATURES", 10)
    found = evaluate(random_images(0, 30), random_images(1, 30), "pixels", cache_dir=tmp_path)
    assert found.fid is None and found.kid is not None and found.recall is not None
    assert "FID: not computed" in str(found) and "FID  " not in str(found)
    with pytest.raises(UserError, match="num_images = 0"):
        evaluate(random_images(0, 30), random_images(1, 30), "pixels", 0)


def test_too_few_images_are_said_to_be_too_few(digits):
    notes = " ".join(evaluate(digits.validation[:20], digits, "pixels").notes)
    assert "20 images are too few for 64 features: their covariance needs 65 or more" in notes
    assert "10,000" in notes and "subsets of 10 images" in notes
    found = evaluate(digits.validation[:3], digits, "pixels")
    assert found.kid is None and found.precision is None and found.fid > 0
    assert "it needs 4" in " ".join(found.notes)


# The command ---------------------------------------------------------------------------------------------------------


def test_a_run(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "scores.json"
    flags = (*DIGITS, "--likelihood", "bound", "--num-timesteps", 4, "--num-held-out", 14, "--out", out)
    said = succeed(capsys, monkeypatch, "evaluate.py", run, *flags)
    scores = json.loads(out.read_text())
    assert f"{scores['fid']:.4g}" in said and "Reference: train:digits, 1,617 images" in said
    assert re.search(r"FID +[\d.e+]+ \[.*\] +[\d.]+ \[.*\]", said), "real images stand beside"
    assert scores["num_images"] == 12 and scores["floor"]["num_images"] == 12
    bits = scores["bits_per_dimension"]["bound"]
    assert 0 < bits["standard_error"] < bits["value"] < 30 and bits["num_images"] == 14
    assert (run / "evaluation" / "bound.png").is_file()
    result = read_results(run)[-1]
    assert result["scores"]["fid"] == scores["fid"] and (result["step"], result["weights"]) == (6, "ema")
    (folder,) = (run / "evaluation" / "samples").iterdir()
    times, lines = [path.stat().st_mtime_ns for path in sorted(folder.glob("*.npy"))], []
    assert evaluate(run, features="pixels", num_images=12, log=lines.append).fid == scores["fid"], "the images are kept"
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("*.npy"))] == times
    assert read_results(run)[-1]["scores"]["fid"] == scores["fid"] and "results.jsonl" in lines[-1]


@pytest.mark.slow
def test_a_run_by_the_ode_and_from_python(run, capsys, monkeypatch):
    said = succeed(
        capsys,
        monkeypatch,
        "evaluate.py",
        run,
        *DIGITS,
        "--likelihood",
        "both",
        "--num-timesteps",
        4,
        "--num-held-out",
        12,
    )
    assert "bound: " in said and "ODE: " in said
    found = evaluate(run, features="pixels", num_images=12, sampler="ddpm", num_steps=20)
    assert f"{found.fid:.4g}" in said


def test_a_sweep(run, tmp_path, capsys, monkeypatch):
    out, plot = tmp_path / "sweep.json", tmp_path / "plots" / "sweep.png"
    flags = ("--sweep", "sampler=ddpm,ddim num_steps=2,21", "eta=0,1", "--out", out, "--plot", plot)
    said = succeed(capsys, monkeypatch, "evaluate.py", run, *DIGITS, *flags)
    points = json.loads(out.read_text())
    calls = [(p["sampler"]["sampler"], p["sampler"]["eta"], p["network_calls"]) for p in points]
    assert calls == [("ddpm", 0, 2), ("ddim", 0, 2), ("ddim", 1, 2)]
    assert "Skipped sampler=ddpm num_steps=21 eta=0.0: num_steps = 21" in said
    assert "Skipped sampler=ddpm num_steps=2 eta=1.0: eta = 1.0: only ddim has eta" in said
    best = min(points, key=lambda point: point["scores"]["fid"])
    row = next(line for line in said.splitlines() if line.startswith("*") and f"{best['scores']['fid']:.4g}" in line)
    assert str(best["network_calls"]) in row
    with Image.open(plot) as picture:
        assert picture.width > 500
    assert "Added to" in said and "kept" not in said
    said = succeed(capsys, monkeypatch, "evaluate.py", run, *DIGITS, "--sweep", "num_steps=2", "--plot", plot)
    assert "kept" in said


def test_combinations_of_a_sweep():
    """Heun calls the network twice for each step but the last; the variance is ddpm's alone."""
    said = []
    settings = sweep.read_settings(["sampler=ddpm,ddim,heun num-steps=5,None", "variance=beta,posterior"])
    found = sweep.combinations(settings, SamplerConfig(), DiffusionConfig(timesteps=20), said.append)
    calls = [(each.sampler.sampler, each.diffusion.variance, each.network_calls) for each in found]
    assert calls == [
        *(("ddpm", "beta", 5), ("ddpm", "posterior", 5), ("ddpm", "beta", 20), ("ddpm", "posterior", 20)),
        *(("ddim", "beta", 5), ("ddim", "beta", 20), ("heun", "beta", 9), ("heun", "beta", 39)),
    ]
    assert len(said) == 4 and all("the same as sampler=" in line for line in said)


def point(sampler, calls, fid, width=0.1, level=70):
    config = SamplerConfig(sampler, num_steps=calls)
    combination = sweep.Combination({"sampler": sampler}, config, DiffusionConfig())
    scores = Scores(10, 10, {}, {}, fid=fid, fid_interval=(fid - width, fid + width))
    return sweep.Point(combination, scores, 0.0, level)


def test_the_best_points_and_the_warning_of_a_sweep():
    points = [point("ddpm", 10, 9.0), point("ddim", 10, 5.0), point("ddpm", 100, 2.0), point("ddim", 100, 4.0)]
    assert sweep.best_points(points) == [points[1], points[2]]
    assert sweep.warnings(points) == ["sampler=ddim is far worse than sampler=ddpm: FID 4 and 2.", sweep.REASON]
    warning = sweep.warnings([point("ddpm", 100, 2.0), point("ddim", 100, 4.0, level=110)], real_level=73)[0]
    assert "mean level of the pixels 110 and 70, of real ones 73" in warning
    assert sweep.warnings([point("ddpm", 100, 2.0, width=2), point("ddim", 100, 4.0, width=2)]) == []


def test_images_against_statistics(digits, tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "images.npz", images=digits.validation[:40])
    out, statistics = tmp_path / "with features.npz", tmp_path / "reference.npz"
    flags = ("--features", "pixels", "--out", out, "--save-reference", statistics)
    said = succeed(capsys, monkeypatch, "evaluate.py", tmp_path / "images.npz", "--reference", "train:digits", *flags)
    with np.load(out) as file:
        assert np.array_equal(file["images"], digits.validation[:40]) and file["features"].shape == (40, 64)
        np.testing.assert_allclose(file["sigma"], np.cov(file["features"], rowvar=False), atol=1e-12)
    distance = re.search(r"FID +([\d.]+)", said)[1]
    again = succeed(capsys, monkeypatch, "evaluate.py", out, "--reference", statistics, "--features", "pixels")
    assert re.search(r"FID +([\d.]+)", again)[1] == distance and "it has only statistics" in again
    with np.load(statistics) as file:
        assert (str(file["features_name"]), str(file["features_fingerprint"])) == ("pixels", PIXELS.fingerprint)
    again = succeed(capsys, monkeypatch, "evaluate.py", out, "--reference", statistics)
    assert "Features: pixels, since the statistics are of these features" in again


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


WRONG = {
    "no reference": (lambda p: [write(p / "a.npz", images=random_images(0, 5))], "give --reference"),
    "no file": (lambda p: [p / "no.npz", "--reference", "train:digits"], "there is no such file"),
    "no folder": (lambda p: ["validation:digits", "--reference", p / "no"], "expected train:DATASET"),
    "another size": (
        lambda p: [
            "validation:digits",
            "--image-size",
            8,
            "--reference",
            write(p / "a.npz", images=random_images(0, 5)),
        ],
        "has images of 4x4 pixels with 1 channel, but the evaluated images have 8x8 pixels with 1 channel",
    ),
    "other channels": (
        lambda p: [write(p / "a.npz", images=random_images(0, 5, (8, 8, 3))), "--reference", "train:digits"],
        "digits has images with 1 channel, but the evaluated images have 3",
    ),
    "one image": (
        lambda p: [
            write(p / "a.npz", images=random_images(0, 1)),
            "--reference",
            write(p / "b.npz", images=random_images(0, 5)),
        ],
        "expected at least 2, not 1",
    ),
    "pictures of several sizes": (
        lambda p: [pictures(p, (8, 8), (9, 7)), "--reference", "train:digits"],
        "1.png has 9x7 pixels, but those before it have 8x8",
    ),
    "floats": (
        lambda p: [write(p / "a.npz", images=np.zeros((4, 8, 8, 1))), "--reference", "train:digits"],
        "float64 (4, 8, 8, 1): expected uint8 (N, H, W, C)",
    ),
    "no channels": (
        lambda p: [write(p / "a.npz", images=np.zeros((4, 8, 8), np.uint8)), "--reference", "train:digits"],
        "add the channels: images[..., None]",
    ),
    "channels first": (
        lambda p: [write(p / "a.npz", images=np.zeros((4, 3, 8, 8), np.uint8)), "--reference", "train:digits"],
        "images.transpose(0, 2, 3, 1)",
    ),
    "none": (
        lambda p: [write(p / "a.npz", images=np.zeros((0, 8, 8, 1), np.uint8)), "--reference", "train:digits"],
        "There are no images",
    ),
    "no such file": (lambda p: [p / "no", "--reference", "train:digits"], "or images: train:DATASET"),
    "a data set without its split": (
        lambda p: ["validation:digits", "--reference", "folder:pics"],
        "train:folder:pics",
    ),
    "pictures of another size": (
        lambda p: ["validation:digits", "--image-size", 8, "--reference", pictures(p, (9, 9))],
        "9x9 pixels, but the evaluated images have 8x8",
    ),
    "num_images": (lambda p: ["runs/x", "--num-images", 1], "--num-images = 1: expected at least 2"),
    "nan": (
        lambda p: [write(p / "a.npz", images=np.full((4, 8, 8, 1), np.nan)), "--reference", "train:digits"],
        "not finite",
    ),
    "no images in the file": (
        lambda p: [write(p / "a.npz", weights=np.zeros(3)), "--reference", "train:digits"],
        "holds weights: expected `images` or `arr_0`",
    ),
    "a damaged file": (lambda p: [damaged(p), "--reference", "train:digits"], "cannot be read"),
    "nan statistics": (
        lambda p: [
            "validation:digits",
            "--image-size",
            8,
            "--reference",
            write(p / "a.npz", mu=np.full(64, np.nan), sigma=np.eye(64)),
        ],
        "expected finite mu",
    ),
    "other statistics": (
        lambda p: [
            "validation:digits",
            "--image-size",
            8,
            "--reference",
            write(p / "a.npz", mu=np.zeros(3), sigma=np.eye(3)),
        ],
        "One set has 64 features an image, the other 3",
    ),
    "more images than there are": (
        lambda p: ["validation:digits", "--image-size", 8, "--reference", "train:digits", "--num-images", 500],
        "num_images = 500: validation:digits has only 180 images",
    ),
    "statistics of other features": (
        lambda p: [
            "validation:digits",
            "--image-size",
            8,
            "--reference",
            write(
                p / "a.npz",
                mu=np.zeros(64),
                sigma=np.eye(64),
                features_name="classifier",
                features_fingerprint="ab" * 32,
            ),
        ],
        "statistics of the features classifier (hash abababab), but the others are pixels",
    ),
    "unknown features": (
        lambda p: ["validation:digits", "--image-size", 8, "--reference", "train:digits", "--features", "vgg"],
        "features = vgg: expected pixels, classifier, inception, inception:FILE",
    ),
    "no labels": (
        lambda p: [
            write(p / "a.npz", images=random_images(0, 5)),
            "--reference",
            p / "a.npz",
            "--features",
            "classifier",
        ],
        "labels",
    ),
    "weights of another network": (
        lambda p: [
            "validation:digits",
            "--image-size",
            8,
            "--reference",
            "train:digits",
            "--features",
            f"inception:{other_weights(p)}",
        ],
        "does not hold the Inception-v3 of the FID",
    ),
    "no weights": (
        lambda p: [
            "validation:digits",
            "--image-size",
            8,
            "--reference",
            "train:digits",
            "--features",
            f"inception:{p}/no.pth",
        ],
        "no.pth: there is no such file",
    ),
    "likelihood of images": (
        lambda p: ["validation:digits", "--image-size", 8, "--reference", "train:digits", "--likelihood", "bound"],
        "--likelihood needs a model, and validation:digits is images",
    ),
    "sweep of images": (
        lambda p: ["validation:digits", "--image-size", 8, "--reference", "train:digits", "--sweep", "eta=0,1"],
        "--sweep needs a model",
    ),
    "a sampler of images": (
        lambda p: ["validation:digits", "--image-size", 8, "--reference", "train:digits", "--num-steps", 5],
        "--num-steps is for models that draw images",
    ),
    "ending of --out": (lambda p: ["runs/x", "--out", p / "a.txt"], "expected a name that ends in .json or .npz"),
}


def pictures(folder, *sizes):
    for number, size in enumerate(sizes):
        Image.new("L", size).save(folder / f"{number}.png")
    return folder


def damaged(folder):
    (folder / "a.npz").write_bytes(b"PK\x03\x04" + bytes(20))
    return folder / "a.npz"


def other_weights(folder):
    import safetensors.numpy

    safetensors.numpy.save_file({"a.weight": np.zeros((2, 2), np.float32)}, folder / "other.safetensors")
    return folder / "other.safetensors"


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name, tmp_path, capsys, monkeypatch):
    arguments, expected = WRONG[name]
    arguments = arguments(tmp_path)
    if "--features" not in arguments:
        arguments += ["--features", "pixels"]
    assert expected in refusal(capsys, monkeypatch, "evaluate.py", *arguments)


def test_wrong_sweeps(run, capsys, monkeypatch):
    for text, expected in {
        "sampler": "expected NAME=VALUE,VALUE",
        "width=3": "width is no setting of sampling. Expected one of sampler, num_steps",
        "sampler=ddpm,plms": "'ddpm', 'ddim'",
        "num_steps=a": "valid integer",
        "num_steps=40,50": "none of the combinations is possible",
    }.items():
        assert expected in refusal(capsys, monkeypatch, "evaluate.py", run, *DIGITS, "--sweep", text), text


def test_a_run_whose_images_have_changed(run, tmp_path, capsys, monkeypatch):
    flags = ("--validation-fraction", "0.3")
    assert "does not hold the images of this run" in refusal(capsys, monkeypatch, "evaluate.py", run, *DIGITS, *flags)


def test_inceptions_weights_are_downloaded_and_checked(tmp_path, monkeypatch):
    source = tmp_path / "source.pth"
    source.write_bytes(b"weights")
    monkeypatch.setattr(inception_file, "URL", source.as_uri())
    with pytest.raises(UserError, match="its SHA-256 begins with"):
        inception_file.download(tmp_path / "cache")
    assert not list((tmp_path / "cache" / "inception").iterdir()), "the wrong file is not kept"
    monkeypatch.setattr(inception_file, "DIGEST_START", hashlib.sha256(b"weights").hexdigest()[:8])
    path = inception_file.download(tmp_path / "cache")
    assert path.read_bytes() == b"weights"
    source.unlink()
    assert inception_file.download(tmp_path / "cache") == path, "it is downloaded once"

    def offline(*arguments, **settings):
        raise urllib.error.URLError(OSError("no route to host"))

    monkeypatch.setattr(inception_file.urllib.request, "urlopen", offline)
    with pytest.raises(UserError) as refused:
        open_extractor("inception", None, tmp_path / "empty", print)
    assert "cannot be downloaded (no route to host)" in str(refused.value) and source.as_uri() in str(refused.value)
    assert "inception:pt_inception" in str(refused.value)


def test_statistics_without_a_number_of_images(digits):
    values = distances.statistics(PIXELS(digits.train))
    found = evaluate(digits.validation, Statistics(values.mu, values.sigma), "pixels")
    assert found.num_reference is None and "an unknown number of images" in str(found)
