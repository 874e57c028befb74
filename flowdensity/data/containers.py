"""What users keep rows in: arrays, dicts, tables of pandas and its like, and the draws of arviz and xarray.

All are read here, to arrays with rows first and, where there are any, names. arviz 0.x has `InferenceData` and arviz 1.x has
`DataTree`; their groups are found here too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Fixes, has, is_a
from .alignment import is_shuffled, labels_of
from .container_lines import Lines, array_lines, dict_lines, frame_lines, xarray_lines
from .draws import CHAINS, dataset_of, draw_dims


class Handed(NamedTuple):
    """An argument that was read.

    Attributes:
        name: of the argument.
        array: its rows, where they need no names: a numpy array, or what becomes one.
        columns: its columns by name, rows first; None where it has no names.
        keys: what its columns are called in it.
        lines: that mend it.
        source: code for what has its columns, such as a group of it; empty for itself.
        labels: of its rows, a pandas index; None where it has none.
    """

    name: str
    array: Any
    columns: dict[str, Any] | None
    keys: dict[str, Any]
    lines: Lines
    source: str = ""
    labels: Any = None

    def label(self, column: str | None) -> str:
        """What the user calls a column, or all of it."""
        if column is None or self.array is not None:
            return self.name
        return f"{self.source or self.name}[{self.keys[column]!r}]"

    def code(self, column: str | None, shape: tuple[int, ...]) -> str:
        """Code for a numpy array of a column, or all of it, with one event in each row."""
        return self.lines.rows.format(label=self.label(column), shape=(-1, *shape))

    def parts(self) -> dict[str | None, Any]:
        """What is checked one by one: its columns, or all of it where it has no names."""
        return {None: self.array} if self.columns is None else {**self.columns}

    def without(self, column: str | None, coordinate: int | list[int] | None = None) -> str:
        """A line that leaves out a column or, of vectors, one of their coordinates."""
        if coordinate is not None and self.lines.delete is not None:
            return self.lines.delete.format(label=self.label(column), coordinate=coordinate)
        if column is not None and len(self.keys) > 1:
            return self.lines.drop.format(key=self.keys[column])
        if self.name == "context":
            return "context = None"
        return f"dist.Delta(jax.numpy.asarray({self.label(column)})[0])"

    def finite_rows(self, others: Sequence["Handed"], *, nan_alone: bool) -> str:
        """A line that leaves out the rows that are not finite, of other arguments with the same rows too."""
        if nan_alone and self.lines.complete and not others:
            return self.lines.complete
        return self.keeping(self.lines.finite, others)

    def fixes(self, column: str | None, others: Sequence["Handed"]) -> Fixes:
        """Lines for what is not an array of real numbers; `others` are arguments with the same rows."""
        masked = self.keeping(self.lines.unmasked, others) if column is not None or others else None
        if column is None:
            return Fixes(masked)
        categories = self.lines.categories
        return Fixes(masked, categories.format(key=self.keys[column]) if categories else self.without(column))

    def keeping(self, mask: str, others: Sequence["Handed"]) -> str:
        """A line that keeps the rows of a mask, of other arguments with the same rows too."""
        if not others and self.lines.take == f"{self.name} = {self.name}[keep]":
            return f"{self.name} = {self.name}[{mask}]"
        return "; ".join([f"keep = {mask}", *(each.lines.take for each in (self, *others))])


def read(caller: str, name: str, values: Any, *, rows: bool = True) -> Handed:
    """Read whatever holds rows, or events with other leading axes.

    Args:
        caller: public function whose name the errors carry.
        name: of the argument.
        values: an array; a dict of arrays; a structured array of numpy; a table of pandas, or of a library whose tables have
            `to_pandas`; arviz's `InferenceData` or `DataTree`, whose posterior is read, or one of their groups; an xarray
            `Dataset` or `DataArray`; or what `read` returned before.
        rows: whether draws are to be rows, in one leading axis. If not, as for values that broadcast against each other, chains
            and draws are leading axes of their own, and an xarray object may have neither.

    Raises:
        TypeError: if a table has no conversion to pandas.
        ValueError: if there are names but no values, names that become one, no draws where rows are wanted, or draws that
            differ between variables.
    """
    if isinstance(values, Handed):
        return values
    source = name
    if has(values, "to_pandas") and not is_a(values, "xarray", "Dataset", "DataArray"):
        values, source = _in_pandas(caller, name, values), f"{name}.to_pandas()"
    _check_table(caller, name, values)
    group = dataset_of(caller, name, values)
    if group is not None:
        dataset, source = group
        return _of_xarray(caller, name, dict(dataset.data_vars), source, rows)
    if is_a(values, "xarray", "DataArray"):
        return _of_data_array(caller, name, values, rows)
    if is_a(values, "pandas", "DataFrame"):
        _check_index(caller, name, values)
        return _handed(caller, name, list(values.items()), frame_lines(name, source))._replace(labels=values.index)
    if isinstance(values, np.ndarray) and values.dtype.names is not None:
        fields = values.dtype.names
        return _handed(caller, name, [(each, values[each]) for each in fields], dict_lines(name, f"{name}.dtype.names"))
    if isinstance(values, Mapping):
        return _of_mapping(caller, name, values, rows)
    labels = values.index if is_a(values, "pandas", "Series") else None  # type: ignore[union-attr]
    return Handed(name, values, None, {}, array_lines(name, values), labels=labels)


def _handed(caller: str, name: str, pairs: list[tuple[Any, Any]], lines: Lines) -> Handed:
    keys = {str(key): key for key, _ in pairs}
    if len(keys) < len(pairs):
        raise ValueError(
            f"{caller} expected `{name}` with a different name for each site; got {[str(key) for key, _ in pairs]}. "
            f"Fix: {lines.rename.format(names=_distinct([str(key) for key, _ in pairs]))}"
        )
    if not keys:
        line = "context = None" if name == "context" else "dist.Unit(0.0)"
        raise ValueError(f"{caller} expected `{name}` with named values; got none. Fix: {line}")
    return Handed(name, None, {str(key): value for key, value in pairs}, keys, lines)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that were there before."""
    return [f"{name}_{1 + names[:i].count(name)}" if name in names[:i] else name for i, name in enumerate(names)]


