"""The training loop, on losses whose course is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowdensity as fd
from flowdensity.training import loop
from flowdensity.training.loop import Schedule, TrainingDiverged, train
from flowdensity.training.results import last


class Point(eqx.Module):
    """The simplest module: one trained array, one that is not trained, and a static name."""

    at: jax.Array
    count: jax.Array
    name: str = eqx.field(static=True, default="point")


START = Point(jnp.array([0.0, 4.0]), jnp.array([1, 2, 3]))
TARGET = jnp.array([1.0, 3.0])


def loss(point, key, args):
    """A bowl about the target, seen through noise in its slope."""
    return jnp.sum(jnp.square(point.at - args)) + 0.1 * jnp.dot(point.at, jr.normal(key, (2,)))


def validate(point, args):
    return jnp.sum(jnp.square(point.at - args))


def fit(loss=loss, validate=validate, args=TARGET, key=0, module=START, progress=False, **schedule):
    schedule = Schedule(**({"steps": 500, "learning_rate": 0.05, "patience": 150} | schedule))
    return last(train(jr.key(key), module, loss, validate, args, schedule, stage="test stage", progress=progress))


def test_it_minimizes():
    point, history = fit(patience=None)
    # The cosine schedule ends at a hundredth of the peak, and Adam moves each coordinate by the rate at most.
    np.testing.assert_allclose(point.at, TARGET, atol=0.05)
    assert history.ending == "ran all steps"
    assert history.status == "completed"
    assert history.step[0] == 0
    assert history.step[-1] == 500
    assert len(history.step) == len(history.train) == len(history.validation)
    assert history.validation[-1] == pytest.approx(float(validate(point, TARGET)), rel=1e-5)
    assert history.seconds > 0.0


def test_only_floating_point_arrays_are_trained():
    point, _ = fit()
    np.testing.assert_array_equal(point.count, START.count)
    assert point.name == "point"
    np.testing.assert_array_equal(START.at, [0.0, 4.0])  # and the module that came in is as it was


def test_the_weights_that_did_best_on_validation_come_back():
    """The loss pulls to 1, validation is best at 0.5: on the way there."""
    halfway = jnp.array([0.5, 3.5])
    point, history = fit(validate=lambda point, args: validate(point, halfway), patience=500)
    best = int(np.argmin(history.validation))
    assert 0 < best < len(history.validation) - 1
    assert history.best_step == history.step[best]
    assert float(validate(point, halfway)) == pytest.approx(min(history.validation), rel=1e-6)
    # Weights are looked at fifty times in 500 steps of at most 0.05 each: one of them is near the best.
    np.testing.assert_allclose(point.at, halfway, atol=0.25)


def test_it_stops_when_validation_no_longer_improves():
    halfway = jnp.array([0.5, 3.5])
    _, history = fit(validate=lambda point, args: validate(point, halfway), patience=35)
    # Validated every ten steps: the first time that 35 or more have gone by is after forty.
    assert history.step[-1] == history.best_step + 40
    assert history.step[-1] < 500
    assert history.status == "stopped early"
    assert str(history.best_step) in history.ending


def test_without_patience_the_last_weights_come_back():
    halfway = jnp.array([0.5, 3.5])
    point, history = fit(validate=lambda point, args: validate(point, halfway), patience=None)
    assert history.step[-1] == 500
    assert float(validate(point, halfway)) == pytest.approx(history.validation[-1], rel=1e-6)


@pytest.mark.parametrize(("spread", "kept"), [(0.3, False), (30.0, True)])
def test_the_last_weights_come_back_unless_they_are_clearly_worse(spread, kept):
    """The terms are those of a target that varies, so that a difference of means has a known standard error."""
    halfway = jnp.array([0.5, 3.5])
    targets = halfway + spread * jr.normal(jr.key(1), (400, 2))
    targets = targets - jnp.mean(targets, axis=0) + halfway

    def terms(point, args):
        return jnp.sum(jnp.square(point.at - targets), axis=1)

    best, early = fit(validate=terms, patience=500)
    point, history = fit(validate=terms, patience=500, tolerance=2.0)
    assert early.best_step < 500
    last, _ = fit(validate=terms, patience=None)
    excess = np.asarray(terms(last, None) - terms(best, None), np.float64)
    assert (excess.mean() < 2.0 * excess.std() / np.sqrt(400)) == kept
    np.testing.assert_array_equal(point.at, last.at if kept else best.at)
    assert history.best_step == (500 if kept else early.best_step)


def test_the_average_forgets_where_it_started():
    """After 300 steps a decay of 0.999 without warm-up would leave exp(-0.3) = 74 % of the start."""
    point, _ = fit(patience=None, steps=300, ema=0.999, args=jnp.zeros(2), learning_rate=0.1)
    assert np.all(np.abs(point.at) < 0.05 * 4.0)


def test_the_same_key_gives_the_same_weights():
    first, again, other = (fit(key=key)[0].at for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.parametrize("steps", [1, 7, 49, 51])
def test_any_number_of_steps(steps):
    point, history = fit(steps=steps, patience=None)
    assert history.step[-1] == steps
    assert np.all(np.isfinite(point.at))


class Interrupting:
    """Stands in for the progress bar and presses Ctrl-C at one of its updates."""

    def __init__(self, at):
        self.at, self.updates = at, 0

    def __call__(self, **options):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def update(self, count):
        self.updates += 1
        if self.updates == self.at:
            raise KeyboardInterrupt

    def set_postfix(self, **fields):
        pass


def test_an_interrupted_run_returns_the_best_so_far_with_a_warning(monkeypatch):
    monkeypatch.setattr(loop, "tqdm", Interrupting(at=20))
    with pytest.warns(UserWarning, match=r"test stage was interrupted at step \d+ of 500"):
        point, history = fit()
    assert history.status == "interrupted"
    assert "interrupted" in history.ending
    assert history.step[-1] == 20 * (500 // loop.VALIDATIONS)
    assert float(validate(point, TARGET)) == pytest.approx(min(history.validation), rel=1e-6)
    assert min(history.validation) < history.validation[0]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights(bad):
    def breaks(point, key, args):
        # The first coordinate climbs from 0 towards 1 by at most 0.05 a step: it takes ten steps to get here.
        return jnp.where(point.at[0] > 0.5, bad, loss(point, key, args))

    with pytest.raises(TrainingDiverged, match=r"Fix: training = fd\.Training\(learning_rate=0\.02\)") as caught:
        fit(loss=breaks)
    error = caught.value
    assert 10 <= error.step <= 100
    assert f"step {error.step}" in str(error)
    assert "test stage" in str(error)
    assert isinstance(error, FloatingPointError)
    assert isinstance(error.best, Point)
    assert np.all(np.isfinite(error.best.at))
    # The best before the end of the world is better than the start, and the history stops with it.
    assert float(validate(error.best, TARGET)) == pytest.approx(min(error.history.validation), rel=1e-6)
    assert error.history.step[-1] < error.step
    assert np.all(np.isfinite(error.history.validation))


def test_a_validation_loss_that_is_not_finite_stops_too():
    with pytest.raises(TrainingDiverged):
        fit(validate=lambda point, args: jnp.where(point.at[0] > 0.5, jnp.nan, validate(point, args)))


def test_a_loss_that_is_not_finite_from_the_start_stops():
    with pytest.raises(TrainingDiverged) as caught:
        fit(loss=lambda point, key, args: jnp.nan * jnp.sum(point.at))
    np.testing.assert_array_equal(caught.value.best.at, START.at)


def test_a_validation_loss_that_is_not_finite_from_the_start_stops():
    with pytest.raises(TrainingDiverged):
        fit(validate=lambda point, args: jnp.nan * jnp.sum(point.at))


def test_the_bar_is_shown_only_when_asked_for(capfd):
    fit(steps=50, patience=None, progress=False)
    quiet = capfd.readouterr()
    assert quiet.err == quiet.out == ""
    fit(steps=50, patience=None, progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    for word in ("test stage", "50/50", "train=", "validation=", "<"):  # the last: time gone < time left
        assert word in shown.err, word


def test_losses_are_read_as_arrays():
    _, history = fit(steps=50)
    arrays = history.arrays()
    assert set(arrays) == {"step", "train", "validation"}
    assert all(isinstance(a, np.ndarray) and len(a) == len(history.step) for a in arrays.values())
    assert fd.TrainingDiverged is TrainingDiverged
