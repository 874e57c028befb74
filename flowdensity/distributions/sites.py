"""A density over named values in a model."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.core import Tracer
from numpyro.distributions import constraints

from .._numpyro import unwrapped
from .._typing import Array
from ..data.sites import Sites
from .handler_values import HandlerValue, Override, Query, fresh_key, handler_value, is_taken, outermost, overriding
from .learned import AbstractLearnedDensity
from .reparam import base_name


def sample_sites(name: str, density: dist.Distribution) -> dict[str, Any]:
    """Sample a density over named values, in a model, and give the values back by name.

    One sample site, `name`, holds the joint vector. Each named value is a deterministic site, and so a variable of its own in
    the posterior. Handlers and initialization strategies may give the value of the joint site, or the values of all names, from
    which it is packed. A strategy may also give some of the names; a draw of the density completes them. Under `do` the joint
    site is sampled, and what follows sees the given values.

    Args:
        name: of the joint site.
        density: a learned density of named values, as it is or expanded; in plates as any other distribution.

    Returns:
        Values by name, each of shape `(*batch_shape, *shape)`.

    Raises:
        TypeError: if the density is not one of named values.
        ValueError: if one of the names is taken, if only some of them are given values other than a start, or if these differ
            from the value of the joint site. Values that are traced, as in `Predictive`, are not compared: that of the joint
            site counts.
    """
    learned = _learned(name, density)
    joint = JointSite(name, density, learned, _sites_of(name, learned))
    _check_names(joint)
    return {site: numpyro.deterministic(site, value) for site, value in sample_joint(joint).items()}


class JointSite(NamedTuple):
    """A joint site.

    Attributes:
        name: of the site.
        density: the density that was handed over, with its wrappers.
        learned: the density of named values inside its wrappers.
        sites: names and shapes.
        is_auxiliary: whether it is auxiliary, as that of a guide.
    """

    name: str
    density: dist.Distribution
    learned: AbstractLearnedDensity
    sites: Sites
    is_auxiliary: bool = False

    def sample(self) -> dict[str, Array]:
        """Sample the joint site."""
        infer = {"is_auxiliary": True} if self.is_auxiliary else {}
        return self.learned.unpack(numpyro.sample(self.name, self.density, infer=infer))

    def pack(self, values: dict[str, Any]) -> Array:
        """The joint vector."""
        return self.sites.pack("sample_sites", values)

    def key(self) -> Any:
        """A key from the seed around this site."""
        return fresh_key(self.name, self.query(self.learned.model.scaling.support, self.learned.event_shape))

    def draw(self, key: Any, batch_shape: tuple[int, ...]) -> Any:
        """A draw of the density for each of a batch."""
        if key is None:
            raise ValueError(
                f"sample_sites expected a seed, since a start gives some of {list(self.sites.names)} and a draw the others. "
                "Fix: model = numpyro.handlers.seed(model, rng_seed=0)"
            )
        return self.density.expand(batch_shape).sample(key)

    def query(self, support: constraints.Constraint, shape: tuple[int, ...]) -> Query:
        """Distribution in a message that asks for a value on a support, one for each event of this density."""
        outer = self.density.event_shape[: self.density.event_dim - self.learned.event_dim]
        return Query(support, self.density.batch_shape, (*outer, *shape))

    def by_name(self) -> dict[str, HandlerValue]:
        """The values that handlers give to the named sites."""
        support = self.learned.model.scaling.support
        parts = getattr(support, "parts", (support,) * len(self.sites.names))
        found = {
            site: handler_value(site, self.query(part, shape))
            for site, shape, part in zip(*self.sites, parts, strict=True)
        }
        return {site: one for site, one in found.items() if one is not None}

    def as_one(self) -> HandlerValue | None:
        """The value that handlers give to the joint site, or to the noise that it is the image of."""
        joint = self.query(self.learned.model.scaling.support, self.learned.event_shape)
        noise = self.query(constraints.real, (self.learned.model.dim,))
        found = [handler_value(self.name, joint), handler_value(base_name(self.name), noise)]
        # An auxiliary site of a guide that has the same name is no value of this one.
        return next((one for one in found if one is not None and not one.problem and not one.is_auxiliary), None)


def sample_joint(joint: JointSite) -> dict[str, Any]:
    """Sample a joint site; if handlers give its named values, with the value that these make.

    Raises:
        ValueError: as `sample_sites`.
    """
    by_name = joint.by_name()
    if not by_name:
        return joint.sample()
    whole = joint.as_one()
    # A trace that is replayed has the names as deterministic sites beside the joint one, and gives the joint one alone.
    by_name = {site: one for site, one in by_name.items() if not _is_replayed(one, whole)}
    _check_kinds(joint, by_name)
    if any(one.intervened for one in by_name.values()) and not (whole is not None and whole.intervened):
        return _sample_beside(joint, by_name)
    if whole is None and by_name:
        return _sample_from(joint, by_name)
    if whole is not None and whole.name == joint.name:
        _check_agreement(joint, by_name, whole)
    return joint.sample()


def _is_replayed(one: HandlerValue, whole: HandlerValue | None) -> bool:
    return bool(one.problem) and whole is not None and one.handler is whole.handler


def _sample_beside(joint: JointSite, by_name: dict[str, HandlerValue]) -> dict[str, Array]:
    """Sample the joint site, and give back the values of an intervention."""
    _check_complete(joint, by_name)
    sampled = joint.sample()
    values = joint.learned.unpack(joint.pack({site: one.value for site, one in by_name.items()}))
    return {site: jnp.broadcast_to(values[site], sampled[site].shape) for site in sampled}


def _sample_from(joint: JointSite, by_name: dict[str, HandlerValue]) -> dict[str, Array]:
    """Sample the joint site with the value that named ones make."""
    values = {site: one.value for site, one in by_name.items()}
    is_complete = len(values) == len(joint.sites.names)
    if not all(one.is_start for one in by_name.values()):
        _check_complete(joint, by_name)
    key: Any = None if is_complete else joint.key()

    def value_of(message: dict[str, Any]) -> Array:
        shape = message["fn"].shape()
        drawn = {} if is_complete else joint.learned.unpack(joint.draw(key, message["fn"].batch_shape))
        event = joint.pack(drawn | values)
        return jnp.broadcast_to(event, jnp.broadcast_shapes(event.shape, shape))

    last = outermost(by_name.values())
    called = last.prefix + joint.name
    handler = Override(lambda name: name == called, value_of, observed=last.observed)
    with overriding(handler, last.handler):
        sampled = joint.sample()
    if not handler.used:
        raise ValueError(
            f"sample_sites expected the joint site {joint.name!r} to be sampled as it is or reparametrized by "
            f"FlowReparam, since handlers give values of {list(by_name)}; a handler hides it, or samples something else in its "
            f"place. Fix: config = {{{joint.name!r}: fd.FlowReparam()}}"
        )
    return sampled


# Checks ------------------------------------------------------------------------------------------


def _learned(name: str, density: Any) -> AbstractLearnedDensity:
    learned = unwrapped(density)
    if not isinstance(learned, AbstractLearnedDensity):
        raise TypeError(
            f"sample_sites expected a FlowDensity or an AmortizedDensity of named values; got {type(density).__name__}. "
            f"Fix: numpyro.sample({name!r}, density)"
        )
    return learned


def _sites_of(name: str, learned: AbstractLearnedDensity) -> Sites:
    if learned.sites is None:
        raise TypeError(
            "sample_sites expected a density of named values; this one was learned from an array. "
            f"Fix: numpyro.sample({name!r}, density)"
        )
    return learned.sites


def _check_names(joint: JointSite) -> None:
    # numpyro notices two sample sites of one name, but lets a deterministic one take the place of another site.
    clashes = [site for site in joint.sites.names if site == joint.name or is_taken(site)]
    if clashes:
        raise ValueError(
            f"sample_sites expected names that no other site has; {clashes} of this density are taken, the joint site being "
            f"called {joint.name!r}. Fix: {_renamed(joint, clashes)}"
        )


def _renamed(joint: JointSite, clashes: list[str]) -> str:
    """A name for the joint site that no named one has or, where another site has it, a scope around all of them."""
    if joint.name in clashes:
        return f"name = {f'{joint.name}_joint'!r}"
    return f"with numpyro.handlers.scope(prefix={joint.name!r}): fd.sample_sites({joint.name!r}, density)"


def _check_kinds(joint: JointSite, by_name: dict[str, HandlerValue]) -> None:
    """Check that handlers do one thing to all names, and one that the joint site can have in their place."""
    for site, one in by_name.items():
        if one.problem:
            raise ValueError(
                f"sample_sites expected handlers to leave {site!r} to the joint site {joint.name!r}, or to give it a value; got "
                f"{type(one.handler).__name__}, asked about {site!r}: {one.problem}. "
                f"Fix: config = {{{joint.name!r}: fd.FlowReparam()}}"
            )
    for what in ("observed", "intervened"):
        those = [site for site, one in by_name.items() if getattr(one, what)]
        if those and len(those) < len(by_name):
            raise ValueError(
                f"sample_sites expected handlers that do one thing to all of {list(joint.sites.names)}; got {those} {what} and "
                f"{sorted(set(by_name) - set(those))} not. One handler can have the values of "
                f"all. Fix: data = {joint.sites.code_of_all('data', those)}"
            )


def _check_complete(joint: JointSite, by_name: dict[str, HandlerValue]) -> None:
    missing = [site for site in joint.sites.names if site not in by_name]
    if missing:
        raise ValueError(
            f"sample_sites expected values of all of {list(joint.sites.names)}, which the joint site {joint.name!r} is packed "
            f"from; got {list(by_name)} without {missing}. A part of a joint density can be neither conditioned on nor replaced. "
            "To observe a part, give it a likelihood of its own. A draw of the density completes the others. "
            "Fix: data = {**density.unpack(density.sample(key)), **data}"
        )


def _check_agreement(joint: JointSite, by_name: dict[str, HandlerValue], whole: HandlerValue) -> None:
    """Check that named values are those in the value of the joint site, where neither is traced."""
    inside = joint.learned.unpack(whole.value)
    for site, one in by_name.items():
        if isinstance(inside[site], Tracer) or isinstance(one.value, Tracer):
            continue
        expected, value = np.asarray(inside[site]), np.asarray(one.value)
        # Files and other programs may have rounded one of them.
        if not np.allclose(value, expected, rtol=np.sqrt(np.finfo(expected.dtype).eps), atol=0.0, equal_nan=True):
            raise ValueError(
                f"sample_sites expected one value of {site!r}; the joint site {joint.name!r} has {expected} and handlers give "
                f"{value}. Fix: del data[{site!r}]"
            )
