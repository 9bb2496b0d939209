"""The port doctor: pairs, forced run, judgement in float64, output, and what the command says of wrong input."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

from jax_ddpm import doctor
from jax_ddpm.commands.doctor import main
from jax_ddpm.doctor.convolution import as_matrix_products
from jax_ddpm.doctor.load import load_weights, read_inputs
from jax_ddpm.spec.errors import UserError

PAGE = Path(__file__).parents[1] / "docs" / "doctor.md"
X = np.random.default_rng(0).standard_normal((2, 8, 3, 3))
T = np.array([3, 700])


class Theirs(nn.Module):
    """A block as of a UNet: a convolution, the time, a norm, a skip connection."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(8, 8, 1)
        self.time = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8))
        self.norm = nn.GroupNorm(2, 8)
        self.out = nn.Conv2d(16, 8, 1)

    def forward(self, x, t):
        h = self.conv_in(x)
        phase = t[:, None].to(x.dtype) * torch.arange(1, 5)
        h = h + self.time(torch.cos(phase))[:, :, None, None]
        return self.out(torch.cat([self.norm(h), x], dim=1))


class Ours(nnx.Module):
    """The same under other names; `fault` names what is wrong."""

    def __init__(self, fault="", *, rngs):
        self.fault = fault
        self.first = nnx.Conv(8, 8, (1, 1), rngs=rngs)
        self.linear1, self.linear2 = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        epsilon, fast = 1e-6 if fault == "epsilon" else 1e-5, fault == "one pass"
        self.group_norm = nnx.GroupNorm(8, num_groups=2, epsilon=epsilon, use_fast_variance=fast, rngs=rngs)
        self.last = nnx.Conv(16, 8, (1, 1), rngs=rngs)

    def __call__(self, x, t):
        h = self.first(x)
        phase = t[:, None].astype(x.dtype) * jnp.arange(1, 5)
        h = h + self.linear2(nnx.silu(self.linear1(jnp.cos(phase))))[:, None, None]
        parts = [self.group_norm(h), x]
        return self.last(jnp.concatenate(parts[::-1] if self.fault == "order" else parts, axis=-1))


TABLE = {
    "conv_in": "first",
    "time.0": "linear1",
    "time.2": "linear2",
    "norm": "group_norm",
    "out": "last",
}


class OursInLinen(linen.Module):
    epsilon: float = 1e-5

    @linen.compact
    def __call__(self, x, t):
        h = linen.Conv(8, (1, 1))(x)
        time = linen.Dense(4 * 2)(jnp.cos(t[:, None].astype(x.dtype) * jnp.arange(1, 5)))
        h = h + linen.Dense(8)(linen.silu(time))[:, None, None]
        norm = linen.GroupNorm(2, epsilon=self.epsilon, use_fast_variance=False)
        return linen.Conv(8, (1, 1))(jnp.concatenate([norm(h), x], axis=-1))


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return Theirs().eval()


def ours(fault=""):
    return Ours(fault, rngs=nnx.Rngs(0))


def culprit(result):
    return result.finding.pair.theirs.path, result.finding.pair.ours.path, result.finding.place


def test_a_right_port_is_equal_and_its_names_are_proposed(theirs):
    result = doctor.compare(theirs, ours(), (X, T))
    assert result.equal and result.sentence.startswith("Equal: all 5 layers")
    assert result.parameters.table == TABLE
    assert {pair.how for pair in result.parameters.pairs} == {"order"}
    assert max(row.inherited for row in result.rows) < 1e-12
    assert [row.theirs for row in result.rows] == ["", "conv_in", "time.0", "time.2", "norm", "out"]


def test_an_error_is_not_inherited_by_the_layers_after_it(theirs):
    result = doctor.compare(theirs, ours("epsilon"), (X, T))
    rows = {row.theirs: row for row in result.rows}
    assert culprit(result) == ("norm", "group_norm", "layer") and result.finding.cause.name == "epsilon"
    assert rows["norm"].mark == "first" and rows["norm"].alone > 1e-7
    assert rows["out"].inherited > 1e-8 and rows["out"].alone < 1e-12 and max(rows["out"].arriving, 0) < 1e-12
    assert "1e-06 in ours and 1e-05 in theirs" in result.sentence
    assert "<-- first difference" in str(result)


def test_code_between_layers(theirs):
    result = doctor.compare(theirs, ours("order"), (X, T))
    assert culprit(result) == ("out", "last", "glue")
    assert result.finding.target == "input" and len(result.findings) == 1