# Tables ------------------------------------------------------------------------------------------


def _in_pandas(caller: str, name: str, values: Any) -> Any:
    try:
        return values.to_pandas()
    except ImportError as error:
        columns = has(values, "columns")
        line = f"{{key: {name}[key].to_numpy() for key in {name}.columns}}" if columns else f"{name}.to_numpy()"
        raise TypeError(
            f"{caller} expected `{name}` as a table that becomes one of pandas; got {type(values).__name__}, whose conversion "
            f"needs what is not installed ({error}). Fix: {name} = {line}"
        ) from error


def _check_table(caller: str, name: str, values: Any) -> None:
    """Raise a TypeError if a table of another library would lose its names as an array, or has not been computed yet."""
    ways = [way for way in ("compute", "collect", "toPandas") if has(values, way)]
    if has(values, "columns") and ways and not is_a(values, "pandas", "DataFrame"):
        raise TypeError(
            f"{caller} expected `{name}` as an array, or a table of pandas; got {type(values).__name__} of the columns "
            f"{list(values.columns)}. Fix: {name} = {name}.{ways[0]}()"
        )


def _check_index(caller: str, name: str, frame: Any) -> None:
    """Raise a ValueError if the coordinates of a draw lie in rows below each other."""
    others = [level for level in frame.index.names if level not in CHAINS]
    if set(CHAINS) < set(frame.index.names):
        raise ValueError(
            f"{caller} expected `{name}` with one draw in each row; got an index with the levels {list(frame.index.names)}. "
            f"Fix: {name} = {name}.unstack({others})"
        )


def _of_mapping(caller: str, name: str, values: Mapping[Any, Any], rows: bool) -> Handed:
    arrays = {key: value for key, value in values.items() if is_a(value, "xarray", "DataArray")}
    lines = dict_lines(name, name)
    read = _leading_of_all(caller, arrays, lambda key: f"{name}[{key!r}]", lines, rows)
    if arrays:
        _check_same_draws(caller, name, arrays, lines, rows)
    _check_same_order(caller, name, values)
    if arrays and len(arrays) == len(values):
        lines = xarray_lines(name, f"xarray.Dataset({name})", arrays.values())
    elif any(is_a(each, "pandas", "Series") for each in values.values()) and _are_numbers(values.values()):
        # As columns of a frame they all lose the same rows.
        lines = frame_lines(name, f"pandas.DataFrame({name})")
    return _handed(caller, name, [(key, read.get(key, value)) for key, value in values.items()], lines)


