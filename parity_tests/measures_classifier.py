"""How far the classifier of the evaluation is apart in both frameworks: what the ladder measures of it."""

from functools import cache

import jax
import numpy as np
import torch
from flax import nnx

import torch_ref.classifier
import torch_ref.weights
from jax_ddpm import weights
from jax_ddpm.evaluation import classifier
from jax_ddpm.spec.classifier import ClassifierConfig
from parity_tests.golden_weights import rule
from parity_tests.measures import TORCH, compiled, relative

# 23x19 pixels are reduced to 11x9. The convolutions see 11x9 and 5x4, the linear layer 2x2.
CONFIG = ClassifierConfig((23, 19, 2), 3, widths=(4, 6), reduction=2, num_features=5)


@cache
def arrays() -> dict[str, np.ndarray]:
    """Weights by the golden rule, by PyTorch name."""
    return {e.name: rule(e.name, e.shape) for e in weights.torch_arrays(classifier.Classifier(CONFIG))}


def images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(6)
    return g.integers(0, 256, (4, *CONFIG.image_shape), np.uint8), np.array([0, 2, 1, 1], np.int32)


@cache
def computed_by_jax(dtype):
    """The features, and the gradients of the mean cross entropy by PyTorch name."""
    network = classifier.Classifier(CONFIG)
    with jax.enable_x64(dtype == np.float64):
        weights.load_state_dict(network, arrays(), dtype)
        graph, parameters = nnx.split(network)
        images, labels = images_and_labels()

        def loss(parameters):
            network = nnx.merge(graph, parameters)
            features, _ = network(classifier.prepare_images(images, dtype))
            return classifier.loss(network, images, labels), features

        gradients, features = compiled(jax.grad(loss, has_aux=True), quick=True)(parameters)
        assert features.dtype == dtype
        return np.asarray(features), weights.state_dict(nnx.merge(graph, gradients))


def twin(dtype) -> torch.nn.Module:
    theirs = torch_ref.classifier.Classifier(CONFIG)
    torch_ref.weights.load_state_dict(theirs, arrays(), dtype)
    assert theirs.output.weight.dtype == TORCH[dtype]
    return theirs


def features(dtype=np.float64) -> float:
    """Of the features of four images."""
    ours, _ = computed_by_jax(dtype)
    return relative(ours, torch_ref.classifier.features(twin(dtype), images_and_labels()[0], batch_size=3))


def gradients(dtype=np.float64) -> float:
    """Of every parameter's gradient in training, as a share of the largest gradient of all."""
    theirs = twin(dtype)
    torch_ref.classifier.loss(theirs, *map(torch.from_numpy, images_and_labels())).backward()
    wanted = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    _, ours = computed_by_jax(dtype)
    largest = max(np.abs(g).max() for g in wanted.values())
    return float(max(np.abs(ours[name] - g).max() for name, g in wanted.items()) / largest)
