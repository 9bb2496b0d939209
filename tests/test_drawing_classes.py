"""Drawing classes: labels by name and number, guidance that fits a model, pictures of classes, scores of classes."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jax_ddpm import report, train, unets, weights
from jax_ddpm.evaluation import Extractor, ImageSet, make_reference, read_results, score
from jax_ddpm.evaluation.classes import samples_with_labels
from jax_ddpm.evaluation.extractors import PIXELS
from jax_ddpm.evaluation.sweep import combinations
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.labels import labels_of_images, mixed_labels
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig, DDPMConfig
from jax_ddpm.spec.write_model import write_model
from tests.commands import refusal, succeed
from tests.small import small

NAMES = ("shirt", "Sneaker", "bag")
NETWORK = ConvBlockConfig(widths=(32,), time_width=32, num_classes=3)
INFO = ModelInfo(NETWORK, (8, 8, 1), DiffusionConfig(timesteps=6, beta_end=0.6), class_names=NAMES)
PLAIN = replace(INFO, network=ConvBlockConfig(widths=(32,), time_width=32), class_names=None)
GUIDED = SamplerConfig(guidance=2.0)


def wanted(labels, count=3, info=INFO):
    return labels_of_images(info, labels, count, SamplerConfig()).wanted


def test_labels_by_name_and_number():
    assert wanted(None, 5).tolist() == [0, 1, 2, 0, 1]
    assert wanted(["sneaker", 2, None]).tolist() == [1, 2, 3]
    assert wanted("none").tolist() == [3, 3, 3] and wanted("2").tolist() == wanted(np.int64(2)).tolist() == [2, 2, 2]
    assert wanted(np.array([2, 0, 1])).dtype == np.int32
    digits = replace(INFO, class_names=("7", "8", "9"))  # names that are numbers, too
    assert wanted("8", info=digits).tolist() == [1, 1, 1]
    assert labels_of_images(PLAIN, None, 3, SamplerConfig()) is None


def test_labels_for_guidance():
    both = labels_of_images(INFO, "bag", 2, GUIDED)
    assert both.none.tolist() == [3, 3] and both.of_guide is None
    guided = labels_of_images(INFO, ["bag", None], 2, GUIDED, INFO)
    assert guided.none is None and guided.of_guide.tolist() == [2, 3]
    assert labels_of_images(INFO, "bag", 2, GUIDED, PLAIN).of_guide is None


def test_mixed_labels():
    mixed = mixed_labels(INFO, "shirt", "none", 3)
    np.testing.assert_allclose(mixed, [[1, 0, 0, 0], [0.5, 0, 0, 0.5], [0, 0, 0, 1]])
    np.testing.assert_array_equal(wanted(mixed), mixed)
    vectors = replace(INFO, network=DDPMConfig(widths=(32,), class_embed_type="identity"), class_names=None)
    assert wanted(np.zeros(128, np.float32), info=vectors).shape == (3, 128)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("sneeker", "no class sneeker: did you mean Sneaker?"),
        ("xyz", "expected one of shirt, Sneaker, bag"),
        (3, "labels = 3: expected a class from 0 to 2, a name, or none"),
        (-1, "labels = -1"),
        ([1, 2], "number of labels = 2: expected 3"),
        (1.5, "no class 1.5"),
        (np.zeros((3, 3)), r"shape of labels = \(3, 3\)"),
        (np.full((3, 4), np.nan), "finite"),
    ],
)
def test_labels_that_do_not_fit(labels, said):
    with pytest.raises(UserError, match=said):
        wanted(labels)


@pytest.mark.parametrize(
    ("info", "labels", "sampler", "guide", "said"),
    [
        (PLAIN, 1, SamplerConfig(), None, "trained without labels"),
        (PLAIN, None, GUIDED, None, "guidance = 2: this model was trained without labels"),
        (replace(INFO, network=NETWORK.with_classes(3, False)), None, GUIDED, None, "no null label"),
        (replace(INFO, network=NETWORK.with_classes(3, False)), "none", SamplerConfig(), None, "no null label"),
        (INFO, None, SamplerConfig(), INFO, "no effect at 1"),
        (INFO, None, GUIDED, replace(INFO, image_shape=(4, 4, 1)), "image shape of the guide"),
        (INFO, None, GUIDED, replace(INFO, diffusion=replace(INFO.diffusion, timesteps=9)), "timesteps of the guide"),
        (INFO, None, GUIDED, replace(INFO, diffusion=replace(INFO.diffusion, objective="v")), "objective of the guide"),
        (INFO, None, GUIDED, replace(INFO, network=NETWORK.with_classes(4)), "number of classes of the guide = 4"),
        (INFO, None, GUIDED, replace(INFO, class_names=NAMES[::-1]), "class names of the guide"),
        (INFO, "none", GUIDED, replace(INFO, network=NETWORK.with_classes(3, False)), "guide has no null label"),
        (PLAIN, None, GUIDED, replace(INFO, network=NETWORK.with_classes(3, False)), "it needs a label for each image"),
    ],
)
def test_guidance_and_guides_that_do_not_fit(info, labels, sampler, guide, said):
    with pytest.raises(UserError, match=said):
        labels_of_images(info, labels, 3, sampler, guide)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"guidance": float("nan")}, "guidance = nan"),
        ({"guidance": float("inf")}, "guidance = inf"),
        ({"guidance_rescale": 1.1}, "guidance_rescale = 1.1"),
        ({"guidance_interval": (0, 6)}, "guidance_interval = 0 6: .* T - 1 = 5"),
        ({"guidance_interval": (-1, 3)}, "guidance_interval"),
        ({"guidance_interval": (4, 3)}, "first <= last"),
    ],
)
def test_settings_of_guidance(settings, said):
    with pytest.raises(UserError, match=said):
        SamplerConfig(**settings).check(6)


def test_a_grid_has_a_row_for_each_label():
    images = np.full((5, 4, 4, 1), np.arange(5, dtype=np.uint8).reshape(-1, 1, 1, 1) * 40)
    picture = np.asarray(report.class_grid(images, np.array([1, 0, 3, 0, 1]), NAMES, tile=4))
    left = picture.shape[1] - 2 * 6
    centres = picture[[4, 10, 16], left + 1 : left + 12 : 6]
    assert centres.tolist() == [[40, 120], [0, 160], [80, 255]]
    assert report.label_text(3, NAMES) == "none" and report.label_text(4, NAMES) == "4"
    assert report.class_grid(images, None).size == report.grid(images).size


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("classes")
    for name, info in (("model", INFO), ("plain", PLAIN)):
        network = unets.build(info.network, 1)
        weights.initialise(network, 5)
        write_model(place / f"{name}.safetensors", weights.state_dict(network), info)
    return place


@pytest.fixture
def sample(place, capsys, monkeypatch):
    monkeypatch.chdir(place)

    def run(flags, check=succeed, model="model.safetensors"):
        return check(capsys, monkeypatch, "sample.py", "--framework", "torch", "--model", model, *flags.split())

    return run


def test_the_command_draws_classes(sample, place):
    assert "3 images" in sample("--labels Sneaker,2,none --guidance 2 --out x.npz")
    with np.load(place / "x.npz") as arrays:
        assert arrays["labels"].tolist() == [1, 2, 3] and len(arrays["images"]) == 3
    said = sample("--label-grid --out grid.png --sampler ddim --num-steps 2")
    assert "24 images" in said and "the classes in turn" in said
    said = sample("--guidance 1 -2 4 --guide plain.safetensors --out weights.png --sampler ddim --num-steps 2")
    assert "9 images" in said and "-2 is below 0" in said
    wide, tall = (Image.open(place / name).size for name in ("weights.png", "grid.png"))
    assert wide[0] < tall[0] and abs(wide[1] - tall[1]) < 30  # 3 rows each; 3 and 8 columns
    assert "7 images" in sample("--interpolate 1,2 --labels bag,none --sampler ddim --num-steps 2 --num-images 7")
    assert "states" in sample("--labels bag --num-images 2 --guidance 3 --guidance-interval 1 4 --out x.gif")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--labels sneeker", "did you mean Sneaker?"),
        ("--labels bag,,1", "expected names or numbers"),
        ("--guidance nan", "guidance = nan"),
        ("--guidance-interval 2 6", "guidance_interval = 2 6"),
        ("--guidance 1 2 --out x.npz", "columns of a .png"),
        ("--guidance 1 2 --label-grid", "do not go together"),
        ("--label-grid --out x.npz", "--label-grid"),
        ("--guide plain.safetensors", "no effect"),
        ("--interpolate 1,2 --labels 0,1,2 --sampler ddim", "one label, or two"),
    ],
)
def test_the_command_refuses(sample, flags, said):
    assert said in sample(flags, refusal)


def test_the_command_refuses_labels_of_a_model_without(sample):
    for flags, said in (
        ("--labels bag", "train a model with --conditional"),
        ("--label-grid", "trained without labels"),
        ("--guidance 2", "--guide MODEL"),
    ):
        assert said in sample(flags, refusal, "plain.safetensors")


def images_of(labels, seed=0):
    """Images whose brightness is that of their class."""
    noise = np.random.default_rng(seed).integers(0, 30, (len(labels), 4, 4, 1))
    return (noise + 70 * np.asarray(labels).reshape(-1, 1, 1, 1)).astype(np.uint8)


def by_brightness(images) -> np.ndarray:
    return np.asarray(images).mean(axis=(1, 2, 3)).astype(int) // 70


def test_scores_of_classes():
    real_labels, labels = np.arange(60) % 3, np.arange(30) % 3
    extractor = Extractor(**{**vars(PIXELS), "name": "own", "classify": by_brightness})
    reference = make_reference(ImageSet("real", images_of(real_labels), labels=real_labels), extractor)
    right = score(ImageSet("drawn", images_of(labels, 1), labels=labels), reference)
    assert right.class_accuracy == 1 and [each.name for each in right.classes] == ["0", "1", "2"]
    assert all(each.accuracy == 1 and each.num_images == 10 and abs(each.kid) < 0.1 for each in right.classes)
    drawn = labels.copy()
    drawn[:3] = [1, 1, 7]  # image 0 is of class 0 but was drawn for 1; the reference has no class 7
    wrong = score(ImageSet("drawn", images_of(labels, 1), labels=drawn), reference)
    assert wrong.class_accuracy == pytest.approx(28 / 29)
    assert [each.num_images for each in wrong.classes] == [9, 11, 9]
    assert "class accuracy" in str(wrong) and "class  images" in str(wrong)
    assert score(images_of(labels, 1), reference).class_accuracy is None


def test_classes_are_matched_by_name():
    reference = make_reference(ImageSet("real", images_of(np.arange(9) % 3)), PIXELS)
    reference = replace(reference, class_names=("bag", "shirt"))
    found = samples_with_labels(images_of([0, 1, 2, 0]), INFO, reference)
    assert found.labels.tolist() == [1, -1, 0, 1]


def test_a_sweep_over_guidance():
    found = combinations(
        {"guidance": ["1", "2"], "guidance_rescale": ["0", "0.7"]}, SamplerConfig(), INFO.diffusion, print
    )
    assert [each.network_calls for each in found] == [6, 12, 12]  # without guidance, rescaling changes nothing


@pytest.mark.slow
def test_a_run_and_its_evaluation_show_classes(tmp_path, capsys, monkeypatch):
    settings = {"conditional": True, "num_samples": 23, "guidance": 2.0, "steps": 4, "gif_frames": 3}
    run = train(small(**settings), tmp_path / "run")
    page = (run / "report.html").read_text()
    assert "A row for each class, with guidance 2." in page and "--guidance 2.0 --num-images 20" in page
    assert "--label-grid" in page
    with Image.open(run / "samples" / "grid.png") as picture:
        assert picture.size[0] < picture.size[1]  # 10 rows of 2
    said = succeed(capsys, monkeypatch, "evaluate.py", run, "--sweep", "guidance=1,2", "--num-images", 20)
    assert "class accuracy" in said
    sweep = read_results(run)
    assert [row["sampler"]["guidance"] for row in sweep] == [1, 2] and len(sweep[0]["scores"]["classes"]) == 10
