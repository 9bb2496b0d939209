"""Distances between sets of features: against torch-fidelity's numbers, closed forms, and wrong input."""

import re

import numpy as np
import pytest

from jax_ddpm.evaluation import distances
from jax_ddpm.spec.errors import UserError
from parity_tests.fidelity_reference import NEIGHBOURS, SUBSET_SIZE, SUBSETS, features

FIDELITY = {  # torch-fidelity 0.4.0, printed by parity_tests/fidelity_reference.py
    "wide": {"fid": 208.06350531555017, "kid": (32.043939921442096, 2.244440804030265), "precision": 1, "recall": 0},
    "narrow": {
        **{"fid": 7.081020737701868, "kid": (16.534823572272273, 5.622697454034921)},
        **{"precision": 0.3, "recall": 0.15},
    },
}


@pytest.mark.parametrize("name", FIDELITY)
def test_they_equal_torch_fidelity(name):
    (a, b), wanted = features(name), FIDELITY[name]
    assert distances.fid(*map(distances.statistics, (a, b))) == pytest.approx(wanted["fid"], rel=1e-9)
    assert distances.kid(a, b, SUBSETS, SUBSET_SIZE) == pytest.approx(wanted["kid"], rel=1e-9)
    found = distances.manifold(real=b, generated=a, k=NEIGHBOURS)
    assert (found.precision, found.recall) == pytest.approx((wanted["precision"], wanted["recall"]), abs=1e-7)


def test_fid_of_normal_distributions_in_closed_form():
    """Covariances that share their axes: |mu|^2 + the sum of (s_a - s_b)^2 over standard deviations."""
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    one, two = np.array([1.0, 2, 3, 0, 5]), np.array([2.0, 2, 1, 4, 0])
    a = distances.Statistics(np.zeros(5), axes @ np.diag(one**2) @ axes.T)
    b = distances.Statistics(np.full(5, 0.5), axes @ np.diag(two**2) @ axes.T)
    assert distances.fid(a, b) == pytest.approx(5 * 0.25 + np.sum((one - two) ** 2), rel=1e-8)
    assert distances.fid(a, a) == pytest.approx(0, abs=1e-7)


def test_fewer_images_than_features():
    a = np.random.default_rng(0).standard_normal((6, 20))
    assert distances.fid(distances.statistics(a), distances.statistics(a)) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(distances.fid(distances.statistics(a), distances.statistics(a[::-1] * 2 + 1)))


def test_the_kernel_distance_is_unbiased():
    """0 in the mean for two halves of one set, and the same however the sum is split into blocks."""
    draw = np.random.default_rng(1)
    values = [distances.polynomial_mmd(*draw.standard_normal((2, 20, 4))) for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300) and min(values) < 0
    a, b = draw.standard_normal((2, 10, 3))
    kernel = lambda x, y: (x @ y.T / 3 + 1) ** 3  # noqa: E731
    pairs = ~np.eye(10, dtype=bool)
    expected = kernel(a, a)[pairs].mean() + kernel(b, b)[pairs].mean() - 2 * kernel(a, b).mean()
    assert distances.polynomial_mmd(a, b) == pytest.approx(expected, rel=1e-12)


def test_blocks_change_nothing(monkeypatch):
    a, b = features("narrow")
    whole = distances.manifold(a, b), distances.kid(a, b, 3, 20)
    monkeypatch.setattr(distances, "BLOCK_ROWS", 7)
    assert distances.manifold(a, b) == whole[0]
    assert distances.kid(a, b, 3, 20) == pytest.approx(whole[1], rel=1e-12)


def test_how_two_sets_cover_each_other():
    """On a line: real images at 0, 1, 2, 3; one generated image among them, two far away."""
    real, generated = np.array([[0.0], [1], [2], [3]]), np.array([[1.4], [50], [60]])
    found = distances.manifold(real, generated, k=1)
    assert found.precision == pytest.approx(1 / 3) and found.density == pytest.approx(2 / 3)  # in the balls of 1 and 2
    assert found.coverage == 2 / 4 and found.recall == 1  # the ball of 1.4 reaches to 50
    same = distances.manifold(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)


def test_the_interval_holds_the_distance_and_narrows():
    draw = np.random.default_rng(2)
    reference = distances.Statistics(np.zeros(3), np.eye(3))
    widths = []
    for count in (100, 1600):
        sample = draw.standard_normal((count, 3)) + 0.5
        low, high = distances.fid_interval(sample, reference, repeats=60)
        assert low < distances.fid(distances.statistics(sample), reference) < high
        widths.append(high - low)
    assert 2.5 < widths[0] / widths[1] < 6.5  # the root of 16, but for chance


def test_statistics_in_a_file(tmp_path):
    made = distances.statistics(features("narrow")[0])
    distances.save_statistics(tmp_path / "s.npz", made)
    read = distances.load_statistics(tmp_path / "s.npz")
    assert read.count == 40 and (read.mu == made.mu).all() and (read.sigma == made.sigma).all()
    np.savez(tmp_path / "other.npz", mu=np.zeros(2, np.float32), sigma=np.eye(2, dtype=np.float32))
    assert distances.load_statistics(tmp_path / "other.npz").count is None


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((3, 4, 5)), "expected numbers (images, features)"),
        (np.zeros((1, 4)), "at least 2 images, not 1"),
        (np.array([[1.0, 2], [np.nan, 3]]), "1 of 2 rows are not finite"),
        (np.array([["a"], ["b"]]), "expected numbers"),
    ],
)
def test_wrong_features(features, message):
    with pytest.raises(UserError, match=re.escape(message)):
        distances.statistics(features)


def test_sets_that_do_not_fit(tmp_path):
    a = np.eye(6)
    with pytest.raises(UserError, match="One set has 6 features an image, the other 3"):
        distances.kid(a, a[:, :3], 1, 2)
    with pytest.raises(UserError, match="needs 1000 images of each set"):
        distances.kid(a, a)
    with pytest.raises(UserError, match="k = 9: expected fewer neighbours than images"):
        distances.manifold(a, a, k=9)
    np.savez(tmp_path / "images.npz", images=a)
    for path, message in (("images.npz", "holds no statistics"), ("nothing.npz", "does not exist")):
        with pytest.raises(UserError, match=message):
            distances.load_statistics(tmp_path / path)
