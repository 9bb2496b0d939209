"""Conditional training: classes of the networks, labels on their way from the data to the step, and wrong input."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import save_file

import jax_ddpm
import torch_ref.rng
import torch_ref.step
import torch_ref.unets
import torch_ref.weights
from jax_ddpm import layers, rng, unets, weights
from jax_ddpm.evaluation.choices import labels_for_model
from jax_ddpm.spec.data_record import check_same_images, write_record
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_files import initial_weights, read_file, read_model
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import (
    AttentionConfig,
    ConvBlockConfig,
    DDPMConfig,
    LayerNormConfig,
    NetworkConfig,
    StridedConfig,
)
from jax_ddpm.spec.run_classes import with_classes, with_classes_of_run
from jax_ddpm.spec.write_model import write_model
from jax_ddpm.training import feed, step
from jax_ddpm.training.feed import Feed, make_dispatch
from jax_ddpm.training.prepare import make_mesh
from jax_ddpm.training.replay import replay
from jax_ddpm.training.run_folder import check_folder, load_config
from jax_ddpm.weights import Model
from tests.commands import refusal
from tests.registry import restored
from tests.small import SMALL, small
from tests.test_runs import quiet, rows

PLAIN = ConvBlockConfig(widths=(32,), time_width=32)
LABELLED = PLAIN.with_classes(3)


def images_of(labels=(0, 1, 2, 1), names=("a", "b", "c"), name="pictures"):
    return SimpleNamespace(name=name, labels=None if labels is None else np.array(labels), class_names=names)


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ConvBlockConfig, StridedConfig, AttentionConfig, LayerNormConfig, DDPMConfig])
def test_classes_of_a_network(kind):
    plain = kind()
    assert (plain.takes_labels, plain.label_count, plain.null_index) == (False, 0, None)
    with_null, without = plain.with_classes(10), plain.with_classes(10, null_label=False)
    assert (with_null.takes_labels, with_null.label_count, with_null.null_index) == (True, 10, 10)
    assert (without.takes_labels, without.label_count, without.null_index) == (True, 10, None)
    assert with_null.without_classes() == plain and not without.without_classes().takes_labels
    for network, rows_of_table in ((with_null, 11), (without, 10)):
        shape = weights.array_shapes(network, 1)["class_embedding.weight"]
        assert (
            shape[0] == rows_of_table and shape == torch_ref.weights.array_shapes(network, 1)["class_embedding.weight"]
        )


def test_other_label_embeddings_of_ddpm():
    timestep, vectors = DDPMConfig(class_embed_type="timestep"), DDPMConfig(class_embed_type="identity")
    assert timestep.takes_labels and timestep.label_count is None and timestep.with_classes(10).label_count == 10
    assert timestep.with_classes(10).null_index is None
    assert vectors.takes_labels and vectors.label_count is None and vectors.label_width == 512
    with pytest.raises(UserError, match="takes vectors, and the data set has classes"):
        vectors.with_classes(10)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(SMALL, network=replace(PLAIN, num_classes=-1)), "num_classes = -1: expected 0 or more"),
        (small(label_dropout=1.0), "label_dropout = 1.0: expected 0 to below 1"),
        (replace(SMALL, network=LABELLED), "conv_block has classes: add conditional=True"),
        (replace(SMALL, network=DDPMConfig(num_class_embeds=0)), "num_class_embeds = 0: expected at least one class"),
        (replace(SMALL, network=DDPMConfig(null_label=True)), "null_label = True: expected False without a label"),
        (
            replace(SMALL, network=DDPMConfig(num_class_embeds=3, class_embed_type="timestep", null_label=True)),
            "null_label = True: expected False without a label",
        ),
    ],
)
def test_wrong_settings(config, said):
    with pytest.raises(UserError, match=said):
        config.check()


def test_the_classes_come_from_the_images():
    config = small(conditional=True)
    assert with_classes(small(), images_of()) == small()
    assert with_classes(config, images_of()).network == LABELLED
    given = replace(config, network=PLAIN.with_classes(3, null_label=False))
    assert with_classes(given, images_of()) == given
    timestep = replace(config, network=DDPMConfig(class_embed_type="timestep"))
    assert with_classes(timestep, images_of()).network.num_class_embeds == 3
    assert with_classes(replace(config, network=DDPMConfig()), images_of()).network.null_index == 3


@dataclass(frozen=True)
class NoLabelsConfig(NetworkConfig):
    name: Literal["no_labels"] = "no_labels"


@pytest.mark.parametrize(
    ("network", "images", "said"),
    [
        (PLAIN, images_of(None, None), "conditional needs a class for each image, and pictures has none"),
        (PLAIN.with_classes(4), images_of(), "has 4 classes, but pictures has 3"),
        (NoLabelsConfig(), images_of(), "no_labels takes no labels: its settings have no num_classes"),
    ],
)
def test_images_that_do_not_fit(network, images, said):
    with pytest.raises(UserError, match=said) as error:
        with_classes(replace(small(conditional=True), network=network), images)
    assert len(str(error.value).splitlines()) == 2


def test_a_run_is_resumed_with_the_settings_it_was_started_with(tmp_path):
    started = small(conditional=True)
    full = with_classes(started, images_of())
    (tmp_path / "config.json").write_text(json.dumps(asdict(full)))
    assert with_classes_of_run(started, tmp_path) == full
    check_folder(tmp_path, full, resume=True)
    (tmp_path / "config.json").write_text(json.dumps(asdict(small())))
    with pytest.raises(UserError, match="conditional was False, now True"):
        check_folder(tmp_path, with_classes_of_run(started, tmp_path), resume=True)


def test_a_resumed_run_has_the_same_labels(tmp_path):
    labels = np.array([0, 1, 2, 1], np.int32)
    arrays = {"train": np.zeros((4, 8, 8, 1)), "validation": np.zeros((0, 8, 8, 1)), "fingerprint": "0"}
    images = SimpleNamespace(
        name="a", labels=labels, validation_labels=labels[:0], class_names=("x", "y", "z"), **arrays
    )
    write_record(tmp_path, images)
    check_same_images(tmp_path, images, quiet, with_labels=True)
    for change in ({"labels": labels[::-1]}, {"class_names": ("x", "z", "y")}):
        other = SimpleNamespace(**{**vars(images), **change})
        check_same_images(tmp_path, other, quiet)
        with pytest.raises(UserError, match="their labels or the classes' names have changed"):
            check_same_images(tmp_path, other, quiet, with_labels=True)


def test_data_without_labels_are_refused_by_the_command(tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "images.npy", np.zeros((40, 8, 8), np.uint8))
    flags = ["--dataset", tmp_path / "images.npy", "--image-size", 8, "--preset", "tiny", "--conditional"]
    flags += ["--cache-dir", tmp_path, "--out", tmp_path / "run", "--widths", 32, "--batch-size", 4]
    said = refusal(capsys, monkeypatch, "train_jax.py", *flags)
    assert "--conditional needs a class for each image" in said and not (tmp_path / "run").exists()


# Networks ------------------------------------------------------------------------------------------------------------


def test_labels_that_a_network_cannot_take():
    time, table = jnp.zeros((2, 4)), layers.Embedding(3, 4)
    with pytest.raises(UserError, match="has no classes, and takes no labels"):
        layers.add_label(time, jnp.array([0, 1]), None, None)
    with pytest.raises(UserError, match="needs a label for each image, because it has no null label"):
        layers.add_label(time, None, table, None)
    torch_time, torch_table = torch.zeros(2, 4), torch.nn.Embedding(3, 4)
    with pytest.raises(UserError, match="has no classes, and takes no labels"):
        torch_ref.layers.add_label(torch_time, torch.tensor([0, 1]), None, None)
    with pytest.raises(UserError, match="needs a label for each image, because it has no null label"):
        torch_ref.layers.add_label(torch_time, None, torch_table, None)


def test_no_label_is_the_last_row():
    time, table = np.zeros((2, 4), np.float32), np.arange(12, dtype=np.float32).reshape(3, 4)
    ours, theirs = layers.Embedding(3, 4), torch.nn.Embedding(3, 4)
    ours.embedding.set_value(table)
    theirs.weight.data = torch.from_numpy(table)
    for labels in (None, [2, 0]):
        wanted = table[[2, 2] if labels is None else labels]
        given = None if labels is None else np.array(labels)
        np.testing.assert_array_equal(layers.add_label(time, given, ours, 2), wanted)
        twin = torch_ref.layers.add_label(torch.from_numpy(time), given, theirs, 2)
        np.testing.assert_array_equal(twin.detach().numpy(), wanted)


def test_initial_label_embeddings_are_standard_normal_and_equal_in_both():
    ours, theirs = unets.build(PLAIN.with_classes(100)), torch_ref.unets.build(PLAIN.with_classes(100))
    weights.initialise(ours, 5)
    torch_ref.weights.initialise(theirs, 5)
    table = weights.state_dict(ours)["class_embedding.weight"]
    np.testing.assert_array_equal(table, torch_ref.weights.state_dict(theirs)["class_embedding.weight"])
    assert abs(table.mean()) < 0.1 and abs(table.std() - 1) < 0.05


# Training ------------------------------------------------------------------------------------------------------------


def test_dropped_labels_are_the_same_in_both_frameworks():
    labels = np.arange(4000, dtype=np.int32) % 10
    ours = np.asarray(step.drop_labels(rng.key(3, rng.LABEL_DROPOUT, 7), labels, 10, 0.1))
    key = torch_ref.rng.key(3, torch_ref.rng.LABEL_DROPOUT, 7)
    theirs = torch_ref.step.drop_labels(key, torch.from_numpy(labels), 10, 0.1).numpy()
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == np.int32 and np.array_equal(ours[ours != 10], labels[ours != 10])
    assert 0.08 < np.mean(ours == 10) < 0.12


@pytest.mark.parametrize("limit", [2**30, 0], ids=["resident", "streamed"])
def test_a_step_gets_the_labels_of_its_images(limit, monkeypatch):
    """Images whose pixels are their label."""
    monkeypatch.setattr(feed, "MAX_RESIDENT_BYTES", limit)
    labels = np.random.default_rng(0).integers(0, 9, 40).astype(np.int32)
    images = np.broadcast_to(labels[:, None, None, None], (40, 8, 8, 1)).astype(np.uint8)
    batches = Feed(images, small(batch_size=8), make_mesh(8), labels)
    assert (batches.resident is None) == (limit == 0)

    def train_step(state, images, labels):
        return state + 1, {"apart": jnp.sum(jnp.abs(images[:, 0, 0, 0] - labels)), "labels": jnp.sum(labels)}

    dispatch = make_dispatch(train_step, batches.steps_per_dispatch)
    for number in range(2):
        _, metrics = dispatch(jnp.zeros(()), *batches.batches(number, 1))
        assert float(metrics["apart"][0]) == 0 < float(metrics["labels"][0])


@pytest.mark.slow
def test_a_conditional_run_ends_in_the_same_bits_however_it_is_run(tmp_path, monkeypatch):
    config = small(conditional=True, steps=12, checkpoint_every=4, validate_every=4)
    run = jax_ddpm.train(config, tmp_path / "run", log=quiet)
    values, info = read_file(run)
    assert info.class_names == tuple("0123456789") and info.network.null_index == 10
    assert load_config(run).network == info.network
    lines: list[str] = []
    replay(load_config(run), run, 6, lines.append)
    assert any(line.startswith("Labels, before some are dropped: ") for line in lines)
    in_parts = jax_ddpm.train(config.with_(accumulate=2), tmp_path / "parts", log=quiet)
    shutil.copytree(run, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "12")
    monkeypatch.setattr(feed, "MAX_RESIDENT_BYTES", 0)
    resumed = read_file(jax_ddpm.train(config, tmp_path / "resumed", resume=True, log=quiet))[0]
    for name, value in values.items():
        np.testing.assert_array_equal(resumed[name], value)
    assert rows(run)[-1]["validation_loss"] == pytest.approx(rows(in_parts)[-1]["validation_loss"], rel=1e-4)


class Own(nnx.Module):
    def __init__(self, image_channels, num_classes, null_label, dtype=None):
        self.table = layers.Embedding(num_classes + null_label, 4)
        self.conv = layers.Conv(image_channels + 4, image_channels, 3)
        self.null = num_classes

    def __call__(self, x, t, labels=None):
        labels = jnp.full(len(x), self.null) if labels is None else labels
        vectors = jnp.broadcast_to(self.table(labels)[:, None, None], (*x.shape[:3], 4))
        return self.conv(jnp.concatenate([x, vectors], axis=-1))


@dataclass(frozen=True)
class OwnConfig(jax_ddpm.NetworkConfig):
    name: Literal["own_labels"] = "own_labels"
    num_classes: int = 0
    null_label: bool = True


@pytest.mark.slow
def test_a_registered_network_gets_the_classes_and_the_labels(tmp_path):
    with restored():
        jax_ddpm.register(OwnConfig, Own)
        config = replace(small(conditional=True, steps=4), network=OwnConfig())
        model = jax_ddpm.load_model(jax_ddpm.train(config, tmp_path / "run", log=quiet))
        assert model.info.network == OwnConfig(num_classes=10)
        table = weights.state_dict(model.network)["table.weight"]
        x, t = np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, np.int32)
        assert table.shape == (11, 4) and not np.array_equal(*model(x, t, np.array([0, 1])))
        with pytest.raises(UserError, match="is called without labels"):
            jax_ddpm.register(OwnConfig, lambda *a, **k: unets.build(PLAIN).time_embedding)
            jax_ddpm.train(config, tmp_path / "other", log=quiet)


# Files ---------------------------------------------------------------------------------------------------------------


def arrays_of(network):
    built = unets.build(network)
    weights.initialise(built, 1)
    return weights.state_dict(built)


def test_a_bare_file_shows_its_rows_and_the_null_label_is_assumed(tmp_path):
    file, lines = tmp_path / "bare.safetensors", []
    save_file(arrays_of(LABELLED), file)
    _, info = read_model(file, shapes_of=weights.array_shapes, log=lines.append)
    assert info.network == LABELLED and "Assumed, as the file does not say it: null_label=True" in lines[-1]
    settings = {"null_label": False}
    _, info = read_model(file, shapes_of=weights.array_shapes, network_settings=settings, log=lines.append)
    assert info.network == PLAIN.with_classes(4, null_label=False) and "null_label" not in lines[-1]
    save_file(arrays_of(PLAIN), file)
    _, info = read_model(file, shapes_of=weights.array_shapes, log=lines.append)
    assert info.network == PLAIN and "null_label" not in lines[-1]
    with pytest.raises(UserError, match="num_classes = 3 was given, but the weights or their settings say 0"):
        read_model(file, shapes_of=weights.array_shapes, network_settings={"num_classes": 3}, log=quiet)


def test_a_file_without_names_for_all_its_classes_is_damaged(tmp_path):
    info = ModelInfo(LABELLED, (8, 8, 1), SMALL.diffusion, class_names=("a", "b", "c"))
    write_model(tmp_path / "model.safetensors", arrays_of(LABELLED), info)
    assert read_file(tmp_path / "model.safetensors")[1] == info
    write_model(tmp_path / "model.safetensors", arrays_of(LABELLED), replace(info, class_names=("a", "b")))
    with pytest.raises(UserError, match="has 2 names of classes, but 3 classes: expected a name for each class"):
        read_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("bare", [False, True], ids=["with metadata", "bare"])
def test_a_conditional_network_starts_as_an_unconditional_one(bare, tmp_path):
    file, values, lines = tmp_path / "model.safetensors", arrays_of(PLAIN), []
    if bare:
        save_file(values, file)
    else:
        write_model(file, values, ModelInfo(PLAIN, (8, 8, 1), SMALL.diffusion))
    for null_label in (True, False):
        network = PLAIN.with_classes(3, null_label)
        found = initial_weights(file, network, weights.array_shapes, log=lines.append)
        assert f"{file} has no classes: class_embedding.weight starts at zero in every row" in lines[-1]
        table = found.pop("class_embedding.weight")
        assert table.shape == (3 + null_label, 32) and not table.any()
        assert found.keys() == values.keys() and all(np.array_equal(found[name], values[name]) for name in values)
    with pytest.raises(UserError, match=r"widths = \(32,\) \(expected \(64,\)\)"):
        initial_weights(file, replace(LABELLED, widths=(64,)), weights.array_shapes, log=quiet)


def test_a_network_with_classes_is_no_start_for_one_without(tmp_path):
    write_model(tmp_path / "m.safetensors", arrays_of(LABELLED), ModelInfo(LABELLED, (8, 8, 1), SMALL.diffusion))
    with pytest.raises(UserError, match=r"num_classes = 3 \(expected 0\)"):
        initial_weights(tmp_path / "m.safetensors", PLAIN, weights.array_shapes, log=quiet)


def test_labels_of_a_model():
    model = Model(lambda x, t, labels=None: (t, labels), ModelInfo(LABELLED, (8, 8, 1), SMALL.diffusion))
    x = np.ones((2, 8, 8, 1), np.float32)
    for given, wanted in ((np.array([1, 3]), [1, 3]), (2, [2, 2]), (None, None)):
        t, labels = model(x, 3, given)
        assert t.tolist() == [3, 3] and (labels is None if wanted is None else labels.tolist() == wanted)


def test_held_out_images_get_the_labels_of_the_model():
    """Classes of one name are the same. A class that the model does not have is no label."""
    info = SimpleNamespace(network=SimpleNamespace(label_count=2), class_names=("bag", "coat"))
    real = SimpleNamespace(data=SimpleNamespace(class_names=("coat", "dress", "bag")))
    assert labels_for_model(info, real, np.array([0, 1, 2])) == [1, None, 0]
    unnamed = SimpleNamespace(network=info.network, class_names=None)
    assert labels_for_model(unnamed, real, np.array([0, 1, 2])) == [0, 1, None]
    assert labels_for_model(info, real, None) is None
