"""Checks of encoders and of the contexts that they are given."""

from collections.abc import Mapping
from math import prod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..data.sites import split
from ..data.tables import Table
from .encoders import AbstractEncoder
from .encoding import Encoder, Encoding


def check_encoder(caller: str, encoder: object, contexts: Table) -> tuple[Encoder | None, ...]:
    """Return the encoder of each site, or None.

    Raises:
        TypeError: if an encoder is not an equinox module that can be called.
        ValueError: if there are no contexts, a name is not that of a site, or an encoder does not fit its site.
    """
    names: list[str | None] = [None] if contexts.sites is None else list(contexts.sites.names)
    shapes = (contexts.rows.shape[1:],) if contexts.sites is None else contexts.sites.shapes
    if not contexts.rows.size:
        raise ValueError(
            f"{caller} expected a `context` for `encoder`, which turns a context into a vector; got no context. "
            "Fix: encoder = None"
        )
    if isinstance(encoder, Mapping):
        by_name = dict(encoder)
    elif len(names) > 1:
        raise ValueError(
            f"{caller} expected `encoder` as a dict, since `context` has the sites {names}; got a "
            f"{type(encoder).__name__}. Fix: encoder = {{{names[0]!r}: encoder}}"
        )
    else:
        by_name = {names[0]: encoder}
    if not by_name or not set(by_name) <= set(names):
        raise ValueError(
            f"{caller} expected `encoder` with names of the sites {names}; got {list(by_name)}. "
            f"Fix: encoder = {{{names[0]!r}: fd.encoders.DeepSet(key)}}"
        )
    rows = contexts.rows.reshape(len(contexts.rows), -1)
    for name, shape, values in zip(names, shapes, split(rows, shapes), strict=True):
        label = f"encoder[{name!r}]" if isinstance(encoder, Mapping) else "encoder"
        if name in by_name:
            _check_one(caller, label, by_name[name], shape, values)
        elif np.isnan(values).any():
            raise ValueError(
                f"{caller} expected an encoder for the site {name!r} of `context`, whose rows are absent in some contexts; got "
                f"none. Fix: encoder = {{**encoder, {name!r}: fd.encoders.DeepSet(key, {prod(shape[1:])})}}"
            )
    return tuple(by_name.get(name) for name in names)  # type: ignore[return-value]  # checked above


def _check_one(caller: str, label: str, encoder: object, shape: tuple[int, ...], values: np.ndarray) -> None:
    """Check the encoder of a site with contexts `values`, shape `(n, *shape)`."""
    if not (isinstance(encoder, eqx.Module) and callable(encoder)):
        raise TypeError(
            f"{caller} expected `{label}` as an equinox module from one context to a vector; got a {type(encoder).__name__}. "
            f"Fix: {label} = fd.encoders.DeepSet(key, {prod(shape[1:])})"
        )
    if not isinstance(encoder, AbstractEncoder):
        if np.isnan(values).any():
            raise ValueError(
                f"{caller} expected contexts without absent rows, since `{label}` is a {type(encoder).__name__}, which does not "
                f"take them; got NaN. Fix: {label} = fd.encoders.DeepSet(key, {prod(shape[1:])})"
            )
        try:
            found = jax.eval_shape(encoder, jax.ShapeDtypeStruct(shape, jnp.result_type(float)))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{caller} expected `{label}` as a module for a context of shape {shape}; got {type(error).__name__}: {error}. "
                f"Fix: {label} = fd.encoders.DeepSet(key, {prod(shape[1:])})"
            ) from error
        if getattr(found, "ndim", None) != 1:
            raise ValueError(
                f"{caller} expected `{label}` to return a vector for a context of shape {shape}; got {found}. "
                f"Fix: {label} = fd.encoders.DeepSet(key, {prod(shape[1:])})"
            )
        return
    if shape and encoder.fewest is not None and encoder.fewest > shape[0]:
        raise ValueError(
            f"{caller} expected `{label}` with `fewest` of at most {shape[0]}, the number of rows; got {encoder.fewest}. "
            f"Fix: {label} = fd.encoders.{type(encoder).__name__}(key, {encoder.columns}, fewest={shape[0]})"
        )
    if not shape or prod(shape[1:]) != encoder.columns:
        raise ValueError(
            f"{caller} expected `{label}` for contexts of shape {shape}, whose rows have {prod(shape[1:])} columns; got one for "
            f"{encoder.columns}. Fix: {label} = fd.encoders.{type(encoder).__name__}(key, {prod(shape[1:])})"
        )
    check_rows(caller, label.replace("encoder", "context", 1), values)


def check_contexts(caller: str, encoding: Encoding, contexts: np.ndarray) -> None:
    """Raise a ValueError for flat contexts, shape `(n, size)`, with values that are not finite where none may be absent."""
    names = (None,) if encoding.sites is None else encoding.sites.names
    for name, encoder, shape, values in zip(
        names, encoding.encoders, encoding.shapes, split(contexts, encoding.shapes), strict=True
    ):
        label = "context" if name is None else f"context[{name!r}]"
        if isinstance(encoder, AbstractEncoder):
            check_rows(caller, label, values)
        elif not np.isfinite(values).all():
            raise ValueError(
                f"{caller} expected `{label}` of shape {shape} with finite values, since this site has no encoder of rows; got "
                f"{int(np.sum(~np.isfinite(values)))} that are not. "
                f"Fix: {label} = numpy.nan_to_num({label}, posinf=0.0, neginf=0.0)"
            )


def check_rows(caller: str, label: str, contexts: np.ndarray) -> None:
    """Raise a ValueError unless the rows of contexts, shape `(n, rows, ...)`, are finite, and NaN after the last one."""
    rows = contexts.reshape(*contexts.shape[:2], -1)
    gone = np.asarray(np.isnan(rows).all(axis=2))
    if not np.isfinite(rows[~gone]).all():
        raise ValueError(
            f"{caller} expected `{label}` with rows that are finite, or NaN in all their values if a context does not have them; "
            f"got rows with some values that are not finite. Fix: {label} = numpy.nan_to_num({label}, posinf=0.0, neginf=0.0)"
        )
    if np.any(gone[:, :1]) or np.any(gone[:, :-1] & ~gone[:, 1:]):
        raise ValueError(
            f"{caller} expected `{label}` with at least one row in each context, and absent rows (NaN) after the others; got "
            f"contexts whose first rows are absent. Fix: {label} = numpy.take_along_axis({label}, numpy.argsort(numpy.isnan("
            f"{label}), axis=1, kind='stable'), axis=1)"
        )
