"""Layouts of checkpoints as public training code writes them: what a file holds, and which weights are to be taken."""

import argparse
import collections
import datetime
import enum
import pathlib

import numpy as np
import torch
from torch import nn

BUFFERS = ("time_emb.0.J", "time_emb.freqs", "time_embed.weight")


class Kind(enum.Enum):
    BEST = 1


class Wrapper(nn.Module):
    """A module around tensors of any names, as a training script's class holds a network."""

    def __init__(self, tensors: dict, **buffers):
        super().__init__()
        for name, tensor in tensors.items():
            part, (*parents, last) = self, name.split(".")
            for parent in parents:
                if parent not in part._modules:
                    part.add_module(parent, nn.Module())
                part = part._modules[parent]
            if name in BUFFERS:
                part.register_buffer(last, tensor)
            else:
                part.register_parameter(last, nn.Parameter(tensor))
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)


def under(prefix: str, tensors: dict) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def trained(tensors: dict) -> dict:
    return {name: tensor for name, tensor in tensors.items() if name not in BUFFERS}


def optimizer(tensors: dict) -> dict:
    """The state dict of Adam after a step."""
    states = {
        number: {"step": torch.tensor(1.0), "exp_avg": 0.1 * tensor, "exp_avg_sq": 0.2 * tensor}
        for number, tensor in enumerate(trained(tensors).values())
    }
    return {"state": states, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": list(states)}]}


def tables() -> dict:
    """Buffers of a diffusion, in the names that public code gives them."""
    names = (
        *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
        *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "loss_weight"),
        *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
        *("p2_loss_weight", "alpha_bar", "alphas_hat", "lvlb_weights", "logvar", "snr"),
    )
    return {name: torch.rand(20) for name in names}


LAYOUTS = {
    "the state dict": lambda raw, ema: raw,
    "model, optimizer, epoch": lambda raw, ema: {"model": raw, "optimizer": optimizer(raw), "epoch": 3},
    "net": lambda raw, ema: {"net": raw, "loss": 0.1},
    "unet": lambda raw, ema: {"unet": raw},
    "module": lambda raw, ema: {"module": raw},
    "params": lambda raw, ema: {"params": raw},
    "nested": lambda raw, ema: {"checkpoint": {"networks": {"denoiser": raw}}, "config": {"lr": 0.1}},
    "prefix module.": lambda raw, ema: {"state_dict": under("module.", raw)},
    "prefix unet.": lambda raw, ema: under("unet.", raw),
    "prefix eps_model.": lambda raw, ema: {
        **under("eps_model.", raw),
        "beta": torch.rand(20),
        "alpha_bar": torch.rand(20),
    },
    "prefix nn_model.": lambda raw, ema: {**under("nn_model.", raw), **tables()},
    "prefix denoise_fn.": lambda raw, ema: {"model": {**under("denoise_fn.", raw), **tables()}},
    "prefix module._orig_mod.diffusion.model.": lambda raw, ema: under("module._orig_mod.diffusion.model.", raw),
    "parts compiled": lambda raw, ema: {name.replace(".", "._orig_mod.", 1): t for name, t in raw.items()},
    "tables beside the names": lambda raw, ema: {"state_dict": {**raw, **tables()}},
    "diffusion and LPIPS": lambda raw, ema: {
        **under("model.", raw),
        **under("lpips.net.", {"lin0.weight": torch.rand(1, 4, 1, 1)}),
    },
    "a list": lambda raw, ema: [raw, optimizer(raw), 3, 100],
    "numpy scalar": lambda raw, ema: {"model_state_dict": raw, "best_loss": np.float64(0.1)},
    "numpy arrays": lambda raw, ema: {"model": {name: tensor.numpy() for name, tensor in raw.items()}},
    "Namespace, path, date, enum": lambda raw, ema: {
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs")),
        "model": raw,
        "when": datetime.datetime(2024, 1, 2),
        "kind": Kind.BEST,
        "history": collections.defaultdict(list, loss=[0.1]),
    },
    "Lightning": lambda raw, ema: {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": {**under("model.", raw), **tables(), "loss_fn.weight": torch.rand(3)},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.1)}},
        "optimizer_states": [optimizer(raw)],
        "hyper_parameters": argparse.Namespace(lr=0.1),
    },
    "a pickled module": lambda raw, ema: Wrapper(under("model.", raw), betas=torch.rand(20)),
    "a pickled module in a dictionary": lambda raw, ema: {"model": Wrapper(raw), "epoch": 3},
    "twice the same": lambda raw, ema: {"model": raw, "model_state_dict": {name: t.clone() for name, t in raw.items()}},
    "an empty average": lambda raw, ema: {"model_state_dict": raw, "ema": {}},
    "an average without arrays": lambda raw, ema: {"model": raw, "ema": {"decay": 0.999, "num_updates": 3}},
}
"""From raw weights and their average to the content of a file that has only raw weights."""

