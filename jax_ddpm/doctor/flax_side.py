"""Our network: a float64 copy of a Flax module, NNX or Linen, whose calls are recorded and may be changed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx, traverse_util

from jax_ddpm import ops
from jax_ddpm.doctor.convolution import as_matrix_products
from jax_ddpm.doctor.gradient_rows import output_name
from jax_ddpm.doctor.recording import Recording
from jax_ddpm.doctor.records import Call, map_arrays
from jax_ddpm.doctor.torch_side import first_array, with_arrays
from jax_ddpm.jaxprs import inner_jaxprs
from jax_ddpm.spec.errors import UserError


class Watcher(Protocol):
    """Sees each call of a forward pass, and may change what goes in and comes out. All arrays are NumPy's."""

    def enter(self, call: Call) -> tuple[tuple, dict]:
        """The arguments and keywords with which the call goes on."""
        return call.inputs, call.keywords

    def leave(self, call: Call) -> Any:
        """What the call returns. `call.output` is what the module computed."""
        return call.output


class Unchanged(Watcher):
    """Changes nothing."""


def flax_network(module: Any) -> "FlaxNetwork":
    """The network of an NNX module, a bound Linen module, or a tuple of a Linen module and its variables."""
    if isinstance(module, nnx.Module):
        return NnxNetwork(module)
    if isinstance(module, linen.Module) and module.scope is not None:
        return LinenNetwork(*module.unbind())
    if isinstance(module, tuple) and len(module) == 2 and isinstance(module[0], linen.Module):
        return LinenNetwork(*module)
    if isinstance(module, linen.Module):
        raise UserError(
            f"{type(module).__name__} is a Linen module without variables. "
            "Give a tuple (module, variables), or module.bind(variables)."
        )
    raise UserError(f"A Flax module was expected (nnx.Module, or linen.Module with variables), not {type(module)}.")


@contextmanager
def exact():
    """float64 on the CPU, matrix products of the highest precision, and plain JAX instead of the routes for CPUs."""
    with (
        jax.enable_x64(True),
        jax.default_device(cpu()),
        jax.default_matmul_precision("highest"),
        ops.plain(),
        as_matrix_products(),
    ):
        yield


def cpu() -> jax.Device | None:
    """The CPU. None, which is JAX's default device, where JAX_PLATFORMS leaves the CPU out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


class FlaxNetwork:
    """What NNX and Linen share."""

    def __init__(self):
        self.recording, self.watcher = Recording(), Unchanged()
        self.unseen = 0
        """Calls inside jax.jit, jax.checkpoint and the like, in the last recorded pass. Their values are not known."""
        self.offsets: Mapping[str, jax.Array] | None = None
        """While gradients are computed: what is added to outputs. Only the order of calls is recorded then."""

    def record(self, arguments: tuple, keywords: Mapping[str, Any], watcher: Watcher | None = None) -> list[Call]:
        """All calls of one forward pass, the whole network's first. Arguments are NumPy arrays or other values."""
        self.recording, self.watcher, self.unseen = Recording(), watcher or Unchanged(), 0
        with exact(), self.watching():
            self.whole(to_jax_tree(tuple(arguments)), to_jax_tree(dict(keywords)))
        return self.recording.calls

    def run(self, call: Call, *arrays: np.ndarray) -> np.ndarray:
        """Call one module alone, as in `call` but with these arrays as its array arguments. Its first output array."""
        arguments, keywords = with_arrays(call, arrays)
        with exact():
            return first_array(to_numpy_tree(self.alone(call, to_jax_tree(arguments), to_jax_tree(keywords))))

    def dtypes_inside(self, call: Call) -> set[str]:
        """Names of the float dtypes of all that a call computes; none if it cannot be traced."""
        with exact():
            arguments, keywords = to_jax_tree(call.inputs), to_jax_tree(call.keywords)
            is_array = [isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((arguments, keywords))]
            leaves, tree = jax.tree.flatten((arguments, keywords))

            def function(arrays):
                rest = iter(arrays)
                filled = [next(rest) if dynamic else leaf for leaf, dynamic in zip(leaves, is_array, strict=True)]
                return jax.tree.leaves(self.alone_pure(call, *jax.tree.unflatten(tree, filled)))

            try:
                jaxpr = jax.make_jaxpr(function)([leaf for leaf in leaves if isinstance(leaf, jax.Array)])
            except Exception:  # its code branches on values
                return set()
        return {name for name in dtypes_of(jaxpr.jaxpr) if "float" in name}

    def watch(self, path: str, module: Any, parameters: Mapping, proceed: Callable, arguments, keywords) -> Any:
        """Record a call around `proceed`, which computes it."""
        if self.offsets is not None:
            call = self.recording.begin(path, module, (), {})
            try:
                output = proceed(*arguments, **keywords)
            finally:
                self.recording.end()
            offset = self.offsets.get(output_name(path, call.occurrence))
            return output if offset is None or not isinstance(output, jax.Array) else output + offset
        leaves = jax.tree.leaves((arguments, keywords))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            self.unseen += 1
            return proceed(*arguments, **keywords)
        call = self.recording.begin(path, module, to_numpy_tree(arguments), to_numpy_tree(keywords), parameters)
        try:
            new_arguments, new_keywords = self.watcher.enter(call)
            output = proceed(
                *back_to_jax(new_arguments, call.inputs, arguments),
                **back_to_jax(new_keywords, call.keywords, keywords),
            )
        finally:
            self.recording.end()
        call.output = to_numpy_tree(output)
        return back_to_jax(self.watcher.leave(call), call.output, output)

    @contextmanager
    def adding(self, offsets: Mapping[str, jax.Array], call: Call, module: Any) -> Iterator[None]:
        """Add `offsets`, by `output_name`, to the outputs of calls inside `module`, a copy of the module of `call`."""
        if not offsets:
            yield
            return
        self.recording, self.offsets = Recording(), offsets
        try:
            with self.known_as(call.path, module), self.watching():
                yield
        finally:
            self.offsets = None


