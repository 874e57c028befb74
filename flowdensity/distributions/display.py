"""Text description of a learned density. Nothing is computed, since leaves may be stacked, traced or missing."""

from typing import Any

import jax
import numpy as np
from numpyro.distributions import constraints

MAX_NAMES = 6
"""Maximum number of sites whose names are displayed. The other sites are only counted."""


def described(density: Any, parts: Any, network: Any = None) -> str:
    """Describe the events, the context and the batch shape of a density, and how `log_prob` is computed.

    Args:
        density: the density.
        parts: its model, divergence and solver as they are stored, possibly as stacks.
        network: the network that computes the log density; None if it is integrated along the ODE.
    """
    model, divergence, solver = parts
    stack = np.shape(model.scaling.location)[:-1]
    stacked = f", a stack of {stack}" if stack and stack != density.batch_shape else ""
    lines = [
        f"<{type(density).__name__} of {_events(density, model.scaling)}, batch shape {density.batch_shape}{stacked}"
    ]
    shape = model.context_scaling.event_shape
    if shape != (0,):
        contexts = _sites(model.context_scaling) or f"a context of shape {shape}"
        lines.append(f"conditional on {contexts}, {'not given' if density.context is None else 'given'}")
    flow = f"{type(model).__name__}(dim={_dim(model.scaling)}) with"
    if network is None:
        lines.append(f"{flow} {divergence} and {solver}")
    else:
        lines.append(f"log_prob by {network}; samples by {flow} {solver}")
    return "\n ".join(lines) + ">"


def _events(density: Any, scaling: Any) -> str:
    shape = f"shape {density.event_shape}"
    return f"{shape}, {_sites(scaling) or f'support {_support(scaling.support)}'}"


def _sites(scaling: Any) -> str:
    """Names, shapes and supports of the values in one event; empty if they have no names."""
    sites = scaling.sites
    if sites is None:
        return ""
    supports = getattr(scaling.support, "parts", (scaling.support,) * len(sites.names))
    each = [
        f"{name}{list(shape) if shape else ''}: {_support(support)}"
        for name, shape, support in zip(*sites, supports, strict=True)
    ]
    more = f", and {len(each) - MAX_NAMES} more" if len(each) > MAX_NAMES else ""
    return f"sites {', '.join(each[:MAX_NAMES])}{more}"


def _support(support: Any) -> str:
    named = [name for name, value in vars(constraints).items() if value is support]
    if named:
        return named[0]
    # An array can be long, or a tracer.
    if any(np.ndim(leaf) or isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(support)):
        return type(support).__name__
    return repr(support)


def _dim(scaling: Any) -> Any:
    return (np.shape(scaling.location) or ("?",))[-1]