def _check_same_order(caller: str, name: str, values: Mapping[Any, Any]) -> None:
    """Raise a ValueError if columns of a dict, which are paired by position, label the same rows in another order."""
    labels = {key: value.index for key, value in values.items() if is_a(value, "pandas", "Series")}
    first = next(iter(labels), None)
    shuffled = [key for key in labels if is_shuffled(labels[first], labels[key])]
    if shuffled:
        raise ValueError(
            f"{caller} expected columns of `{name}` with their rows in one order; got {shuffled[0]!r} in another than {first!r}. "
            f"Fix: {name} = pandas.DataFrame({name})"
        )


def _are_numbers(columns: Iterable[Any]) -> bool:
    """Whether a row has one number in each column."""
    return all(getattr(each, "ndim", 1) == 1 for each in columns)


# xarray ------------------------------------------------------------------------------------------


def _of_data_array(caller: str, name: str, array: Any, rows: bool) -> Handed:
    lines = xarray_lines(name, name, [array], table=False)
    values = _leading(caller, name, array, rows)
    labels = labels_of(array, draw_dims(array))
    if array.name is None:
        return Handed(name, values, None, {}, lines, labels=labels)
    return _handed(caller, name, [(array.name, values)], lines)._replace(array=values, labels=labels)


def _of_xarray(caller: str, name: str, arrays: Mapping[Any, Any], source: str, rows: bool) -> Handed:
    lines = xarray_lines(name, source, arrays.values())
    read = _leading_of_all(caller, arrays, lambda _: name, lines, rows)
    _check_same_draws(caller, name, arrays, lines, rows)
    first = next(iter(arrays.values()), None)
    labels = None if first is None else labels_of(first, draw_dims(first))
    return _handed(caller, name, list(read.items()), lines)._replace(source=source, labels=labels)


def _leading_of_all(
    caller: str, arrays: Mapping[Any, Any], label: Callable[[Any], str], lines: Lines, rows: bool
) -> dict[Any, np.ndarray]:
    some = any(draw_dims(array) for array in arrays.values())
    return {
        key: _leading(caller, label(key), array, rows, lines.drop.format(key=key) if some else None)
        for key, array in arrays.items()
    }


def _leading(caller: str, label: str, array: Any, rows: bool, fix: str | None = None) -> np.ndarray:
    """The values of an xarray variable with draws in front, in one axis if they are to be rows."""
    draws = draw_dims(array)
    if rows and not draws:
        of = "" if array.name is None else f" for {array.name!r}"
        raise ValueError(
            f"{caller} expected `{label}` with the dimensions chain and draw, draw or sample, which become rows; got "
            f"{array.dims}{of}. Fix: {fix or _renamed(label, array)}"
        )
    values = array.transpose(*draws, ...).to_numpy()
    return values.reshape(-1, *values.shape[len(draws) :]) if rows else values


def _renamed(label: str, array: Any) -> str:
    """A line that tells which dimension counts draws: one of stacked chains and draws, or the longest."""
    dims = array.dims
    if not dims:
        return f"{label} = {label}.expand_dims('sample')"
    if "chain" in dims:
        names = "sample='draw'" if "sample" in dims else "chain='sample'"
        return f"{label} = {label}.rename({names})"
    stacked = [dim for dim in dims if set(CHAINS) <= set(getattr(array.indexes.get(dim), "names", ()))]
    longest = max(dims, key=lambda dim: array.sizes[dim])
    return f"{label} = {label}.rename({{{(stacked or [longest])[0]!r}: 'sample'}})"


def _check_same_draws(caller: str, name: str, arrays: Mapping[Any, Any], lines: Lines, rows: bool) -> None:
    """Raise a ValueError unless a row of one variable is the same draw as that row of another."""
    first = None
    if not rows:
        return
    for key, array in arrays.items():
        draws = draw_dims(array)
        own = {
            dim: array.coords[dim].to_numpy() if dim in array.coords else np.arange(array.sizes[dim]) for dim in draws
        }
        if first is None:
            first = key, own
        elif list(own) != list(first[1]) or not all(np.array_equal(own[dim], first[1][dim]) for dim in draws):
            raise ValueError(
                f"{caller} expected variables of `{name}` with the same draws; got {_counts(first[1])} for {first[0]!r} and "
                f"{_counts(own)} for {key!r}. Fix: {lines.drop.format(key=key)}"
            )


def _counts(draws: Mapping[str, np.ndarray]) -> str:
    return " and ".join(f"{len(labels)} of {dim}" for dim, labels in draws.items())