def test_a_variance_in_one_pass_shows_at_a_large_mean_only(theirs):
    """Flax's norms have it by default, and agree on usual inputs: a warning, which is no difference."""
    result = doctor.compare(theirs, ours("one pass"), (X, T))
    (warning,) = result.warnings
    assert result.equal and result.finding is None and warning.pair.theirs.path == "norm"
    assert "Warning: norm" in str(result) and "nnx.GroupNorm(..., use_fast_variance=False)" in str(result)
    assert [row.mark for row in result.rows if row.theirs == "norm"] == ["warning"]
    assert "Warning: norm" in result._repr_html_() and len(result.to_dict()["warnings"]) == 1
    assert not doctor.compare(theirs, ours("one pass"), (X, T), probes=False).warnings
    x = np.concatenate([X, X]) + 1e6  # where the mean is large on the network's own input, it is a difference
    result = doctor.compare(nn.GroupNorm(2, 8), nnx.GroupNorm(8, num_groups=2, epsilon=1e-5, rngs=nnx.Rngs(0)), x)
    assert not result.equal and result.finding.cause.name == "one_pass_variance"


def test_linen(theirs):
    assert doctor.compare(theirs, OursInLinen(), (X, T)).equal
    result = doctor.compare(theirs, OursInLinen(epsilon=1e-6), (X, T))
    assert culprit(result) == ("norm", "GroupNorm_0", "layer")


def test_nothing_is_changed(theirs):
    network, calls = ours(), Ours.__call__
    before = jax.tree.map(np.asarray, nnx.state(network)), {k: v.clone() for k, v in theirs.state_dict().items()}
    doctor.compare(theirs, network, (X, T))
    with pytest.raises(UserError):
        doctor.compare(theirs, network, (X, T), our_inputs=(X, T))
    assert Ours.__call__ is calls and "__call__" not in vars(nnx.List)
    after = jax.tree.map(np.asarray, nnx.state(network))
    assert all(map(np.array_equal, jax.tree.leaves(before[0]), jax.tree.leaves(after)))
    assert all(torch.equal(value, before[1][name]) for name, value in theirs.state_dict().items())
    assert not jax.config.jax_enable_x64


def test_a_method_that_was_replaced_on_the_object(theirs):
    """Such as a wrapper around forward: the modules inside are seen, and those of the original are not changed."""
    wrapped = Theirs().eval()
    wrapped.load_state_dict(theirs.state_dict())
    forward = wrapped.forward
    wrapped.forward = lambda x, t: forward(x.mT, t).mT
    result = doctor.compare(wrapped, ours(), (X, T))
    assert result.finding.cause.name == "height_width_swapped" and culprit(result)[0] == "conv_in"
    assert all(value.dtype == torch.float32 for value in wrapped.parameters())


def filled(theirs):
    """Ours with their weights, by hand."""
    network, values = ours(), {name: value.numpy() for name, value in theirs.state_dict().items()}
    for name, path in TABLE.items():
        layer, weight = getattr(network, path), values[f"{name}.weight"]
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[weight.ndim]
        (layer.scale if weight.ndim == 1 else layer.kernel).set_value(jnp.asarray(weight.transpose(axes)))
        layer.bias.set_value(jnp.asarray(values[f"{name}.bias"]))
    return network


def test_weights_that_are_there_are_paired_by_values(theirs):
    result = doctor.compare(theirs, filled(theirs), (X, T))
    assert result.equal and not result.parameters.transferred
    assert {p.how for p in result.parameters.pairs if p.theirs.startswith(("conv_in", "time"))} == {"value"}


def test_a_kernel_that_is_not_transposed_is_named(theirs):
    network = filled(theirs)
    network.linear2.kernel.set_value(network.linear2.kernel[...].T)
    result = doctor.compare(theirs, network, (X, T), table=TABLE)
    assert not result.equal and any("time.2.weight" in text for text in result.wrong_parameters)
    assert "transposed by (0, 1)" in next(p.remark for p in result.parameters.different)
    assert culprit(result) == ("time.2", "linear2", "layer")


