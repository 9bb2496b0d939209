"""Call somebody's sampler step: which argument is which is read from its parameters' names."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from unittest import mock

import numpy as np

from jax_ddpm.spec.errors import UserError

NAMES = {
    "model": "model network net unet denoise_fn denoiser denoise_model eps_model model_fn predict predict_fn apply_fn",
    "output": "model_output output out prediction pred eps eps_pred pred_eps noise_pred pred_noise predicted_noise "
    "eps_theta epsilon_theta e_t et model_out",
    "x": "x x_t xt img image images sample samples latents z_t state",
    "t": "t timestep timesteps time ts step time_step t_batch",
    "t_int": "i t_index index n idx",
    "noise": "noise z epsilon",
    "key": "key rng rng_key prng_key",
}
ROLES = {name: role for role, names in NAMES.items() for name in names.split()}
SAMPLES = ("prev_sample", "sample", "x_prev", "prev", "x", "img", "images")
"""Keys or attributes of a result under which the new state is looked for."""

RESPONSE = 0.5
"""The stand-in for the network gives output + RESPONSE (x - x_t): at x_t its output, elsewhere another one."""


class Step:
    """Somebody's sampler step as a function of NumPy arrays.

    function: any function of some of: the network or its output, x_t, t, the noise. It may return the new state, a
    tuple, a dict or an object that holds it. Noise that it draws itself is replaced by the noise given.
    asked: the timesteps that it gave the network.
    """

    def __init__(self, function: Callable, what: str = "the step"):
        self.function, self.what, self.framework = function, what, framework_of(function)
        self.asked: list[tuple[float, float]] = []
        self.roles = roles_of(function, what)
        self.integer_t: bool | None = None if "t" in self.roles.values() else False

    def __call__(self, t: int, x: np.ndarray, output: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The state after the step: float64 (B, C, H, W). Arrays of a function in JAX are given channels last."""
        attempts = [False, True] if self.integer_t is None else [self.integer_t]
        for integer in attempts:
            try:
                result = self.call(t, x, output, noise, integer)
            except UserError:
                raise
            except Exception as error:
                if integer is attempts[-1]:
                    raise UserError(
                        f"{self.what} failed at t = {t}: {type(error).__name__}: {error}\n"
                        f"It was called with {', '.join(f'{n} ({r})' for n, r in self.roles.items())}."
                    ) from error
            else:
                self.integer_t = integer
                return result

    def call(self, t, x, output, noise, integer: bool) -> np.ndarray:
        with eager_float64(self.framework):
            return self.call_with(t, x, output, noise, integer)

    def call_with(self, t, x, output, noise, integer: bool) -> np.ndarray:
        def model(x_in, t_in=None, *_, **__):
            if t_in is not None:
                self.asked.append((t, float(np.asarray(to_numpy(t_in), np.float64).reshape(-1)[0])))
            result, state = self.array(output), self.array(x)
            if getattr(x_in, "shape", None) != state.shape or result.shape != state.shape:
                return result
            return result + RESPONSE * (x_in - state)

        values = {
            "model": model,
            "output": self.array(output),
            "x": self.array(x),
            "t": t if integer else self.array(np.full(len(x), t)),
            "t_int": t,
            "noise": self.array(noise),
        }
        if "key" in self.roles.values() and self.framework == "jax":
            import jax

            values["key"] = jax.random.key(0)
        arguments = {name: values.get(role) for name, role in self.roles.items()}
        with replaced_draws(self.framework, values["noise"]):
            result = self.function(**arguments)
        return self.channels_first(sample_in(result, values["x"].shape, self.what))

    def array(self, value: np.ndarray):
        """In the framework of the step."""
        if self.framework == "torch":
            import torch

            return torch.from_numpy(np.array(value))
        if self.framework == "jax":
            import jax.numpy as jnp

            return jnp.asarray(np.moveaxis(value, 1, -1) if value.ndim == 4 else value)
        return np.array(value)

    def channels_first(self, value: np.ndarray) -> np.ndarray:
        return np.moveaxis(value, -1, 1) if self.framework == "jax" else value


