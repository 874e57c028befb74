"""Read the user's containers: arrays, dicts, tables of pandas and similar libraries, and draws of arviz and xarray.

Each container becomes one array, or several arrays by name, with rows along the first axis.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Fixes, has, is_a
from .alignment import is_shuffled, labels_of
from .container_lines import Lines, array_lines, dict_lines, frame_lines, xarray_lines
from .draws import CHAINS, dataset_of, draw_dims


class Handed(NamedTuple):
    """An argument that has been read.

    Attributes:
        name: name of the argument.
        array: the rows as a numpy array, or an object that numpy converts, if the container can be used without names;
            otherwise None.
        columns: the columns by name, with rows along the first axis; None if they have no names.
        keys: the container's own key of each column.
        lines: templates of code that fixes the argument.
        source: code for the object that holds the columns, such as a group; empty if it is the argument itself.
        labels: labels of the rows, as a pandas index; None if there are none.
    """

    name: str
    array: Any
    columns: dict[str, Any] | None
    keys: dict[str, Any]
    lines: Lines
    source: str = ""
    labels: Any = None

    def label(self, column: str | None) -> str:
        """Return the code for a column, or for the whole argument."""
        if column is None or self.array is not None:
            return self.name
        return f"{self.source or self.name}[{self.keys[column]!r}]"

    def code(self, column: str | None, shape: tuple[int, ...]) -> str:
        """Return the code for a column, or for the whole argument, as a numpy array with one event per row."""
        return self.lines.rows.format(label=self.label(column), shape=(-1, *shape))

    def parts(self) -> dict[str | None, Any]:
        """Return the arrays to check: the columns by name, or the whole argument under the key None."""
        return {None: self.array} if self.columns is None else {**self.columns}

    def without(self, column: str | None, coordinate: int | list[int] | None = None) -> str:
        """Return the line that drops a column, or coordinates of its vectors."""
        if coordinate is not None and self.lines.delete is not None:
            return self.lines.delete.format(label=self.label(column), coordinate=coordinate)
        if column is not None and len(self.keys) > 1:
            return self.lines.drop.format(key=self.keys[column])
        if self.name == "context":
            return "context = None"
        return f"dist.Delta(jax.numpy.asarray({self.label(column)})[0])"

    def finite_rows(self, others: Sequence["Handed"], *, nan_alone: bool) -> str:
        """Return the line that drops the rows that are not finite, also from other arguments with the same rows."""
        if nan_alone and self.lines.complete and not others:
            return self.lines.complete
        return self.keeping(self.lines.finite, others)

    def fixes(self, column: str | None, others: Sequence["Handed"]) -> Fixes:
        """Return the fixes for an argument that is not an array of real numbers; `others` have the same rows."""
        masked = self.keeping(self.lines.unmasked, others) if column is not None or others else None
        if column is None:
            return Fixes(masked)
        categories = self.lines.categories
        return Fixes(masked, categories.format(key=self.keys[column]) if categories else self.without(column))

    def keeping(self, mask: str, others: Sequence["Handed"]) -> str:
        """Return the line that keeps the rows of a mask, also of other arguments with the same rows."""
        if not others and self.lines.take == f"{self.name} = {self.name}[keep]":
            return f"{self.name} = {self.name}[{mask}]"
        return "; ".join([f"keep = {mask}", *(each.lines.take for each in (self, *others))])


def read(caller: str, name: str, values: Any, *, rows: bool = True) -> Handed:
    """Read a container of rows, or of events with other leading axes.

    Args:
        caller: public function named in the errors.
        name: name of the argument.
        values: an array; a dict of arrays; a structured numpy array; a pandas table, or a table of a library that has
            `to_pandas`; an `InferenceData` or `DataTree` of arviz, whose posterior is read, or one of their groups; an xarray
            `Dataset` or `DataArray`; or a `Handed`, which is returned unchanged.
        rows: whether chains and draws become rows along one leading axis. Pass False for values that broadcast against each
            other: then chains and draws stay separate leading axes, and an xarray object may have neither.

    Raises:
        TypeError: if a table cannot be converted to pandas.
        ValueError: if there are no values, if two names are equal as strings, if `rows` is True and an object has no draws,
            or if the variables of an object have different draws.
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
        raise ValueError(
            f"{caller} expected `{name}` with at least one named value; got an empty container. Fix: {line}"
        )
    return Handed(name, None, {str(key): value for key, value in pairs}, keys, lines)


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, with a number appended to each repeated name."""
    return [f"{name}_{1 + names[:i].count(name)}" if name in names[:i] else name for i, name in enumerate(names)]


# Tables ------------------------------------------------------------------------------------------


def _in_pandas(caller: str, name: str, values: Any) -> Any:
    try:
        return values.to_pandas()
    except ImportError as error:
        columns = has(values, "columns")
        line = f"{{key: {name}[key].to_numpy() for key in {name}.columns}}" if columns else f"{name}.to_numpy()"
        raise TypeError(
            f"{caller} expected `{name}` as a table that can be converted to pandas; got {type(values).__name__}, whose "
            f"conversion needs a missing package ({error}). Fix: {name} = {line}"
        ) from error


def _check_table(caller: str, name: str, values: Any) -> None:
    """Raise a TypeError for a table of another library that is not computed yet, or whose names numpy would drop."""
    ways = [way for way in ("compute", "collect", "toPandas") if has(values, way)]
    if has(values, "columns") and ways and not is_a(values, "pandas", "DataFrame"):
        raise TypeError(
            f"{caller} expected `{name}` as an array or a pandas table; got {type(values).__name__} with the columns "
            f"{list(values.columns)}. Fix: {name} = {name}.{ways[0]}()"
        )


def _check_index(caller: str, name: str, frame: Any) -> None:
    """Raise a ValueError if one draw is spread over several rows, as in a table in long format."""
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
        # The fixes drop rows of one DataFrame, so that the columns stay aligned.
        lines = frame_lines(name, f"pandas.DataFrame({name})")
    return _handed(caller, name, [(key, read.get(key, value)) for key, value in values.items()], lines)


def _check_same_order(caller: str, name: str, values: Mapping[Any, Any]) -> None:
    """Raise a ValueError if columns of a dict have the same row labels in different orders, since position pairs the rows."""
    labels = {key: value.index for key, value in values.items() if is_a(value, "pandas", "Series")}
    first = next(iter(labels), None)
    shuffled = [key for key in labels if is_shuffled(labels[first], labels[key])]
    if shuffled:
        raise ValueError(
            f"{caller} expected columns of `{name}` with rows in the same order; got different orders in {first!r} and "
            f"{shuffled[0]!r}. Fix: {name} = pandas.DataFrame({name})"
        )


def _are_numbers(columns: Iterable[Any]) -> bool:
    """Return whether each column has one number per row."""
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
    """Return the values of an xarray variable with its draws along the leading axes, or along one axis if they become rows."""
    draws = draw_dims(array)
    if rows and not draws:
        of = "" if array.name is None else f" for {array.name!r}"
        raise ValueError(
            f"{caller} expected `{label}` with dimensions (chain, draw), draw or sample, which become rows; got "
            f"{array.dims}{of}. Fix: {fix or _renamed(label, array)}"
        )
    values = array.transpose(*draws, ...).to_numpy()
    return values.reshape(-1, *values.shape[len(draws) :]) if rows else values


def _renamed(label: str, array: Any) -> str:
    """Return the line that renames the likely dimension of draws: stacked chains and draws, or the longest dimension."""
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
    """Raise a ValueError unless all variables have the same draws."""
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
                f"{caller} expected variables of `{name}` with the same chain and draw labels; got {_counts(first[1])} for "
                f"{first[0]!r} and {_counts(own)} for {key!r}. Fix: {lines.drop.format(key=key)}"
            )


def _counts(draws: Mapping[str, np.ndarray]) -> str:
    return f"({', '.join(f'{dim}: {len(labels)}' for dim, labels in draws.items())})"
