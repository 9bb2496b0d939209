"""Numbers of torch-fidelity for features of fixed seeds, which `tests/test_distances.py` compares ours with.

`python -m parity_tests.fidelity_reference` prints them. It needs the package torch-fidelity, which the tests do not
install: it requires torchvision, which only its extractors use. Here that import is replaced by an empty module.
"""

import sys
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


def main() -> None:
    names = ("models", "transforms", "transforms.functional", "datasets", "datasets.utils")
    missing = ("torchvision", *(f"torchvision.{name}" for name in names))
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in missing}):
        import torch_fidelity
        from torch_fidelity import metric_fid, metric_kid, metric_prc

    print(f"torch-fidelity {torch_fidelity.__version__}")
    for name in SETS:
        a, b = map(torch.from_numpy, features(name))
        one, two = map(metric_fid.fid_features_to_statistics, (a, b))
        found = metric_fid.fid_statistics_to_metric(one, two, False)
        settings = {"kid_subsets": SUBSETS, "kid_subset_size": SUBSET_SIZE, "verbose": False}
        found |= metric_kid.kid_features_to_metric(a, b, **settings)
        found |= metric_prc.prc_features_to_metric(a, b, prc_neighborhood=NEIGHBOURS, verbose=False)
        print(name, found)


if __name__ == "__main__":
    main()
