"""Sampling a density over named values in a model."""

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
    """Sample a density over named values in a model, and return the values by name.

    The joint vector is one sample site, `name`. Each named value is a deterministic site, and therefore a separate variable in
    the posterior. Handlers and initialization strategies may give a value to the joint site, or values to all names, which are
    packed into the joint vector. An initialization strategy may also give only some of the values, and a draw of the density
    completes them. Under `do` the joint site is still sampled, and the returned values are the given ones.

    The posterior holds the joint site too. `az.summary(posterior, var_names="~population")` leaves out one with that name, so
    that each value is listed once.

    Args:
        name: name of the joint site.
        density: a learned density of named values, possibly expanded. It can be used in plates like any other distribution.

    Returns:
        Values by name, each of shape `(*batch_shape, *shape)`.

    Raises:
        TypeError: if the density has no named values.
        ValueError: if one of the names is taken; if a handler other than an initialization strategy gives values to only some
            of the names; or if these values differ from the value of the joint site. Traced values, as in `Predictive`, are not
            compared, and the value of the joint site is used.

    Examples:
        >>> named, report = fd.fit_flow(key, {"mu": data[:, 0], "tau": np.exp(data[:, 1])}, support={"tau": constraints.positive})
        >>> def named_model(y):
        ...     values = fd.sample_sites("population", named)
        ...     numpyro.sample("y", dist.Normal(values["mu"], values["tau"]), obs=y)
        >>> numpyro.handlers.trace(numpyro.handlers.seed(named_model, key)).get_trace(y=0.5)["tau"]["value"]
    """
    learned = _learned(name, density)
    joint = JointSite(name, density, learned, _sites_of(name, learned))
    _check_names(joint)
    return {site: numpyro.deterministic(site, value) for site, value in sample_joint(joint).items()}


class JointSite(NamedTuple):
    """Joint site of named values.

    Attributes:
        name: name of the site.
        density: the density that was passed, with its wrappers.
        learned: the density of named values inside its wrappers.
        sites: names and shapes.
        is_auxiliary: whether the site is auxiliary, as in a guide.
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
        """Pack named values into the joint vector."""
        return self.sites.pack("sample_sites", values)

    def key(self) -> Any:
        """Draw a key from the seed around this site."""
        return fresh_key(self.name, self.query(self.learned.model.scaling.support, self.learned.event_shape))

    def draw(self, key: Any, batch_shape: tuple[int, ...]) -> Any:
        """Draw one value of the density for each element of a batch."""
        if key is None:
            raise ValueError(
                f"sample_sites expected a seed, since only some of {list(self.sites.names)} have initial values and the others "
                "are drawn. "
                "Fix: model = numpyro.handlers.seed(model, rng_seed=0)"
            )
        return self.density.expand(batch_shape).sample(key)

    def query(self, support: constraints.Constraint, shape: tuple[int, ...]) -> Query:
        """Distribution for a query message: a value on a support for each event of this density."""
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
        """The value that handlers give to the joint site or to the noise of its reparametrization."""
        joint = self.query(self.learned.model.scaling.support, self.learned.event_shape)
        noise = self.query(constraints.real, (self.learned.model.dim,))
        found = [handler_value(self.name, joint), handler_value(base_name(self.name), noise)]
        # The value of a guide's auxiliary site with the same name is not a value of this site.
        return next((one for one in found if one is not None and not one.problem and not one.is_auxiliary), None)


def sample_joint(joint: JointSite) -> dict[str, Any]:
    """Sample a joint site. If handlers give its named values, the joint site has the value that these make.

    Raises:
        ValueError: as `sample_sites`.
    """
    by_name = joint.by_name()
    if not by_name:
        return joint.sample()
    whole = joint.as_one()
    # A replayed trace contains the names as deterministic sites beside the joint site, but gives a value to the joint site only.
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
    """Sample the joint site for the trace, but return the values of an intervention (`do`), broadcast to the sample's shapes."""
    _check_complete(joint, by_name)
    sampled = joint.sample()
    values = joint.learned.unpack(joint.pack({site: one.value for site, one in by_name.items()}))
    return {site: jnp.broadcast_to(values[site], sampled[site].shape) for site in sampled}


def _sample_from(joint: JointSite, by_name: dict[str, HandlerValue]) -> dict[str, Array]:
    """Sample the joint site with the value that is packed from its named values."""
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
            f"FlowReparam, since handlers give values to {list(by_name)}; a handler hides it, or samples something else in its "
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
    # numpyro rejects two sample sites with the same name, but lets a deterministic site replace another site.
    clashes = [site for site in joint.sites.names if site == joint.name or is_taken(site)]
    if clashes:
        raise ValueError(
            f"sample_sites expected names that no other site has; {clashes} of this density are taken (the joint site is called "
            f"{joint.name!r}). Fix: {_renamed(joint, clashes)}"
        )


def _renamed(joint: JointSite, clashes: list[str]) -> str:
    """Code that gives the joint site an unused name or, if another site has the name, a scope around all sites."""
    if joint.name in clashes:
        return f"name = {f'{joint.name}_joint'!r}"
    return f"with numpyro.handlers.scope(prefix={joint.name!r}): fd.sample_sites({joint.name!r}, density)"


def _check_kinds(joint: JointSite, by_name: dict[str, HandlerValue]) -> None:
    """Check that handlers treat all names alike, and in a way that can be applied to the joint site."""
    for site, one in by_name.items():
        if one.problem:
            raise ValueError(
                f"sample_sites expected handlers to leave {site!r} to the joint site {joint.name!r}, or to give it a value; got "
                f"{type(one.handler).__name__}, which does neither: {one.problem}. "
                f"Fix: config = {{{joint.name!r}: fd.FlowReparam()}}"
            )
    for what in ("observed", "intervened"):
        those = [site for site, one in by_name.items() if getattr(one, what)]
        if those and len(those) < len(by_name):
            raise ValueError(
                f"sample_sites expected handlers that treat all of {list(joint.sites.names)} alike; only {those} are {what}, not "
                f"{sorted(set(by_name) - set(those))}. Give the values of all sites to one handler. "
                f"Fix: data = {joint.sites.code_of_all('data', those)}"
            )


def _check_complete(joint: JointSite, by_name: dict[str, HandlerValue]) -> None:
    missing = [site for site in joint.sites.names if site not in by_name]
    if missing:
        raise ValueError(
            f"sample_sites expected values of all of {list(joint.sites.names)}, which make up the joint site {joint.name!r}; got "
            f"{list(by_name)} without {missing}. A part of a joint density can be neither conditioned on nor replaced. To "
            "observe a part, give it its own likelihood. To complete the values, use a draw of the density. "
            "Fix: data = {**density.unpack(density.sample(key)), **data}"
        )


def _check_agreement(joint: JointSite, by_name: dict[str, HandlerValue], whole: HandlerValue) -> None:
    """Check that named values agree with the value of the joint site. Traced values are not compared."""
    inside = joint.learned.unpack(whole.value)
    for site, one in by_name.items():
        if isinstance(inside[site], Tracer) or isinstance(one.value, Tracer):
            continue
        expected, value = np.asarray(inside[site]), np.asarray(one.value)
        # Files and other programs may have rounded one of the values.
        if not np.allclose(value, expected, rtol=np.sqrt(np.finfo(expected.dtype).eps), atol=0.0, equal_nan=True):
            raise ValueError(
                f"sample_sites expected one value of {site!r}; it is {expected} in the joint site {joint.name!r}, but handlers "
                f"give {value}. Fix: del data[{site!r}]"
            )
