"""Probability flows as guides in stochastic variational inference."""

from collections.abc import Callable
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.module import eqx_module
from numpyro.distributions import constraints
from numpyro.infer.autoguide import AutoContinuous
from numpyro.infer.initialization import init_to_uniform

from .._checks import check_kind, check_model, check_number
from ..data.scaling import Scaling
from ..divergence.exact import ExactDivergence
from ..divergence.stochastic import unbiased_divergence
from ..models.fields import identity_scaling
from ..models.flows import GaussianFlow, off_path, with_network
from ..models.networks import AbstractNetwork, ResidualMLP
from ..models.paths import Trigonometric
from ..solving import AbstractSolver, FixedStep
from .checks import check_density, check_given
from .flow import FlowDensity
from .sites import JointSite, sample_joint

GUIDE_REACH = 8.0
"""Reach of a guide, which has no data to measure it from, in multiples of the root of the dimension, the radius of the noise."""


def flow_module(name: str, density: FlowDensity) -> FlowDensity:
    """Register the weights of a density's network as parameters of a guide or a model, which start at their present values.

    A distilled divergence would be stale after a step. The density that comes back has its exact one in up to sixteen
    dimensions and above a fresh Hutchinson probe in every step, which leaves the gradient of an ELBO unbiased. When the
    training is done, `fit_divergence` distills it.

    Args:
        name: the parameters are called `name$params`.
        density: the density to start from; if conditional, with its context.

    Returns:
        The density with the parameters' current values.

    Raises:
        TypeError: if `density` is not a `FlowDensity`.
        ValueError: if it is conditional and has no context.
    """
    _check_density("flow_module", density)
    model = density.model
    # Once its weights follow an ELBO, a model's states follow no Gaussian path.
    model = off_path(model)
    model = with_network(model, eqx_module(name, model.network))
    key = numpyro.prng_key()
    # Without a seed nothing is being trained: a handler has substituted everything random.
    divergence = ExactDivergence() if key is None else unbiased_divergence(key, model.dim)
    return density._variant(model=model, divergence=divergence)


def as_guide(density: FlowDensity, name: str = "flow") -> Callable[..., dict[str, Any]]:
    """A guide from a fitted density, for `SVI`, `Predictive` and importance sampling, whose weights are trained further.

    Args:
        density: over named values, which are the guide's sites, or else over the one site `name`; if conditional, with its
            context.
        name: of the joint site of named values, which is auxiliary and needs a name that no site of the model has, or of the one
            site; the weights are `name$params`.

    Returns:
        A guide, which takes whatever arguments the model takes and returns values by name.

    Raises:
        TypeError, ValueError: as `flow_module`.
    """
    _check_density("as_guide", density)

    def guide(*args: Any, **kwargs: Any) -> dict[str, Any]:
        flow = flow_module(name, density)
        if flow.sites is None:
            return {name: numpyro.sample(name, flow)}
        values = sample_joint(JointSite(name, flow, flow, flow.sites, is_auxiliary=True))
        event_dims = {site: len(shape) for site, shape in zip(*flow.sites, strict=True)}
        return {
            site: numpyro.sample(site, dist.Delta(value, event_dim=event_dims[site])) for site, value in values.items()
        }

    return guide


class AutoFlow(AutoContinuous):
    r"""A guide for any model with continuous latent variables: a probability flow over all of them, on the real line.

    The posterior is the image of $N(0, I)$ under an ODE whose network starts at zero, then scaled by `<prefix>_scale` and
    moved by `<prefix>_loc`: training starts at a diagonal normal guide. Samples are reparametrized, and come with their
    log density from the same solve. The divergence is that of `flow_module`.

    Args:
        model: a numpyro model.
        prefix: of the names of parameters and of the auxiliary site.
        init_loc_fn: as in numpyro's automatic guides.
        init_scale: standard deviation to start at, in unconstrained units.
        network: the vector field; by default a `ResidualMLP` of width 64 without experts, whose
            steep fields would ask for more steps of the solver than a guide takes.
        solver: how the ODE is solved; `FixedStep(8)` by default.

    Raises:
        TypeError: if `model`, `network` or `solver` is of another kind.
        ValueError: if `init_scale` is not above 0 or, when it first meets the model, `network` is of another dimension.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        prefix: str = "auto",
        init_loc_fn: Callable[..., Any] = init_to_uniform,
        init_scale: float = 1.0,
        network: AbstractNetwork | None = None,
        solver: AbstractSolver | None = None,
    ):
        check_model("AutoFlow", "model", model)
        if network is not None:
            check_kind("AutoFlow", "network", network, AbstractNetwork, "network=None")
        solver = FixedStep(8) if solver is None else solver
        check_kind("AutoFlow", "solver", solver, AbstractSolver, "solver=fd.FixedStep(8)")
        self._init_scale = check_number("AutoFlow", "init_scale", init_scale, 0.0, fix=1.0)
        self.network = network
        self._solver = solver
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        dim = self.latent_dim
        if self.network is None:
            key: Any = numpyro.prng_key()
            self.network = ResidualMLP(key, dim, width=64, experts=0)
        elif (self.network.dim, self.network.context_dim) != (dim, 0):
            raise ValueError(
                f"AutoFlow expected a `network` for the {dim} unconstrained coordinates of this model and no context; got one "
                f"for {self.network.dim} and {self.network.context_dim}. Fix: network=None"
            )

    def _get_posterior(self) -> FlowDensity:
        dim = self.latent_dim
        location: Any = numpyro.param(f"{self.prefix}_loc", self._init_latent)
        scale: Any = numpyro.param(
            f"{self.prefix}_scale", jnp.full(dim, self._init_scale), constraint=constraints.softplus_positive
        )
        network: Any = self.network
        model = GaussianFlow(
            network=network,
            path=Trigonometric(),
            scaling=Scaling(location, scale, constraints.real, (dim,)),
            context_scaling=identity_scaling((0,)),
            reach=jnp.asarray(GUIDE_REACH * np.sqrt(dim)),
        )
        return flow_module(f"{self.prefix}_flow", FlowDensity(model, solver=self._solver))

    def get_transform(self, params: dict[str, Any]) -> NoReturn:
        """Raise, since the map is an ODE; `from_base` of `get_posterior(params)` carries noise to latent variables."""
        raise NotImplementedError(
            "AutoFlow expected a use that needs no `get_transform`, as NeuTraReparam does: its map is an ODE. "
            "Other guides can. Fix: guide = numpyro.infer.autoguide.AutoBNAFNormal(model)"
        )

    def get_posterior(self, params: dict[str, Any]) -> FlowDensity:
        """The density of the unconstrained latent variables, with its exact divergence; `fit_divergence` distills it."""
        posterior: Any = handlers.substitute(self._get_posterior, data=params)()
        return posterior.with_divergence(ExactDivergence())


def _check_density(caller: str, density: Any) -> None:
    check_density(caller, density, FlowDensity)
    check_given(caller, density)
