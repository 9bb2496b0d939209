"""Pictures, figures and the page of a run: functions from arrays to images, matplotlib figures and HTML.

They work in a notebook: nothing here depends on networks or on the folder of a run. Images are uint8, or floats around
[-1, 1], (N, H, W, C) or (rows, columns, H, W, C), with C = 1 (gray) or 3 (RGB). `visible` says how other numbers of
channels are shown.
"""

from jax_ddpm.report.channels import channel_note, visible
from jax_ddpm.report.choose import evenly_spaced, nearest
from jax_ddpm.report.figures import (
    bound_by_timestep,
    histogram,
    loss_by_timestep,
    loss_curve,
    score_by_calls,
    score_by_step,
)
from jax_ddpm.report.files import as_uint8, check_images_path, rescale_per_image, write_frames, write_images
from jax_ddpm.report.html_page import page
from jax_ddpm.report.pictures import beside, class_grid, grid, label_text, table, write_gif

__all__ = [
    "as_uint8",
    "beside",
    "bound_by_timestep",
    "channel_note",
    "check_images_path",
    "class_grid",
    "evenly_spaced",
    "grid",
    "histogram",
    "label_text",
    "loss_by_timestep",
    "loss_curve",
    "nearest",
    "page",
    "rescale_per_image",
    "score_by_calls",
    "score_by_step",
    "table",
    "visible",
    "write_frames",
    "write_gif",
    "write_images",
]
