"""Ports of public architectures that were not written for the doctor: each right, or with one of ten or more faults.

ResNet (He et al. 2016) and the vision transformer (Dosovitskiy et al. 2021) of torchvision, and the conditional UNet of
diffusers (Rombach et al. 2022), all in small.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from parity_tests.doctor_weights import copy_weights, kernel, rngs

ONE = ((1, 1), (1, 1))


def conv(i, o, k, stride=1, padding=None, bias=True):
    padding = ((k // 2,) * 2,) * 2 if padding is None else padding
    return nnx.Conv(i, o, (k, k), strides=stride, padding=padding, use_bias=bias, rngs=rngs())


def linear(i, o, bias=True):
    return nnx.Linear(i, o, use_bias=bias, rngs=rngs())


def layer_norm(c, epsilon):
    return nnx.LayerNorm(c, epsilon=epsilon, use_fast_variance=False, rngs=rngs())


def group_norm(groups, c, epsilon):
    return nnx.GroupNorm(c, num_groups=groups, epsilon=epsilon, use_fast_variance=False, rngs=rngs())


def batch_norm(c, wrong):
    epsilon = 1e-3 if wrong == "BatchNorm epsilon" else 1e-5
    return nnx.BatchNorm(c, use_running_average=wrong != "training mode", momentum=0.9, epsilon=epsilon, rngs=rngs())


class BasicBlock(nnx.Module):
    def __init__(self, i, o, stride, wrong):
        self.wrong, self.stride = wrong, stride
        padding = "SAME" if wrong == "SAME padding in a block" and stride == 2 else ONE
        self.conv1, self.bn1 = conv(i, o, 3, stride, padding, bias=False), batch_norm(o, "")
        self.conv2, self.bn2 = conv(o, o, 3, bias=False), batch_norm(o, wrong if o == 128 else "")
        self.downsample = nnx.List([conv(i, o, 1, stride, bias=False), batch_norm(o, "")]) if i != o else None

    def __call__(self, x):
        h = jax.nn.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        if self.downsample is not None:
            if self.wrong == "shortcut shifted":
                x = jnp.roll(x, -1, (1, 2))
            x = self.downsample[1](self.downsample[0](x))
        if self.wrong == "activation before the sum":
            return jax.nn.relu(h) + x
        if self.wrong == "no activation after the sum":
            return h + x
        if self.wrong == "shortcut left out" and self.downsample is None:
            return jax.nn.relu(h)
        return jax.nn.relu(h + x)


class ResNetPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        self.conv1 = conv(3, 64, 7, 2, "SAME" if wrong == "SAME padding in the stem" else None, bias=False)
        self.bn1 = batch_norm(64, "")
        widths = (64, 64, 128, 256, 512)
        for n in range(1, 5):
            block = BasicBlock(widths[n - 1], widths[n], 1 if n == 1 else 2, wrong if n in (1, 2) else "")
            setattr(self, f"layer{n}", nnx.List([block]))
        self.fc = linear(512, 10, bias=wrong != "no bias in the classifier")

    def fill(self, theirs):
        copy_weights(theirs, self)
        if self.wrong == "height and width swapped in a kernel":
            kernel(self.layer2[0].conv2, lambda k: k.swapaxes(0, 1))
        if self.wrong == "in and out swapped in a kernel":
            kernel(self.layer1[0].conv2, lambda k: k.swapaxes(2, 3))

    def __call__(self, x):
        h = self.bn1(self.conv1(x))
        h = jax.nn.gelu(h) if self.wrong == "GELU for ReLU" else jax.nn.relu(h)
        padding = "SAME" if self.wrong == "SAME pooling" else ONE
        h = (nnx.avg_pool if self.wrong == "average pooling" else nnx.max_pool)(h, (3, 3), (2, 2), padding)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            h = layer[0](h)
        return self.fc(h.max((1, 2)) if self.wrong == "maximum of the map" else h.mean((1, 2)))


RESNET = """
    SAME padding in the stem; padding; conv1
    SAME padding in a block; padding; layer2.0.conv1
    BatchNorm epsilon; epsilon; layer2.0.bn2
    training mode; mode|batchnorm_mode; layer2.0.bn2
    GELU for ReLU; activation|expression; maxpool|layer1|layer1.0|layer1.0.conv1|relu
    SAME pooling; pooling; maxpool|layer1|layer1.0|layer1.0.conv1
    average pooling; pooling; maxpool|layer1|layer1.0|layer1.0.conv1
    shortcut shifted; image_shifted; layer2.0.downsample|layer2.0.downsample.0
    activation before the sum; activation_order|expression|activation; layer1.0.relu|layer1.0|layer1|layer2.0.conv1
    no activation after the sum; layer_missing|activation_missing; layer1.0.relu|layer1.0|layer1|layer2.0.conv1
    shortcut left out; residual_missing; layer1.0.relu|layer1.0|layer1|layer2.0.conv1
    height and width swapped in a kernel; kernel_transposed; layer2.0.conv2
    in and out swapped in a kernel; kernel_in_out_swapped; layer1.0.conv2
    no bias in the classifier; bias_missing; fc
    maximum of the map; pooling; avgpool|fc
