"""Conversion of arrays of any library. Properties that numpy or JAX would silently drop, such as a mask, raise an error.

Classes are identified by their name and library, so that no library has to be imported. Protocols are looked up on the class,
since an attribute of an instance may be a column with that name.
"""

import os
from collections.abc import Iterator, Mapping, Set, ValuesView
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

REAL = "fiub"
"""Kinds of dtype whose values are real numbers."""
NUMBERS = ("floating", "integer", "mixed-integer-float", "decimal", "boolean")
"""Results of pandas' `infer_dtype` for a column of Python objects that are real numbers."""


def is_a(value: object, library: str, *names: str) -> bool:
    """Whether a value is an instance of one of the named classes of a library, or of a subclass."""
    return any(kind.__name__ in names and kind.__module__.split(".")[0] == library for kind in type(value).__mro__)


def has(value: object, protocol: str) -> bool:
    """Whether the class of a value has a method or property. An attribute of the instance alone does not count."""
    return hasattr(type(value), protocol)


def is_complex(values: object) -> bool:
    """Whether an array, which may be traced, has complex numbers."""
    return isinstance(values, np.ndarray | jax.Array) and bool(jnp.issubdtype(values.dtype, jnp.complexfloating))


class Fixes(NamedTuple):
    """Lines of code that fix an argument, for callers that know better fixes than the default.

    Attributes:
        masked: code that leaves masked entries out.
        categories: code that avoids a column of categories.
        ordinary: code that converts anything else to numbers, unless there is specific code for the class of the object.
    """

    masked: str | None = None
    categories: str | None = None
    ordinary: str | None = None


NO_FIXES = Fixes()


def plain(caller: str, name: str, values: Any, fixes: Fixes = NO_FIXES) -> Any:
    """Convert `values` to an array of numpy or JAX, possibly traced. Scalars and lists are returned unchanged.

    Args:
        caller: name of the public function for errors.
        name: name of the argument or of a part of it.
        values: any object that contains numbers.
        fixes: lines of code for the errors.

    Raises:
        TypeError: if numpy cannot convert the values to an array, or if they are categories.
        ValueError: if entries are masked.
    """
    _check_unmasked(caller, name, values, fixes.masked)
    if is_a(values, "pandas", "DataFrame"):
        return _of_frame(caller, name, values)
    if is_a(values, "pandas", "Series", "Index", "ExtensionArray"):
        return _of_pandas(caller, name, values, fixes)
    # Mappings are not converted: some libraries have mappings that raise their own errors.
    if isinstance(values, jax.Array) or not (has(values, "__array__") or isinstance(values, Mapping)):
        return values
    try:
        return np.asarray(values)
    # Each library raises its own errors, for example a RuntimeError in PyTorch.
    except Exception as error:
        raise not_real(caller, name, values, fixes, f" ({error})") from error


def not_real(
    caller: str, name: str, values: Any, fixes: Fixes = NO_FIXES, reason: str = "", array: np.ndarray | None = None
) -> TypeError:
    """Return the error for values that are not real numbers; `array` is numpy's conversion of them."""
    line = _foreign_line(name, values) or _line(name, values, fixes, array)
    return TypeError(
        f"{caller} expected `{name}` as an array of real numbers; got {type(values).__name__}{reason}. Fix: {line}"
    )


def _foreign_line(name: str, values: Any) -> str | None:
    """Code that converts an object of some library to numbers; None if there is none for its class."""
    if has(values, "detach"):
        return f"{name} = {name}.detach().cpu().numpy()"
    if has(values, "get_samples"):
        return f"{name} = {name}.get_samples()"
    if is_a(values, "numpyro", "Distribution"):
        return f"{name} = {name}.sample(jax.random.key(0), (10_000,))"
    if isinstance(values, str) and os.path.isfile(values):
        return f"{name} = pandas.read_csv({name})"
    if isinstance(values, list | tuple) and values and all(isinstance(each, Mapping) for each in values):
        return f"{name} = pandas.DataFrame({name})"
    if isinstance(values, Iterator | Set | ValuesView):
        return f"{name} = numpy.array(list({name}), float)"
    return None