def framework_of(function: Callable) -> str:
    """torch, jax or numpy: what the file of a function imports."""
    function = inspect.unwrap(getattr(function, "func", function))
    names = getattr(getattr(function, "__func__", function), "__globals__", None)
    if names is None:  # an object with __call__
        names = getattr(type(function).__call__, "__globals__", {})
    imported = {getattr(value, "__name__", "") for value in list(names.values()) if inspect.ismodule(value)}
    roots = {name.split(".")[0] for name in imported}
    roots |= {getattr(value, "__module__", "") or "" for value in names.values() if callable(value)}
    if any(root.split(".")[0] == "torch" for root in roots):
        return "torch"
    return "jax" if any(root.split(".")[0] == "jax" for root in roots) else "numpy"


def roles_of(function: Callable, what: str) -> dict[str, str]:
    """Parameter name -> role, of the parameters that get a value."""
    roles = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        role = ROLES.get(name.lower())
        if role is None and parameter.default is parameter.empty:
            known = ", ".join(sorted({names.split()[0] for names in NAMES.values()}))
            raise UserError(
                f"{what}: its parameter '{name}' is not known, and has no default.\n"
                f"Wrap it in a function of some of: {known}, such as step(model, x, t, noise)."
            )
        if role is not None:
            roles[name] = "t_int" if role == "t" and parameter.annotation in (int, "int") else role
    if not {"x", "t"} <= {role.split("_")[0] for role in roles.values()} or not {"model", "output"} & {*roles.values()}:
        raise UserError(
            f"{what}: its parameters ({', '.join(roles) or 'none'}) do not name the network or its output, x and t.\n"
            "Wrap it, such as step(model, x, t, noise) or step(output, x, t, noise)."
        )
    return roles


def sample_in(result, shape: tuple[int, ...], what: str) -> np.ndarray:
    """The new state in what a step returned: float64."""
    if isinstance(result, Mapping):
        values = [result[key] for key in SAMPLES if key in result] + list(result.values())
    elif isinstance(result, list | tuple):
        values = list(result)
    else:
        values = [getattr(result, key) for key in SAMPLES if hasattr(result, key)] + [result]
    for value in values:
        if getattr(value, "shape", None) is not None and tuple(value.shape) == tuple(shape):
            return to_numpy(value).astype(np.float64)
    got = ", ".join(str(tuple(v.shape)) for v in values if hasattr(v, "shape")) or type(result).__name__
    raise UserError(f"{what} returned no array with x's shape {tuple(shape)}, but {got}.\nExpected x at t - 1.")


def to_numpy(value) -> np.ndarray:
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


@contextlib.contextmanager
def eager_float64(framework: str):
    """For a function in JAX: 64-bit, and nothing compiled, so that the network's arguments are numbers."""
    if framework != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True), jax.disable_jit():
        yield


@contextlib.contextmanager
def replaced_draws(framework: str, noise):
    """Normal draws of x's shape give `noise`."""

    def instead(original):
        def draw(*arguments, **settings):
            sizes = [a for a in (*arguments, *settings.values()) if isinstance(a, list | tuple) or hasattr(a, "shape")]
            shapes = {tuple(getattr(a, "shape", a)) for a in sizes}
            shapes.add(tuple(a for a in arguments if isinstance(a, int) and not isinstance(a, bool)))
            return noise if tuple(noise.shape) in shapes else original(*arguments, **settings)

        return draw

    with contextlib.ExitStack() as stack:
        places = [(np.random, name) for name in ("randn", "standard_normal", "normal")]
        if framework == "torch":
            import torch

            places += [(torch, name) for name in ("randn", "randn_like", "normal")]
        if framework == "jax":
            import jax

            places += [(jax.random, "normal")]
        for module, name in places:
            stack.enter_context(mock.patch.object(module, name, instead(getattr(module, name))))
        yield