"""


class EncoderBlock(nnx.Module):
    def __init__(self, wrong):
        self.wrong = wrong
        self.ln_1 = layer_norm(32, 1e-5 if wrong == "LayerNorm epsilon" else 1e-6)
        self.ln_2 = layer_norm(32, 1e-6)
        self.query, self.key, self.value, self.out = (linear(32, 32) for _ in range(4))
        self.up, self.down = linear(32, 64), linear(64, 32)

    def __call__(self, x):
        wrong, (b, n, c) = self.wrong, x.shape
        heads = 8 if wrong == "8 heads" else 4
        h = self.ln_1(x)
        q, k, v = (layer(h).reshape(b, n, heads, c // heads) for layer in (self.query, self.key, self.value))
        if wrong == "query and key swapped":
            q, k = k, q
        scale = {"scores not scaled": 1.0, "scores scaled by the width": c**-0.5}.get(wrong, (c // heads) ** -0.5)
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale)
        h = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, c)
        x = x + self.out(h)
        h = x if wrong == "no norm before the MLP" else self.ln_2(x)
        h = self.down(jax.nn.gelu(self.up(h), approximate=wrong == "GELU by tanh"))
        return (self.ln_2(x) if wrong == "residual after the norm" else x) + h


class ViTPort(nnx.Module):
    """With names of its own."""

    def __init__(self, wrong=""):
        self.wrong = wrong
        self.patches = conv(3, 32, 4, 4, "VALID")
        self.first, self.positions = nnx.Param(jnp.zeros((1, 1, 32))), nnx.Param(jnp.zeros((1, 17, 32)))
        self.blocks = nnx.List([EncoderBlock(wrong), EncoderBlock("")])
        self.norm, self.head = layer_norm(32, 1e-6), linear(32, 10)

    def fill(self, theirs):
        values = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
        self.first.set_value(jnp.asarray(values["class_token"]))
        self.positions.set_value(jnp.asarray(values["encoder.pos_embedding"]))
        self.patches.kernel.set_value(jnp.asarray(values["conv_proj.weight"].transpose(2, 3, 1, 0)))
        self.patches.bias.set_value(jnp.asarray(values["conv_proj.bias"]))
        pairs = [("encoder.ln", self.norm), ("heads.head", self.head)]
        for n, block in enumerate(self.blocks):
            at = f"encoder.layers.encoder_layer_{n}."
            w, b = values[at + "self_attention.in_proj_weight"], values[at + "self_attention.in_proj_bias"]
            for i, layer in enumerate((block.query, block.key, block.value)):
                layer.kernel.set_value(jnp.asarray(w[32 * i : 32 * i + 32].T))
                layer.bias.set_value(jnp.asarray(b[32 * i : 32 * i + 32]))
            pairs += [(at + "ln_1", block.ln_1), (at + "ln_2", block.ln_2), (at + "mlp.0", block.up)]
            pairs += [(at + "mlp.3", block.down), (at + "self_attention.out_proj", block.out)]
        for name, layer in pairs:
            weight = jnp.asarray(values[name + ".weight"])
            if weight.ndim == 2:
                layer.kernel.set_value(weight.T)
            else:
                layer.scale.set_value(weight)
            layer.bias.set_value(jnp.asarray(values[name + ".bias"]))
        if self.wrong == "output projection not transposed":
            kernel(self.blocks[0].out, lambda k: k.T)

    def __call__(self, x):
        wrong = self.wrong
        h = self.patches(x)
        h = (h.swapaxes(1, 2) if wrong == "patches by columns" else h).reshape(len(x), -1, 32)
        first = jnp.broadcast_to(self.first[...], (len(x), 1, 32))
        h = jnp.concatenate([h, first] if wrong == "class token last" else [first, h], 1)
        h = h if wrong == "no positions" else h + self.positions[...]
        for block in self.blocks:
            h = block(h)
        h = self.norm(h)
        return self.head(h.mean(1) if wrong == "mean of the tokens" else h[:, 0])


START = "encoder|encoder.dropout|encoder.layers|encoder.layers.encoder_layer_0|encoder.layers.encoder_layer_0.ln_1"
BLOCK = "encoder.layers.encoder_layer_0"
MHA = f"{BLOCK}.self_attention|{BLOCK}.dropout|{BLOCK}.ln_2|{BLOCK}|{BLOCK}.self_attention.out_proj"
VIT = f"""
    LayerNorm epsilon; epsilon; {BLOCK}.ln_1
    8 heads; attention_heads; {MHA}
    query and key swapped; qkv_order; {MHA}
    scores not scaled; attention_scale; {MHA}
    scores scaled by the width; attention_scale; {MHA}
    output projection not transposed; weight_transposed; {MHA}
    no norm before the MLP; layer_missing; {BLOCK}.mlp|{BLOCK}.mlp.0
    GELU by tanh; activation; {BLOCK}.mlp.1|{BLOCK}.mlp.3|{BLOCK}.mlp|{BLOCK}.mlp.2
    residual after the norm; another_tensor; {BLOCK}|encoder.layers.encoder_layer_1.ln_1
    patches by columns; flatten_order; {START}
    class token last; concatenation_order; {START}
    no positions; term_missing; {START}
    mean of the tokens; token|pooling; heads|heads.head
