"""Checks of arguments before any work is done.

Each raises an error in the name of the public function `caller`. The error says what was expected, what was passed and how to
fix it.
"""

import inspect
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
        seed = "key" if isinstance(key, WHOLE) and not isinstance(key, bool) else 0
        raise TypeError(
            f"{caller} expected `key` as one JAX PRNG key; got {described(key)}. Fix: key = jax.random.key({seed})"
        )


def check_kind(caller: str, name: str, value: object, kind: type | UnionType, fix: str) -> None:
    """Raise a TypeError unless `value` is a `kind`. If a class that needs no arguments was passed, the fix is to call it."""
    if not isinstance(value, kind):
        kinds: tuple[Any, ...] = get_args(kind) or (kind,)
        expected = " or ".join(each.__name__ for each in kinds)
        if isinstance(value, type) and issubclass(value, kinds) and makes_default(value):
            fix = f"{name} = {name}()"
        raise TypeError(f"{caller} expected `{name}` of type {expected}; got {described(value)}. Fix: {fix}")


def makes_default(kind: type) -> bool:
    """Whether a class can be called without arguments."""
    required = [
        parameter
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return not required and not inspect.isabstract(kind)


def check_model(caller: str, name: str, model: object) -> None:
    """Raise a TypeError unless `model` is a numpyro model. A distribution can be called, but has no sites."""
    if isinstance(model, dist.Distribution) or not callable(model):
        raise TypeError(
            f"{caller} expected `{name}` as a function with numpyro sites; got {described(model)}. Fix: {name} = lambda: "
            "numpyro.sample('y', dist.Normal(jax.numpy.sum(numpyro.sample('theta', density)), 1.0), obs=0.0)"
        )


def check_choice(caller: str, name: str, value: object, choices: Any, fix: str, reason: str = "") -> None:
    """Raise a ValueError unless `value` is one of the names in a `Literal`."""
    if not isinstance(value, str) or value not in get_args(choices):
        raise ValueError(
            f"{caller} expected `{name}` to be one of {get_args(choices)}; got {described(value)}. {reason}Fix: {name}={fix!r}"
        )


def check_count(caller: str, name: str, count: Any, *, fix: object, least: int = 1, most: int | None = None) -> int:
    """Return `count` as an integer.

    Raises:
        ValueError: if `count` is not an integer, or is below `least` or above `most`.
    """
    number = isinstance(count, WHOLE) and not isinstance(count, bool)
    if number and least <= count and (most is None or count <= most):
        return int(count)
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{caller} expected `{name}` as an integer {limits}; got {described(count)}. Fix: {name}={fix}")


def check_sizes(caller: str, least: int, **sizes: Any) -> list[int]:
    """Return the sizes of a network as integers.

    Raises:
        ValueError: if a size is not an integer, or is below `least`.
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
    """Return `value` as a finite number between `low` and `high`. `ends` says which of these limits are allowed.

    Raises:
        ValueError: if `value` is not such a number.
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
        f"{caller} expected `{name}` as a number{unit} {expected}; got {described(value)}. Fix: {name}={fix}"
    )


def check_shape(caller: str, name: str, shape: object, fix: str) -> tuple[int, ...]:
    """Return `shape` as a tuple of axis lengths.

    Raises:
        TypeError: if `shape` is not a tuple or list of positive integers.
    """
    if isinstance(shape, tuple | list) and all(isinstance(size, WHOLE) and size > 0 for size in shape):
        return tuple(int(size) for size in shape)
    raise TypeError(
        f"{caller} expected `{name}` as a tuple of positive integers; got {described(shape)}. Fix: {name}={fix}"
    )


def check_sample_shape(caller: str, shape: object) -> tuple[int, ...]:
    """Return `shape` as a tuple of the lengths of the axes of independent draws, which may be empty.

    Raises:
        TypeError: if `shape` is not a tuple or list of integers of at least 0.
    """
    if isinstance(shape, tuple | list) and all(isinstance(size, WHOLE) and size >= 0 for size in shape):
        return tuple(int(size) for size in shape)
    fix = f"({shape},)" if isinstance(shape, WHOLE) and not isinstance(shape, bool) and shape >= 0 else "()"
    raise TypeError(
        f"{caller} expected `sample_shape` as a tuple of integers of at least 0; got {described(shape)}. "
        f"Fix: sample_shape = {fix}"
    )


def reshaping(name: str, got: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Code for a fix: make an array whose last axes are `shape` from an array of shape `got`.

    If there are too many columns, the leading ones are taken. Otherwise the numbers are reshaped or, as a last resort, repeated.
    """
    if len(got) > 1 and got[::-1][len(got) - len(shape) :] == shape:
        return f"{name} = jax.numpy.transpose({name})"
    if len(shape) == 1 and got and got[-1] > shape[0]:
        return f"{name} = jax.numpy.asarray({name})[..., : {shape[0]}]"
    if math.prod(got) and math.prod(got) % max(1, math.prod(shape)) == 0:
        return f"{name} = jax.numpy.reshape({name}, {(-1, *shape)})"
    return f"{name} = jax.numpy.resize({name}, {shape})"


def check_path(caller: str, name: str, path: object, what: str, fix: str) -> None:
    """Raise a TypeError unless `path` is a path."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"{caller} expected `{name}` as the path of a {what}; got {described(path)}. Fix: {name}={fix!r}"
        )


def real_array(caller: str, name: str, values: Any, fixes: Fixes = NO_FIXES) -> np.ndarray:
    """Return `values` as a float64 array on the host, with nan for missing values of pandas; `fixes` are code for the errors.

    Raises:
        TypeError: if `values` are not real numbers.
        ValueError: if rows have different lengths, or entries are masked.
    """
    try:
        raw = np.asarray(plain(caller, name, values, fixes))
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(
            f"{caller} expected `{name}` as an array with rows of the same shape; got different shapes. All rows can be cut to "
            f"the shortest. Fix: {name} = numpy.stack([row[: min(map(len, {name}))] for row in {name}])"
        ) from error
    # numpy has no kind for JAX's short floating-point types.
    if raw.dtype.kind not in REAL and not jnp.issubdtype(raw.dtype, jnp.floating):
        raise not_real(caller, name, values, fixes, f" of dtype {raw.dtype}", raw)
    return raw.astype(np.float64)


def real_jax_array(caller: str, name: str, values: Any, fix: str) -> Array:
    """Return `values`, which may be traced, as a JAX array of the default floating-point type.

    Raises:
        TypeError: if `values` are not real numbers, or have names.
        ValueError: if entries are masked.
    """
    fixes = Fixes(ordinary=fix)
    # Named columns are refused, since they could be in another order than the coordinates of the event.
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


def described(value: object) -> str:
    """Describe a value in a few words: a number, name or shape by its value, a class by its name, others by their type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or (isinstance(value, str | tuple | WHOLE | float | np.floating) and len(repr(value)) < 80):
        return repr(value)
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {shape}" if isinstance(shape, tuple) else "")
