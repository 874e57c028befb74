"""A density of named values: in a model, and given a context by name."""

import arviz
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density
from references import (
    NAMED,
    NAMED_CONTEXT,
    amortized,
    central_difference,
    gaussian_flow,
    named_flow,
    named_log_prob,
    to64,
    x64,
)

import flowdensity as fd
from flowdensity.data.tables import event_table

SOLVER = fd.FixedStep(4)
SHAPES = dict(zip(*NAMED, strict=True))


def density() -> fd.FlowDensity:
    return fd.FlowDensity(named_flow(), solver=SOLVER)


def conditional() -> fd.FlowDensity:
    return fd.FlowDensity(named_flow(conditional=True), solver=SOLVER)


def trace_of(model, *args):
    return handlers.trace(handlers.seed(model, jr.key(0))).get_trace(*args)


# The density itself ------------------------------------------------------------------------------


def test_it_knows_its_sites_and_their_supports():
    event = density().sample(jr.key(0), (50,))
    named = density().unpack(event)
    assert density().sites == NAMED
    assert {name: value.shape for name, value in named.items()} == {"a": (50,), "tau": (50,), "v": (50, 2)}
    assert np.all(named["tau"] > 0.0)
    assert np.all(named["v"] > 0.0)
    assert np.any(named["a"] < 0.0)
    np.testing.assert_array_equal(density().pack(named), event)
    assert np.all(density().support(event))
    assert not np.any(density().support(event.at[:, 3].multiply(-1.0)))
    # Four third-order steps: some 0.05 nats, and a little more far out.
    np.testing.assert_allclose(density().log_prob(event), named_log_prob(event), rtol=0.03, atol=0.1)


def test_values_by_name_broadcast():
    event = density().pack({"a": np.zeros((4, 1)), "tau": 1.0, "v": np.ones((3, 2))})
    assert event.shape == (4, 3, 4)
    np.testing.assert_array_equal(event[2, 1], [0.0, 1.0, 1.0, 1.0])


UNFIT = {
    "pack, no names": (
        lambda: fd.FlowDensity(gaussian_flow()).pack({"a": 0.0}),
        TypeError,
        "a density of named values",
    ),
    "unpack, no names": (
        lambda: fd.FlowDensity(gaussian_flow()).unpack(np.zeros(2)),
        TypeError,
        "a density of named values",
    ),
    "pack, a name too few": (
        lambda: density().pack({"a": 0.0, "tau": 1.0}),
        ValueError,
        r"values of .*got \['a', 'tau'\]",
    ),
    "unpack, too long": (
        lambda: density().unpack(np.zeros(5)),
        ValueError,
        r"`event` with shape \(\.\.\., 4\); got \(5,\)",
    ),
    "contexts by name, no names": (
        lambda: density().given({"s": np.zeros(2)}),
        ValueError,
        r"no `context`.*a dict with \['s'\]",
    ),
    "contexts by another name": (
        lambda: conditional().given({"s": np.zeros(2), "u": 0.0}),
        ValueError,
        r"values of the sites \['s', 't'\]; got \['s', 'u'\]",
    ),
    "contexts of another shape": (
        lambda: conditional().given({"s": np.zeros(3), "t": 0.0}),
        ValueError,
        r"'s' with shape \(2,\).*got \(3,\)",
    ),
    "contexts that do not broadcast": (
        lambda: conditional().given({"s": np.zeros((4, 2)), "t": np.zeros(3)}),
        ValueError,
        "values whose batch axes broadcast",
    ),
}


@pytest.mark.parametrize(("call", "error", "says"), UNFIT.values(), ids=UNFIT.keys())
def test_what_does_not_fit_is_refused(call, error, says):
    with pytest.raises(error, match=rf"FlowDensity.* expected {says}.*Fix: "):
        call()


# A context by name -------------------------------------------------------------------------------


def test_contexts_by_name_broadcast_and_are_those_packed():
    named = {"s": np.array([[0.5, -1.0], [0.0, 2.0], [1.0, 1.0]]), "t": np.array([[0.3], [-0.7]])}
    packed = np.asarray(NAMED_CONTEXT.pack("test", named))
    assert packed.shape == (2, 3, 3)
    by_name, by_array = conditional().given(named), conditional().given(packed)
    assert by_name.batch_shape == (2, 3)
    np.testing.assert_array_equal(by_name.context, by_array.context)
    events = by_name.sample(jr.key(1))
    np.testing.assert_array_equal(events, by_array.sample(jr.key(1)))
    np.testing.assert_allclose(by_name.log_prob(events), named_log_prob(events, packed), rtol=0.03, atol=0.1)
    unbatched = conditional().given({"t": 0.3, "s": [0.5, -1.0]})
    assert unbatched.batch_shape == ()
    np.testing.assert_allclose(unbatched.log_prob(events[0, 0]), by_name.log_prob(events)[0, 0], rtol=1e-5, atol=1e-5)


