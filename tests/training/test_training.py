"""The options of a fit: what is refused, what is filled in, and which optimizers can be used."""

import functools
import subprocess
import sys

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from references import random_flow

import flowdensity as fd
from flowdensity.training.checkpoints import open_checkpoint
from flowdensity.training.loop import Schedule, train
from flowdensity.training.results import last
from flowdensity.training.training import Plan

BAD = {
    "no steps": ({"steps": 0}, "steps", "got 0"),
    "negative steps": ({"steps": -5}, "steps", "got -5"),
    "fractional steps": ({"steps": 10.5}, "steps", r"got 10\.5"),
    "batch of none": ({"batch_size": 0}, "batch_size", "got 0"),
    "learning rate zero": ({"learning_rate": 0.0}, "learning_rate", r"got 0\.0"),
    "learning rate negative": ({"learning_rate": -1e-3}, "learning_rate", "got -0.001"),
    "learning rate nan": ({"learning_rate": float("nan")}, "learning_rate", "got nan"),
    "learning rate infinite": ({"learning_rate": float("inf")}, "learning_rate", "got inf"),
    "learning rate string": ({"learning_rate": "fast"}, "learning_rate", "got 'fast'"),
    "no validation": ({"validation": 0.0}, "validation", r"got 0\.0"),
    "all validation": ({"validation": 1.0}, "validation", r"got 1\.0"),
    "validation nan": ({"validation": float("nan")}, "validation", "got nan"),
    "validation string": ({"validation": "some"}, "validation", "got 'some'"),
    "optimizer string": ({"optimizer": "adam"}, "optimizer", "got 'adam'"),
    "optimizer not called": ({"optimizer": optax.adam}, "optimizer", "got function"),
    "two learning rates": ({"optimizer": optax.adam(1e-3), "learning_rate": 1e-3}, "learning_rate", "got both"),
}


@pytest.mark.parametrize(("options", "argument", "says"), BAD.values(), ids=BAD.keys())
def test_bad_options_are_refused(options, argument, says):
    with pytest.raises((TypeError, ValueError), match=rf"^Training expected .*`{argument}`.*{says}.*Fix: "):
        fd.Training(**options)


def test_options_that_are_none_take_the_defaults_of_the_stage():
    assert fd.Training().plan(800, 512, 1e-3) == Plan(800, 512, 1e-3, None, 0.1)
    given = fd.Training(np.int64(5), np.int32(8), 0.5, validation=0.2).plan(800, 512, 1e-3)
    assert given == Plan(5, 8, 0.5, None, 0.2)
    assert type(given.steps) is type(given.batch_size) is int


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "lion": optax.lion(1e-2),
    "muon": optax.contrib.muon(1e-2),
    "a schedule": optax.chain(optax.clip(1.0), optax.adam(optax.exponential_decay(0.1, 50, 0.5))),
    "with the value of the loss": optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
}


def bowl(module, key, args):
    return jnp.sum(jnp.square(module - args))


def height(module, args):
    return bowl(module, None, args)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_any_optimizer_of_optax_trains(optimizer):
    """A quadratic bowl in a matrix: every one of them lowers it."""
    target = jr.normal(jr.key(0), (4, 4))
    schedule = Schedule(steps=100, learning_rate=1.0, patience=None, optimizer=optimizer)
    start = jnp.zeros((4, 4))
    _, history = last(train(jr.key(1), start, bowl, height, target, schedule, stage="bowl", progress=False))
    assert history.validation[-1] < 0.7 * history.validation[0]


def test_an_optimizer_is_used_as_it_is():
    """One step of gradient descent on the bowl, from 0: 2 * 0.1 * target, without warm-up, clipping or decay."""
    target = 100.0 * jr.normal(jr.key(0), (4, 4))
    schedule = Schedule(steps=1, learning_rate=1.0, patience=None, optimizer=optax.sgd(0.1), ema=0.0)
    start = jnp.zeros((4, 4))
    found, _ = last(train(jr.key(1), start, bowl, height, target, schedule, stage="bowl", progress=False))
    np.testing.assert_allclose(found, 0.2 * target, rtol=1e-5)


