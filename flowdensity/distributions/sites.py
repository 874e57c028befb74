"""A density over named values in a model."""

from collections.abc import Iterable
from typing import Any

import numpyro
import numpyro.distributions as dist
from numpyro.handlers import condition, do, scope, substitute, trace
from numpyro.primitives import _PYRO_STACK

from .amortized import AmortizedDensity
from .flow import FlowDensity


def sample_sites(name: str, density: dist.Distribution) -> dict[str, Any]:
    """Sample a density over named values, in a model, and give the values back by name.

    One sample site, `name`, holds the joint vector; conditioning, substitution and reparametrisation go by it. Each
    named value is a deterministic site, and so a variable of its own in the posterior.

    Args:
        name: of the joint site.
        density: a `FlowDensity` learned from named values, or an `AmortizedDensity` of one, as it is or expanded; in plates as
            any other distribution.

    Returns:
        Values by name, each of shape `(*batch_shape, *shape)`.

    Raises:
        TypeError: if the density is none of named values.
        ValueError: if one of the names is taken, or is given a value by a handler, of which only the joint site takes one.
    """
    flow = density
    while isinstance(flow, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        flow = flow.base_dist
    flow = flow.flow if isinstance(flow, AmortizedDensity) else flow
    if not isinstance(flow, FlowDensity):
        raise TypeError(
            f"sample_sites expected a FlowDensity of named values; got {type(density).__name__}. "
            f"Fix: numpyro.sample({name!r}, ...)"
        )
    sites = flow.sites
    if sites is None:
        raise TypeError(
            "sample_sites expected a density of named values; this one was learned from an array. "
            f"Fix: numpyro.sample({name!r}, density)"
        )
    # numpyro notices two sample sites of one name, but lets a deterministic one take the place of another site.
    taken = {name, *_known(sites.names, trace, "trace")}
    clashes = [site for site in sites.names if site in taken]
    if clashes:
        raise ValueError(
            f"sample_sites expected names that no other site has; {clashes} of this density are taken, the joint site being "
            f"called {name!r}. Fix: another name for the other site, or numpyro.handlers.scope(prefix=...) around one of them"
        )
    given = _known(sites.names, (substitute, condition, do), "data")
    if given and not _known((name, f"{name}_base"), (substitute, condition, do), "data"):
        raise ValueError(
            f"sample_sites expected values for the joint site {name!r}, from which {list(sites.names)} follow; got some for "
            f"{given} alone. Fix: data={{{name!r}: density.pack({{site: values[site] for site in {list(sites.names)}}})}}"
        )
    values = flow.unpack(numpyro.sample(name, density))
    return {site: numpyro.deterministic(site, value) for site, value in values.items()}


def _known(names: Iterable[str], kinds: Any, attribute: str) -> list[str]:
    """Those of some names that handlers of these kinds around a site have in an attribute, by what scopes call them there."""
    found = []
    for name in names:
        called = name
        for handler in reversed(_PYRO_STACK):
            if isinstance(handler, scope):
                called = f"{handler.prefix}{handler.divider}{called}"
            elif isinstance(handler, kinds) and called in (getattr(handler, attribute) or ()):
                found.append(name)
                break
    return found
