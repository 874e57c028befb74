"""Conversion of objects to a JSON tree and a table of arrays, and back.

Code is never saved. For an equinox module of a user's own class, the parts are saved, and the reader of the file must pass the
class. For a network that is not an equinox module or not from flowdensity, only the arrays are saved, and the reader must pass a
network with arrays of the same shapes and types.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._container import Tensors
from .._registry import KINDS, NAMES, Kind, conforms, kind_of
from .._typing import Array
from ..models.fields import wrap
from ..models.networks import AbstractNetwork
from . import foreign as foreign

NETWORKS = (AbstractNetwork, Callable[..., Any])
"""Annotations of parts that may be a user's own network."""

IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
"""Names of JAX's random number generators."""


class Unreadable(ValueError):
    """Error for an intact file that needs something from its reader. The message says what."""


def describe(value: Any, name: str, tensors: Tensors) -> Any:
    """Convert an object to a tree that can be written as JSON. Arrays are added to `tensors` under their path.

    Args:
        value: object to convert.
        name: path of the object.
        tensors: table to which arrays are added.

    Raises:
        TypeError: if a part has an unsupported type.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _describe_array(value, name, tensors)
    if type(value) in (tuple, list):
        items = [describe(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: describe(item, f"{name}/{key}", tensors) for key, item in value.items()}}
    name_of_class = NAMES.get(type(value))
    if name_of_class is None and not isinstance(value, eqx.Module):
        raise _unwritable(name, value)
    is_own = name_of_class is None
    kind = kind_of(type(value)) if name_of_class is None else KINDS[name_of_class]
    parts = kind.parts(value) if kind.parts else {field: getattr(value, field) for field in kind.fields}
    for field, hint in kind.fields.items():
        if not is_own and not conforms(parts[field], hint):
            raise _unwritable(f"{name}/{field}", parts[field])
    # For classes of other libraries, only some parts are saved. The remaining parts must have their usual values.
    is_module = isinstance(value, eqx.Module) and not is_own
    if is_module and jax.tree.structure(kind.make(**parts)) != jax.tree.structure(value):
        raise _unwritable(name, value)
    fields = {
        field: (_describe_network if hint in NETWORKS and type(parts[field]) not in NAMES else describe)(
            parts[field], f"{name}/{field}", tensors
        )
        for field, hint in kind.fields.items()
    }
    return {"class" if is_own else "type": name_of_class or type(value).__qualname__, "fields": fields}


class Reader:
    """Reader that restores an object from a tree and its arrays.

    Args:
        caller: name of the public function for errors.
        tensors: arrays by name.
        network: network into which the arrays of a user's own network are put; None if there is none.
        classes: the user's own classes by name.
    """

    def __init__(self, caller: str, tensors: Tensors, network: Any = None, classes: Mapping[str, type] | None = None):
        self.caller = caller
        self.classes = classes or {}
        self.tensors = tensors
        self.network = network
        self.used = False

    def restore(self, tree: Any) -> Any:
        """Restore an object from the tree that `describe` returned.

        Raises:
            Unreadable: if an intact file cannot be restored without something that the caller must supply, such as a class.
            Exception: any type of error, if the tree is invalid.
        """
        match tree:
            case None | bool() | int() | float() | str():
                return tree
            case list():
                return [self.restore(item) for item in tree]
            case {"float": ("inf" | "-inf" | "nan") as text, **rest} if not rest:
                return float(text)
            case {"tuple": list(items), **rest} if not rest:
                return tuple(self.restore(item) for item in items)
            case {"dict": dict(items), **rest} if not rest:
                return {key: self.restore(item) for key, item in items.items()}
            case {"type": str(name), "fields": dict(fields), **rest} if not rest:
                if name not in KINDS:
                    raise ValueError(f"this version of flowdensity has no class {name}")
                return self._object(name, KINDS[name], fields)
            case {"class": str(name), "fields": dict(fields), **rest} if not rest:
                return self._own_object(name, fields)
            case {"own": str(name), "arrays": list(arrays), **rest} if not rest:
                return self._own(name, [self.restore(array) for array in arrays])
            case {"array": str(name), "kind": str(kind), **rest}:
                return self._array(name, kind, **rest)
        raise ValueError(f"{str(tree)[:80]} does not describe a value")

    def _own_object(self, name: str, trees: dict[str, Any]) -> Any:
        cls = self.classes.get(name)
        if cls is None:
            raise Unreadable(
                f"{self.caller} expected the class {name} in `classes`, since the file has an object of this class, but no code. "
                f"Fix: fd.load(file, classes=[{name.rpartition('.')[2]}])"
            )
        kind = kind_of(cls)
        if trees.keys() != kind.fields.keys():
            raise Unreadable(
                f"{self.caller} expected the class {name} with the fields {list(trees)}, as saved; got one with "
                f"{list(kind.fields)}. Pass a class of the same form as the saved one. Fix: classes = [{cls.__name__}]"
            )
        return self._object(name, kind._replace(fields=dict.fromkeys(kind.fields, Any)), trees)

    def _object(self, name: str, kind: Kind, trees: dict[str, Any]) -> Any:
        if trees.keys() != kind.fields.keys():
            raise ValueError(f"{name} has the fields {list(kind.fields)}, not {list(trees)}")
        parts = {field: self.restore(tree) for field, tree in trees.items()}
        for field, hint in kind.fields.items():
            if not conforms(parts[field], hint):
                raise TypeError(f"`{field}` of {name} cannot be of type {type(parts[field]).__name__}")
        return kind.make(**parts)

    def _array(self, name: str, kind: str, *, dtype: str | None = None, weak: bool = False) -> Any:
        array = self.tensors[name]
        if dtype is not None:
            array = array.view({"bfloat16": jnp.bfloat16}[dtype])
        if kind == "numpy":
            return array
        if kind == "scalar" and array.shape == ():
            return array[()]
        out = jnp.asarray(array)
        if out.dtype != array.dtype:
            raise Unreadable(
                f"{self.caller} expected a session with 64-bit precision, since the file has {name!r} of {array.dtype}, which "
                'this session would truncate. Fix: jax.config.update("jax_enable_x64", True); fd.load(file)'
            )
        if kind == "jax":
            return _weak(array) if weak else out
        if kind in IMPLEMENTATIONS:
            return jr.wrap_key_data(out, impl=kind)
        raise ValueError(f"there is no array of kind {kind!r}")

    def _own(self, name: str, arrays: list[Any]) -> Any:
        if self.network is None:
            raise Unreadable(
                f"{self.caller} expected `network`, since the file has the arrays, but not the code, of a network of type "
                f"{name}, which is not from flowdensity. Pass a network of the same form as the saved one. "
                "Fix: fd.load(file, network=network)"
            )
        self.used = True
        network = wrap(self.network)
        leaves, structure = jax.tree.flatten(network)
        places = [index for index, leaf in enumerate(leaves) if eqx.is_array(leaf)]
        differences = [
            (f"{what} {before}", f"{what} {now}")
            for what, before, now in (
                ("of type", name, _name(network)),
                ("whose number of arrays is", len(arrays), len(places)),
                *(
                    (f"with array {index} of", _form(array), _form(leaves[place]))
                    for index, (array, place) in enumerate(zip(arrays, places, strict=False))
                ),
            )
            if before != now
        ]
        if differences:
            before, now = differences[0]
            raise Unreadable(
                f"{self.caller} expected `network` {before}, as saved; got one {now}. "
                "Fix: network = density.model.network"
            )
        for place, array in zip(places, arrays, strict=True):
            leaves[place] = array
        return jax.tree.unflatten(structure, leaves)


def by_name(caller: str, classes: Any) -> dict[str, type]:
    """Map the names of the user's own classes to the classes.

    Raises:
        TypeError: if they are not a list or tuple of equinox modules.
        ValueError: if two have the same name.
    """
    each: list[Any] = list(classes) if isinstance(classes, list | tuple | set | frozenset) else [None]
    if not all(isinstance(cls, type) and issubclass(cls, eqx.Module) for cls in each):
        fix = "[classes]" if isinstance(classes, type) else "[]"
        raise TypeError(
            f"{caller} expected `classes` as a list of classes that are equinox modules; got {classes!r}. Fix: classes = {fix}"
        )
    names = {cls.__qualname__: cls for cls in each}
    if len(names) < len({id(cls) for cls in each}):
        raise ValueError(
            f"{caller} expected `classes` with different names; got {sorted(cls.__qualname__ for cls in each)}. "
            "Fix: classes = classes[:1]"
        )
    return names


def _describe_array(array: Any, name: str, tensors: Tensors) -> Any:
    extra = {}
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        kind, content = str(jr.key_impl(array)), np.asarray(jr.key_data(array))
        if kind not in IMPLEMENTATIONS:
            raise _unwritable(name, array)
    else:
        kind = "jax" if isinstance(array, jax.Array) else "scalar" if isinstance(array, np.generic) else "numpy"
        content = np.asarray(array)
        if isinstance(array, jax.Array) and array.weak_type:
            extra["weak"] = True
        if content.dtype == jnp.bfloat16:
            extra["dtype"], content = "bfloat16", content.view(np.uint16)
    if content.dtype.kind not in "biufc":
        raise _unwritable(name, array)
    tensors[name] = content
    return {"array": name, "kind": kind} | extra


def _describe_network(network: Any, name: str, tensors: Tensors) -> Any:
    arrays = [leaf for leaf in jax.tree.leaves(network) if eqx.is_array(leaf)]
    return {
        "own": _name(network),
        "arrays": [describe(array, f"{name}/{index}", tensors) for index, array in enumerate(arrays)],
    }


def _name(network: Any) -> str:
    # The module is left out, since it differs when a class of a script is imported.
    return type(network).__qualname__


def _unwritable(name: str, value: Any) -> TypeError:
    what = f"an array of {_form(value)}" if eqx.is_array(value) else f"of type {type(value).__name__}"
    return TypeError(
        f"save expected a density made of equinox modules, arrays, numbers and text; got one whose `{name}` is {what}. "
        "You can save the arrays alone, and create the model in code before you load them. "
        "Fix: equinox.tree_serialise_leaves(file, density.model)"
    )


def _form(array: Any) -> str:
    return f"{array.dtype} and shape {array.shape}"


def _weak(array: np.ndarray) -> Array:
    """Convert to a weakly typed JAX array, like a Python number, whose type gives way to that of other arrays."""
    with jax.enable_x64(np.real(array).itemsize == 8):
        return jnp.full(array.shape, np.zeros((), array.dtype).item()).at[...].set(array)
