"""The doctor names what differs between two layers: each planted fault its cause, a right layer none."""

import copy
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from jax_ddpm.doctor.causes import describe, explain, hidden_causes
from tests.doctor_findings import layer, perturbed, random


def conv(cls=nn.Conv2d, i=3, o=4, k=3, **settings):
    return perturbed(cls(i, o, k, **settings))


def changed(module, **arrays):
    """A copy of a module with other parameters or settings."""
    other = copy.deepcopy(module)
    for name, value in arrays.items():
        setattr(other, name, nn.Parameter(value) if isinstance(value, torch.Tensor) else value)
    return other


def same(module):
    """Stride 2 with "SAME" padding."""

    def call(x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), module.weight, module.bias, module.stride)

    return call


X = random(2, 3, 8, 8)
CONVOLUTIONS = {
    "bias_missing": lambda m: changed(m, bias=None),
    "bias_doubled": lambda m: lambda x: m(x) + m.bias[:, None, None],
    "padding": lambda m: lambda x: F.conv2d(F.pad(x, (2, 0, 2, 0)), m.weight, m.bias),
    "padding_mode": lambda m: lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), m.weight, m.bias),
    "kernel_flipped": lambda m: changed(m, weight=m.weight.flip(2, 3)),
    "kernel_flipped_height": lambda m: changed(m, weight=m.weight.flip(2)),
    "kernel_flipped_width": lambda m: changed(m, weight=m.weight.flip(3)),
    "kernel_transposed": lambda m: changed(m, weight=m.weight.mT),
    "stride": lambda m: changed(m, stride=(2, 2)),
    "dilation": lambda m: changed(m, dilation=(2, 2), padding=(2, 2)),
    "height_width_swapped": lambda m: lambda x: m(x).mT,
    "scale": lambda m: lambda x: 0.5 * m(x),
    "activation_extra": lambda m: lambda x: F.silu(m(x)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name):
    module = conv(padding=1)
    cause = explain(layer(module, CONVOLUTIONS[name](module), X, kind="Conv"))
    assert cause.name == name
    assert cause.sentence.startswith("mid.layer (Conv2d, ours Conv): ") and cause.residual < 1e-10


def test_stride_two_with_same_padding():
    module = conv(stride=2, padding=1)
    cause = explain(layer(module, same(module), X, kind="Conv"))
    assert cause.name == "padding"
    assert (
        'padding is ((0, 1), (0, 1)) ("SAME") in ours and ((1, 1), (1, 1)) in theirs: ours pads the bottom and '
        "the right only" in cause.sentence
    )
    assert cause.mend == "Write Conv(..., padding=((1, 1), (1, 1)))."


def test_no_padding_where_theirs_has_one():
    module = conv(padding=1)
    assert explain(layer(module, changed(module, padding=(0, 0)), X)).name == "padding"


def test_padding_of_one_axis():
    module = conv(padding=1)
    assert explain(layer(module, lambda x: F.conv2d(F.pad(x, (2, 0, 1, 1)), module.weight, module.bias), X)).name == (
        "padding"
    )


def test_input_and_output_channels_swapped():
    module = conv(i=3, o=3, padding=1)
    assert explain(layer(module, changed(module, weight=module.weight.transpose(0, 1)), X)).name == (
        "kernel_in_out_swapped"
    )


@pytest.mark.parametrize("side", ["input", "output"])
def test_channels_of_groups_interleaved(side):
    module = conv(i=6, o=6, padding=1, groups=2)
    x = random(2, 6, 5, 5)
    order = [0, 3, 1, 4, 2, 5]
    ours = {"input": lambda x: module(x[:, order]), "output": lambda x: module(x)[:, order]}[side]
    assert explain(layer(module, ours, x)).name == "group_channels"


def test_two_faults_of_a_convolution():
    module = conv(stride=2, padding=1)
    flipped = changed(module, weight=module.weight.flip(2, 3))
    cause = explain(layer(module, same(flipped), X))
    assert cause.name == "padding" and "flipped" in cause.sentence


@pytest.mark.parametrize("cls, shape", [(nn.Conv1d, (2, 3, 9)), (nn.Conv3d, (1, 3, 4, 4, 4))])
def test_other_dimensions(cls, shape):
    module = conv(cls, padding=1)
    axes = tuple(range(2, len(shape)))
    cause = explain(layer(module, changed(module, weight=module.weight.flip(*axes)), random(*shape)))
    assert cause.name == "kernel_flipped"


