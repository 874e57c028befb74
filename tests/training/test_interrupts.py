"""Ctrl-C at every boundary of every fit: nothing that was learned is lost, and what was left undone is said."""

import itertools

import equinox as eqx
import jax.random as jr
import numpy as np
import pytest
from references import random_flow

import flowdensity as fd
from flowdensity.training import departure, distill, divergence, fit, labels, loop

ROWS = np.random.default_rng(0).normal(size=(2200, 2)).cumsum(axis=1)
"""Enough rows for one run; the first 200 are few enough for a cross-validation."""
EVENTS = np.float32(ROWS[:5])
STEPS = 2
OPTIONS = {"training": fd.Training(steps=STEPS, batch_size=16), "progress": False}
FLOW = ("divergence", "calibration", "solver steps")
"""What a fit has left to do once its flow is trained."""


def flow(data=ROWS, **options):
    network = fd.networks.ResidualMLP(jr.key(1), 2, width=4, depth=1, experts=0)
    learned = {"divergence": fd.objectives.LangevinStein()}
    return fd.fit_flow(jr.key(0), data, network=network, **(OPTIONS | learned | options))


def press(monkeypatch, module, name, call=1):
    """Ctrl-C in one of the calls of a function of the package."""
    numbers, function = itertools.count(1), getattr(module, name)

    def pressed(*args, **options):
        if next(numbers) == call:
            raise KeyboardInterrupt
        return function(*args, **options)

    monkeypatch.setattr(module, name, pressed)


@pytest.fixture(scope="module")
def whole():
    return flow()


@pytest.mark.parametrize(
    ("module", "name"),
    [(fit, "prepare"), (loop, "_evaluate"), (loop, "_advance")],
    ids=["preparation", "first loss", "first step"],
)
def test_before_the_first_step_nothing_is_lost_and_the_call_ends(monkeypatch, module, name):
    press(monkeypatch, module, name)
    with pytest.raises(KeyboardInterrupt):
        flow()


def test_a_given_model_is_still_there_when_the_preparation_is_interrupted(monkeypatch):
    press(monkeypatch, fit, "whitened")
    with pytest.raises(KeyboardInterrupt):
        fd.fit_likelihood(jr.key(0), ROWS, model=random_flow(jr.key(1), 2), **OPTIONS)


# The calls of `_advance` are the steps of the flow and then those of the divergence.
@pytest.mark.parametrize(
    ("module", "name", "call", "kind", "undone", "says"),
    [
        (loop, "_advance", STEPS, fd.ExactDivergence, ("flow", *FLOW), "The flow was interrupted at step 1 of 2"),
        (divergence, "centers_about_data", 1, fd.ExactDivergence, FLOW, "The preparation of the divergence was"),
        (loop, "_advance", STEPS + 1, fd.ExactDivergence, FLOW, "The divergence was interrupted at step 0 of 2"),
        (divergence, "calibrate", 1, fd.SteinDivergence, FLOW[1:], "The calibration was interrupted"),
        (divergence, "stein_residuals", 1, fd.SteinDivergence, ("residuals", FLOW[2]), "The calibration was"),
        (fit, "choose_steps", 1, fd.SteinDivergence, FLOW[2:], "The choice of solver steps was interrupted"),
    ],
    ids=["flow", "preparation", "first step of the head", "calibration", "residuals", "steps"],
)
def test_what_has_been_learned_is_returned(monkeypatch, whole, module, name, call, kind, undone, says):
    press(monkeypatch, module, name, call)
    with pytest.warns(UserWarning, match=says) as caught:
        density, report = flow()
    assert [warning.filename for warning in caught] == [__file__]
    assert ", ".join(undone) in str(caught[0].message)
    assert type(density.divergence) is kind
    assert report.interrupted == undone
    assert f"interrupted: not completed: {', '.join(undone)}" in report.summary()
    assert whole[1].interrupted is None
    if undone != ("flow", *FLOW):
        assert eqx.tree_equal(density.model, whole[0].model)
    if FLOW[0] not in undone:
        calibrated = whole[0].divergence.head
        head = density.divergence.head
        assert eqx.tree_equal(head, calibrated) == ("calibration" not in undone)
        assert eqx.tree_equal(head.network, calibrated.network)
    assert density.solver == fd.FixedStep()
    assert np.all(np.isfinite(density.log_prob(EVENTS)))


