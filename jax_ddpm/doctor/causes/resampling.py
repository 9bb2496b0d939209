"""Resampling: interpolation and pooling, as modules or as functions between them.

`methods` lists all ways to make an image of a given size. The one that gives theirs and the one that gives ours are
compared.
"""

import itertools
import re
from collections.abc import Callable, Iterator

import numpy as np

from jax_ddpm.doctor.causes.hypothesis import Hypothesis
from jax_ddpm.doctor.records import Finding, relative_error

CODE = {
    "nearest": "rows x[:, jnp.arange(new_h) * h // new_h], and columns in the same way",
    "the whole image repeated (tile)": "jnp.tile(x, (1, k, k, 1))",
    "nearest-exact": 'jax.image.resize(x, shape, "nearest")',
    "bilinear, half-pixel centres": 'jax.image.resize(x, shape, "bilinear", antialias=False)',
    "bilinear, antialiased": 'jax.image.resize(x, shape, "bilinear")',
    "bicubic, antialiased": 'jax.image.resize(x, shape, "bicubic")',
    "bicubic, a = -0.75": "a bicubic kernel with a = -0.75; jax.image.resize has a = -0.5",
    "bilinear, align_corners": "jax.scipy.ndimage.map_coordinates at i * (in - 1) / (out - 1), order 1",
}


def methods(size: tuple[int, int], target: tuple[int, int], pools: bool = True) -> Iterator[tuple[str, str, Callable]]:
    """(identifier, name, function on arrays (B, C, H, W)) for every method from `size` to `target`.

    pools: whether pooling comes first. Some methods are equal, such as bilinear by one half and the average of 2x2.
    """
    pools = pools and size[0] >= target[0] and size[1] >= target[1]
    import torch
    from torch.nn import functional as F

    def interpolate(**settings) -> Callable:
        return lambda x: F.interpolate(torch.from_numpy(np.ascontiguousarray(x)), size=target, **settings).numpy()

    if size == target:
        return
    if pools:
        yield from pooled(size, target)
    yield from padded(size, target)
    yield "interpolation", nearest(size, target), interpolate(mode="nearest")
    yield "interpolation", "nearest-exact", interpolate(mode="nearest-exact")
    for mode in ("bilinear", "bicubic"):
        centres = "half-pixel centres" if mode == "bilinear" else "a = -0.75"
        yield "interpolation", f"{mode}, {centres}", interpolate(mode=mode, align_corners=False)
        yield "interpolation", f"{mode}, align_corners", interpolate(mode=mode, align_corners=True)
        yield "interpolation", f"{mode}, antialiased", interpolate(mode=mode, align_corners=False, antialias=True)
        yield "interpolation", f"{mode}, corners not half-pixel", unaligned(mode, target)
    yield "interpolation", "area", interpolate(mode="area")
    yield from repeated(size, target)
    if size[0] >= target[0] and size[1] >= target[1]:
        yield from () if pools else pooled(size, target)
        yield from sliced(size, target)


def nearest(size: tuple[int, int], target: tuple[int, int]) -> str:
    """The name of nearest neighbours; for a whole factor, how often each pixel is repeated."""
    factor = target[0] // size[0]
    return f"each pixel repeated {factor}x{factor}" if target == (factor * size[0], factor * size[1]) else "nearest"


def unaligned(mode: str, target: tuple[int, int]) -> Callable:
    """Linear interpolation at i * in / out without the half pixel (TensorFlow 1's, "asymmetric")."""

    def resize(x: np.ndarray) -> np.ndarray:
        if mode != "bilinear":
            raise ValueError(mode)
        for axis, n in zip((2, 3), target, strict=True):
            at = np.arange(n) * x.shape[axis] / n
            low = np.floor(at).astype(int)
            high, share = np.minimum(low + 1, x.shape[axis] - 1), at - low
            share = share.reshape(-1, *[1] * (3 - axis))
            x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
        return x

    return resize


