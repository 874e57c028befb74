"""Data sets of a model: checking what a user gives, and leaving out rows of what is simulated."""

from collections.abc import Mapping
from typing import Any

import jax.random as jr
import numpy as np

from .._typing import ArrayLike, Key
from ..models.encoder_checks import check_rows
from ..models.encoders import AbstractEncoder
from ..models.encoding import Encoder


def checked_data(
    caller: str, data: Mapping[str, ArrayLike], observed: Mapping[str, Any], encoders: Mapping[str, Encoder | None]
) -> dict[str, np.ndarray]:
    """Values of the observed sites, shape `(*batch, *shape)`; sites with an encoder of rows may have another number of rows.

    Args:
        caller: public function named in the errors.
        data: value of each observed site by name.
        observed: shape of the value of each observed site, as an attribute.
        encoders: encoder of each observed site, or None.

    Raises:
        TypeError: if the data have no names.
        ValueError: if sites are missing or unknown, or a value has the wrong shape or is not finite.
    """
    if not hasattr(data, "keys"):
        first = next(iter(observed))
        raise TypeError(
            f"{caller} expected `data` as a dict with a value of each observed site, {list(observed)}; got a "
            f"{type(data).__name__}. Fix: data = {{{first!r}: data}}"
        )
    if set(data) != set(observed):
        parts = [f"{n!r}: " + (f"data[{n!r}]" if n in data else f"numpy.zeros({s.shape})") for n, s in observed.items()]
        raise ValueError(
            f"{caller} expected a value of each observed site, {list(observed)}; got {list(data)}. "
            f"Fix: data = {{{', '.join(parts)}}}"
        )
    values = {name: np.asarray(data[name], float) for name in observed}
    for name, site in observed.items():
        shape, got = site.shape, values[name].shape
        by_rows = isinstance(encoders[name], AbstractEncoder)
        trailing = got[max(0, len(got) - len(shape)) :]
        fits = len(trailing) == len(shape) and (
            trailing[1:] == shape[1:] and trailing[0] > 0 if by_rows else trailing == shape
        )
        if not fits:
            line = f"resize(data[{name!r}], {shape})" if np.size(data[name]) else f"zeros({shape})"
            raise ValueError(
                f"{caller} expected {name!r} with shape (*batch, {', '.join(map(str, shape))})"
                f"{', or another number of rows' if by_rows else ''}; got {got}. "
                f"Fix: data = {{**data, {name!r}: numpy.{line}}}"
            )
        if by_rows:
            check_rows(caller, f"data[{name!r}]", values[name].reshape(-1, *trailing))
        elif not np.isfinite(values[name]).all():
            raise ValueError(
                f"{caller} expected {name!r} with finite values, since it has no encoder of rows; got "
                f"{int(np.sum(~np.isfinite(values[name])))} that are not. "
                f"Fix: data = {{**data, {name!r}: numpy.nan_to_num(data[{name!r}], posinf=0.0, neginf=0.0)}}"
            )
    return values


def without_some_rows(
    key: Key, data: dict[str, np.ndarray], encoders: Mapping[str, Encoder | None]
) -> dict[str, np.ndarray]:
    """Data sets with random numbers of rows, where an encoder is for several: the rows after these are NaN."""
    # Sites with the same rows lose the same ones.
    shares, found = jr.uniform(key, (len(next(iter(data.values()))),)), {}
    for name, values in data.items():
        encoder = encoders.get(name)
        if isinstance(encoder, AbstractEncoder) and encoder.fewest is not None:
            rows = values.shape[1]
            counts = encoder.fewest + np.floor(np.asarray(shares) * (rows + 1 - encoder.fewest))
            gone = np.arange(rows) >= counts[:, None]
            values = np.where(gone.reshape(*gone.shape, *(1,) * (values.ndim - 2)), np.nan, values)
        found[name] = values
    return found
