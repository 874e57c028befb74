"""Checking the contexts and events that a density is given, and converting them to arrays of the right shape."""

import weakref
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._arrays import Fixes, is_a, is_complex
from .._checks import real_array, real_jax_array, reshaping
from .._typing import Array, ArrayLike
from .._warnings import warn
from ..data.containers import read
from ..data.sites import Sites
from ..data.tables import Named
from ..models.encoder_checks import check_contexts
from ..models.encoders import AbstractEncoder
from ..models.encoding import Encoding, encoded_rows, with_absent_rows
from ..models.flows import AbstractProbabilityFlow

_WARNED: set[int] = set()
"""Models that have been warned about, identified by the array that holds their reach."""


def flat_context(caller: str, model: AbstractProbabilityFlow, context: ArrayLike | Named | None) -> Any:
    """Flatten the axes of each context into one, shape `(*batch_shape, context_dim)`.

    Args:
        caller: name of the class for errors.
        model: the probability flow that the context is for.
        context: an array, or a dict of arrays if the model was learned with names; None for no context.

    Returns:
        The array, which is empty for an unconditional model; None for a conditional model without a context.

    Raises:
        TypeError, ValueError: if `context` does not fit the model.
    """
    shape = model.context_shape
    size = prod(shape)
    if context is None:
        return jnp.zeros((0,)) if size == 0 else None
    sites, handed = model.context_scaling.sites, read(caller, "context", context, rows=False)
    if size == 0:
        names = None if handed.columns is None else list(handed.columns)
        got = f"one of shape {np.shape(handed.array)}" if names is None else f"a {type(context).__name__} with {names}"
        raise ValueError(
            f"{caller} expected no `context`, since this density was learned without one; got {got}. Fix: context = None"
        )
    if sites is not None and handed.columns is not None:
        if isinstance(model.context_scaling, Encoding):
            handed = handed._replace(columns=_padded(caller, model.context_scaling, handed.columns))
        context = sites.pack(caller, handed.columns, "context")
    elif handed.columns is not None and handed.array is None:
        raise TypeError(
            f"{caller} expected `context` as an array of shape (*batch_shape, {', '.join(map(str, shape))}), since this "
            f"density was learned without names; got the names {list(handed.columns)}. Fix: context = {_without_names(context)}"
        )
    else:
        context = handed.array
    line = f"context = {'jax.numpy.real(context)' if is_complex(context) else f'jax.numpy.zeros({shape})'}"
    if isinstance(context, np.ndarray):
        array = real_array(caller, "context", context, Fixes(ordinary=line))
    else:
        array = real_jax_array(caller, "context", context, line)
    leading = array.ndim - len(shape)
    if leading < 0 or array.shape[leading:] != shape:
        raise ValueError(
            f"{caller} expected `context` with shape (*batch_shape, {', '.join(map(str, shape))}); got {array.shape}. "
            f"Fix: {reshaping('context', array.shape, shape)}"
        )
    flat = array.reshape((*array.shape[:leading], size))
    if isinstance(model.context_scaling, Encoding) and not isinstance(flat, Tracer):
        check_contexts(caller, model.context_scaling, np.asarray(flat).reshape(-1, size))
    if isinstance(flat, np.ndarray):
        # Under jit the context stays a constant, which numpyro can validate.
        with jax.ensure_compile_time_eval():
            return jnp.asarray(flat)
    return flat


def _padded(caller: str, encoding: Encoding, columns: dict[str, Any]) -> dict[str, Any]:
    """Named contexts, padded with rows of NaN to the number of rows of the contexts of the fit."""
    assert encoding.sites is not None, "the columns have names"
    shapes, found = dict(zip(*encoding.sites, strict=True)), dict(columns)
    for name, encoder in zip(encoding.sites.names, encoding.encoders, strict=True):
        if name not in columns or not isinstance(encoder, AbstractEncoder):
            continue
        rows, ndim, got = shapes[name][0], len(shapes[name]), np.shape(columns[name])
        if len(got) >= ndim and 0 < got[-ndim] < rows:
            line = f"context = {{**context, {name!r}: jax.numpy.zeros({shapes[name]})}}"
            values = real_jax_array(caller, f"context[{name!r}]", columns[name], line)
            found[name] = with_absent_rows(values, rows, ndim)
    return found