"""


class Residual(nnx.Module):
    def __init__(self, i, o, wrong=""):
        self.wrong = wrong
        self.norm1, self.conv1 = (
            group_norm(4, i, 1e-6 if wrong == "epsilon of a residual block" else 1e-5),
            conv(i, o, 3),
        )
        self.time_emb_proj, self.norm2, self.conv2 = linear(32, o), group_norm(4, o, 1e-5), conv(o, o, 3)
        self.conv_shortcut = conv(i, o, 1) if i != o else None

    def __call__(self, x, time):
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        time = time if self.wrong == "time not activated" else jax.nn.silu(time)
        added = self.time_emb_proj(time)[:, None, None]
        h = self.norm2(h) + added if self.wrong == "time after the norm" else self.norm2(h + added)
        h = self.conv2(jax.nn.silu(h))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Attention(nnx.Module):
    def __init__(self, c, context, wrong=""):
        self.wrong = wrong
        self.to_q = linear(c, c, False)
        self.to_k, self.to_v = linear(context, c, False), linear(context, c, False)
        self.to_out = nnx.List([linear(c, c)])

    def __call__(self, x, context):
        b, n, c = x.shape
        heads = 4 if self.wrong == "4 heads" else 2
        q, k, v = (
            layer(h).reshape(b, -1, heads, c // heads)
            for layer, h in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        scale = c**-0.5 if self.wrong == "scores scaled by the width" else (c // heads) ** -0.5
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale)
        return self.to_out[0](jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, c))


class Proj(nnx.Module):
    def __init__(self, i, o):
        self.proj = linear(i, o)


class FeedForward(nnx.Module):
    def __init__(self, c, wrong=""):
        self.wrong = wrong
        self.net = nnx.List([Proj(c, 8 * c), None, linear(4 * c, c)])

    def __call__(self, x):
        h, gate = jnp.split(self.net[0].proj(x), 2, -1)
        if self.wrong == "gate and value swapped":
            h, gate = gate, h
        return self.net[2](h * jax.nn.gelu(gate, approximate=self.wrong == "GELU by tanh"))


class TransformerBlock(nnx.Module):
    def __init__(self, c, wrong):
        self.wrong = wrong
        epsilon = 1e-6 if wrong == "LayerNorm epsilon" else 1e-5
        self.norm1, self.norm2, self.norm3 = (layer_norm(c, epsilon if n == 0 else 1e-5) for n in range(3))
        self.attn1, self.attn2, self.ff = Attention(c, c, wrong), Attention(c, 12), FeedForward(c, wrong)

    def __call__(self, x, context):
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = self.attn2(self.norm2(x), context) + (0 if self.wrong == "residual left out" else x)
        return x + self.ff(self.norm3(x))


class Transformer(nnx.Module):
    def __init__(self, c, wrong=""):
        self.norm = group_norm(4, c, 1e-5 if wrong == "epsilon before the transformer" else 1e-6)
        self.proj_in, self.proj_out = conv(c, c, 1), conv(c, c, 1)
        self.transformer_blocks = nnx.List([TransformerBlock(c, wrong)])
        self.wrong = wrong

    def __call__(self, x, context):
        b, height, width, c = x.shape
        h = self.proj_in(self.norm(x))
        if self.wrong == "pixels by columns":
            h = h.swapaxes(1, 2)
        h = self.transformer_blocks[0](h.reshape(b, -1, c), context).reshape(b, height, width, c)
        return x + self.proj_out(h)


class Sampler(nnx.Module):
    def __init__(self, c, stride, wrong=""):
        self.wrong, self.stride = wrong, stride
        self.conv = conv(c, c, 3, stride, "SAME" if wrong == "SAME padding" else ONE)

    def __call__(self, x):
        if self.stride == 1:
            shape = (len(x), 2 * x.shape[1], 2 * x.shape[2], x.shape[3])
            x = jax.image.resize(x, shape, "bilinear" if self.wrong == "bilinear upsampling" else "nearest")
        return self.conv(x)


class Level(nnx.Module):
    def __init__(self, ins, o, attention, downsample=False, upsample=False, wrong=""):
        self.wrong = wrong
        self.resnets = nnx.List([Residual(i, o, wrong if n == 0 else "") for n, i in enumerate(ins)])
        count = attention if isinstance(attention, int) else 0
        self.attentions = nnx.List([Transformer(o, wrong if n == 0 else "") for n in range(count)])
        self.downsamplers = nnx.List([Sampler(o, 2, wrong)] if downsample else [])
        self.upsamplers = nnx.List([Sampler(o, 1, wrong)] if upsample else [])


class Embedding(nnx.Module):
    def __init__(self):
        self.linear_1, self.linear_2 = linear(8, 32), linear(32, 32)

    def __call__(self, x):
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class UNetPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        self.conv_in, self.time_embedding = conv(4, 8, 3), Embedding()
        self.down_blocks = nnx.List([Level([8], 8, 1, downsample=True, wrong=wrong), Level([8], 16, 0)])
        self.mid_block = Level([16, 16], 16, 1)
        self.up_blocks = nnx.List([Level([32, 24], 16, 0, upsample=True, wrong=wrong), Level([24, 16], 8, 2)])
        self.conv_norm_out, self.conv_out = group_norm(4, 8, 1e-5), conv(8, 4, 3)

    def fill(self, theirs):
        copy_weights(theirs, self)

    def __call__(self, x, t, context):
        wrong, dtype = self.wrong, x.dtype
        shift = 1 if wrong == "frequencies over n - 1" else 0
        frequencies = jnp.exp(-jnp.log(jnp.asarray(10000.0, dtype)) * jnp.arange(4, dtype=dtype) / (4 - shift))
        phase = t[:, None].astype(dtype) * frequencies
        parts = [jnp.cos(phase), jnp.sin(phase)]
        time = self.time_embedding(jnp.concatenate(parts[::-1] if wrong == "sines first" else parts, -1))
        h = self.conv_in(x)
        skips = [h]
        for level in self.down_blocks:
            for n, block in enumerate(level.resnets):
                h = block(h, time)
                h = level.attentions[n](h, context) if len(level.attentions) else h
                skips.append(h)
            for layer in level.downsamplers:
                h = layer(h)
                skips.append(h)
        middle = self.mid_block
        h = middle.resnets[1](middle.attentions[0](middle.resnets[0](h, time), context), time)
        for level in self.up_blocks:
            for n, block in enumerate(level.resnets):
                parts = [h, skips.pop()]
                h = block(jnp.concatenate(parts[::-1] if wrong == "skip order" else parts, -1), time)
                h = level.attentions[n](h, context) if len(level.attentions) else h
            for layer in level.upsamplers:
                h = layer(h)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))


FIRST, T = "down_blocks.0", "down_blocks.0.attentions.0.transformer_blocks.0"
UNET = f"""
    sines first; embedding_order; time_embedding|time_embedding.linear_1|time_proj
    frequencies over n - 1; frequency_exponent; time_embedding|time_embedding.linear_1|time_proj
    epsilon of a residual block; epsilon; {FIRST}.resnets.0.norm1
    time not activated; activation_missing; {FIRST}.resnets.0.time_emb_proj|{FIRST}.resnets.0.nonlinearity
    time after the norm; term_missing; {FIRST}.resnets.0.norm2
    epsilon before the transformer; epsilon; {FIRST}.attentions.0.norm
    pixels by columns; flatten_order; {T}|{T}.norm1
    LayerNorm epsilon; epsilon; {T}.norm1
    4 heads; attention_heads; {T}.attn1|{T}.attn1.to_out.0
    scores scaled by the width; attention_scale; {T}.attn1|{T}.attn1.to_out.0
    residual left out; residual_missing|term_missing; {T}|{T}.norm3
    gate and value swapped; halves_swapped|expression|activation; {T}.ff|{T}.ff.net.0|{T}.ff.net.1|{T}.ff.net.2
    GELU by tanh; activation|expression; {T}.ff|{T}.ff.net.0|{T}.ff.net.1|{T}.ff.net.2
    SAME padding; padding; {FIRST}.downsamplers.0.conv
    skip order; concatenation_order; up_blocks.0.resnets.0|up_blocks.0.resnets.0.norm1
    bilinear upsampling; interpolation; up_blocks.0.upsamplers.0.conv
