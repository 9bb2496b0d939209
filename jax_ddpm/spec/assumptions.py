"""One line that says what was assumed about a model whose file does not say it."""

from collections.abc import Collection
from dataclasses import asdict

from jax_ddpm.spec.errors import settings_text, users_words
from jax_ddpm.spec.model_info import ModelInfo

HARDLY_EVER_CHANGED = ("clip_percentile", "clip_range", "clip_max")
OF_OBJECTIVE = {  # settings that only one objective has
    "edm": ("sigma_min", "sigma_max", "sigma_data", "rho", "p_mean", "p_std"),
    "flow": ("flow_time",),
}


def describe_assumptions(
    info: ModelInfo, network_settings: Collection[str], has_image_size: bool, diffusion_settings: Collection[str] | None
) -> str | None:
    """The settings that were not told by a file, its folder or the user, and what changes them.

    Args:
        info: the model's settings.
        network_settings: names of the network's settings that were assumed.
        has_image_size: whether the image size was told.
        diffusion_settings: names of the diffusion's settings that were given; None if a file told all of them.

    Returns:
        A line, or None if nothing was assumed.
    """
    parts = []
    if network_settings:
        values = asdict(info.network)
        shown = ", ".join(f"{name}={values[name]}" for name in network_settings)
        first = next(iter(network_settings))
        flag = f"--network-setting {first}=VALUE (in Python: network_settings={{{first!r}: VALUE}})"
        parts.append(f"{shown} ({flag})")
    if not has_image_size:
        parts.append(f"images of {info.image_shape[0]}x{info.image_shape[1]} (--image-size)")
    if diffusion_settings is not None:
        values = asdict(info.diffusion)
        names = [name for name in values if name not in (*diffusion_settings, *HARDLY_EVER_CHANGED)]
        other = [name for kind, of_kind in OF_OBJECTIVE.items() if kind != info.diffusion.objective for name in of_kind]
        names = [name for name in names if name not in other]
        if info.diffusion.schedule not in ("linear", "scaled_linear", "sigmoid_betas"):
            names = [name for name in names if not name.startswith("beta_")]
        shown = {name: values[name] for name in names if values[name] not in (None, False, ())}
        parts += [settings_text(shown)] if shown else []
    return users_words(f"Assumed, as the file does not say it: {'; '.join(parts)}.") if parts else None
