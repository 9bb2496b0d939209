"""The Inception-v3 of the FID against torch-fidelity's numbers and PyTorch's pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jax_ddpm.evaluation import inception
from jax_ddpm.spec.errors import UserError
from parity_tests.fidelity_reference import inception_images, inception_weights

REFERENCE = {  # torch-fidelity 0.4.0 in float64: the norms of both images' features, and three features of the second
    "64": [4.069349411558832, 4.118779566888898, 0.591092663351421, 0.13679296074245403, 0.7157491629442468],
    "192": [14.850460053795837, 14.962078025261958, 0.0012543881368241524, 1.1493869517722026, 0.0],
    "768": [94.70787256272337, 94.25196897490414, 2.466121586391402, 0.0006299277932488198, 0.0],
    "2048": [270.40819302377645, 269.91804556858744, 7.265074480076731, 0.0728887090743385, 0.0],
}


def test_resizing_is_that_of_tensorflow_1():
    images = inception_images()
    with jax.enable_x64(True):
        x = jnp.asarray(images, jnp.float64)
        tall, wide = np.asarray(inception.resize(x, 7)), np.asarray(inception.resize(x, 50))
    reference = [116.57143783569336, 149.47715064150935, 129.90285515035885]  # 7 rows and 50 columns, by torch-fidelity
    assert tall.shape == (2, 7, 7, 3) and wide.shape == (2, 50, 50, 3)
    # Row 2 of 7 stands at 2 * 20 / 7 = 5.714, between rows 5 and 6.
    share = np.float64(np.float32(20 / 7)) * 2 - 5
    rows = images[0, 5:7, :, 1].astype(np.float64)
    row = rows[0] + (rows[1] - rows[0]) * share
    position = np.arange(3) * np.float64(np.float32(33 / 50))
    low = position.astype(int)
    np.testing.assert_allclose(row[low] + (row[low + 1] - row[low]) * (position - low), reference, rtol=1e-12)
    np.testing.assert_allclose(tall[0, 2, 0, 1], row[0], rtol=1e-12)


@pytest.mark.parametrize("kind", ["max", "max_same", "mean_same"])
def test_pooling(kind):
    x = np.random.default_rng(0).standard_normal((2, 9, 6, 3)).astype(np.float32)
    theirs = torch.from_numpy(x).permute(0, 3, 1, 2)
    wanted = {
        "max": lambda: F.max_pool2d(theirs, 3, stride=2),
        "max_same": lambda: F.max_pool2d(theirs, 3, stride=1, padding=1),
        "mean_same": lambda: F.avg_pool2d(theirs, 3, stride=1, padding=1, count_include_pad=False),
    }[kind]()
    ours = inception.pool(jnp.asarray(x), kind, 2 if kind == "max" else 1)
    np.testing.assert_allclose(ours, wanted.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def test_its_arrays():
    shapes = inception.shapes()
    assert len(shapes) == 472 and sum(np.prod(shape) for shape in shapes.values()) == 23_885_392
    assert shapes["Mixed_6b.branch7x7_2.conv.weight"] == (128, 128, 1, 7)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_features_equal_torch_fidelity(dtype, tolerance, tmp_path):
    values = inception_weights(inception.shapes())
    if dtype == np.float32:  # as users load them
        torch.save({name: torch.from_numpy(v).float() for name, v in values.items()}, tmp_path / "weights.pth")
        values = inception.load(tmp_path / "weights.pth")
    with jax.enable_x64(dtype == np.float64):
        arrays = {name: jnp.asarray(value, dtype) for name, value in values.items()}
        features = inception.features_of(arrays, inception_images())
        assert {name: value.shape[1] for name, value in features.items()} == {
            **{name: int(name) for name in REFERENCE},
            "logits_unbiased": 1008,
        }
        for name, wanted in REFERENCE.items():
            found = np.asarray(features[name], np.float64)
            assert features[name].dtype == dtype
            norms = np.linalg.norm(found, axis=1)
            np.testing.assert_allclose(norms, wanted[:2], rtol=tolerance)
            np.testing.assert_allclose(found[1, :3], wanted[2:], atol=tolerance * norms[1])


def test_other_files_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(1000, 2048), "conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"of 472 arrays 472 are missing or have\s+another shape"):
        inception.load(tmp_path / "other.pth")