def padded(size, target) -> Iterator[tuple[str, str, Callable]]:
    """Up to three pixels more on each side, or fewer."""
    grown = [n - m for n, m in zip(target, size, strict=True)]
    if max(map(abs, grown)) > 6 or max(grown) * min(grown) < 0:
        return
    ways = [[(low, total - low) for low in sorted({total // 2, 0, total})] for total in grown]
    for rows, columns in itertools.product(*ways):
        if max(grown) <= 0:
            cut = tuple(slice(-low, n + high) for n, (low, high) in zip(size, (rows, columns), strict=True))
            yield "padding", f"cropped by {(rows, columns)}", lambda x, cut=cut: x[:, :, *cut]
            continue
        for mode in ("constant", "reflect", "edge", "wrap", "symmetric"):
            around = ((0, 0), (0, 0), rows, columns)
            yield (
                "padding",
                f'padded by {(rows, columns)}, mode "{mode}"',
                lambda x, around=around, mode=mode: np.pad(x, around, mode=mode),
            )


def repeated(size, target) -> Iterator[tuple[str, str, Callable]]:
    """Whole factors: the image repeated side by side, zeros between pixels."""
    if target[0] % size[0] or target[1] % size[1]:
        return
    factors = target[0] // size[0], target[1] // size[1]
    yield "interpolation", "the whole image repeated (tile)", lambda x: np.tile(x, (1, 1, *factors))

    def zeros_between(x):
        y = np.zeros((*x.shape[:2], *target))
        y[:, :, :: factors[0], :: factors[1]] = x
        return y

    yield "interpolation", "zeros between pixels", zeros_between


def pooled(size, target) -> Iterator[tuple[str, str, Callable]]:
    """Average and maximum over windows: kernel, stride, padding counted or not."""
    import torch
    from torch.nn import functional as F

    def run(function, *arguments, **settings) -> Callable:
        return lambda x: function(torch.from_numpy(np.ascontiguousarray(x)), *arguments, **settings).numpy()

    if target == (1, 1):
        yield "pooling", "average over the image", lambda x: x.mean((2, 3), keepdims=True)
        yield "pooling", "maximum over the image", lambda x: x.max((2, 3), keepdims=True)
    for stride in (2, 3, 4, 1):
        for kernel in (2, 3, 4, 5):
            for padding in range(kernel // 2 + 1):
                for ceil in (False, True):
                    text = f"{kernel}x{kernel}, stride {stride}, padding {padding}{', ceil_mode' if ceil else ''}"
                    kind = {"stride": stride, "padding": padding, "ceil_mode": ceil}
                    if kernel <= min(size):
                        yield from windows(text, run, F, kernel, kind)
    for stride in (2, 3):
        for kernel in (2, 3):
            yield from same_windows(size, kernel, stride)
    yield "pooling", "adaptive average", run(F.adaptive_avg_pool2d, target)
    yield "pooling", "adaptive maximum", run(F.adaptive_max_pool2d, target)


def windows(text, run, F, kernel, settings) -> Iterator[tuple[str, str, Callable]]:
    yield "pooling", f"maximum {text}", run(F.max_pool2d, kernel, **settings)
    counted = {"padding counted": True, "padding not counted": False} if settings["padding"] else {"": True}
    for says, count in counted.items():
        name = f"average {text}{', ' + says if says else ''}"
        yield "pooling", name, run(F.avg_pool2d, kernel, count_include_pad=count, **settings)


def same_windows(size, kernel, stride) -> Iterator[tuple[str, str, Callable]]:
    """Windows with "SAME" padding, which may lie at the end only."""
    from jax_ddpm.doctor.causes.convolution import same_pads

    pads = [same_pads(n, kernel, stride, 1) for n in size]

    def view(x, fill):
        x = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=fill)
        return np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]

    text = f'{kernel}x{kernel}, stride {stride}, padding "SAME" {tuple(pads)}'
    yield "pooling", f"maximum {text}", lambda x: view(x, -np.inf).max((-2, -1))
    yield "pooling", f"average {text}, padding counted", lambda x: view(x, 0).mean((-2, -1))
    yield "pooling", f"average {text}, padding not counted", lambda x: np.nanmean(view(x, np.nan), (-2, -1))


def sliced(size, target) -> Iterator[tuple[str, str, Callable]]:
    """Every nth pixel."""
    steps = -(-size[0] // target[0]), -(-size[1] // target[1])
    for a in range(steps[0]):
        for b in range(steps[1]):
            name = f"every {steps[0]}th pixel from ({a}, {b})"
            yield "interpolation", name, lambda x, a=a, b=b: x[:, :, a :: steps[0], b :: steps[1]]


def read_off(x: np.ndarray, y: np.ndarray, pools: bool = True) -> tuple[str, str, Callable] | None:
    """The first method that gives y from x, both (B, C, H, W); None if none does or the sizes are equal."""
    if x.ndim != 4 or y.ndim != 4 or x.shape[:2] != y.shape[:2]:
        return None
    for name, text, function in methods(x.shape[2:], y.shape[2:], pools):
        try:
            value = function(x)
        except (ValueError, RuntimeError):  # this method does not take this size
            continue
        if relative_error(value, y) < 1e-10:
            return name, text, function
    return None


def written(method: str) -> str:
    """How our code writes a method."""
    pattern = (
        r"(average|maximum) (\d)x\d, stride (\d), padding (\d)(, ceil_mode)?"
        r"(?:, padding counted|(, padding not counted))?"
    )
    window = re.fullmatch(pattern, method)
    if method.startswith("each pixel repeated"):
        factor = method.split("x")[-1]
        return f"jnp.repeat(jnp.repeat(x, {factor}, axis=1), {factor}, axis=2)"
    if method.startswith("padded"):
        pads, mode = re.fullmatch(r"padded by \((.*)\), mode (.*)", method).groups()
        return f"jnp.pad(x, ((0, 0), {pads}, (0, 0)), mode={mode})"
    if window is None:
        return CODE.get(method, method)
    kind, k, s, p, ceil, not_counted = window.groups()
    end = f"{p}, or more for ceil_mode" if ceil else p
    counted = f", count_include_pad={not not_counted}" if kind == "average" and p != "0" else ""
    function = "nnx.avg_pool" if kind == "average" else "nnx.max_pool"
    return f"{function}(x, ({k}, {k}), strides=({s}, {s}), padding=(({p}, {end}), ({p}, {end})){counted})"


def difference(theirs: tuple, ours: tuple) -> tuple[str, str, str]:
    """(name, says, mend) of two methods."""
    pools = any(text.startswith(("average", "maximum", "adaptive")) for text in (theirs[1], ours[1]))
    name = "padding" if "padded" in theirs[1] else "pooling" if pools else "interpolation"
    return name, f"ours is {ours[1]}, theirs is {theirs[1]}", f"Write {written(theirs[1])}."


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    """For modules that resample on their side."""
    x, y = finding.their_input, finding.their_output
    if finding.pair.theirs.parameters:
        return
    pools = "Upsample" not in finding.pair.theirs.kind
    theirs, ours = read_off(x, y, pools), read_off(x, finding.our_output, pools)
    if theirs is None or ours is None or theirs[1] == ours[1]:
        return
    yield Hypothesis(*difference(theirs, ours), lambda x, *_: ours[2](x))
