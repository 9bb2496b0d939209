"""Numbers of torch-fidelity for features of fixed seeds, which `tests/test_distances.py` compares ours with.

`python -m parity_tests.fidelity_reference` prints them. It needs the package torch-fidelity, which the tests do not
install: it requires torchvision, which only its extractors use. Here that import is replaced by an empty module.
"""

import sys
import zlib
from unittest import mock

import numpy as np
import torch

SETS = {"wide": (60, 40, 24), "narrow": (40, 60, 3)}  # images in a and in b, and features
SUBSETS, SUBSET_SIZE, NEIGHBOURS = 7, 30, 3


def features(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features (N, D) and (M, D), float64, correlated and not normal."""
    n, m, d = SETS[name]
    draw = np.random.default_rng(len(name))
    mix = draw.standard_normal((d, d))
    a, b = np.tanh(draw.standard_normal((n, d)) @ mix), draw.standard_normal((m, d)) @ mix.T * 0.7 + 0.3
    return a, b


def inception_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random weights by name, float64, with activations of about the same size in all layers."""
    values = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("running_var") or name.endswith("bn.weight"):
            values[name] = draw.uniform(0.5, 1.5, shape)
        else:
            scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
            values[name] = draw.normal(size=shape) * scale
    return values


def inception_images() -> np.ndarray:
    """Two images that are not square, uint8 (2, 20, 33, 3)."""
    return np.random.default_rng(7).integers(0, 256, (2, 20, 33, 3), np.uint8)


def inception_features(module) -> None:
    """Print what torch-fidelity's Inception-v3 makes of `inception_images` with `inception_weights`, in float64."""
    with (
        mock.patch.object(module.torch, "load", lambda *a, **k: {}),
        mock.patch.object(torch.nn.Module, "load_state_dict", lambda *a: None),
    ):
        network = module.FeatureExtractorInceptionV3("reference", ["2048"], "none").double()
    network.feature_extractor_internal_dtype = torch.float64  # "float64" as an argument gives float32
    wanted = {name: v.shape for name, v in network.state_dict().items() if "num_batches" not in name}
    network.load_state_dict({name: torch.from_numpy(v) for name, v in inception_weights(wanted).items()}, strict=False)
    resized = module.interpolate_bilinear_2d_like_tensorflow1x
    images = torch.from_numpy(inception_images()).permute(0, 3, 1, 2)
    small = resized(images.double(), size=(7, 50), align_corners=False)
    print("resize", small[0, 1, 2, :5].tolist(), float(small.sum()))
    layers = {"64": network.MaxPool_1, "192": network.MaxPool_2, "768": network.Mixed_6e, "2048": network.AvgPool}
    for name, layer in layers.items():  # the network's own results are rounded to float32
        layer.register_forward_hook(lambda _, inputs, y, name=name: show(name, y.mean((2, 3))))
    with torch.no_grad():
        network(images)


def show(name: str, features: torch.Tensor) -> None:
    print(name, [float(features[0].norm()), float(features[1].norm()), *features[1, :3].tolist()])


def main() -> None:
    names = ("models", "transforms", "transforms.functional", "datasets", "datasets.utils")
    missing = ("torchvision", *(f"torchvision.{name}" for name in names))
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in missing}):
        import torch_fidelity
        from torch_fidelity import feature_extractor_inceptionv3, metric_fid, metric_kid, metric_prc

    print(f"torch-fidelity {torch_fidelity.__version__}")
    for name in SETS:
        a, b = map(torch.from_numpy, features(name))
        one, two = map(metric_fid.fid_features_to_statistics, (a, b))
        found = metric_fid.fid_statistics_to_metric(one, two, False)
        settings = {"kid_subsets": SUBSETS, "kid_subset_size": SUBSET_SIZE, "verbose": False}
        found |= metric_kid.kid_features_to_metric(a, b, **settings)
        found |= metric_prc.prc_features_to_metric(a, b, prc_neighborhood=NEIGHBOURS, verbose=False)
        print(name, found)
    inception_features(feature_extractor_inceptionv3)


if __name__ == "__main__":
    main()