def warn_if_far(model: AbstractProbabilityFlow, contexts: Array | None) -> None:
    """Warn, once for each model, if contexts lie beyond the radius up to which its networks resolve contexts.

    Traced contexts are not checked, since a sampler would warn about a state that it leaves in its next step.

    Args:
        model: a probability flow. Without a `context_reach` it has no such radius.
        contexts: flat contexts in the user's units, shape `(*batch_shape, context_dim)`; None for no contexts.
    """
    scaling = model.context_scaling
    if isinstance(scaling, Encoding):
        _warn_if_encoded_far(scaling, contexts)
        return
    reach = getattr(model, "context_reach", None)
    if reach is None or contexts is None or id(reach) in _WARNED:
        return
    parts = (reach, contexts, scaling.location, scaling.whitener)
    if any(isinstance(part, Tracer) or not getattr(part, "is_fully_addressable", True) for part in parts) or np.ndim(
        reach
    ):
        return
    limit, table, location, whitener = (np.asarray(part, np.float64) for part in parts)
    table = table.reshape(-1, table.shape[-1])
    white = (table - location) @ whitener.T if whitener.ndim == 2 else (table - location) * whitener
    radii = np.linalg.norm(white, axis=1)
    if not np.any(radii > limit):
        return
    _WARNED.add(id(reach))
    weakref.finalize(reach, _WARNED.discard, id(reach))
    row = int(np.nanargmax(radii))
    column = int(np.nanargmax(np.abs(white[row])))
    name = str(column) if scaling.sites is None else repr(scaling.sites.site_of(column))
    warn(
        f"{int(np.sum(radii > limit))} of {len(table)} contexts lie far outside those of the fit; the density treats them as if "
        f"they were at the edge. The farthest is {radii[row]:.3g} from the mean in whitened units, beyond the model's reach of "
        f"{limit:.3g}. Its coordinate {name} is {table[row, column]:.6g}, {white[row, column]:+.3g} standard deviations from the "
        "mean of the fit. This warning appears once per model. Fit with rows that cover these contexts. "
        "Fix: density, report = fd.fit_flow(key, data, context)"
    )


def warn_again(model: AbstractProbabilityFlow) -> None:
    """Let the next context far from those of the fit be warned about, even if one has been."""
    if isinstance(model.context_scaling, Encoding):
        _WARNED.discard(id(model.context_scaling.reach))


def _warn_if_encoded_far(encoding: Encoding, contexts: Array | None) -> None:
    """`warn_if_far` for a model with encoders: contexts with other numbers of rows, or far from those of the fit."""
    reach, leaves = encoding.reach, [contexts, *jax.tree.leaves(eqx.filter(encoding, eqx.is_array))]
    if contexts is None or id(reach) in _WARNED or any(isinstance(leaf, Tracer) for leaf in leaves) or np.ndim(reach):
        return
    table = np.asarray(contexts, np.float64).reshape(-1, contexts.shape[-1])
    found = []
    ranges = np.asarray(encoding.fewest), np.asarray(encoding.most)
    for counts, fewest, most in zip(encoding.counts(table), *ranges, strict=True):
        if np.any((counts < fewest) | (counts > most)):
            several = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
            found.append(f"they have {several} rows, and those of the fit {fewest} to {most}")
    with jax.ensure_compile_time_eval():
        encoded = np.asarray(encoded_rows(encoding, jnp.asarray(table, float)))
    radii = np.linalg.norm(encoded, axis=1)
    if np.any(radii > float(reach)):
        found.append(
            f"{int(np.sum(radii > float(reach)))} of {len(table)} lie far outside those of the fit: the farthest summaries and "
            f"outputs of the encoders have a norm of {radii.max():.3g}, beyond the model's reach of {float(reach):.3g}"
        )
    if found:
        _WARNED.add(id(reach))
        weakref.finalize(reach, _WARNED.discard, id(reach))
        warn(
            f"The contexts are not like those of the fit: {'; '.join(found)}. The density is unreliable for them. This warning "
            "appears once per model. Fit with contexts, or with a prior, that cover these. "
            "Fix: density, report = fd.fit_flow(key, data, context, encoder=encoder)"
        )


def event_array(caller: str, name: str, value: Any, shape: tuple[int, ...], sites: Sites | None) -> Array:
    """Convert events to an array of shape `(*batch, *event_shape)`.

    Args:
        caller: name of the method for errors.
        name: name of its argument.
        value: the events.
        shape: shape of one event.
        sites: names and shapes of the values in one event; None if they have no names.

    Raises:
        TypeError: if `value` does not consist of real numbers.
        ValueError: if the trailing axes do not have the shape of an event.
    """
    array = real_jax_array(caller, name, value, f"{name} = {_event_line(value, name, sites)}")
    if array.shape[array.ndim - len(shape) :] != shape:
        raise ValueError(
            f"{caller} expected `{name}` with shape (..., {', '.join(map(str, shape))}); got {array.shape}. "
            f"Fix: {reshaping(name, array.shape, shape)}"
        )
    return array


def _event_line(value: Any, name: str, sites: Sites | None) -> str:
    """Code that makes an array for `value`: packed named values, the real part, or a draw."""
    if is_complex(value):
        return f"jax.numpy.real({name})"
    if not hasattr(value, "keys"):
        return "density.sample(jax.random.key(0))"
    if sites is not None:
        given = list(map(str, value.keys()))
        complete = set(given) == set(sites.names)
        return f"density.pack({name if complete else sites.code_of_all(name, given)})"
    return f"jax.numpy.stack([jax.numpy.asarray({name}[column]) for column in {name}], axis=-1)"


def _without_names(context: Any) -> str:
    """Code that makes an array from named contexts."""
    if is_a(context, "pandas", "DataFrame"):
        return "context.to_numpy(float)"
    return "numpy.stack([context[name] for name in context], axis=-1)"