AVERAGES = {
    "ema": lambda raw, ema: {"model": raw, "ema": ema, "optimizer": optimizer(raw)},
    "ema_model": lambda raw, ema: {"model_state_dict": raw, "ema_model": under("module.", ema)},
    "model_state_dict, ema_state_dict": lambda raw, ema: {"model_state_dict": raw, "ema_state_dict": ema},
    "state_dict, state_dict_ema": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
    "params, params_ema": lambda raw, ema: {"params": raw, "params_ema": ema},
    "shadow_params": lambda raw, ema: {"model": raw, "ema": {"decay": 0.99, "shadow_params": list(ema.values())}},
    "shadow_params without buffers": lambda raw, ema: {
        "model": under("module.", raw),
        "optimizer": optimizer(raw),
        "ema": {"decay": 0.99, "num_updates": 7, "shadow_params": list(trained(ema).values())},
        "step": 7,
    },
    "shadow": lambda raw, ema: {"model": raw, "ema": {"decay": 0.99, "shadow": ema}},
    "shadow without buffers": lambda raw, ema: {"model": under("module.", raw), "ema": {"shadow": trained(ema)}},
    "a pickled average": lambda raw, ema: {
        "model": raw,
        "ema": argparse.Namespace(mu=0.99, shadow={name: nn.Parameter(t) for name, t in trained(ema).items()}),
    },
    "a list": lambda raw, ema: [raw, optimizer(raw), 3, 100, {"ema": ema}],
    "raw names and ema_model.": lambda raw, ema: {**raw, **under("ema_model.", ema)},
    "model. and model_ema.": lambda raw, ema: {"state_dict": {**under("model.", raw), **under("model_ema.", ema)}},
    "online_model. and ema_model.": lambda raw, ema: {
        "model": under("online_model.", raw) | under("ema_model.", ema) | {"initted": torch.tensor(True)},
        "step": 3,
    },
    "model and ema with both halves": lambda raw, ema: {
        "step": 3,
        "model": {**under("model.", raw), **tables()},
        "ema": {
            "initted": torch.tensor([True]),
            "step": torch.tensor([3]),
            **under("online_model.model.", raw),
            **under("ema_model.model.", ema),
            **under("online_model.", tables()),
            **under("ema_model.", tables()),
        },
    },
    "names without dots": lambda raw, ema: {
        "state_dict": {
            **under("model.diffusion_model.", raw),
            **{f"model_ema.diffusion_model{name.replace('.', '')}": t for name, t in trained(ema).items()},
            "model_ema.decay": torch.tensor(0.99),
            "model_ema.num_updates": torch.tensor(7),
            **tables(),
        }
    },
    "a callback of Lightning": lambda raw, ema: {
        "state_dict": under("net.", raw),
        "callbacks": {"EMACallback": {"ema_state_dict": under("net.", ema)}},
    },
}
"""The same for files that also have the average."""

ONLY_AVERAGES = {
    "n_averaged": lambda raw, ema: {"n_averaged": torch.tensor(5), **under("module.", ema)},
    "n_averaged, nested": lambda raw, ema: {"swa": {"n_averaged": torch.tensor(5), **under("module.model.", ema)}},
    "ema alone": lambda raw, ema: {"ema": under("module.", ema), "step": 3},
}
"""The same for files that have only the average."""
