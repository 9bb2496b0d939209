"""dtypes of a network's call: timesteps as integers, autocast, and buffers that half precision does not round."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from jax_ddpm.spec.errors import UserError

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def timesteps(x: Tensor, t: int | Tensor) -> Tensor:
    """The timesteps of a batch as int64 (B,), on the device of x (B, C, H, W). `float_time`s stay as they are.

    t: integers (B,), or one integer for all images, in a tensor or not. Their range is not checked: a check of values
    would stop torch.compile and torch.export. Raises UserError for floats and for other shapes.
    """
    if isinstance(t, Tensor) and t.is_floating_point() and getattr(t, "is_float_time", False):
        return t
    t = torch.as_tensor(t, device=x.device)
    if t.dtype not in INTEGERS:
        raise UserError(f"t has the dtype {t.dtype}: expected integers from 0 to T - 1, such as torch.int64.")
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] not in (1, x.shape[0])):
        raise UserError(
            f"t has the shape {tuple(t.shape)}: expected one integer, or one for each of the {x.shape[0]} images."
        )
    return t.long().expand(x.shape[0])


def float_time(t: Tensor) -> Tensor:
    """Times (B,) of the objectives edm and flow, which are no integers, as the argument t of a network.

    They are marked, so that a network refuses other floats, such as t / T.
    """
    t = t.view_as(t)
    t.is_float_time = True
    return t


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context in which the time is embedded: bfloat16 would round t = 998 to 1000."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def activations(x: Tensor, dtype: torch.dtype | None) -> AbstractContextManager:
    """A context for the layers: autocast to bfloat16 if `dtype` is that, else the caller's autocast, if any."""
    return torch.autocast(x.device.type, torch.bfloat16) if dtype == torch.bfloat16 else nullcontext()


class ExactBuffers(nn.Module):
    """A module whose buffers follow `.to(device)` and `.double()`, but are not rounded by `.half()` and `.bfloat16()`.

    For frequencies: the phases t f of t up to 1000 need float32.
    """

    def _apply(self, fn, recurse=True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = before[name].to(buffer.device)
        return self
