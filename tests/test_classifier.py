"""The classifier's features: training, the cache, the file that both frameworks read, and wrong input."""

import dataclasses

import numpy as np
import pytest
import torch

import torch_ref.classifier
from jax_ddpm import data
from jax_ddpm.evaluation import classifier, distances
from jax_ddpm.spec.classifier import config_for, read_classifier
from jax_ddpm.spec.errors import UserError
from tests.shared_data import SHARED, needs_shared
from torch_ref.step import prepare_images


@pytest.fixture(scope="module")
def stripes() -> data.ImageData:
    """Noisy 8x8 pictures of two classes: horizontal and vertical stripes."""
    g = np.random.default_rng(0)
    labels = g.integers(0, 2, 260)
    lines = np.where(np.arange(8) % 2, 200, 60) + np.zeros((8, 8))
    pictures = np.where(labels[:, None, None] == 0, lines.T, lines) + g.normal(0, 40, (260, 8, 8))
    return data.from_arrays(
        pictures.clip(0, 255).astype(np.uint8), labels, class_names=("horizontal", "vertical"), log=lambda line: None
    )


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(classifier, "num_steps", lambda *_: 6)
    monkeypatch.setattr(classifier, "BATCH_SIZE", 32)


def test_it_is_trained_once_and_read_by_both_frameworks(stripes, few_steps, tmp_path):
    lines = []
    first = classifier.load_classifier(stripes, tmp_path, lines.append)
    (file,) = (tmp_path / "classifiers").glob("*.safetensors")
    assert "Training the classifier of arrays once, on 234 images." in lines
    assert str(file) in "".join(lines) and f"{first.description}." in lines

    _, info = read_classifier(file)
    assert info.accuracy > 0.9 and info.num_held_out == len(stripes.validation) == 26
    assert first.name == "classifier" and f"({info.config.num_classes} classes, " in first.description
    assert f"{info.accuracy:.1%} of 26 held-out images correct)" in first.description

    before, lines = file.read_bytes(), []
    again = classifier.load_classifier(stripes, tmp_path, lines.append)
    assert again.fingerprint == first.fingerprint and lines == []
    features = first(stripes.validation)
    assert features.shape == (26, 128) and features.dtype == np.float64 and features.min() >= 0
    np.testing.assert_array_equal(again(stripes.validation), features)
    kept = classifier.kept_classifier(first.fingerprint, tmp_path)
    np.testing.assert_array_equal(kept(stripes.validation), features)
    with pytest.raises(UserError, match=r"hash abababab.*that is not in"):
        classifier.kept_classifier("ab" * 32, tmp_path)
    assert np.mean(np.square(first(stripes.train))) == pytest.approx(1, abs=1e-5)

    file.write_bytes(before[: len(before) // 2])
    repaired = classifier.load_classifier(stripes, tmp_path, lines.append)
    assert any("trained again" in line for line in lines)
    assert repaired.fingerprint == first.fingerprint and file.read_bytes() == before  # the same bits

    theirs = torch_ref.classifier.load_classifier(file, log=lambda line: None)
    found = torch_ref.classifier.features(theirs, stripes.validation)
    np.testing.assert_allclose(found, features, rtol=0, atol=1e-5 * features.max())
    real = first(stripes.train[:26])
    scores = [distances.fid(*map(distances.statistics, (each, real))) for each in (found, features)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_other_labels_are_another_classifier(stripes, tmp_path):
    config = config_for((8, 8, 1), 2)
    other = dataclasses.replace(stripes, labels=1 - stripes.labels)
    assert other.fingerprint == stripes.fingerprint
    assert classifier.cached_file(stripes, config, tmp_path) != classifier.cached_file(other, config, tmp_path)


def test_a_cache_that_cannot_be_written_is_no_error(stripes, few_steps, tmp_path, monkeypatch):
    (tmp_path / "classifiers").write_text("a file")
    monkeypatch.setattr(classifier, "train", lambda config, *_: network_of(config))
    lines = []
    classifier.load_classifier(dataclasses.replace(stripes, validation_labels=None), tmp_path, lines.append)
    assert any("is not kept" in line for line in lines)
    assert any("there are no labelled held-out images to test it on" in line for line in lines)


def network_of(config):
    network = classifier.Classifier(config)
    classifier.weights.initialise(network, 0)
    return network


@pytest.mark.parametrize(
    ("shape", "map_size"),
    [
        ((8, 8, 1), (2, 2)),
        ((28, 28, 1), (7, 7)),
        ((32, 48, 3), (8, 12)),
        ((64, 64, 3), (8, 8)),
        ((100, 63, 16), (12, 7)),
        ((300, 257, 3), (9, 8)),
    ],
)
def test_images_of_all_sizes(shape, map_size):
    config = config_for(shape, 5)
    assert config.map_size == map_size
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    x = prepare_images(torch.from_numpy(images), torch.float32, None)
    features, logits = torch_ref.classifier.Classifier(config)(x)
    assert features.shape == (2, 128) and logits.shape == (2, 5)


def test_wrong_input(stripes):
    with pytest.raises(UserError, match=r'none is given(?s:.*)features="pixels"'):
        classifier.load_classifier(None)
    with pytest.raises(UserError, match=r'arrays has no labels(?s:.*)a folder for each class, or features="pixels"'):
        classifier.load_classifier(dataclasses.replace(stripes, labels=None))
    with pytest.raises(UserError, match="has a single class"):
        classifier.load_classifier(dataclasses.replace(stripes, labels=np.zeros_like(stripes.labels)))
    with pytest.raises(UserError, match="at least 8x8 pixels, not 7x9"):
        config_for((7, 9, 1), 2)


def test_files_that_are_no_classifiers(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_classifier(tmp_path / "nothing.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(UserError, match="cannot be read"):
        read_classifier(tmp_path / "text.safetensors")


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(("name", "wanted"), [("fashion_mnist", 0.91), ("mnist", 0.985)])
def test_accuracy_on_real_data(name, wanted, tmp_path):
    images = data.load(name, 28, data_dir=str(SHARED / "data/tfds"), cache_dir=str(tmp_path))
    classifier.load_classifier(images, tmp_path)
    (file,) = (tmp_path / "classifiers").glob("*.safetensors")
    assert read_classifier(file)[1].accuracy >= wanted


@pytest.mark.slow
def test_accuracy_on_digits(tmp_path):
    classifier.load_classifier(data.load("digits", 8, cache_dir=str(tmp_path)), tmp_path)
    (file,) = (tmp_path / "classifiers").glob("*.safetensors")
    assert read_classifier(file)[1].accuracy >= 0.97