TRANSPOSED = {
    "kernel_flipped": lambda m: changed(m, weight=m.weight.flip(2, 3)),
    "kernel_in_out_swapped": lambda m: changed(m, weight=m.weight.transpose(0, 1)),
    "kernel_transposed": lambda m: changed(m, weight=m.weight.mT),
    "bias_missing": lambda m: changed(m, bias=None),
    "transposed_crop": lambda m: lambda x: F.conv_transpose2d(x, m.weight, m.bias, 2)[..., 2:, 2:],
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolution(name):
    module = perturbed(nn.ConvTranspose2d(3, 3, 4, stride=2, padding=1))
    assert explain(layer(module, TRANSPOSED[name](module), random(2, 3, 4, 4))).name == name


def test_transposed_convolution_of_flax():
    """nnx.ConvTranspose does not flip the kernel, and "SAME" crops otherwise for kernels of 3."""
    module = perturbed(nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1))
    with jax.enable_x64(True):
        ours = nnx.ConvTranspose(3, 4, (3, 3), strides=2, padding="SAME", rngs=nnx.Rngs(0), param_dtype=jnp.float64)
        ours.kernel.set_value(jnp.asarray(module.weight.detach().permute(2, 3, 0, 1).numpy()))
        ours.bias.set_value(jnp.asarray(module.bias.detach().numpy()))

        def call(x):
            return torch.from_numpy(np.array(ours(jnp.asarray(x.permute(0, 2, 3, 1).numpy())).transpose(0, 3, 1, 2)))

        cause = explain(layer(module, call, random(2, 3, 4, 4)))
    assert cause.name == "kernel_flipped" and cause.residual < 1e-10


LINEAR = {
    "bias_missing": lambda m: changed(m, bias=None),
    "bias_doubled": lambda m: lambda x: m(x) + m.bias,
    "weight_transposed": lambda m: changed(m, weight=m.weight.T),
    "activation_extra": lambda m: lambda x: F.gelu(m(x)),
    "residual_extra": lambda m: lambda x: m(x) + x,
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear(name):
    module = perturbed(nn.Linear(5, 5))
    assert explain(layer(module, LINEAR[name](module), random(3, 5))).name == name


def normal(x, axes, eps=1e-5, ddof=0, outside=False):
    mean, var = x.mean(axes, keepdim=True), x.var(axes, correction=ddof, keepdim=True)
    return (x - mean) / ((var.sqrt() + eps) if outside else (var + eps).sqrt())


def grouped(x, m, **settings):
    b, _, h, w = x.shape
    y = normal(x.reshape(b, m.num_groups, -1, h, w), (2, 3, 4), **settings).reshape(x.shape)
    return y * m.weight[:, None, None] + m.bias[:, None, None]


def interleaved(x, m):
    b, _, h, w = x.shape
    y = normal(x.reshape(b, -1, m.num_groups, h, w), (1, 3, 4)).reshape(x.shape)
    return y * m.weight[:, None, None] + m.bias[:, None, None]


GROUP_NORMS = {
    "epsilon": lambda m: changed(m, eps=1e-6),
    "groups": lambda m: changed(m, num_groups=4),
    "group_channels": lambda m: lambda x: interleaved(x, m),
    "variance_biased": lambda m: lambda x: grouped(x, m, ddof=1),
    "epsilon_outside": lambda m: lambda x: grouped(x, m, eps=1e-5, outside=True),
    "affine": lambda m: lambda x: (F.group_norm(x, m.num_groups) + m.bias[:, None, None]) * m.weight[:, None, None],
    "axes": lambda m: lambda x: normal(x, (1,)) * m.weight[:, None, None] + m.bias[:, None, None],
}


@pytest.mark.parametrize("size", [1.0, 0.01])
@pytest.mark.parametrize("name", GROUP_NORMS)
def test_group_norm(name, size):
    module = perturbed(nn.GroupNorm(2, 8))
    cause = explain(layer(module, GROUP_NORMS[name](module), size * random(2, 8, 4, 4)))
    assert cause.name == name


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 0.0, 3.7e-5, 2.5e-12])
def test_epsilon_is_solved_for(epsilon):
    module = perturbed(nn.GroupNorm(2, 8))
    cause = explain(layer(module, changed(module, eps=epsilon), 0.01 * random(2, 8, 4, 4), kind="GroupNorm"))
    assert f"mid.layer (GroupNorm): epsilon is {epsilon:.6g} in ours and 1e-05 in theirs." in cause.sentence
    assert cause.mend == "Write GroupNorm(..., epsilon=1e-05)."


