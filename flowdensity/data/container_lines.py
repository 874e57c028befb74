"""Lines of code that fix an argument, written for the container that the user passed."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from .draws import CHAINS

DELETE = "{label} = numpy.delete({label}, {coordinate}, axis=1)"
"""Line that drops a coordinate of the vectors in a numpy array."""


class Lines(NamedTuple):
    """Templates of code that fixes an argument, for the error messages of the checks.

    Attributes:
        drop: line that drops the column `{key!r}`.
        rename: line that renames the columns to `{names}`.
        finite: expression for the mask of the rows that are finite in all columns.
        unmasked: expression for the mask of the rows without masked entries.
        take: line that keeps the rows of the mask `keep`.
        complete: line that drops the rows with NaN; None if the container has no method for that.
        categories: line that encodes the categories of the column `{key!r}` as numbers; None if there is no such line.
        delete: line that drops coordinate `{coordinate}` of the vectors in `{label}`.
        turned: line that makes rows out of columns, or out of draws that are separated by chain; None if named dimensions
            identify the draws.
        rows: expression for `{label}` as a numpy array of shape `{shape}`, with one event in each row.
    """

    drop: str
    rename: str
    finite: str
    unmasked: str
    take: str
    complete: str | None = None
    categories: str | None = None
    delete: str | None = None
    turned: str | None = None
    rows: str = "{label}"


def array_lines(name: str, values: Any) -> Lines:
    """Templates for an array."""
    own = isinstance(values, np.ndarray)
    array = name if own else f"numpy.asarray({name}, float)"
    masked = name if own else f"numpy.ma.array({name})"
    turn = "transpose" if getattr(values, "ndim", 2) == 2 else "concatenate"
    return Lines(
        drop=f"{name} = None",
        rename=f"{name} = dict(zip({{names}}, numpy.transpose({name})))",
        finite=f"numpy.isfinite({array}).reshape(len({name}), -1).all(axis=1)",
        unmasked=f"~numpy.ma.getmaskarray({masked}).reshape(len({name}), -1).any(axis=1)",
        take=f"{name} = {name if own else f'numpy.asarray({name})'}[keep]",
        delete=DELETE,
        turned=f"{name} = numpy.{turn}({name})",
    )


def dict_lines(name: str, keys: str) -> Lines:
    """Templates for a dict of arrays, or for the fields of a structured array."""
    column = f"{name}[key]"

    def rows(good: str) -> str:
        """Return the expression for the mask of the rows that are good in all columns."""
        return f"numpy.all([{good}.reshape(len({column}), -1).all(axis=1) for key in {keys}], axis=0)"

    return Lines(
        drop=f"{name} = {{{{key: {column} for key in {keys} if key != {{key!r}}}}}}",
        rename=f"{name} = dict(zip({{names}}, [{column} for key in {keys}]))",
        finite=rows(f"numpy.isfinite({column})"),
        unmasked=rows(f"(~numpy.ma.getmaskarray(numpy.ma.array({column})))"),
        take=f"{name} = {{key: numpy.asarray({column})[keep] for key in {keys}}}",
        delete=DELETE,
        turned=f"{name} = {{key: numpy.concatenate({column}) for key in {keys}}}",
    )


def frame_lines(name: str, source: str) -> Lines:
    """Templates for a DataFrame; `source` is the code that makes it."""
    dummies = f"context = pandas.get_dummies({source}, columns=[{{key!r}}], dtype=float)"
    return Lines(
        drop=f"{name} = {source}.drop(columns={{key!r}})",
        rename=f"{name} = {source}.set_axis({{names}}, axis=1)",
        finite=f"numpy.isfinite({source}.to_numpy(float, na_value=numpy.nan)).all(axis=1)",
        unmasked=f"{source}.notna().to_numpy().all(axis=1)",
        take=f"{name} = {source}[keep]",
        complete=f"{name} = {source}.dropna()",
        turned=f"{name} = {source}.T",
        categories=dummies if name == "context" else None,
        rows="numpy.asarray({label})",
    )


def xarray_lines(name: str, source: str, arrays: Iterable[Any], *, table: bool = True) -> Lines:
    """Templates for an xarray `Dataset`, or for a `DataArray` if `table` is False."""
    dims = dict.fromkeys(dim for array in arrays for dim in array.dims)
    row, stacked = "draw" if "draw" in dims else "sample", source
    others, draws = [dim for dim in dims if dim not in (*CHAINS, row)], (row,)
    if set(CHAINS) <= set(dims):
        # Rename a dimension of the variables that already has the name of the stacked draws.
        free = f"{source}.rename(sample='own_sample')" if "sample" in dims else source
        draws, row, stacked = CHAINS, "sample", f"{free}.stack(sample={CHAINS})"
        others = ["own_sample" if dim == "sample" else dim for dim in others]
    values, axes = (f"{stacked}.to_dataarray()", ["variable", *others]) if table else (stacked, others)
    return Lines(
        drop=f"{name} = {source}.drop_vars({{key!r}})" if table else f"{name} = None",
        rename=f"{name} = dict(zip({{names}}, {source}.data_vars.values()))",
        finite=f"numpy.isfinite({values}).all({axes}).to_numpy()",
        unmasked=f"{values}.notnull().all({axes}).to_numpy()",
        take=f"{name} = {stacked}.isel({row}=keep)",
        complete=f"{name} = {stacked}.dropna({row!r})",
        rows=f"{{label}}.transpose({', '.join(map(repr, draws))}, ...).to_numpy().reshape({{shape}})",
    )