@pytest.mark.parametrize(
    "fit",
    [
        functools.partial(fd.fit_divergence, model=random_flow(jr.key(0), 2), data=np.zeros((9, 2)) + np.eye(9, 2)),
        functools.partial(fd.distill, density=fd.FlowDensity(random_flow(jr.key(0), 2)), labels=64, width=4),
    ],
    ids=["fit_divergence", "distill"],
)
def test_every_stage_takes_the_optimizer(fit, monkeypatch):
    class Reached(Exception):
        pass

    def reached(key, module, loss, validate, args, schedule, **options):
        raise Reached(schedule)

    for module in ("divergence", "distill"):
        monkeypatch.setattr(f"flowdensity.training.{module}.train", reached)
    optimizer = optax.sgd(0.5)
    with pytest.raises(Reached) as caught:
        fit(jr.key(1), training=fd.Training(steps=3, batch_size=8, optimizer=optimizer), progress=False)
    (schedule,) = caught.value.args
    assert (schedule.steps, schedule.optimizer) == (3, optimizer)


@pytest.mark.parametrize(
    "optimizer",
    [optax.lbfgs(), optax.masked(optax.sgd(0.1), {"another": True}), optax.lookahead(optax.sgd(0.1), 5, 0.5)],
    ids=["line search", "mask of another tree", "two sets of weights"],
)
def test_an_optimizer_that_needs_more_than_gradients_is_refused_before_training(optimizer):
    schedule = Schedule(steps=3, learning_rate=1.0, patience=None, optimizer=optimizer)
    with pytest.raises(TypeError, match=r"Training expected an `optimizer` that .*Fix: training = fd\.Training\(\)"):
        last(train(jr.key(1), jnp.zeros((4, 4)), bowl, height, 1.0, schedule, stage="bowl", progress=False))


def checkpointed(folder, optimizer):
    opened = open_checkpoint("fit_flow", folder, 0)
    schedule = Schedule(steps=4, learning_rate=1.0, patience=None, optimizer=optimizer)
    options = {"stage": "bowl", "progress": False, "checkpoint": opened}
    return last(train(jr.key(1), jnp.zeros((4, 4)), bowl, height, jnp.ones((4, 4)), schedule, **options))


STATEFUL = optax.inject_hyperparams(optax.sgd)
PAIRS = {
    "rates": (optax.adam(1e-3), optax.adam(2e-3)),
    "rates in the state": (STATEFUL(learning_rate=0.1), STATEFUL(learning_rate=0.2)),
    "schedules": (optax.sgd(optax.linear_schedule(0.1, 0.0, 9)), optax.sgd(optax.linear_schedule(0.1, 0.0, 8))),
    "kinds": (optax.sgd(0.1), optax.sgd(0.1, momentum=0.9)),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS.keys())
def test_a_checkpoint_is_resumed_with_its_own_optimizer_only(tmp_path, one, other):
    first, _ = checkpointed(tmp_path, one)
    np.testing.assert_array_equal(checkpointed(tmp_path, one)[0], first)
    with pytest.raises(ValueError, match=r"fit_flow expected `checkpoint` as a new folder.*Fix: "):
        checkpointed(tmp_path, other)


def test_a_checkpoint_holds_an_optimizer_state_in_bfloat16(tmp_path):
    optimizer = optax.adam(0.1, mu_dtype=jnp.bfloat16)
    first, _ = checkpointed(tmp_path, optimizer)
    np.testing.assert_array_equal(checkpointed(tmp_path, optimizer)[0], first)


def test_options_of_equal_value_are_equal():
    one = fd.Training(np.int64(5), np.int32(8), jnp.asarray(0.5, jnp.float32))
    assert one == fd.Training(5, 8, 0.5)
    assert hash(one) == hash(fd.Training(5, 8, 0.5))


def test_what_an_optimizer_does_is_told_alike_in_another_process():
    line = (
        "import optax, jax.numpy as jnp; from flowdensity.training.loop import _operations; "
        "print(_operations(optax.adam(optax.cosine_decay_schedule(1e-3, 9)), jnp.zeros((2, 2)))[0])"
    )
    prints = [
        subprocess.run([sys.executable, "-c", line], check=True, capture_output=True, text=True).stdout for _ in "ab"
    ]
    assert prints[0] == prints[1]
    assert len(prints[0]) > 100
