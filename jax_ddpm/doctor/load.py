"""Loads what a command line names: modules from the user's code, their arguments, weights and inputs."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.read_content import open_model, read_arrays
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.user_code import load_object

TIMESTEPS = 1000


def build(text: str, arguments: Sequence[str], flag: str) -> Any:
    """The module that the named class or function makes, called with `arguments`; an object that is one already stays.

    arguments: JSON objects or NAME=VALUE, as the flag `flag` got them. An argument `rngs` that is not given becomes
    nnx.Rngs(0).
    """
    maker = load_object(text)
    if not isinstance(maker, type) and not inspect.isroutine(maker):
        return maker
    keywords = read_arguments(arguments, flag)
    signature = signature_of(maker)
    if signature is not None:
        rngs = signature.parameters.get("rngs")
        if rngs is not None and rngs.default is rngs.empty and "rngs" not in keywords:
            from flax import nnx

            keywords["rngs"] = nnx.Rngs(0)
        try:
            signature.bind(**keywords)
        except TypeError as error:
            raise UserError(
                f"{text}{signature}: {one_line(error)}. Give its arguments with --{flag}, such as "
                f"--{flag} {example(signature)}."
            ) from None
    try:
        return maker(**keywords)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{text} fails: {type(error).__name__}: {one_line(error)}.") from error


def signature_of(maker) -> inspect.Signature | None:
    """The arguments of a class's constructor or of a function; None if Python does not know them."""
    try:
        if not isinstance(maker, type) or is_dataclass(maker):
            return inspect.signature(maker)
        signature = inspect.signature(maker.__init__)  # that of an nnx class hides it
        return signature.replace(parameters=list(signature.parameters.values())[1:])
    except (TypeError, ValueError):
        return None


def example(signature: inspect.Signature) -> str:
    names = [name for name, value in signature.parameters.items() if value.default is value.empty and name != "rngs"]
    names = names or list(signature.parameters)
    return f"{names[0]}=..." if names else "name=value"


def read_arguments(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """Keyword arguments from JSON objects and NAME=VALUE. Values are JSON where they can be, else text."""
    found: dict[str, Any] = {}
    for text in texts:
        if text.lstrip().startswith("{"):
            try:
                found |= json.loads(text)
            except ValueError as error:
                raise UserError(f"--{flag} {text}: no valid JSON ({error}).") from None
            continue
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            raise UserError(f"--{flag} {text}: expected NAME=VALUE or a JSON object.")
        try:
            found[name] = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except ValueError:
            found[name] = value
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def read_inputs(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of `compare`: inputs, perhaps our_inputs, their_keywords and our_keywords.

    texts: shapes, or one FILE.py:FUNCTION, which returns a tuple of arrays, or a dict with the keys above.
    """
    if not texts:
        raise UserError("An input is missing. Give its shape, such as --input 2,3,32,32, and for t --input 2.")
    if len(texts) == 1 and not texts[0][0].isdigit():
        try:
            made = load_object(texts[0])()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{texts[0]} fails: {type(error).__name__}: {one_line(error)}.") from error
        keys = {"inputs", "our_inputs", "their_keywords", "our_keywords"}
        if isinstance(made, Mapping):
            if "inputs" not in made or set(made) - keys:
                raise UserError(f"{texts[0]}: expected a dict with inputs and perhaps {', '.join(sorted(keys))}.")
            return dict(made)
        return {"inputs": made}
    rng = np.random.default_rng(0)
    return {"inputs": tuple(read_input(text, rng) for text in texts)}


def read_input(text: str, rng: np.random.Generator) -> np.ndarray:
    """Random numbers of a shape: normal ones, or integers for SHAPE:int, SHAPE:int10 (below 10) and one number (t)."""
    sizes, _, kind = text.partition(":")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
        if any(size < 1 for size in shape):
            raise ValueError
    except ValueError:
        raise UserError(f"--input {text}: expected a shape such as 2,3,32,32, or FILE.py:FUNCTION.") from None
    kind = kind or ("int" if len(shape) == 1 else "float")
    limit = kind.removeprefix("int")
    if kind == "float":
        return rng.standard_normal(shape)
    if not kind.startswith("int") or not (limit == "" or limit.isdigit()):
        raise UserError(f"--input {text}: expected :float, :int or :int10 (integers below 10) after the shape.")
    return rng.integers(0, int(limit or TIMESTEPS), shape)


def load_weights(module, path: Path) -> None:
    """Fill a torch module with the weights in a file of safetensors or PyTorch. No code of the file is run.

    The weights may be under any keys, and their names may have a prefix. Raises UserError if they do not fit.
    """
    import torch

    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    best: tuple[int, dict, str] | None = None
    for dictionary in open_model(path).content.dictionaries:
        for prefix in prefixes(dictionary.arrays, wanted):
            arrays = {name.removeprefix(prefix): a for name, a in dictionary.arrays.items() if name.startswith(prefix)}
            score = sum(tuple(arrays[name].shape) == shape for name, shape in wanted.items() if name in arrays)
            if best is None or score > best[0]:
                best = score, arrays, prefix
    if best is None or best[0] == 0:
        raise UserError(f"{path} has no weights of {type(module).__name__}: none of its names and shapes fits.")
    _, arrays, prefix = best
    missing = [name for name in wanted if name not in arrays and not name.endswith("num_batches_tracked")]
    shapes = [
        f"{name} {tuple(arrays[name].shape)}, expected {shape}"
        for name, shape in wanted.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    unexpected = [name for name in arrays if name not in wanted] if not prefix else []
    problems = [
        f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise UserError(f"{path} does not fit {type(module).__name__}. {'; '.join(problems)}.")
    values = read_arrays({name: arrays[name] for name in wanted if name in arrays}, path)
    filled = {name: torch.from_numpy(np.array(value)) for name, value in values.items()}
    module.load_state_dict(filled, strict=False)


def prefixes(names: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What stands before the wanted names."""
    first = next(iter(wanted), None)
    found = {name.removesuffix(first) for name in names if first is not None and name.endswith(first)}
    return sorted({"", *found}, key=len)
