"""How far a density can be trusted, in figures."""

import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from tqdm.auto import tqdm

from .._checks import check_key, real_array
from .._pytree import in_session
from .._typing import ArrayLike, ContextRows, Key
from ..data.containers import read
from ..data.tables import Named, Sample
from ..distributions.checks import check_density
from ..distributions.learned import AbstractLearnedDensity
from ..training.prepare import whitened_contexts, whitened_events
from . import data_checks, log_prob_checks
from .data_checks import LEAST, ROWS
from .findings import Diagnosis, Evidence
from .log_prob_checks import FACTORS
from .subject import subject

POINTS = 512
"""Points at which log densities are compared; fewer where the exact divergence is dear."""
DEAR = 16
"""Dimension above which it is."""


def diagnose(
    key: Key,
    density: AbstractLearnedDensity,
    samples: ArrayLike | Named | None = None,
    *,
    context: ArrayLike | Named | None = None,
    progress: bool = True,
) -> Diagnosis:
    r"""Measure how far a learned or amortized density can be trusted.

    Each figure has a standard error and a verdict against a stated threshold: bad where it is beyond it by more than 3.3 standard
    errors, so that at most one in a hundred diagnoses of a density that keeps within all of them finds fault with it.

    - `log_prob` against the exact divergence: root mean square, bias and gradient. Above 64 dimensions by the product of two
      independent Hutchinson averages $H_1, H_2$: $\mathbb{E}[(\ell - H_1)(\ell - H_2)]$ is the mean squared error of $\ell$.
    - Stein residuals of a learned divergence, with no Jacobian: the bias that they imply.
    - The solver: the change when its steps are doubled.
    - The integral, by importance sampling from the flow and, in one or two dimensions, by quadrature.
    - Tails: samples moved outwards by 2, 4 and 10.
    - With held-out rows: a nearest-neighbour test of goodness of fit, coverage of 90 % intervals, and the log score beside those
      of a Gaussian, a mixture of Gaussians and a kernel density.

    Args:
        key: JAX PRNG key.
        density: the density, with or without its context.
        samples: rows that it was not trained on, shape `(n, *event_shape)` or by name; without them what needs them is left out,
            and log densities are compared at samples of the model.
        context: for a conditional density without its context: one for each row of `samples` or, without these, contexts to
            draw from, shape `(n, *context_shape)` or by name.
        progress: whether to show a bar.

    Returns:
        The figures; `print` shows them.

    Raises:
        TypeError, ValueError: if an argument is unusable; raised before any work is done.
    """
    caller = "diagnose"
    check_key(caller, key)
    check_density(caller, density)
    density = in_session(density)
    rows_key, subject_key, drawn_key, residual_key, fit_key, cover_key, score_key = jr.split(key, 7)
    held, contexts = _rows(caller, rows_key, density, samples, context)
    looked_at = subject(subject_key, density, held, contexts)
    count = POINTS if looked_at.model.dim <= DEAR else POINTS // 2
    started = time.monotonic()
    with tqdm(total=8, desc=caller, unit="check", disable=not progress) as bar:
        drawn = looked_at.draw(drawn_key, count)
        enough = held if held is not None and len(held.states) >= LEAST else None
        points = drawn if enough is None else enough.take(jnp.arange(min(count, len(enough.states))))
        where = "samples" if enough is None else "held-out rows"
        own, error = log_prob_checks.errors(looked_at, points)
        findings = log_prob_checks.agreement(looked_at, error, where)
        bar.update()
        findings += log_prob_checks.gradients(looked_at, points.take(jnp.arange(min(count // 4, len(points.states)))))
        bar.update()
        found, residuals = log_prob_checks.residuals(residual_key, looked_at)
        findings += found
        bar.update()
        findings += log_prob_checks.steps(looked_at, points, own)
        bar.update()
        findings += log_prob_checks.normaliser(
            looked_at, drawn, error if enough is None else log_prob_checks.errors(looked_at, drawn)[1]
        )
        bar.update()
        found, beyond = log_prob_checks.tails(looked_at, drawn.take(jnp.arange(count // 2)))
        findings += found
        bar.update()
        if enough is None:
            reason = f"it needs held-out rows, at least {LEAST}. Fix: fd.diagnose(key, density, samples)"
            findings += data_checks.absent(reason)
            bar.update(2)
        else:
            some = enough.take(jnp.arange(min(POINTS, len(enough.states))))
            findings += data_checks.goodness_of_fit(fit_key, looked_at, some)
            findings += data_checks.coverage(cover_key, looked_at, some)
            bar.update()
            findings += data_checks.log_score(score_key, looked_at, enough)
            bar.update()
    evidence = Evidence(own, error.mean(0), residuals, np.asarray(FACTORS), beyond)
    return Diagnosis(tuple(findings), evidence, time.monotonic() - started)


def _rows(
    caller: str,
    key: Key,
    density: AbstractLearnedDensity,
    samples: ArrayLike | Named | None,
    context: ArrayLike | Named | None,
) -> tuple[Sample | None, ContextRows]:
    """Held-out rows in random order, and the contexts to draw from, both whitened."""
    model, given = density.model, density.context
    states = None if samples is None else whitened_events(caller, "samples", model, samples)
    if model.context_scaling.dim == 0 or given is None:
        if context is None and given is None:
            raise ValueError(
                f"{caller} expected `context`, since this density is conditional and has not been given one; got None. "
                "Fix: fd.diagnose(key, density, samples, context=context)"
            )
        count = len(states) if states is not None else 1 if context is None else _count(context)
        others = [] if samples is None else [read(caller, "samples", samples)]
        contexts = whitened_contexts(caller, model, context, count, others)
    elif context is not None or (states is not None and density.batch_shape != ()):
        raise ValueError(
            f"{caller} expected a density without its context, or with one and no `context`; this one has been given some, of "
            f"batch shape {density.batch_shape}. Fix: {_without_context(density, context)}"
        )
    else:
        contexts = jax.vmap(lambda c: model.context_scaling.whiten(c.reshape(model.context_shape))[0])(
            given.reshape(-1, model.context_scaling.dim)
        )
    if states is None:
        return None, contexts
    if len(contexts) != len(states):
        contexts = jnp.broadcast_to(contexts, (len(states), contexts.shape[-1]))
    order = jr.permutation(key, len(states))[:ROWS]
    return Sample(states, contexts).take(order), contexts


def _without_context(density: AbstractLearnedDensity, context: ArrayLike | Named | None) -> str:
    """The line that takes its context from a density and, where there is no other, hands it over by itself, as a fix."""
    bare = "fd.FlowDensity(density.model, divergence=density.divergence, solver=density.solver)"
    line = f"density = {f'fd.AmortizedDensity(density.state_log_prob, {bare})' if density.is_amortized else bare}"
    own = "context = jax.numpy.reshape(density.context, (-1, *density.context_shape))"
    return line if context is not None else f"{own}; {line}"


def _count(context: ArrayLike | Named) -> int:
    values = next(iter(read("diagnose", "context", context).parts().values()))
    return len(np.atleast_1d(real_array("diagnose", "context", values)))
