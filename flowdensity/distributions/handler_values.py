"""Values that handlers would give to a site of some name, whether or not the model samples such a site.

A joint site holds several named values in one vector, and `FlowReparam` samples the noise of a site in its place. numpyro's
handlers know about neither: they ignore a value for a name that no sample site has. So the handlers are queried. One message
for the name goes through them as that of a sample site would, and a control message for a name that no model has. A handler that
answers both alike, as the initialization strategies do, has made its answer up; a handler that answers them differently holds a
value for that name. No kind of handler is treated specially, so a user's handlers count like numpyro's own.
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
"""Name in the control message, which no site has."""


class Query(dist.ImproperUniform):
    """Distribution in a message that queries handlers. It has a support and a shape, and no draws."""


class HandlerValue(NamedTuple):
    """The value that a handler gives to a site.

    Attributes:
        name: of the site.
        value: of the site; None if the handler does something else to it.
        handler: the handler that gives it.
        prefix: what the scopes inside the handler have put before the name of the site.
        observed: whether the site becomes an observed one, as under `condition`.
        intervened: whether the site itself is sampled all the same, and only what follows sees the value, as under `do`.
        is_start: whether the handler gives a value to every site, as initialization strategies do.
        is_auxiliary: whether the value is that of an auxiliary site of a guide.
        problem: what the handler does that cannot be honored; empty otherwise.
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
    """A message after one handler."""

    handler: Any
    called: str
    value: Any
    observed: bool
    auxiliary: bool
    sent: tuple[str, ...]
    error: Exception | None


class _Isolation(Messenger):
    """Keeps the messages that handlers send while they are queried from all other handlers, and records their names."""

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
    """A handler that gives one site a value; `overriding` puts it where a handler gave its parts.

    Args:
        is_meant: whether a name, as scopes have made it there, is that of the site.
        value_of: value of the site, given its message.
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

    An initialization strategy that gives values to all sites comes first, and a `block` farther out hides neither.
    """
    HANDLERS.insert(_position(outside), handler)
    try:
        yield handler
    finally:
        # An error that went through other handlers may have taken it off already.
        if handler in HANDLERS:
            HANDLERS.remove(handler)


def outermost(found: Iterable[HandlerValue]) -> HandlerValue:
    """The value of the outermost handler, which overrides the others."""
    return min(found, key=lambda one: _position(one.handler))


def innermost(is_meant: Callable[[Any], bool]) -> Any:
    """The first handler of some kind that a message reaches; None if there is no such handler."""
    return next((handler for handler in reversed(HANDLERS) if is_meant(handler)), None)


def handler_value(name: str, fn: Query, outside: Any = None) -> HandlerValue | None:
    """The value that handlers would give to a sample site.

    Args:
        name: of the site.
        fn: its support and shape.
        outside: only handlers outside of this one are queried; None queries all of them.

    Returns:
        The value; None if the handlers do not know the name.
    """
    # Made-up values are compared, so they have to be concrete even while a model is being compiled.
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
    """Whether a site of this name has been recorded, in the scope at hand."""
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
    # The message has its own key. Otherwise it would take one from a `seed`, whose later draws would change.
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
    """Send a message through handlers without a trace of it in any of them."""
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
    except Exception as raised:  # Any error of a handler at an unexpected site is its answer.
        error = raised
    observed = bool(message.get("is_observed", False))
    auxiliary = bool(message.get("infer", {}).get("is_auxiliary"))
    return _Step(handler, called, message.get("value"), observed, auxiliary, tuple(aside.sent), error)


def _alike(one: _Step, other: _Step) -> bool:
    """Whether two messages came out with equal values, or with the same kind of error."""
    if one.error is not None or other.error is not None:
        return type(one.error) is type(other.error) and one.handler is other.handler
    return _equal(one.value, other.value)


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if one is None or other is None or isinstance(one, Tracer) or isinstance(other, Tracer):
        return False
    return np.array_equal(np.asarray(one), np.asarray(other))