def test_an_interrupted_training_of_the_head_goes_on_with_its_calibration(monkeypatch, whole):
    press(monkeypatch, loop, "_advance", 2 * STEPS)
    with pytest.warns(UserWarning, match="the fit continues with the best weights so far, from step 1"):
        density, report = flow()
    assert report.interrupted == ("divergence",)
    assert report.residuals is not None
    assert density.solver == whole[0].solver


def test_the_same_call_goes_on_where_a_fit_was_interrupted(monkeypatch, tmp_path, whole):
    with monkeypatch.context() as patched:
        press(patched, divergence, "calibrate")
        with pytest.warns(UserWarning, match="The calibration was interrupted"):
            flow(checkpoint=tmp_path)
    density, report = flow(checkpoint=tmp_path)
    assert eqx.tree_equal(density._parts, whole[0]._parts)
    assert report.interrupted is None


@pytest.mark.slow
def test_a_cross_validation_keeps_what_its_first_fold_has_learned(monkeypatch):
    press(monkeypatch, departure, "held_log_likelihoods")
    with pytest.warns(UserWarning, match="The comparison with (the reference|a mixture) was interrupted") as caught:
        density, report = flow(ROWS[:200], divergence=fd.ExactDivergence())
    assert len(caught) == 1
    assert report.interrupted == ("flow", "solver steps")
    assert np.all(np.isfinite(density.log_prob(EVENTS)))


@pytest.mark.slow
def test_a_fit_of_the_likelihood_keeps_its_model(monkeypatch):
    press(monkeypatch, fit, "choose_steps")
    with pytest.warns(UserWarning, match="The choice of solver steps was interrupted"):
        density, report = fd.fit_likelihood(
            jr.key(0), ROWS[:50], model=random_flow(jr.key(1), 2), divergence=fd.ExactDivergence(), **OPTIONS
        )
    assert not density.model.follows_path
    assert report.interrupted == ("solver steps",)


@pytest.mark.parametrize("name", ["centers_about_samples", "_new_head"])
def test_a_divergence_of_which_nothing_was_learned_is_none(monkeypatch, whole, name):
    press(monkeypatch, divergence, name)
    with pytest.raises(KeyboardInterrupt):
        fd.fit_divergence(jr.key(0), whole[0].model, ROWS, **OPTIONS)


def test_a_divergence_is_returned_as_far_as_it_was_learned(monkeypatch, whole):
    press(monkeypatch, divergence, "calibrate")
    with pytest.warns(UserWarning, match="The calibration was interrupted"):
        learned, report = fd.fit_divergence(jr.key(0), whole[0].model, ROWS, **OPTIONS)
    assert isinstance(learned, fd.SteinDivergence)
    assert report.interrupted == ("calibration",)


@pytest.mark.parametrize(
    ("module", "name", "call", "undone", "is_measured"),
    [
        (loop, "_advance", 2, ("log density",), True),
        (distill, "normalized", 1, ("normalizer (the density does not integrate to exactly 1)",), False),
        (distill, "measured", 1, ("check of the normalizer",), False),
    ],
)
def test_a_distillation_is_returned_as_far_as_it_went(monkeypatch, whole, module, name, call, undone, is_measured):
    """Training that is interrupted goes on with the normalizer, without which a network is no density."""
    press(monkeypatch, module, name, call)
    with pytest.warns(UserWarning, match="was interrupted") as caught:
        density, report = fd.distill(jr.key(0), whole[0], labels=64, width=4, **OPTIONS)
    assert [warning.filename for warning in caught] == [__file__]
    assert report.interrupted == undone
    assert (report.amortization is not None) == is_measured
    assert np.all(np.isfinite(density.log_prob(EVENTS)))


def test_labels_alone_are_nothing_learned(monkeypatch, whole):
    press(monkeypatch, labels, "_labeled")
    with pytest.raises(KeyboardInterrupt):
        fd.distill(jr.key(0), whole[0], labels=64, width=4, **OPTIONS)


def test_all_that_takes_long_says_what_it_is(capfd, whole):
    flow(progress=True)
    shown = capfd.readouterr().err
    for name in (
        "preparation",
        "flow",
        "preparation of the divergence",
        "divergence",
        "calibration",
        "choice of solver steps",
    ):
        assert f"{name}: " in shown
    assert "compiling" in shown
    flow(progress=False)
    assert capfd.readouterr().err == ""