def test_one_pass_variance():
    module = perturbed(nn.GroupNorm(2, 8))
    x = random(2, 8, 8, 8) + 1e6
    groups = torch.from_numpy(x).reshape(2, 2, -1)

    def ours(x):
        groups = x.reshape(2, 2, -1)
        var = groups.square().mean(2, keepdim=True) - groups.mean(2, keepdim=True).square()
        y = ((groups - groups.mean(2, keepdim=True)) / (var + 1e-5).sqrt()).reshape(x.shape)
        return y * module.weight[:, None, None] + module.bias[:, None, None]

    assert groups.var() > 0.5
    assert explain(layer(module, ours, x)).name == "one_pass_variance"


LAYER_NORMS = {
    "epsilon": lambda m: changed(m, eps=1e-6),
    "mean_subtracted": lambda m: lambda x: F.rms_norm(x, x.shape[-1:], m.weight, 1e-5) + m.bias,
    "variance_biased": lambda m: lambda x: normal(x, (-1,), ddof=1) * m.weight + m.bias,
    "affine": lambda m: lambda x: normal(x, (-1,)) * m.weight,
    "axes": lambda m: lambda x: normal(x, (-2, -1)) * m.weight + m.bias,
}


@pytest.mark.parametrize("name", LAYER_NORMS)
def test_layer_norm(name):
    module = perturbed(nn.LayerNorm(6))
    assert explain(layer(module, LAYER_NORMS[name](module), 0.1 * random(2, 5, 6))).name == name


def test_layer_norm_over_channels_and_space():
    module = perturbed(nn.LayerNorm((3, 4, 4)))
    assert explain(layer(module, changed(module, eps=1e-6), 0.1 * random(2, 3, 4, 4))).name == "epsilon"


def test_batch_norm_with_the_statistics_of_the_batch():
    module = perturbed(nn.BatchNorm2d(3)).eval()
    module.running_var.abs_()
    cause = explain(layer(module, lambda x: F.batch_norm(x, None, None, module.weight, module.bias, True), X))
    assert cause.name == "mode"
    cause = explain(layer(module, changed(module, eps=1e-3), X))
    assert cause.name == "epsilon"


@pytest.mark.parametrize("momentum, names", [(0.1, ["batchnorm_momentum"]), (0.9, [])])
def test_momentum_of_batch_norm(momentum, names):
    module = nn.BatchNorm2d(3).double()
    pair = layer(module, module, X).pair
    pair.ours.settings = {"momentum": momentum}
    assert [cause.name for cause in hidden_causes(pair)] == names


def test_rate_of_dropout():
    pair = layer(nn.Dropout(0.1).eval(), lambda x: x, X).pair
    pair.ours.settings = {"rate": 0.2}
    (cause,) = hidden_causes(pair)
    assert cause.name == "dropout_rate" and "0.2 in ours and 0.1 in theirs" in cause.sentence