def _line(name: str, values: Any, fixes: Fixes, array: np.ndarray | None) -> str:
    kind = "" if array is None else array.dtype.kind
    if fixes.ordinary is not None:
        return fixes.ordinary
    if isinstance(values, Mapping) and len(values):
        return f"{name} = {name}[{next(iter(values))!r}]"
    if kind == "c" and fixes.categories is None:
        return f"{name} = numpy.stack([numpy.real({name}), numpy.imag({name})], axis=-1)"
    if kind == "M" and is_a(values, "pandas", "Series"):
        # numpy cannot subtract times with a time zone.
        return f"{name} = ({name} - {name}.min()) / pandas.Timedelta(days=1)"
    if kind == "M":
        return f"{name} = (numpy.asarray({name}) - numpy.asarray({name}).min()) / numpy.timedelta64(1, 'D')"
    if kind == "m":
        return f"{name} = numpy.asarray({name}) / numpy.timedelta64(1, 's')"
    if array is not None and array.dtype.names is not None:
        return f"{name} = numpy.stack([{name}[field] for field in {name}.dtype.names], axis=-1)"
    if kind == "c" or (array is not None and not _castable(array)):
        if isinstance(values, str) and fixes.categories is None:
            return f"{name} = pandas.read_csv({name})"
        # Categories are replaced by numbers.
        return fixes.categories or f"{name} = numpy.unique({name}, return_inverse=True)[1]"
    return f"{name} = numpy.asarray({name}, float)"


def _castable(array: np.ndarray) -> bool:
    try:
        array.astype(float)
    except (TypeError, ValueError):
        return False
    return True


def _of_frame(caller: str, name: str, frame: Any) -> np.ndarray:
    columns = [
        plain(caller, f"{name}[{label!r}]", column, Fixes(categories=f"{name} = {name}.drop(columns={label!r})"))
        for label, column in frame.items()
    ]
    return np.stack(columns, axis=1) if columns else np.zeros(frame.shape)


def _of_pandas(caller: str, name: str, column: Any, fixes: Fixes) -> np.ndarray:
    """Convert a pandas column, with nan for every kind of missing value: nan, NA, None and those of Arrow."""
    from pandas.api.types import infer_dtype

    dtype = column.dtype
    if is_a(dtype, "pandas", "CategoricalDtype"):
        # numpy would convert numeric categories to numbers.
        numbers = getattr(dtype.categories.dtype, "kind", "O") in REAL
        other = fixes.categories or f"{name} = {name}.cat.codes"
        line = Fixes(ordinary=f"{name} = {name}.astype(float)" if numbers else other)
        raise not_real(caller, name, column, line, f" of the categories {_few(dtype.categories)}")
    if dtype.kind in REAL or (dtype.kind == "O" and infer_dtype(column, skipna=True) in NUMBERS):
        return column.to_numpy(dtype=float, na_value=np.nan)
    return column.to_numpy("M8[ns]") if dtype.kind == "M" else column.to_numpy()


def _few(values: Any) -> str:
    return ", ".join(repr(each) for each in list(values)[:3]) + (", ..." if len(values) > 3 else "")


def _check_unmasked(caller: str, name: str, values: Any, fix: str | None) -> None:
    """Raise a ValueError if an entry is masked, since numpy and JAX would use the number behind the mask."""
    count, total = _masked(values)
    if not count:
        return
    own = f"numpy.ma.array({name})" if isinstance(values, list | tuple) else name
    line = f"{name} = {own}.compressed()" if np.ndim(values) < 2 else f"{name} = numpy.ma.compress_rows({own})"
    if np.ndim(values) > 2:
        line = f"{name} = {own}[~numpy.ma.getmaskarray({own}).reshape(len({name}), -1).any(axis=1)]"
    raise ValueError(
        f"{caller} expected `{name}` without masked entries; got {count} masked of {total}, which have no value. "
        f"Fix: {fix or line}"
    )


def _masked(values: Any) -> tuple[int, int]:
    """Count the masked entries and all entries, also in lists. astropy has its own masked arrays."""
    if isinstance(values, list | tuple):
        counts = [_masked(each) for each in values if isinstance(each, list | tuple | np.ndarray)]
        return sum(count for count, _ in counts), sum(total for _, total in counts)
    if isinstance(values, np.ndarray) and has(values, "mask"):
        # The mask of a table with named fields has these fields too.
        own: Any = values
        mask: Any = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else np.asarray(own.mask)
        fields = [mask[field] for field in mask.dtype.names] if mask.dtype.names else [mask]
        return sum(int(np.sum(field)) for field in fields), sum(field.size for field in fields)
    return 0, np.size(values) if isinstance(values, np.ndarray) else 1
