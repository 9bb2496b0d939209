"""Names of arrays that checkpoints hold beside a network: tables of a diffusion, counters, losses, optimisers."""

import re

EMA = re.compile(r"(?<![A-Za-z])ema(?![a-z])|EMA|Ema(?![a-z])|shadow|[Aa]verag|(?<![A-Za-z])swa(?![a-z])")
"""In names of averaged weights."""
RAW = re.compile(r"(?<![A-Za-z])(online|raw)(?![a-z])")
"""In names of the weights that an average was taken of."""
NO_WEIGHTS = re.compile(r"optimi[sz]er|optim(?![a-z])|exp_avg|momentum|(?<![a-z])grads?(?![a-z])", re.IGNORECASE)
"""In keys of dictionaries that have the network's names but other values."""
BUFFERS = ("time_emb.0.J", "time_emb.freqs", "time_embed.weight")
"""Arrays of the networks that are not trained, so that averages of parameters lack them."""
STATISTICS = (".running_mean", ".running_var")
"""Ends of the names of BatchNorm's running statistics, which are not trained either."""
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of names that torch.compile, FSDP and gradient checkpointing insert anywhere."""

TABLE_WORDS = "alphas?|betas?|sigmas?|gammas?|snr|log_?snr|logvar|timesteps|loss_weights?|noise_schedule|c0"
TABLES = re.compile(
    rf"({TABLE_WORDS})(_.*)?|(sqrt|log|one_minus|posterior|recip|p2|lvlb|coef|coeff|signal|noise)_.*|.*_(bars?|hats?)"
    "|.*cumprod.*|coefs?[0-9]*"
)
COUNTERS = re.compile(
    "n_averaged|num_averaged|num_batches_tracked|num_updates|decay|step|steps|global_step|iteration|epoch|initted|initialized"
)
OTHER_PARTS = re.compile(
    "loss.*|criterion|lpips.*|perceptual.*|metrics?|.*_metrics?|fid|inception.*|vgg.*|optim.*|discriminator"
)


def is_buffer(name: str) -> bool:
    """Whether an array of a network, by its name in the network, is not trained."""
    return name in BUFFERS or name.endswith(STATISTICS)


def is_extra(name: str, ndim: int) -> bool:
    """Whether an array beside a network is one of the known kinds. name: relative to the network's prefix."""
    first, _, rest = name.partition(".")
    last = name.rpartition(".")[2]
    if ndim <= 1 and (TABLES.fullmatch(last) or COUNTERS.fullmatch(last)):
        return True
    return bool(rest) and bool(OTHER_PARTS.fullmatch(first) or EMA.search(first))