ACTIVATIONS = {
    "GELU (tanh)": (nn.GELU(), lambda x: F.gelu(x, approximate="tanh")),
    "GELU (erf)": (nn.GELU("tanh"), F.gelu),
    "GELU (sigmoid)": (nn.GELU(), lambda x: x * torch.sigmoid(1.702 * x)),
    "SiLU": (nn.ReLU(), F.silu),
    "Mish": (nn.SiLU(), F.mish),
    "ReLU": (nn.LeakyReLU(0.2), F.relu),
    "leaky ReLU, slope 0.3": (nn.ReLU(), lambda x: F.leaky_relu(x, 0.3)),
    "Swish, beta 1.5": (nn.SiLU(), lambda x: x * torch.sigmoid(1.5 * x)),
    "ELU, alpha 0.5": (nn.ELU(), lambda x: F.elu(x, 0.5)),
    "identity": (nn.SiLU(), lambda x: x),
    "0.5 times ReLU": (nn.ReLU(), lambda x: 0.5 * F.relu(x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    module, ours = ACTIVATIONS[name]
    cause = explain(layer(module, ours, X))
    assert cause.name == "activation" and f"ours is {name}, theirs is" in cause.sentence


RESAMPLINGS = {
    "interpolation-1": (nn.Upsample(scale_factor=2), lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "interpolation-2": (
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    ),
    "interpolation-3": (nn.Upsample(scale_factor=2), lambda x: x.repeat(1, 1, 2, 2)),
    "pooling-1": (nn.AvgPool2d(2), lambda x: F.max_pool2d(x, 2)),
    "pooling-2": (nn.AvgPool2d(3, 2, 1), lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "pooling-3": (nn.MaxPool2d(3, 2, 1), lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)),
    "pooling-4": (nn.AvgPool2d(2), lambda x: x[:, :, ::2, ::2]),
    "pooling-5": (nn.AdaptiveAvgPool2d(1), lambda x: x.amax((2, 3), keepdim=True)),
}


@pytest.mark.parametrize("name", RESAMPLINGS)
def test_resampling(name):
    module, ours = RESAMPLINGS[name]
    assert explain(layer(module, ours, X)).name == name.partition("-")[0]


@pytest.mark.parametrize("method, size", [("bilinear", 4), ("cubic", 16), ("nearest", 5)])
def test_jax_image_resize(method, size):
    mode = {"cubic": "bicubic"}.get(method, method)
    module = nn.Upsample((size, size), mode=mode)

    def ours(x):
        with jax.enable_x64(True):
            return torch.from_numpy(np.array(jax.image.resize(jnp.asarray(x.numpy()), (2, 3, size, size), method)))

    cause = explain(layer(module, ours, X))
    assert cause.name == "interpolation" and cause.residual < 1e-6


def test_embedding_reads_the_next_row():
    module = perturbed(nn.Embedding(10, 4))
    t = np.array([0, 3, 7])
    assert explain(layer(module, lambda t: module(t + 1), t)).name == "embedding_row"
    assert explain(layer(module, lambda t: 2 * module(t), t)).name == "embedding_scale"


class Sinusoid(nn.Module):
    def __init__(self, width=8, shift=0, order="sc", scale=1.0, period=1e4, offset=0, interleaved=False):
        super().__init__()
        self.settings = width, shift, order, scale, period, offset, interleaved

    def forward(self, t):
        width, shift, order, scale, period, offset, interleaved = self.settings
        half = width // 2
        f = torch.exp(-math.log(period) * torch.arange(half, dtype=torch.float64) / (half - shift))
        phase = scale * (t[:, None] + offset) * f
        parts = [getattr(phase, {"s": "sin", "c": "cos"}[letter])() for letter in order]
        return torch.stack(parts, -1).flatten(1) if interleaved else torch.cat(parts, -1)


EMBEDDINGS = {
    "embedding_order-1": {"order": "cs"},
    "embedding_order-2": {"interleaved": True},
    "frequency_exponent": {"shift": 1},
    "time_offset": {"offset": 1},
    "time_scale-1": {"scale": 1000.0},
    "time_scale-2": {"scale": 0.37},
    "max_period-1": {"period": 1e3},
    "max_period-2": {"period": 1234.5},
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_time_embedding(name):
    t = np.array([3.0, 17.0, 500.0, 999.0]) if "scale" not in name else np.array([0.1, 0.3, 0.6, 0.9])
    cause = explain(layer(Sinusoid(), Sinusoid(**EMBEDDINGS[name]), t))
    assert cause.name == name.partition("-")[0]


def attention(x, m, heads=2, scale=None, axis=-1, order="qkv", split="hd", bias=True, out_bias=True):
    b, n, c = x.shape
    qkv = F.linear(x, m.in_proj_weight, m.in_proj_bias if bias else None).chunk(3, -1)
    q, k, v = (qkv[order.index(letter)] for letter in "qkv")
    if split == "hd":
        q, k, v = (a.reshape(b, n, heads, -1).transpose(1, 2) for a in (q, k, v))
    else:
        q, k, v = (a.reshape(b, n, -1, heads).permute(0, 3, 1, 2) for a in (q, k, v))
    weights = (q @ k.mT * (scale or (c // heads) ** -0.5)).softmax(axis)
    h = (weights @ v).transpose(1, 2).reshape(b, n, c)
    return F.linear(h, m.out_proj.weight, m.out_proj.bias if out_bias else None)


ATTENTIONS = {
    "attention_heads": {"heads": 4},
    "attention_scale-1": {"scale": 8**-0.5},
    "attention_scale-2": {"scale": 0.123},
    "softmax_axis": {"axis": -2},
    "qkv_order": {"order": "kqv"},
    "qkv_packing": {"split": "dh"},
    "bias_missing-1": {"bias": False},
    "bias_missing-2": {"out_bias": False},
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_multi_head_attention(name):
    module = perturbed(nn.MultiheadAttention(8, 2, batch_first=True))
    module.in_proj_weight.data *= 0.2

    class Attention(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x, need_weights=False)[0]

    module.__class__ = Attention
    x = random(2, 6, 8)
    assert explain(layer(module, lambda x: attention(x, module), x)) is None
    assert explain(layer(module, lambda x: attention(x, module, **ATTENTIONS[name]), x)).name == name.partition("-")[0]


def test_dropout():
    module = conv(padding=1)
    torch.manual_seed(0)
    cause = explain(layer(module, lambda x: F.dropout(module(x), 0.25), X))
    assert cause.name == "dropout" and "rate 0.25" in cause.sentence


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_smaller_dtype(dtype):
    module, low = conv(padding=1), getattr(torch, dtype)
    cause = explain(layer(module, lambda x: copy.deepcopy(module).to(low)(x.to(low)).double(), X))
    assert cause.name == "dtype" and f"ours computes in {dtype}" in cause.sentence


def test_products_in_bfloat16():
    module = conv(padding=1)
    rounded = module.weight.bfloat16().double()
    cause = explain(layer(module, lambda x: F.conv2d(x.bfloat16().double(), rounded, module.bias, padding=1), X))
    assert cause.name == "matmul_precision"


RIGHT = {
    "conv": (conv(padding=1), X),
    "transposed": (perturbed(nn.ConvTranspose2d(3, 2, 4, 2, 1)), X),
    "linear": (perturbed(nn.Linear(5, 5)), random(3, 5)),
    "group_norm": (perturbed(nn.GroupNorm(2, 4)), random(2, 4, 3, 3)),
    "layer_norm": (perturbed(nn.LayerNorm(6)), random(2, 5, 6)),
    "activation": (nn.SiLU(), X),
    "pooling": (nn.AvgPool2d(2), X),
    "embedding": (Sinusoid(), np.array([1.0, 50.0])),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_layer_has_no_cause(name):
    module, x = RIGHT[name]
    assert explain(layer(module, module, x)) is None
    noise = torch.from_numpy(1e-15 * random(*np.shape(module(torch.from_numpy(x)).detach())))
    assert explain(layer(module, lambda x: module(x) + noise, x)) is None


PATTERNS = {
    "Only an edge of one pixel differs (bottom, right)": lambda y: F.pad(y[..., :-1, :-1], (0, 1, 0, 1)),
    "Only 1 of 4 channels differ: 2.": lambda y: y + torch.tensor([0, 0, 1.0, 0])[:, None, None] * y**3,
    "Ours has the channels of theirs in another order: 2, 0, 3, 1.": lambda y: y[:, [2, 0, 3, 1]],
    "Ours is theirs times a factor for each channel": lambda y: y * torch.arange(1.0, 5)[:, None, None],
    "Ours is theirs plus a constant for each channel": lambda y: y + torch.arange(1.0, 5)[:, None, None],
    "Ours has the same numbers as theirs at other places": lambda y: y.flatten().roll(3).reshape(y.shape),
    "90% of the numbers differ": lambda y: y + y**2 * y.mean(),
    "Only 1 of 2 entries of the batch differ.": lambda y: torch.cat([y[:1], y[1:] ** 2]),
}


@pytest.mark.parametrize("sentence", PATTERNS)
def test_pattern_of_a_difference_without_cause(sentence):
    module = conv(padding=1)
    finding = layer(module, lambda x: PATTERNS[sentence](module(x)), X)
    assert explain(finding) is None
    assert describe(finding).startswith(sentence)


class TwoSteps(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change, self.first, self.second = change, conv(padding=1), conv(i=4, o=3, padding=1)

    def forward(self, x):
        return self.second(F.silu(self.first(self.change(x))))


@pytest.mark.parametrize(
    "name, change", [("input_range", lambda x: 2 * x - 1), ("height_width_swapped", lambda x: x.mT)]
)
def test_inputs_of_a_module_that_is_seen_as_a_whole(name, change):
    assert explain(layer(TwoSteps(change), TwoSteps(lambda x: x), X)).name == name