class NnxNetwork(FlaxNetwork):
    """A copy of an NNX module on the CPU, with float64 parameters.

    Calls are seen through the wrapped `__call__` of its classes.
    """

    def __init__(self, module: nnx.Module):
        super().__init__()
        with exact():
            self.module = nnx.clone(module)
            nnx.update(self.module, jax.device_put(nnx.state(self.module), cpu()))
            self.dtypes = {path: variable.dtype for path, variable in self.variables().items()}
            self.fill({path: np.asarray(value) for path, value in self.parameters().items()})
        self.paths = {}
        for keys, node in nnx.iter_graph(self.module):
            if isinstance(node, nnx.Module):
                self.paths.setdefault(id(node), ".".join(map(str, keys)))

    def variables(self) -> dict[str, nnx.Variable]:
        """`named_variables` of the copy."""
        return named_variables(self.module)

    def parameters(self) -> dict[str, np.ndarray]:
        return {path: to_numpy(variable.get_value()) for path, variable in self.variables().items()}

    def fill(self, values: Mapping[str, np.ndarray]) -> None:
        """Set parameters by path, floats as float64."""
        variables = self.variables()
        with exact():
            for path, value in values.items():
                variables[path].set_value(jnp.asarray(to_numpy(value)))

    @contextmanager
    def known_as(self, path: str, module: nnx.Module) -> Iterator[None]:
        """While `module` and those inside are called in place of the ones at `path`."""
        paths = self.paths
        nodes = [(keys, node) for keys, node in nnx.iter_graph(module) if isinstance(node, nnx.Module)]
        self.paths = {id(node): ".".join([*([path] if path else []), *map(str, keys)]) for keys, node in nodes}
        try:
            yield
        finally:
            self.paths = paths

    def stored(self) -> dict[str, np.ndarray]:
        """Copies of all arrays by path, in the dtypes of the original."""
        return {path: np.array(value, self.dtypes[path]) for path, value in self.parameters().items()}

    @contextmanager
    def watching(self):
        kinds = {type(node) for _, node in nnx.iter_graph(self.module) if isinstance(node, nnx.Module)}
        kinds = {kind for kind in kinds if callable(getattr(kind, "__call__", None))}  # noqa: B004
        originals = {kind: kind.__call__ for kind in kinds}
        inherited = {kind for kind in kinds if "__call__" not in vars(kind)}
        for kind, original in originals.items():
            kind.__call__ = self.wrapped(original)
        try:
            yield
        finally:
            for kind, original in originals.items():
                if kind in inherited:
                    del kind.__call__
                else:
                    kind.__call__ = original

    def wrapped(self, original: Callable) -> Callable:
        def __call__(module, *arguments, **keywords):
            path = self.paths.get(id(module))
            if path is None or self.is_inside(module):
                return original(module, *arguments, **keywords)
            parameters = own_variables(module) if self.offsets is None else {}
            return self.watch(path, module, parameters, lambda *a, **k: original(module, *a, **k), arguments, keywords)

        return __call__

    def is_inside(self, module: nnx.Module) -> bool:
        """Whether the innermost open call is of the same module, which happens in super().__call__()."""
        return bool(self.recording.open) and self.recording.open[-1].module is module

    def whole(self, arguments, keywords):
        with kept_state(self.module):
            return self.module(*arguments, **keywords)

    def alone(self, call: Call, arguments, keywords):
        with kept_state(call.module):
            return call.module(*arguments, **keywords)

    def alone_pure(self, call: Call, arguments, keywords):
        return nnx.clone(call.module)(*arguments, **keywords)