class Pinned(nn.Module):
    """The phase and its cosine are computed in float32, as in many networks."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, t):
        phase = t.float()[:, None] * torch.exp(-torch.arange(4, dtype=torch.float32))
        return self.linear(torch.cos(phase).to(self.linear.weight.dtype))


class OursPinned(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(4, 8, rngs=rngs)

    def __call__(self, t):
        phase = t.astype(jnp.float32)[:, None] * jnp.exp(-jnp.arange(4, dtype=jnp.float32))
        return self.linear(jnp.cos(phase))


def test_what_is_computed_in_float32_is_judged_with_its_rounding():
    assert doctor.compare(Pinned(), OursPinned(rngs=nnx.Rngs(0)), T).equal


class Dropping(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.Dropout(0.5))


class OursDropping(nnx.Module):
    def __init__(self, *, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])

    def __call__(self, x):
        return self.layers[1](self.layers[0](x))


def test_arrays_that_code_makes_in_the_default_dtype_are_float64():
    """Their frequencies would be float32, and their phase at t = 700 wrong by 1e-6."""

    class Embedding(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, t):
            phase = t[:, None] * torch.exp(-torch.arange(4) / 4)
            return self.linear(torch.cat([phase.sin(), phase.cos()], dim=1))

    class Port(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, t):
            phase = t[:, None] * jnp.exp(-jnp.arange(4) / 4)
            return self.linear(jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=1))

    result = doctor.compare(Embedding(), Port(nnx.Rngs(0)), T)
    assert result.equal and result.checks[0].arriving[0] < 1e-10
    assert torch.get_default_dtype() == torch.float32


def test_dropout_that_is_on_in_one_network_is_named():
    result = doctor.compare(Dropping().eval(), OursDropping(rngs=nnx.Rngs(0)), X[:, 0, :, :1] + np.zeros(4))
    assert [difference.name for difference in result.decisive_setup] == ["dropout"] and not result.equal
    assert "off in theirs" in result.decisive_setup[0].sentence


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x)


class CutBefore(nn.Module):
    """Adds outside the block what the port adds inside."""

    def __init__(self):
        super().__init__()
        self.first, self.block, self.last = nn.Linear(4, 4), Inner(), nn.Linear(4, 4)

    def forward(self, x):
        h = self.first(x)
        return self.last(h + self.block(h + x))


class OursInner(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, h, x):
        return h + self.linear(h + x)


class OursCut(nnx.Module):
    def __init__(self, sign=1, *, rngs):
        self.sign, self.block = sign, OursInner(rngs)
        self.first, self.last = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(self.block(self.first(x), self.sign * x))


def test_modules_may_be_cut_differently():
    torch.manual_seed(0)
    theirs, x = CutBefore(), X[:, 0, :, :1] + X[0, 0, 0].repeat(2)[:4]
    assert doctor.compare(theirs, OursCut(rngs=nnx.Rngs(0)), x).equal
    result = doctor.compare(theirs, OursCut(-1, rngs=nnx.Rngs(0)), x)
    assert culprit(result)[1] in ("block", "block.linear")


def test_assert_parity(theirs):
    assert doctor.assert_parity(theirs, ours(), (X, T)).equal
    with pytest.raises(AssertionError, match="epsilon"):
        doctor.assert_parity(theirs, ours("epsilon"), (X, T))


def test_a_notebook_and_json_show_the_same(theirs):
    result = doctor.compare(theirs, ours("epsilon"), (X, T))
    data = json.loads(result.to_json())
    assert data["sentence"] == result.sentence and data["findings"][0]["cause"]["name"] == "epsilon"
    assert [layer["mark"] for layer in data["layers"]].count("first") == 1
    shown = result._repr_html_()
    assert result.sentence.split(":")[0] in shown and shown.count("<tr") == 1 + len(result.rows)


def test_the_example_of_the_page(tmp_path, monkeypatch, capsys):
    """The port has the mistakes that the page says, and is right without them."""
    monkeypatch.chdir(tmp_path)
    theirs, port = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)[:2]
    (tmp_path / "their_net.py").write_text(theirs)
    mended = port.replace("num_groups=4", "num_groups=4, epsilon=1e-5")
    (tmp_path / "port.py").write_text(port)
    (tmp_path / "mended_port.py").write_text(mended.replace("strides=2", "strides=2, padding=1"))
    assert run("their_net.py:Net", "port.py:Net", "--input", "2,3,16,16", "2", "--json") == 1
    found = [(one["theirs"], one["cause"]["name"]) for one in json.loads(capsys.readouterr().out)["findings"]]
    assert found == [("norm", "epsilon"), ("down", "padding")]
    assert run("their_net.py:Net", "mended_port.py:Net", "--input", "2,3,16,16", "2") == 0
    assert "Warning: norm (GroupNorm): ours computes the variance as mean(x^2)" in capsys.readouterr().out


THEIRS_FILE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=4):
        super().__init__(nn.Linear(4, width), nn.LayerNorm(width))

def broken():
    raise ValueError("no data here")

def two(width):
    return Net(width)
"""
OURS_FILE = """
from flax import nnx, linen

class Net(nnx.Module):
    def __init__(self, width=4, epsilon=1e-5, *, rngs):
        self.linear = nnx.Linear(4, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.linear(x))

def other():
    return nnx.Conv(3, 5, (3, 3), rngs=nnx.Rngs(0))
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"a_torch_net": THEIRS_FILE, "a_flax_port": OURS_FILE}
    for name, text in names.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def run(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as end:
        main(arguments, "jax-ddpm doctor")
    return end.value.code


PAIR = ("a_torch_net.py:Net", "a_flax_port.py:Net", "--input", "2,4:float")


def test_the_command_for_a_right_and_a_wrong_port(files, capsys):
    torch.save(
        {"model": {f"net.{k}": v for k, v in nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).state_dict().items()}},
        "w.pt",
    )
    assert run(*PAIR, "--weights", "w.pt") == 0
    assert capsys.readouterr().out.startswith("Equal")
    assert run(*PAIR, "--our-args", "epsilon=1e-3", "--json", "--html", "page.html") == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["theirs"] == "1"
    page = (files / "page.html").read_text("utf-8")
    assert "first" in page and not re.search(r"https?://|<script", page)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "Nothing to compare"),
        (("a_torch_net.py:Net",), "give the port to Flax"),
        (("a_torch_net.py", *PAIR[1:]), "expected FILE.py:NAME"),
        (("nothing.py:Net", *PAIR[1:]), "no file nothing.py"),
        (("a_torch_net.py:Unet", *PAIR[1:]), "has no Unet. It has: Net, broken, two"),
        (("a_torch_net.py:broken", *PAIR[1:]), "ValueError: no data here"),
        (
            ("a_torch_net.py:two", *PAIR[1:]),
            "argument: 'width'. Give its arguments with (--torch-args|torch_args)",
        ),
        ((*PAIR, "--torch-args", "width"), "expected NAME=VALUE"),
        ((*PAIR, "--torch-args", "{width"), "no valid JSON"),
        (PAIR[:2], "An input is missing"),
        ((*PAIR[:3], "2,x"), "expected a shape"),
        ((*PAIR[:3], "2,5:float"), r"Their network fails on an input of \(2, 5\) float64: RuntimeError"),
        ((*PAIR, "--our-args", "width=5"), "Our network fails|other values|nothing in common"),
        (("a_torch_net.py:Net", "a_flax_port.py:other", *PAIR[2:]), "Our network fails on an input"),
        (("a_flax_port.py:Net", "a_flax_port.py:Net", *PAIR[2:]), "THEIRS is a Net: expected a torch.nn.Module"),
        (("a_torch_net.py:Net", "a_torch_net.py:Net", *PAIR[2:]), "A Flax module was expected"),
        ((*PAIR, "--weights", "none.pt"), "none.pt does not exist"),
    ],
)
def test_wrong_input_ends_in_a_sentence(files, arguments, text):
    with pytest.raises(UserError, match=text) as error:
        main(arguments, "jax-ddpm doctor")
    assert len(str(error.value)) < 600 and str(error.value).count("\n") < 3


def test_weights_that_do_not_fit(tmp_path):
    torch.save({"0.weight": torch.zeros(4, 4), "1.weight": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"missing: 0.bias, 1.bias; of another shape: 1.weight \(3,\), expected \(4,\)"):
        load_weights(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), tmp_path / "w.pt")


def test_inputs_of_a_command():
    x, t, tokens = read_inputs(["2,3,4,4", "2", "5,6:int10"])["inputs"]
    assert x.shape == (2, 3, 4, 4) and x.dtype == np.float64
    assert t.shape == (2,) and t.dtype.kind == "i" and tokens.shape == (5, 6) and tokens.max() < 10


@pytest.mark.parametrize(
    "settings",
    [
        {"window_strides": (1, 1), "padding": "SAME"},
        {"window_strides": (2, 1), "padding": ((2, -1), (0, 3)), "rhs_dilation": (1, 2)},
        {"window_strides": (1, 1), "padding": ((1, 1), (1, 2)), "lhs_dilation": (2, 3)},
    ],
    ids=["same", "dilated", "transposed"],
)
def test_convolutions_by_matrix_products(settings):
    g = np.random.default_rng(1)
    x, kernel = g.standard_normal((2, 6, 7, 3)), g.standard_normal((3, 2, 3, 4))

    def loss(x, kernel):
        y = jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings)
        return jnp.sum(jnp.sin(y)), y

    with jax.enable_x64(True):
        wanted = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
        with as_matrix_products():
            ours = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, wanted)
