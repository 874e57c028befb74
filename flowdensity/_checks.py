"""Checks of what the user hands over, before any work is done.

Each raises an error that says, in the name of the public function `caller`, what was expected, what came and how to mend it.
"""

import math
import os
from types import UnionType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.util import is_prng_key

from ._arrays import NO_FIXES, REAL, Fixes, is_a, not_real, plain
from ._typing import Array

WHOLE = int | np.integer


def check_key(caller: str, key: object) -> None:
    """Raise a TypeError unless `key` is one JAX PRNG key."""
    if not is_prng_key(key):
        raise TypeError(
            f"{caller} expected `key` as one JAX PRNG key; got {_described(key)}. Fix: key=jax.random.key(0)"
        )


def check_kind(caller: str, name: str, value: object, kind: type | UnionType, fix: str) -> None:
    """Raise a TypeError unless `value` is a `kind`."""
    if not isinstance(value, kind):
        kinds: tuple[Any, ...] = get_args(kind) or (kind,)
        expected = " or ".join(each.__name__ for each in kinds)
        raise TypeError(f"{caller} expected `{name}` of type {expected}; got {_described(value)}. Fix: {fix}")


def check_model(caller: str, name: str, model: object) -> None:
    """Raise a TypeError unless `model` is a numpyro model: a distribution can be called, but has no sites."""
    if isinstance(model, dist.Distribution) or not callable(model):
        raise TypeError(
            f"{caller} expected `{name}` as a function with numpyro sites; got {_described(model)}. Fix: {name}=model"
        )


def check_choice(caller: str, name: str, value: object, choices: Any, fix: str, reason: str = "") -> None:
    """Raise a ValueError unless `value` is one of the names that a `Literal` offers."""
    if not isinstance(value, str) or value not in get_args(choices):
        raise ValueError(
            f"{caller} expected `{name}` to be one of {get_args(choices)}; got {_described(value)}. {reason}Fix: {name}={fix!r}"
        )


def check_count(caller: str, name: str, count: Any, *, fix: object, least: int = 1, most: int | None = None) -> int:
    """`count` as an integer.

    Raises:
        ValueError: if it is none, below `least` or above `most`.
    """
    number = isinstance(count, WHOLE) and not isinstance(count, bool)
    if number and least <= count and (most is None or count <= most):
        return int(count)
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{caller} expected `{name}` as an integer {limits}; got {_described(count)}. Fix: {name}={fix}")


def check_sizes(caller: str, least: int, **sizes: Any) -> list[int]:
    """Sizes of a network as integers.

    Raises:
        ValueError: if one is none, or below `least`.
    """
    return [check_count(caller, name, size, least=least, fix=least) for name, size in sizes.items()]


def check_number(
    caller: str,
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    fix: float,
    ends: Literal["neither", "low", "high", "both"] = "neither",
    unit: str = "",
) -> float:
    """`value` as a finite number between `low` and `high`, of which `ends` are allowed.

    Raises:
        ValueError: if it is none.
    """
    try:
        number = math.nan if np.ndim(value) or isinstance(value, str | bool | np.bool_) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    above = low <= number if ends in ("low", "both") else low < number
    below = number <= high if ends in ("high", "both") else number < high
    if above and below and math.isfinite(number):
        return number
    expected = f"{'at least' if ends in ('low', 'both') else 'above'} {low:g}"
    if high < math.inf:
        expected += f" and {'at most' if ends in ('high', 'both') else 'below'} {high:g}"
    raise ValueError(
        f"{caller} expected `{name}` as a number{unit} {expected}; got {_described(value)}. Fix: {name}={fix}"
    )


def check_shape(caller: str, name: str, shape: object, fix: str) -> tuple[int, ...]:
    """`shape` as a tuple of the lengths of axes.

    Raises:
        TypeError: if it is no tuple of positive integers.
    """
    if isinstance(shape, tuple | list) and all(isinstance(size, WHOLE) and size > 0 for size in shape):
        return tuple(int(size) for size in shape)
    raise TypeError(
        f"{caller} expected `{name}` as a tuple of positive integers; got {_described(shape)}. Fix: {name}={fix}"
    )


def check_path(caller: str, name: str, path: object, what: str, fix: str) -> None:
    """Raise a TypeError unless `path` is one."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"{caller} expected `{name}` as the path of a {what}; got {_described(path)}. Fix: {name}={fix!r}"
        )


def real_array(caller: str, name: str, values: Any, fixes: Fixes = NO_FIXES) -> np.ndarray:
    """`values` as a float64 array on the host, with nan where pandas has no value; `fixes` are lines for the errors.

    Raises:
        TypeError: if they are no real numbers.
        ValueError: if they are rows of several lengths, or entries are masked.
    """
    try:
        raw = np.asarray(plain(caller, name, values, fixes))
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(
            f"{caller} expected `{name}` as an array with rows of one shape; got rows of several. "
            f"Fix: {name} = numpy.stack(rows), with every row of the same length"
        ) from error
    # JAX's own short floats are of no kind that numpy knows.
    if raw.dtype.kind not in REAL and not jnp.issubdtype(raw.dtype, jnp.floating):
        raise not_real(caller, name, values, fixes, f" of dtype {raw.dtype}", raw)
    return raw.astype(np.float64)


def real_jax_array(caller: str, name: str, values: Any, fix: str) -> Array:
    """`values`, which may be traced, as a JAX array of its default floating type.

    Raises:
        TypeError: if they are no real numbers, or have names.
        ValueError: if entries are masked.
    """
    fixes = Fixes(ordinary=fix)
    # Without their names columns could be in another order than the event has them.
    if is_a(values, "pandas", "DataFrame"):
        raise not_real(caller, name, values, fixes, f" with the columns {list(values.columns)}")
    array = plain(caller, name, values, fixes)
    if isinstance(array, np.ndarray) and array.dtype.kind not in REAL:
        raise not_real(caller, name, values, fixes, f" of dtype {array.dtype}", array)
    try:
        if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(array)):
            raise TypeError("they are complex")
        return jnp.asarray(array, float)
    except (TypeError, ValueError) as error:
        raise not_real(caller, name, values, fixes, f" ({error})") from error


def _described(value: object) -> str:
    """What came, in few words: a number, a name or a shape by what it is, all else by its type."""
    if value is None or (isinstance(value, str | tuple | WHOLE | float | np.floating) and len(repr(value)) < 80):
        return repr(value)
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {shape}" if isinstance(shape, tuple) else "")