class LinenNetwork(FlaxNetwork):
    """A Linen module with float64 variables. Calls are seen through an interceptor."""

    def __init__(self, module: linen.Module, variables: Mapping[str, Any]):
        super().__init__()
        self.module, self.prefix = module, ()
        self.dtypes = jax.tree.map(lambda value: value.dtype, dict(variables))
        with jax.enable_x64(True):
            self.values = jax.tree.map(lambda value: jnp.asarray(to_numpy(value)), dict(variables))

    def parameters(self) -> dict[str, np.ndarray]:
        """Arrays of all collections by path, such as "down.Conv_0.kernel"."""
        flat = [leaf for tree in self.values.values() for leaf in jax.tree_util.tree_leaves_with_path(tree)]
        return {".".join(str(key.key) for key in keys): np.asarray(value) for keys, value in flat}

    def fill(self, values: Mapping[str, np.ndarray]) -> None:
        def new(keys, old):
            return jnp.asarray(to_numpy(values.get(".".join(str(key.key) for key in keys[1:]), old)))

        with exact():
            self.values = jax.tree_util.tree_map_with_path(new, self.values)

    @contextmanager
    def known_as(self, path: str, module: linen.Module) -> Iterator[None]:
        """While `module` is applied alone, with the variables at `path`."""
        self.prefix = tuple(path.split(".")) if path else ()
        try:
            yield
        finally:
            self.prefix = ()

    def stored(self) -> dict[str, np.ndarray]:
        """Copies of all arrays by collection and path, in the dtypes of the original."""
        arrays = jax.tree.map(np.array, self.values, self.dtypes)
        return traverse_util.flatten_dict(flax.core.unfreeze(arrays), sep=".")

    @contextmanager
    def watching(self):
        def interceptor(proceed, arguments, keywords, context):
            if context.method_name != "__call__":
                return proceed(*arguments, **keywords)
            path = (*self.prefix, *context.module.path)
            parameters = {
                name: np.asarray(value)
                for tree in self.values.values()
                for name, value in (subtree(tree, path) or {}).items()
                if not isinstance(value, Mapping)
            }
            module = context.module.clone(parent=None)
            return self.watch(".".join(path), module, parameters, proceed, arguments, keywords)

        with linen.intercept_methods(interceptor):
            yield

    def whole(self, arguments, keywords):
        return self.apply(self.module, self.values, arguments, keywords)

    def alone(self, call: Call, arguments, keywords):
        path = call.path.split(".") if call.path else []
        inner = {name: subtree(tree, path) for name, tree in self.values.items()}
        inner = {name: tree for name, tree in inner.items() if tree is not None}
        return self.apply(call.module, inner, arguments, keywords)

    alone_pure = alone

    def apply(self, module, variables, arguments, keywords):
        mutable = [name for name in variables if name != "params"]
        rngs = {"dropout": jax.random.key(0)}
        return module.apply(variables, *arguments, **keywords, mutable=mutable, rngs=rngs)[0]


def dtypes_of(jaxpr) -> set[str]:
    """Names of the dtypes of all values that a jaxpr computes, those inside its sub-programs too."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {value.aval.dtype.name for value in equation.outvars if hasattr(value.aval, "dtype")}
        for inner in inner_jaxprs(equation):
            found |= dtypes_of(inner)
    return found


def subtree(tree: Any, path: Iterable[str]) -> Any:
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


@contextmanager
def kept_state(module: nnx.Module):
    """What a call in training mode changes gets its value back: BatchNorm's statistics, and counts of random draws."""
    changing = nnx.BatchStat | nnx.RngCount
    saved = [(node, node.get_value()) for _, node in nnx.iter_graph(module) if isinstance(node, changing)]
    try:
        yield
    finally:
        for variable, value in saved:
            variable.set_value(value)


def named_variables(module: nnx.Module) -> dict[str, nnx.Variable]:
    """Variables that hold numbers, by path, without random state. One that several modules share has the first path."""
    found = {}
    for keys, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.RngState) and is_plain(node.get_value()):
            found[".".join(map(str, keys))] = node
    return found


def own_variables(module: nnx.Module) -> dict[str, np.ndarray]:
    """Variables that are attributes of the module itself."""
    held = {name: value for name, value in vars(module).items() if isinstance(value, nnx.Variable)}
    return {name: to_numpy(value.get_value()) for name, value in held.items() if is_plain(value.get_value())}


def is_plain(value: Any) -> bool:
    """Whether a variable's value is an array of numbers, and not a random key."""
    return hasattr(value, "dtype") and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def to_numpy(value) -> np.ndarray:
    """An array as NumPy array, floats as float64."""
    array = np.asarray(value)
    return array.astype(np.float64, copy=False) if jnp.issubdtype(array.dtype, jnp.floating) else array


def to_numpy_tree(tree):
    return map_arrays(tree, to_numpy, lambda value: isinstance(value, jax.Array | np.ndarray) and is_plain(value))


def to_jax_tree(tree):
    return map_arrays(tree, jnp.asarray, lambda value: isinstance(value, np.ndarray))


def back_to_jax(new, recorded, native):
    """`native` with the arrays of `new` in place of those that are not the ones of `recorded`.

    Lists and dicts are changed in place, because a module may add to them or take from them.
    """
    if isinstance(new, np.ndarray):
        return native if new is recorded else jnp.asarray(new)
    if isinstance(new, dict | list) and type(native) is type(new):
        for key in new if isinstance(new, dict) else range(len(new)):
            native[key] = back_to_jax(new[key], recorded[key], native[key])
        return native
    if isinstance(new, tuple) and isinstance(native, tuple):
        parts = [back_to_jax(*three) for three in zip(new, recorded, native, strict=True)]
        return type(native)(*parts) if hasattr(native, "_fields") else tuple(parts)
    return native
