"""A probability flow as a numpyro distribution."""

from typing import Any, final

from .._registry import Kind, register
from .._typing import Array, ArrayLike, Key
from ..data.tables import Named
from ..divergence.interface import AbstractDivergence
from ..models.flows import AbstractProbabilityFlow
from ..solving import AbstractSolver, SolvedLogProb
from . import batching
from .learned import AbstractLearnedDensity


@final
class FlowDensity(AbstractLearnedDensity):
    r"""Density of a probability flow, for `numpyro.sample`.

    `log_prob` solves the flow from the event back to its standard-normal noise and integrates the divergence along the way.
    `sample` solves the flow forwards. Both are deterministic given their arguments, and differentiable with respect to the event,
    the context and the weights.

    Args:
        model: the probability flow.
        context: values to condition on, shape `(*batch_shape, *context_shape)`, or a dict of such arrays if the density was
            learned with names. None leaves a conditional density without a context, which `given` can add later.
        divergence: the divergence of the velocity; `ExactDivergence()` by default.
        solver: the ODE solver; `FixedStep()` by default.
        validate_args: as in numpyro.

    There is a warning, once for each model, if a `context` that is not traced lies far outside the contexts of the fit. The model
    treats such a context as if it were at their edge.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, or `context` does not fit the model.

    Examples:
        >>> finer = fd.FlowDensity(density.model, solver=fd.FixedStep(steps=32))
        >>> finer.log_prob(data[:5])  # nats
        >>> finer.sample(key, (100,)).shape
        (100, 2)
        >>> conditional.given(context[:5]).sample(key)  # one event for each context
    """

    def __init__(
        self,
        model: AbstractProbabilityFlow,
        context: ArrayLike | Named | None = None,
        *,
        divergence: AbstractDivergence | None = None,
        solver: AbstractSolver | None = None,
        validate_args: bool | None = None,
    ):
        super().__init__(model, context, divergence=divergence, solver=solver, validate_args=validate_args)

    @property
    def flow(self) -> "FlowDensity":
        """This density itself."""
        return self

    @property
    def state_log_prob(self) -> SolvedLogProb:
        """Callable for the log density of one whitened state given one whitened context, in nats, by solving the ODE."""
        return SolvedLogProb(*self._parts)

    def sample_with_intermediates(self, key: Key | None, sample_shape: tuple[int, ...] = ()) -> tuple[Array, list[Any]]:
        """Draw a sample and its log density in one solve. `log_prob` then returns this value without another solve."""
        noise = self._draw_base("sample_with_intermediates", key, sample_shape)
        context = self._given("sample_with_intermediates", "key")
        event, log_density = batching.events_and_log_probs(self._parts, noise, context)
        return event, [log_density]


register(
    "FlowDensity",
    Kind(
        FlowDensity,
        {
            "model": AbstractProbabilityFlow,
            "context": Array | None,
            "divergence": AbstractDivergence,
            "solver": AbstractSolver,
            "validate_args": bool | None,
        },
        FlowDensity,
        lambda density: density.arguments,
    ),
)
