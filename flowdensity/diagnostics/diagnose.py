"""Diagnosis of a density: how far it can be trusted."""

import time
from collections import Counter
from collections.abc import Sequence
from math import prod

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from tqdm.auto import tqdm

from .._checks import check_key, described, makes_default, real_array
from .._pytree import in_session
from .._typing import ArrayLike, ContextRows, Key
from ..data.containers import read
from ..data.tables import Named, Sample
from ..data.whitened import whitened_contexts, whitened_events
from ..distributions.checks import check_density
from ..distributions.learned import AbstractLearnedDensity
from .checks.check import AbstractCheck
from .checks.default import CHECKS
from .findings import Diagnosis
from .subject import MAX_HELD_OUT_ROWS, Subject, make_subject

ALL_CHECKS = "checks = fd.checks.CHECKS"
"""Code that runs the built-in checks, for fixes."""


def diagnose(
    key: Key,
    density: AbstractLearnedDensity,
    samples: ArrayLike | Named | None = None,
    *,
    context: ArrayLike | Named | None = None,
    checks: Sequence[AbstractCheck] = CHECKS,
    progress: bool = True,
) -> Diagnosis:
    r"""Measure how far a learned or amortized density can be trusted.

    Each figure has a standard error and a verdict against a stated threshold. A figure is bad if it is beyond its threshold by
    more than 3.3 standard errors. At most one in a hundred diagnoses of a density within all thresholds then finds a fault.

    - `log_prob` against the exact divergence: root mean square error, bias and gradient. Above 64 dimensions they come from two
      independent Hutchinson averages $H_1, H_2$: $\mathbb{E}[(\ell - H_1)(\ell - H_2)]$ is the mean squared error of $\ell$.
    - Stein residuals of a learned divergence, which need no Jacobian: the bias that they imply.
    - Solver: the change of `log_prob` when the number of steps is doubled.
    - Integral of the density: by importance sampling from the flow and, in one or two dimensions, by quadrature.
    - Tails: samples moved outwards by factors of 2, 4 and 10.
    - With held-out rows: a nearest-neighbor test of goodness of fit, coverage of 90 % intervals, and the log score compared with
      a Gaussian, a mixture of Gaussians and a kernel density.

    Args:
        key: JAX PRNG key.
        density: the density, with or without a context.
        samples: rows that the density was not trained on, shape `(n, *event_shape)` or by name. Without them, the checks that
            need them are not run, and log densities are compared at samples of the model.
        context: contexts for a conditional density without a context: one for each row of `samples` or, without `samples`,
            contexts to draw from, shape `(n, *context_shape)` or by name.
        checks: checks to run, in order; `(*fd.checks.CHECKS, MyCheck())` adds one.
        progress: whether to show a bar.

    Returns:
        The findings by id, such as `diagnosis["log_prob.rmse"]`. Print them with `print`.

    Raises:
        TypeError, ValueError: if an argument is invalid. Raised before any work is done.

    Examples:
        >>> diagnosis = fd.diagnose(key, density)
        >>> print(diagnosis.summary())
        >>> diagnosis["log_prob.rmse"].verdict
    """
    caller = "diagnose"
    check_key(caller, key)
    check_density(caller, density)
    _check_checks(caller, checks)
    density = in_session(density)
    rows_key, estimate_key, sample_key, *keys = jr.split(key, 3 + sum(check.randomized for check in checks))
    held_out, contexts = _rows(caller, rows_key, density, samples, context)
    subject = make_subject(estimate_key, sample_key, density, held_out, contexts)
    _check_ids(caller, checks, subject)
    findings, evidence = [], {}
    started = time.monotonic()
    for check in tqdm(checks, desc=caller, unit="check", disable=not progress):
        found, behind = check.run(keys.pop(0) if check.randomized else sample_key, subject)
        findings += found
        if behind is not None:
            evidence[check.name] = behind
    return Diagnosis(tuple(findings), evidence, time.monotonic() - started)


def _check_checks(caller: str, checks: object) -> None:
    """Raise a TypeError unless `checks` is a sequence of checks."""
    if isinstance(checks, AbstractCheck):
        raise TypeError(f"{caller} expected `checks` as a sequence of checks; got one check. Fix: checks = (checks,)")
    if not isinstance(checks, Sequence):
        got, fix = described(checks), ALL_CHECKS
    elif wrong := [check for check in checks if not isinstance(check, AbstractCheck)]:
        got, fix = f"a sequence with {described(wrong[0])}", _without_wrong(checks, wrong)
    else:
        return
    raise TypeError(
        f"{caller} expected `checks` as a sequence of checks, instances of fd.checks.AbstractCheck; got {got}. Fix: {fix}"
    )


