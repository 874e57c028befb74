"""A call with one bad argument, the error that it ends in, and the fix that the error names."""

import ast
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias
from unittest.mock import patch

import arviz
import diffrax
import equinox
import jax
import numpy
import numpyro
import numpyro.distributions as dist
import optax
import pandas
import xarray
from numpyro.distributions import constraints

import flowdensity
from flowdensity.training.loop import History

from .material import KEY, RESIDUALS

fd: Any = flowdensity
"""The values that are handed over are of the wrong type on purpose."""
ASSUMED = {
    "arviz": arviz,
    "constraints": constraints,
    "diffrax": diffrax,
    "equinox": equinox,
    "dist": dist,
    "fd": fd,
    "jax": jax,
    "numpy": numpy,
    "numpyro": numpyro,
    "os": os,
    "optax": optax,
    "pandas": pandas,
    "xarray": xarray,
}
"""The names that a fix may use beside the arguments of the call, as CONTRIBUTING.md says."""


class Deferred(NamedTuple):
    """A value that is made when it is first needed."""

    make: Callable[[], Any]


class Case(NamedTuple):
    """A call that ends in an error.

    Attributes:
        given: what is wrong with the call, in words.
        call: one line of Python, in which arguments are variables called by the name of their parameter.
        names: values of the variables.
        within: makes what the call is made in, such as a handler for a call in a model.
    """

    given: str
    call: str
    names: Mapping[str, Any]
    within: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext

    @property
    def function(self) -> str:
        """The function that is called, as the user writes it."""
        return self.call.partition("(")[0]

    def namespace(self) -> dict[str, Any]:
        """Names for one execution: containers are copied, so that a fix may change them in place."""
        return ASSUMED | {"key": KEY} | {name: _copied(value) for name, value in self.names.items()}


Groups: TypeAlias = list[list[Case]]


def cases(
    call: str,
    shared: Mapping[str, Any],
    given: Mapping[str, Mapping[str, Any]],
    within: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> list[Case]:
    """Cases of one call; variables that the call does not mention are passed to it by keyword.

    Args:
        call: the call, with variables for its arguments.
        shared: values of the variables that are good.
        given: by what is wrong in words, the variables that are bad.
        within: makes what the call is made in.
    """
    return [Case(words, _with_keywords(call, bad), {**shared, **bad}, within) for words, bad in given.items()]


def error_of(case: Case) -> Exception | None:
    """The error that a case ends in, if it does."""
    try:
        with case.within():
            exec(case.call, case.namespace())
    # All errors are looked at, whatever their type.
    except Exception as error:
        return error
    return None


def is_sound(error: Exception | None) -> bool:
    """Whether an error is of the right kind, and says what was expected and what to do."""
    return isinstance(error, TypeError | ValueError) and "expected" in str(error) and "Fix: " in str(error)


def mend(case: Case, message: str) -> None:
    """Execute the fix that a message names, in the situation of the case; whatever it ends in is raised.

    After a fix that ends in an assignment, or in `del`, the call is made again; any other takes its place.
    """
    fix, names = message.rpartition("Fix: ")[2], case.namespace()
    with case.within():
        exec(fix, names)
        if isinstance(ast.parse(fix).body[-1], ast.Assign | ast.AugAssign | ast.Delete):
            exec(case.call, names)


class Reached(Exception):
    """The checks of a call are passed; its work, which takes long, is left out."""


@contextlib.contextmanager
def untrained_fits() -> Iterator[None]:
    """Within this, fits return densities as they start, and other long work ends in `Reached` and is left out."""

    def stopped(*args: Any, **kwargs: Any) -> Any:
        raise Reached

    learned = fd.SteinDivergence(lambda time, state, hidden: 0.0), fd.results.FitReport({}, {}, RESIDUALS)
    history = History((0,), (0.0,), (0.0,), status="interrupted")
    training = "flowdensity.training"
    with contextlib.ExitStack() as stack:
        for name, stub in {
            f"{training}.fit.fit_velocity": lambda key, model, *rest, **options: iter([(model, history, None)]),
            f"{training}.fit.maximize_likelihood": lambda key, model, *rest, **options: iter([(model, history)]),
            f"{training}.fit.fit_divergence_head": lambda *args, **options: iter([learned]),
            f"{training}.fit._Fit._with_solver": lambda fit, key, density, report, table: (density, report),
            f"{training}.divergence.fit_divergence_head": lambda *args, **options: iter([learned]),
            f"{training}.distill.labeled": stopped,
            "flowdensity.diagnostics.diagnose.make_subject": stopped,
            "flowdensity.diagnostics.reweight.over_draws": lambda function, draws, *rest: numpy.zeros(
                len(draws["theta"])
            ),
            "flowdensity.diagnostics.delayed.DelayedAcceptance._log_ratio": stopped,
            "flowdensity.diagnostics.sbc.NUTS": stopped,
            "flowdensity.distributions.guide.AutoFlow._get_posterior": stopped,
        }.items():
            stack.enter_context(patch(name, stub))
        stack.enter_context(contextlib.suppress(Reached))
        yield


def _with_keywords(call: str, bad: Mapping[str, Any]) -> str:
    mentioned = {node.id for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Name)}
    keywords = ", ".join(f"{name}={name}" for name in bad if name not in mentioned)
    return f"{call[:-1]}{', ' if keywords and call[-2] != '(' else ''}{keywords})"


def _copied(value: Any) -> Any:
    if isinstance(value, Deferred):
        return value.make()
    return value.copy() if isinstance(value, dict | list | numpy.ndarray) or hasattr(value, "to_numpy") else value
