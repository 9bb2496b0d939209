"""Pictures, figures and the page of a run: functions from arrays to images, matplotlib figures and HTML.

Usable in a notebook: nothing here knows of networks, runs or folders. Images come in as uint8 (N, H, W, C), or
(rows, columns, H, W, C), C = 1 (shown gray) or 3.
"""

from jax_ddpm.report.choose import evenly_spaced, nearest
from jax_ddpm.report.figures import histogram, loss_by_timestep, loss_curve
from jax_ddpm.report.files import check_images_path, shown, stretched, write_images
from jax_ddpm.report.html_page import page
from jax_ddpm.report.pictures import beside, grid, table, write_gif

__all__ = [
    "beside",
    "check_images_path",
    "evenly_spaced",
    "grid",
    "histogram",
    "loss_by_timestep",
    "loss_curve",
    "nearest",
    "page",
    "shown",
    "stretched",
    "table",
    "write_gif",
    "write_images",
]
