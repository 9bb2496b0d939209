"""Recognise `adm`, the UNet of improved-diffusion and guided-diffusion, by the names and shapes of its arrays."""

from jax_ddpm.spec.adm_config import ADMConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.file_content import FileContent
from jax_ddpm.spec.recognise_adm_classifier import pool_of
from jax_ddpm.spec.recognised import Arrays, Recognised, count_numbered, shape_of


def recognise_adm(values: Arrays) -> Recognised | None:
    """Shapes do not show heads, the order of the channels in attention, the factor on t, and null labels.

    Raises UserError for a super-resolution model, and for a classifier.
    """
    if pool_of(values) is not None:
        raise UserError(
            "These weights are of a classifier of noisy images (EncoderUNetModel), which cannot draw.\n"
            "Give it beside a diffusion model, to guide it: --classifier FILE (in Python: classifier='FILE')."
        )
    first, last = shape_of(values, "input_blocks.0.0.weight", 4), shape_of(values, "out.2.weight", 4)
    time = shape_of(values, "time_embed.0.weight", 2)
    projection = shape_of(values, "middle_block.0.emb_layers.1.weight", 2)
    number = count_numbered(values, "output_blocks.{}.0.in_layers.2.weight", 4)
    if first is None or last is None or time is None or projection is None or number == 0:
        return None
    by_convolution = sum(f"output_blocks.{n}.{m}.conv.weight" in values for n in range(number) for m in (1, 2))
    by_block = sum(f"output_blocks.{n}.{m}.in_layers.2.weight" in values for n in range(number) for m in (1, 2))
    by_pooling = sum(f"input_blocks.{n}.0.in_layers.2.weight" not in values for n in range(1, number))
    levels = 1 + (by_convolution or by_block or by_pooling)
    per_level, rest = divmod(number, levels)  # residual blocks on the way up
    starts = [1 + level * per_level for level in range(levels)]  # of the levels in input_blocks
    shapes = [shape_of(values, f"input_blocks.{start}.0.in_layers.2.weight", 4) for start in starts]
    if rest or per_level < 2 or None in shapes:
        return None
    widths = tuple(shape[0] for shape in shapes)
    if first[1] == 6 and last[0] in (3, 6):
        raise UserError(
            "input_blocks.0.0.weight takes 6 channels: this looks like a super-resolution model (SuperResModel), whose "
            "input is the noisy image and a small one.\nSuch models are not read here: give a model of whole images."
        )
    rows = shape_of(values, "label_emb.weight", 2)
    settings = {
        "widths": widths,
        "model_channels": None if time[1] == widths[0] else time[1],
        "num_res_blocks": per_level - 1,
        "attention": tuple(f"input_blocks.{start}.1.qkv.weight" in values for start in starts),
        "use_scale_shift_norm": projection[0] == 2 * widths[-1],
        "resblock_updown": by_block > 0,
        "conv_resample": by_convolution > 0 or by_block > 0 or levels == 1,
        "learned_variance": last[0] == 2 * first[1],
    }
    if rows is None:
        settings |= {"num_classes": 0, "null_label": False}
    return Recognised(ADMConfig, first[1], settings, None if rows is None else rows[0])


def refuse_latent_diffusion(content: FileContent) -> None:
    """Raise UserError for a latent diffusion model (Rombach et al. 2022), whose UNet has the same names as `adm`."""
    names = (name for dictionary in content.dictionaries for name in dictionary.arrays)
    autoencoder = next((name for name in names if name.startswith("first_stage_model.")), None)
    if autoencoder is not None:
        raise UserError(
            f"The file has the autoencoder of a latent diffusion model ({autoencoder}): its UNet denoises codes, not "
            "images.\nSuch models are not read here: give a model of images."
        )
