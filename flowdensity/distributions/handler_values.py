"""Values that handlers would give to a site of a given name, whether or not the model samples such a site.

A joint site holds several named values in one vector, and `FlowReparam` samples the noise of a site in place of the site.
numpyro's handlers know about neither: they ignore a value for a name without a sample site. The functions of this module
therefore query the handlers. They send two messages through them as if they came from sample sites: one for the name, and a
control message for a name that no model has. A handler that answers both alike, as initialization strategies do, does not know
the name. A handler that answers them differently holds a value for the name. No kind of handler is treated specially, so the
handlers of a user work like numpyro's own.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from numpyro.distributions import constraints
from numpyro.handlers import trace
from numpyro.primitives import Messenger

from .._numpyro import HANDLERS

UNKNOWN_NAME = "_flowdensity_name_that_nobody_knows"
"""Name in the control message. No site has this name."""


class Query(dist.ImproperUniform):
    """Distribution in a message that queries handlers. It has a support and a shape, and cannot be sampled."""


class HandlerValue(NamedTuple):
    """The value that a handler gives to a site.

    Attributes:
        name: name of the site.
        value: value of the site; None if the handler does something else to it.
        handler: the handler that gives the value.
        prefix: prefix that the scopes inside the handler have added to the name of the site.
        observed: whether the site becomes observed, as under `condition`.
        intervened: whether the site is still sampled and only later sites see the value, as under `do`.
        is_start: whether the handler gives a value to every site, as initialization strategies do.
        is_auxiliary: whether the value belongs to an auxiliary site of a guide.
        problem: an action of the handler that cannot be applied to the site; empty if there is none.
    """

    name: str
    value: Any
    handler: Any
    prefix: str
    observed: bool
    intervened: bool
    is_start: bool
    is_auxiliary: bool
    problem: str


class _Step(NamedTuple):
    """State of a message after one handler."""

    handler: Any
    called: str
    value: Any
    observed: bool
    auxiliary: bool
    sent: tuple[str, ...]
    error: Exception | None


class _Isolation(Messenger):
    """Handler that hides messages from all other handlers while one is queried, and records the names of these messages."""

    def __init__(self, key: Any):
        super().__init__()
        self.key = key
        self.sent: list[str] = []

    def process_message(self, msg: Any) -> None:
        msg["stop"] = True
        if msg["type"] == "prng_key":
            msg["value"] = self.key
            return
        self.sent.append(msg.get("name", ""))
        if msg["type"] == "sample" and msg["value"] is None:
            msg["value"] = jnp.zeros(msg["fn"].shape())


class Override(Messenger):
    """Handler that gives one site a value; `overriding` inserts it beside the user's handler that the value came from.

    Args:
        is_meant: whether a name is that of the site. Scopes may have added a prefix to the name.
        value_of: value of the site as a function of its message.
        observed: whether the site is observed.
    """

    def __init__(self, is_meant: Callable[[str], bool], value_of: Callable[[dict[str, Any]], Any], *, observed: bool):
        super().__init__()
        self.is_meant = is_meant
        self.value_of = value_of
        self.observed = observed
        self.used = False

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and self.is_meant(msg["name"]):
            msg["value"] = self.value_of(msg)
            msg["is_observed"] = self.observed
            self.used = True


@contextmanager
def overriding(handler: Override, outside: Any) -> Iterator[Override]:
    """Put a handler directly outside another one for the duration of a `with` block.

    Initialization strategies, which give values to all sites, do not override its value, and a `block` farther out does not hide
    the site from it.
    """
    HANDLERS.insert(_position(outside), handler)
    try:
        yield handler
    finally:
        # An error in another handler may already have removed it.
        if handler in HANDLERS:
            HANDLERS.remove(handler)


def outermost(found: Iterable[HandlerValue]) -> HandlerValue:
    """The value of the outermost handler, which overrides the others."""
    return min(found, key=lambda one: _position(one.handler))


def innermost(is_meant: Callable[[Any], bool]) -> Any:
    """The first handler that satisfies a condition on the way of a message; None if there is none."""
    return next((handler for handler in reversed(HANDLERS) if is_meant(handler)), None)


def handler_value(name: str, fn: Query, outside: Any = None) -> HandlerValue | None:
    """Find the value that handlers would give to a sample site.

    Args:
        name: name of the site.
        fn: support and shape of the site.
        outside: query only handlers outside of this one; None queries all handlers.

    Returns:
        The value; None if the handlers do not know the name.
    """
    # The two answers are compared, so their values must be concrete even while a model is being compiled.
    with jax.ensure_compile_time_eval():
        asked, made_up = _steps(name, fn, outside), _steps(UNKNOWN_NAME, fn, outside)
        if not asked:
            return None
        last, other = asked[-1], made_up[min(len(asked), len(made_up)) - 1]
        if _alike(last, other):
            return None
        index = next(i for i, step in enumerate(asked) if step.value is last.value and step.error is last.error)
    step = asked[index]
    intervened = step.called in step.sent
    problem = ""
    if step.error is not None:
        problem = f"it raised {type(step.error).__name__}: {step.error}"
    elif step.sent and not intervened:
        problem = f"it sampled {list(step.sent)}"
    elsewhere = made_up[index] if index < len(made_up) else None
    is_start = elsewhere is not None and (elsewhere.value is not None or elsewhere.error is not None)
    prefix = step.called.removesuffix(name)
    value = None if problem else step.value
    return HandlerValue(
        name,
        value,
        step.handler,
        prefix,
        last.observed and not intervened,
        intervened,
        is_start,
        step.auxiliary,
        problem,
    )


def is_taken(name: str) -> bool:
    """Whether a site with this name has been recorded in the current scope."""
    fn = Query(constraints.real, (), ())
    with jax.ensure_compile_time_eval():
        return any(isinstance(step.handler, trace) and step.called in step.handler.trace for step in _steps(name, fn))


def _position(handler: Any) -> int:
    return next(i for i, other in enumerate(HANDLERS) if other is handler)


def fresh_key(name: str, fn: Query) -> Any:
    """The key that a `seed` would give to a sample site; None if there is no `seed`."""
    message = _message(name, fn, None)
    _sent(message, HANDLERS)
    return message["kwargs"]["rng_key"]


def _steps(name: str, fn: Query, outside: Any = None) -> list[_Step]:
    # The message has its own key. Otherwise it would take a key from a `seed` and change its later draws.
    message = _message(name, fn, jr.key(0))
    return _sent(message, HANDLERS[: None if outside is None else _position(outside)])


def _message(name: str, fn: Query, key: Any) -> dict[str, Any]:
    return {
        "type": "sample",
        "name": name,
        "fn": fn,
        "args": (),
        "kwargs": {"rng_key": key, "sample_shape": ()},
        "value": None,
        "scale": None,
        "is_observed": False,
        "intermediates": [],
        "cond_indep_stack": [],
        "infer": {},
    }


def _sent(message: dict[str, Any], handlers: list[Any]) -> list[_Step]:
    """Send a message through handlers without changing their state."""
    steps: list[_Step] = []
    handlers = list(reversed(handlers))
    aside = _Isolation(jr.key(0))
    with aside:
        for handler in handlers:
            step = _step(handler, message, aside)
            steps.append(step)
            if step.error is not None or message.get("stop") or message["type"] != "sample":
                break
    return steps


def _step(handler: Any, message: dict[str, Any], aside: _Isolation) -> _Step:
    called, error = message["name"], None
    aside.sent.clear()
    try:
        handler.process_message(message)
    except Exception as raised:  # Any error that a handler raises at an unexpected site counts as its answer.
        error = raised
    observed = bool(message.get("is_observed", False))
    auxiliary = bool(message.get("infer", {}).get("is_auxiliary"))
    return _Step(handler, called, message.get("value"), observed, auxiliary, tuple(aside.sent), error)


def _alike(one: _Step, other: _Step) -> bool:
    """Whether two messages ended with equal values or with the same type of error."""
    if one.error is not None or other.error is not None:
        return type(one.error) is type(other.error) and one.handler is other.handler
    return _equal(one.value, other.value)


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if one is None or other is None or isinstance(one, Tracer) or isinstance(other, Tracer):
        return False
    return np.array_equal(np.asarray(one), np.asarray(other))