def test_gradients_in_named_contexts_are_those_of_central_differences():
    contexts = {"s": np.array([0.5, -1.0]), "t": np.array(0.3)}
    with x64():
        fn = fd.FlowDensity(to64(named_flow(conditional=True)), solver=SOLVER)
        event = jnp.array([0.2, 0.9, 1.2, 0.7])
        value = jax.jit(lambda given: fn.given(given).log_prob(event))
        slopes = jax.jit(jax.grad(value))(jax.tree.map(jnp.asarray, contexts))
        for name, at in contexts.items():
            expected = central_difference(lambda part, name=name: value(contexts | {name: part}), at)
            # O(step^2) = 1e-10, and rounding over the step.
            np.testing.assert_allclose(slopes[name], expected, rtol=1e-7, atol=1e-7)
            assert np.all(np.abs(expected) > 1e-3)


# In a model --------------------------------------------------------------------------------------


def in_a_plate(fn, size):
    def model():
        with numpyro.plate("rows", size):
            return fd.sample_sites("theta", fn())

    return model


CONTEXT = {"s": np.array([[0.5, -1.0], [0.0, 2.0], [1.0, 1.0]]), "t": np.array(0.3)}
# name: (model, batch axes of the values)
MODELS = {
    "alone": (lambda: fd.sample_sites("theta", density()), ()),
    "in a plate": (in_a_plate(density, 3), (3,)),
    "given contexts in a plate": (in_a_plate(lambda: conditional().given(CONTEXT), 3), (3,)),
    "expanded to one event": (lambda: fd.sample_sites("theta", density().expand((3,)).to_event(1)), (3,)),
    "amortized": (in_a_plate(lambda: amortized(density()), 3), (3,)),
    "masked": (in_a_plate(lambda: density().mask(jnp.array([True, False, True])), 3), (3,)),
}


@pytest.mark.parametrize(("model", "batch"), MODELS.values(), ids=MODELS.keys())
def test_one_site_is_sampled_and_the_values_are_deterministic(model, batch):
    trace = trace_of(model)
    returned = handlers.seed(model, jr.key(0))()
    assert trace["theta"]["type"] == "sample"
    assert trace["theta"]["value"].shape == (*batch, 4)
    assert [name for name in trace if name != "rows"] == ["theta", "a", "tau", "v"]
    for name, value in density().unpack(trace["theta"]["value"]).items():
        assert trace[name]["type"] == "deterministic"
        assert trace[name]["value"].shape == (*batch, *SHAPES[name])
        np.testing.assert_array_equal(trace[name]["value"], value)
        np.testing.assert_array_equal(trace[name]["value"], returned[name])


def regression(y=None):
    """The named values are a prior; beside them a site with a strategy of its own."""
    values = fd.sample_sites("theta", density())
    shift = numpyro.sample("shift", dist.Normal(values["a"], values["tau"]))
    numpyro.sample("y", dist.Normal(shift + values["v"].sum(), 0.5), obs=y)


def test_the_joint_site_is_what_is_conditioned_and_substituted():
    event = jnp.array([0.3, 0.8, 1.1, 0.6])
    value, trace = log_density(regression, (0.4,), {}, {"theta": event, "shift": 0.1})
    expected = density().log_prob(event) + dist.Normal(0.3, 0.8).log_prob(0.1) + dist.Normal(1.8, 0.5).log_prob(0.4)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    conditioned = trace_of(handlers.condition(regression, {"theta": event}))
    assert conditioned["theta"]["is_observed"]
    for one in (trace, conditioned):
        np.testing.assert_array_equal(one["v"]["value"], event[2:])


def test_predictive_has_a_variable_for_each_name():
    drawn = Predictive(regression, num_samples=6)(jr.key(0))
    assert drawn["theta"].shape == (6, 4)
    for name, value in density().unpack(drawn["theta"]).items():
        np.testing.assert_array_equal(drawn[name], value)
    again = Predictive(regression, {"theta": drawn["theta"], "shift": drawn["shift"]})(jr.key(1))
    np.testing.assert_array_equal(again["tau"], drawn["tau"])


