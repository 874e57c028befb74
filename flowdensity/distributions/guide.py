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
"""Reach of a guide, in multiples of the square root of the dimension, which is the radius of the noise. A guide has no data."""


def flow_module(name: str, density: FlowDensity) -> FlowDensity:
    """Register the weights of a density's network as parameters of a guide or a model, initialized at their current values.

    A distilled divergence would be stale after one step. The returned density therefore uses the exact divergence in up to
    sixteen dimensions, and a new Hutchinson probe in every step in more, which leaves the gradient of an ELBO unbiased. After
    training, `fit_divergence` distills the divergence.

    Args:
        name: prefix of the parameters, which are called `name$params`.
        density: the density to start from, with its context if it is conditional.

    Returns:
        The density with the current values of the parameters.

    Raises:
        TypeError: if `density` is not a `FlowDensity`.
        ValueError: if it is conditional and has no context.

    Examples:
        >>> def guide(y):
        ...     numpyro.sample("theta", fd.flow_module("theta_flow", density))
        >>> svi = SVI(model, guide, optax.adam(1e-4), fd.PathGradientELBO())
        >>> result = svi.run(key, 1000, y=observed)
    """
    _check_density("flow_module", density)
    model = density.model
    # The states of a model trained with an ELBO do not follow a Gaussian probability path.
    model = off_path(model)
    model = with_network(model, eqx_module(name, model.network))
    key = numpyro.prng_key()
    # Without a seed there is no training, because a handler has substituted all random values.
    divergence = ExactDivergence() if key is None else unbiased_divergence(key, model.dim)
    return density._variant(model=model, divergence=divergence)


def as_guide(density: FlowDensity, name: str = "flow") -> Callable[..., dict[str, Any]]:
    """Create a guide from a fitted density for `SVI`, `Predictive` and importance sampling. Its weights are trained further.

    Args:
        density: a density over named values, which become the sites of the guide, or over the single site `name`. A conditional
            density needs its context.
        name: name of the single site, or of the joint site of named values. The joint site is auxiliary, and no site of the
            model may have its name. The weights are called `name$params`.

    Returns:
        A guide. It takes the arguments of the model and returns values by name.

    Raises:
        TypeError, ValueError: as `flow_module`.

    Examples:
        >>> guide = fd.as_guide(density, name="theta")
        >>> svi = SVI(model, guide, optax.adam(1e-4), fd.PathGradientELBO())
        >>> result = svi.run(key, 1000, y=observed)
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
    r"""Guide for any model with continuous latent variables: a probability flow over all of them in unconstrained space.

    The posterior is the image of $N(0, I)$ under an ODE, scaled by `<prefix>_scale` and shifted by `<prefix>_loc`. The initial
    output of the network is zero, so training starts from a diagonal normal guide. Samples are reparametrized, and their log
    density comes from the same solve. The divergence is that of `flow_module`.

    Args:
        model: a numpyro model.
        prefix: prefix of the names of parameters and of the auxiliary site.
        init_loc_fn: as in numpyro's automatic guides.
        init_scale: initial standard deviation, in unconstrained units.
        network: the vector field. The default is a `ResidualMLP` of width 64 without experts, because the steep fields of experts
            would need more solver steps than a guide takes.
        solver: the ODE solver; `FixedStep(8)` by default.

    Raises:
        TypeError: if `model`, `network` or `solver` has the wrong type.
        ValueError: if `init_scale` is not above 0, or the dimension of `network` does not match the model at its first call.

    Examples:
        >>> guide = fd.AutoFlow(model)
        >>> svi = SVI(model, guide, optax.adam(1e-3), fd.PathGradientELBO(num_particles=8))
        >>> result = svi.run(key, 1000, y=observed)
        >>> guide.sample_posterior(key, result.params, sample_shape=(1000,))["theta"].mean(axis=0)
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
                f"for {self.network.dim} coordinates and {self.network.context_dim} of context. Fix: network=None"
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
        """Raise an error, since the map is an ODE. `from_base` of `get_posterior(params)` maps noise to latent variables."""
        raise NotImplementedError(
            "AutoFlow expected a use without `get_transform`, which NeuTraReparam needs: the map of AutoFlow is an ODE. "
            "Other guides have a transform. Fix: guide = numpyro.infer.autoguide.AutoBNAFNormal(model)"
        )

    def get_posterior(self, params: dict[str, Any]) -> FlowDensity:
        """Density of the unconstrained latent variables, with its exact divergence. `fit_divergence` can distill it."""
        posterior: Any = handlers.substitute(self._get_posterior, data=params)()
        return posterior.with_divergence(ExactDivergence())


def _check_density(caller: str, density: Any) -> None:
    check_density(caller, density, FlowDensity)
    check_given(caller, density)