"""


def resnet():
    from torchvision.models.resnet import BasicBlock as Block
    from torchvision.models.resnet import ResNet

    return ResNet(Block, [1, 1, 1, 1], num_classes=10), ResNetPort


def vit():
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 4, 2, 4, 32, 64, num_classes=10), ViTPort


def unet():
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        **{"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 12},
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **{"attention_head_dim": 2, "norm_num_groups": 4},
    )
    return model, UNetPort


NETWORKS = {"resnet": (resnet, RESNET), "vit": (vit, VIT), "unet": (unet, UNET)}


def build(network: str, wrong: str = ""):
    """A public torch network with random weights, its port with a fault, and inputs in PyTorch's layout."""
    torch.manual_seed(0)
    theirs, port = NETWORKS[network][0]()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if value.ndim == 1 or "token" in name or "pos" in name or name.startswith("heads"):
                value.add_(0.2 * torch.randn(value.shape, generator=g))
        for name, value in theirs.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(0.2 * torch.randn(value.shape, generator=g))
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=g) + 0.5)
    ours = port(wrong)
    ours.fill(theirs)
    g = np.random.default_rng(0)
    inputs = {
        "resnet": lambda: (g.standard_normal((2, 3, 64, 64)).astype(np.float32),),
        "vit": lambda: (g.standard_normal((2, 3, 16, 16)).astype(np.float32),),
        "unet": lambda: (
            g.standard_normal((2, 4, 8, 8)).astype(np.float32),
            np.array([3, 700]),
            g.standard_normal((2, 5, 12)).astype(np.float32),
        ),
    }[network]()
    return theirs.eval(), ours, inputs