def test_a_flow_is_reparametrized_beside_another_strategy():
    pushed = handlers.reparam(regression, config={"theta": fd.FlowReparam(), "shift": LocScaleReparam(centered=0.0)})
    trace = trace_of(pushed, 0.4)
    latent = {name for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}
    assert latent == {"theta_base", "shift_decentered"}
    assert all(trace[name]["type"] == "deterministic" for name in ("theta", "shift", *SHAPES))
    event = density().from_base(trace["theta_base"]["value"])
    np.testing.assert_allclose(density().pack({name: trace[name]["value"] for name in SHAPES}), event, rtol=1e-5)
    np.testing.assert_allclose(
        trace["shift"]["value"],
        trace["a"]["value"] + trace["tau"]["value"] * trace["shift_decentered"]["value"],
        rtol=1e-5,
    )


@pytest.mark.slow
def test_chains_are_read_by_name_and_are_data_again():
    coarse = density().with_solver(fd.FixedStep(2))

    @numpyro.handlers.reparam(config={"theta": fd.FlowReparam()})
    def model():
        values = fd.sample_sites("theta", coarse)
        numpyro.sample("y", dist.Normal(values["a"], values["tau"]), obs=0.4)

    mcmc = MCMC(
        NUTS(model, max_tree_depth=2),
        num_warmup=5,
        num_samples=6,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(0))
    posterior = arviz.from_numpyro(mcmc).posterior
    for name, shape in SHAPES.items():
        assert posterior[name].shape == (2, 6, *shape)
    assert np.all(posterior["tau"].values > 0.0)
    summary = arviz.summary(posterior, var_names=list(SHAPES), round_to="none")
    assert list(summary.index) == ["a", "tau", "v[0]", "v[1]"]
    # What a fit would learn from: the rows of get_samples, by name.
    flat = mcmc.get_samples()
    chosen = posterior.dataset if hasattr(posterior, "dataset") else posterior
    table = event_table("fit_flow", chosen[list(SHAPES)])
    np.testing.assert_allclose(table.rows, density().pack({name: flat[name] for name in SHAPES}), rtol=1e-6)


def sampled_before():
    numpyro.sample("tau", dist.HalfNormal())
    return fd.sample_sites("theta", density())


def fixed_before():
    numpyro.deterministic("v", jnp.ones(2))
    return fd.sample_sites("theta", density())


def twice():
    fd.sample_sites("theta", density())
    return fd.sample_sites("phi", density())


TAKEN = {
    "by the joint site": (lambda: fd.sample_sites("tau", density()), "tau"),
    "by a site before": (sampled_before, "tau"),
    "by a deterministic site before": (fixed_before, "v"),
    "by another density": (twice, "a', 'tau', 'v"),
}


@pytest.mark.parametrize(("model", "name"), TAKEN.values(), ids=TAKEN.keys())
def test_names_that_are_taken_are_refused(model, name):
    with pytest.raises(ValueError, match=rf"sample_sites expected names.*\['{name}'\].*(scope|joint).*"):
        trace_of(model)


def test_a_later_site_of_the_same_name_is_numpyros_to_refuse():
    def model():
        fd.sample_sites("theta", density())
        numpyro.sample("tau", dist.HalfNormal())

    with pytest.raises(AssertionError, match="unique"):
        trace_of(model)


def test_a_scope_makes_room_for_two():
    def model():
        for prefix in ("one", "two"):
            with handlers.scope(prefix=prefix):
                fd.sample_sites("theta", density())

    trace = trace_of(model)
    assert set(trace) == {f"{prefix}/{name}" for prefix in ("one", "two") for name in ("theta", *SHAPES)}


def test_a_scope_sees_its_own_names():
    def apart():
        numpyro.sample("tau", dist.HalfNormal())
        with handlers.scope(prefix="one"):
            fd.sample_sites("theta", density())

    def clash():
        with handlers.scope(prefix="one"):
            numpyro.sample("tau", dist.HalfNormal())
            fd.sample_sites("theta", density())

    assert {"tau", "one/tau", "one/theta"} <= set(trace_of(apart))
    with pytest.raises(ValueError, match=r"sample_sites expected names.*\['tau'\]"):
        trace_of(clash)


WRONG = {
    "another distribution": (lambda: dist.Normal(), "got Normal"),
    "a model": (named_flow, "got ExactGaussianFlow"),
    "no names": (lambda: fd.FlowDensity(gaussian_flow()), "learned from an array"),
    "no names, wrapped": (lambda: fd.FlowDensity(gaussian_flow()).expand((3,)).to_event(1), "learned from an array"),
}


@pytest.mark.parametrize(("fn", "says"), WRONG.values(), ids=WRONG.keys())
def test_other_kinds_are_refused(fn, says):
    with pytest.raises(TypeError, match=rf"sample_sites expected .*{says}.*Fix: numpyro\.sample\('theta'"):
        trace_of(lambda: fd.sample_sites("theta", fn()))