def _without_wrong(checks: Sequence[object], wrong: Sequence[object]) -> str:
    """Code for a fix: instantiate checks that are classes; if other objects are wrong, leave out everything that is no check."""
    if all(isinstance(each, type) and issubclass(each, AbstractCheck) and makes_default(each) for each in wrong):
        return "checks = [check() if isinstance(check, type) else check for check in checks]"
    if len(wrong) < len(checks):
        return "checks = [check for check in checks if isinstance(check, fd.checks.AbstractCheck)]"
    return ALL_CHECKS


def _check_ids(caller: str, checks: Sequence[AbstractCheck], subject: Subject) -> None:
    """Raise a ValueError unless names of checks and ids of findings are unique. The fix keeps the last of several duplicates."""
    names = [check.name for check in checks]
    if twice := _repeated(names):
        raise ValueError(
            f"{caller} expected `checks` with distinct names; got {', '.join(twice)} more than once. "
            "Fix: checks = list({check.name: check for check in checks}.values())"
        )
    ids = {check.name: [figure.id for figure in check.figures(subject)] for check in checks}
    if twice := _repeated([id for own in ids.values() for id in own]):
        last = {id: name for name, own in ids.items() for id in own}
        clashing = [name for name, own in ids.items() if _repeated(own) or any(last[id] != name for id in own)]
        rest = f"[check for check in checks if check.name not in {clashing}]"
        raise ValueError(
            f"{caller} expected `checks` with distinct findings; got {', '.join(twice)} more than once. "
            f"Fix: {ALL_CHECKS if len(clashing) == len(checks) else f'checks = {rest}'}"
        )


def _repeated(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _rows(
    caller: str,
    key: Key,
    density: AbstractLearnedDensity,
    samples: ArrayLike | Named | None,
    context: ArrayLike | Named | None,
) -> tuple[Sample | None, ContextRows]:
    """Return held-out rows in random order, and the contexts to draw from, both whitened."""
    model, given = density.model, density.context
    states = None if samples is None else whitened_events(caller, "samples", model.scaling, samples)
    if model.context_scaling.dim == 0 or given is None:
        if context is None and given is None:
            raise ValueError(
                f"{caller} expected `context`, since this density is conditional and has not been given one; got None. "
                "Fix: fd.diagnose(key, density, samples, context=context)"
            )
        count = len(states) if states is not None else 1 if context is None else _count(context)
        others = [] if samples is None else [read(caller, "samples", samples)]
        contexts = whitened_contexts(caller, model.context_scaling, context, count, others)
    elif context is not None or (states is not None and density.batch_shape != ()):
        raise ValueError(
            f"{caller} expected a density without a context, or with a single context if `context` is not passed; got one with "
            f"contexts of batch shape {density.batch_shape}. Fix: {_without_context(density, context)}"
        )
    else:
        contexts = jax.vmap(lambda c: model.context_scaling.whiten(c.reshape(model.context_shape))[0])(
            given.reshape(-1, prod(model.context_shape))
        )
    if states is None:
        return None, contexts
    if len(contexts) != len(states):
        contexts = jnp.broadcast_to(contexts, (len(states), contexts.shape[-1]))
    order = jr.permutation(key, len(states))[:MAX_HELD_OUT_ROWS]
    return Sample(states, contexts).take(order), contexts


def _without_context(density: AbstractLearnedDensity, context: ArrayLike | Named | None) -> str:
    """Code for a fix: take the context out of a density and, if there is no other context, pass it as an argument."""
    bare = "fd.FlowDensity(density.model, divergence=density.divergence, solver=density.solver)"
    line = f"density = {f'fd.AmortizedDensity(density.state_log_prob, {bare})' if density.is_amortized else bare}"
    own = "context = jax.numpy.reshape(density.context, (-1, *density.context_shape))"
    return line if context is not None else f"{own}; {line}"


def _count(context: ArrayLike | Named) -> int:
    values = next(iter(read("diagnose", "context", context).parts().values()))
    return len(np.atleast_1d(real_array("diagnose", "context", values)))
