"""Values by name: whatever gives the parts of a joint site gives the joint site, or is refused."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints, transforms
from numpyro.infer import (
    Predictive,
    Trace_ELBO,
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
    log_likelihood,
)
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.reparam import ExplicitReparam, LocScaleReparam
from numpyro.infer.util import initialize_model, log_density, potential_energy
from numpyro.primitives import Messenger
from references import NAMED, amortized, gaussian_flow, named_flow, random_flow

import flowdensity as fd
from flowdensity.data.scaling import Scaling
from flowdensity.data.sites import Sites
from flowdensity.data.supports import joint

SHAPES = dict(zip(*NAMED, strict=True))
VALUES = {"a": jnp.array(0.3), "tau": jnp.array(0.8), "v": jnp.array([1.1, 0.6])}
EVENT = np.array([0.3, 0.8, 1.1, 0.6], np.float32)
PART = {name: VALUES[name] for name in ("a", "tau")}


def density() -> fd.FlowDensity:
    return fd.FlowDensity(named_flow(), solver=fd.FixedStep(4))


def model(y=None):
    values = fd.sample_sites("theta", density())
    numpyro.sample("y", dist.Normal(values["a"] + values["v"].sum(), values["tau"]), obs=y)


def by_joint(y=None):
    """The same model, as numpyro alone has it."""
    values = density().unpack(numpyro.sample("theta", density()))
    numpyro.sample("y", dist.Normal(values["a"] + values["v"].sum(), values["tau"]), obs=y)


def noisy(y=None):
    with handlers.reparam(config={"theta": fd.FlowReparam()}):
        model(y)


def trace_of(model, *args, key=0):
    return handlers.trace(handlers.seed(model, jr.key(key))).get_trace(*args)


def by_name(site, values=VALUES):
    return values.get(site["name"])


class Ours(Messenger):
    """A handler that numpyro knows nothing of."""

    def __init__(self, fn, values):
        super().__init__(fn)
        self.values = values

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


def recorded(values):
    def samples():
        for name, value in values.items():
            numpyro.sample(name, dist.Delta(value, event_dim=jnp.ndim(value)))

    return trace_of(samples)


# name: (handler of a model and values, whether the joint site becomes an observed one)
GIVERS = {
    "condition": (lambda model, values: handlers.condition(model, data=values), True),
    "condition_fn": (
        lambda model, values: handlers.condition(model, condition_fn=partial(by_name, values=values)),
        True,
    ),
    "substitute": (lambda model, values: handlers.substitute(model, data=values), False),
    "substitute_fn": (
        lambda model, values: handlers.substitute(model, substitute_fn=partial(by_name, values=values)),
        False,
    ),
    "replay": (lambda model, values: handlers.replay(model, trace=recorded(values)), False),
    "a handler of one's own": (Ours, False),
}
givers = pytest.mark.parametrize(("giver", "observed"), GIVERS.values(), ids=GIVERS.keys())


@givers
def test_the_joint_site_is_packed_from_the_names(giver, observed):
    trace = trace_of(giver(model, VALUES))
    np.testing.assert_array_equal(trace["theta"]["value"], EVENT)
    assert trace["theta"]["is_observed"] == observed
    assert trace["theta"]["type"] == "sample"
    for name, value in VALUES.items():
        np.testing.assert_array_equal(trace[name]["value"], value)


@givers
def test_a_part_is_refused(giver, observed):
    with pytest.raises(
        ValueError, match=r"sample_sites expected values of all of .*without \['v'\].*Fix: data = .*unpack"
    ):
        trace_of(giver(model, PART))


@givers
def test_names_are_those_that_a_scope_makes(giver, observed):
    scoped = handlers.scope(model, prefix="one")
    trace = trace_of(giver(scoped, {f"one/{name}": value for name, value in VALUES.items()}))
    np.testing.assert_array_equal(trace["one/theta"]["value"], EVENT)
    np.testing.assert_array_equal(
        trace_of(giver(scoped, VALUES))["one/theta"]["value"], trace_of(scoped)["one/theta"]["value"]
    )


def test_nothing_given_changes_no_draw():
    """Neither the random numbers of a seed nor what is recorded differ from those of the joint site alone."""
    ours, numpyros = trace_of(model), trace_of(by_joint)
    for name in ("theta", "y"):
        np.testing.assert_array_equal(ours[name]["value"], numpyros[name]["value"])
    assert set(ours) == {*numpyros, *VALUES}


@pytest.mark.parametrize(
    "strategy",
    [init_to_uniform, init_to_median, init_to_mean, init_to_sample, init_to_feasible],
    ids=lambda fn: fn.__name__,
)
def test_strategies_that_know_no_name_start_where_they_did(strategy):
    starts = [
        initialize_model(jr.key(1), each, init_strategy=strategy, model_args=(0.4,))[0].z for each in (model, by_joint)
    ]
    np.testing.assert_array_equal(starts[0]["theta"], starts[1]["theta"])


def unconstrained(event):
    return np.concatenate([event[..., :1], np.log(event[..., 1:])], axis=-1)


@pytest.mark.parametrize("chains", [1, 2])
def test_a_start_by_name(chains):
    """Two chains are started inside a compiled loop."""
    key = jr.key(0) if chains == 1 else jr.split(jr.key(0), chains)
    z = initialize_model(key, model, init_strategy=init_to_value(values=VALUES), model_args=(0.4,))[0].z
    expected = unconstrained(EVENT)
    np.testing.assert_allclose(z["theta"], np.broadcast_to(expected, z["theta"].shape), rtol=1e-5)
    assert z["theta"].shape == ((4,) if chains == 1 else (chains, 4))


def test_a_draw_completes_a_part_of_a_start():
    start = init_to_value(values={"tau": 0.8})
    found = [
        initialize_model(jr.key(seed), model, init_strategy=start, model_args=(0.4,))[0].z["theta"] for seed in (0, 1)
    ]
    np.testing.assert_allclose([z[1] for z in found], np.log(0.8), rtol=1e-5)
    assert np.all(np.isfinite(found))
    assert not np.any(np.isclose(np.delete(found[0], 1), np.delete(found[1], 1)))


def test_a_start_of_a_guide():
    guide = AutoNormal(model, init_loc_fn=init_to_value(values=VALUES))
    handlers.seed(guide, jr.key(0))(0.4)
    np.testing.assert_allclose(guide._init_locs["theta"], unconstrained(EVENT), rtol=1e-5)


def test_log_densities_by_name():
    found, trace = log_density(model, (0.4,), {}, VALUES)
    expected, _ = log_density(by_joint, (0.4,), {}, {"theta": EVENT})
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    rows = {name: jnp.stack([value, 1.1 * value]) for name, value in VALUES.items()}
    mapped = jax.vmap(lambda row: log_density(model, (0.4,), {}, row)[0])(rows)
    np.testing.assert_allclose(mapped[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(trace["theta"]["value"], EVENT)


def test_conditioning_on_all_names_counts_the_density():
    found, _ = log_density(handlers.condition(model, data=VALUES), (0.4,), {}, {})
    expected, _ = log_density(by_joint, (0.4,), {}, {"theta": EVENT})
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_unconstrained_values_by_name_are_refused():
    """Their Jacobian would be lost."""
    params = {name: jnp.log(value) if name != "a" else value for name, value in VALUES.items()}
    with pytest.raises(ValueError, match=r"sample_sites expected handlers to leave 'tau'.*_tau_log_det"):
        potential_energy(model, (0.4,), {}, params)


# Plates and wrapped densities --------------------------------------------------------------------


def in_a_plate(make):
    def model():
        with numpyro.plate("rows", 3):
            fd.sample_sites("theta", make())

    return model


WRAPPED = {
    "in a plate": in_a_plate(density),
    "expanded to one event": lambda: fd.sample_sites("theta", density().expand((3,)).to_event(1)),
    "amortized": in_a_plate(lambda: amortized(density())),
    "masked": in_a_plate(lambda: density().mask(jnp.array([True, False, True]))),
    "through the noise": handlers.reparam(in_a_plate(density), config={"theta": fd.FlowReparam()}),
}
ROWS = {"a": jnp.array([0.1, 0.2, 0.3]), "tau": jnp.array(0.8), "v": jnp.array([1.1, 0.6])}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED.keys())
def test_values_have_batch_axes(wrapped):
    expected = density().pack(ROWS)
    seeded = handlers.seed(wrapped, jr.key(0))
    start = init_to_value(values=ROWS)
    for given in (handlers.substitute(seeded, data=ROWS), handlers.substitute(seeded, substitute_fn=start)):
        np.testing.assert_array_equal(handlers.trace(given).get_trace()["theta"]["value"], expected)
    part = handlers.substitute(seeded, substitute_fn=init_to_value(values={"a": ROWS["a"]}))
    drawn = handlers.trace(part).get_trace()["theta"]["value"]
    np.testing.assert_array_equal(drawn[:, 0], ROWS["a"])
    assert len(np.unique(drawn[:, 1])) == 3


# Posterior draws ---------------------------------------------------------------------------------


def draws(count=5):
    event = density().sample(jr.key(3), (count,))
    return event, density().unpack(event)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_takes_draws_by_name(parallel):
    event, named = draws()
    found = Predictive(model, named, parallel=parallel, return_sites=["theta", "tau", "y"])(jr.key(1))
    expected = Predictive(by_joint, {"theta": event}, parallel=parallel)(jr.key(1))
    np.testing.assert_array_equal(found["theta"], event)
    np.testing.assert_array_equal(found["tau"], named["tau"])
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-5)
    both = Predictive(model, {"theta": event, **named}, parallel=parallel)(jr.key(1))
    np.testing.assert_allclose(both["y"], expected["y"], rtol=1e-5)


def test_predictive_refuses_a_part():
    _, named = draws()
    with pytest.raises(ValueError, match=r"without \['v'\]"):
        Predictive(model, {"a": named["a"], "tau": named["tau"]})(jr.key(1))


def test_log_likelihoods_by_name():
    event, named = draws()
    found = log_likelihood(model, named, 0.4)["y"]
    np.testing.assert_allclose(found, log_likelihood(by_joint, {"theta": event}, 0.4)["y"], rtol=1e-5)
    with pytest.raises(ValueError, match=r"without \['a'\]"):
        log_likelihood(model, {"v": named["v"], "tau": named["tau"]}, 0.4)


def test_values_that_differ_from_the_joint_one_are_refused():
    for handler in (handlers.condition, handlers.substitute, handlers.do):
        with pytest.raises(ValueError, match=r"sample_sites expected one value of 'tau'.*Fix: del data\['tau'\]"):
            trace_of(handler(model, data={"theta": EVENT, "tau": jnp.array(0.9)}))
        trace_of(handler(model, data={"theta": EVENT, "tau": jnp.array(0.8)}))


def test_of_traced_draws_the_joint_ones_count():
    """numpyro computes the deterministic sites of a posterior anew."""
    event, named = draws()
    found = Predictive(model, {"theta": event, "tau": 1.1 * named["tau"]})(jr.key(1))
    np.testing.assert_array_equal(found["tau"], named["tau"])


# Guides ------------------------------------------------------------------------------------------


def learned() -> fd.FlowDensity:
    """A density with a network, whose weights a guide trains."""
    flow = random_flow(jr.key(0), 4)
    return fd.FlowDensity(eqx.tree_at(lambda m: m.scaling, flow, named_flow().scaling), solver=fd.FixedStep(8))


def test_a_guide_by_name():
    guide = fd.as_guide(learned(), "guide")
    sites = ["theta", *SHAPES]
    drawn = Predictive(model, guide=guide, num_samples=4, return_sites=sites)(jr.key(0))
    np.testing.assert_array_equal(drawn["theta"], density().pack({name: drawn[name] for name in SHAPES}))
    assert len(np.unique(drawn["tau"])) == 4


@pytest.mark.filterwarnings("ignore:Found:UserWarning")
def test_the_elbo_of_a_guide_that_is_the_prior_is_zero():
    """Each term is the log density of a draw under the model less that under the guide, whose flow is solved the other way."""
    losses = [
        Trace_ELBO().loss(
            jr.key(seed), {}, lambda: fd.sample_sites("theta", learned()), fd.as_guide(learned(), "guide")
        )
        for seed in range(3)
    ]
    other = learned().log_prob(learned().sample(jr.key(0), (100,)))
    # An independent draw of the joint site, which is what a model had that did not know the names, is off by nats.
    assert np.std(other) > 1.0
    np.testing.assert_allclose(losses, 0.0, atol=0.05)


def test_the_names_of_a_guide_count_and_not_its_joint_site():
    """It may hold them in another order."""
    other = Sites(("v", "tau", "a"), ((2,), (), ()))
    support = joint([constraints.positive, constraints.positive, constraints.real], other.shapes)
    scaling = Scaling(np.zeros(4), np.ones(4), support, (4,), other)
    flow = eqx.tree_at(lambda m: m.scaling, random_flow(jr.key(0), 4), scaling)
    guide = fd.as_guide(fd.FlowDensity(flow, solver=fd.FixedStep(4)), "theta")
    drawn = trace_of(guide)
    replayed = trace_of(handlers.replay(model, trace=drawn))
    for name in SHAPES:
        np.testing.assert_array_equal(replayed[name]["value"], drawn[name]["value"])


def test_a_guide_has_a_density_by_name():
    guide = handlers.seed(fd.as_guide(learned(), "guide"), jr.key(0))
    found, trace = log_density(guide, (), {}, VALUES)
    np.testing.assert_allclose(found, learned().log_prob(EVENT), rtol=1e-5)
    np.testing.assert_array_equal(trace["guide"]["value"], EVENT)


# Interventions -----------------------------------------------------------------------------------


def test_an_intervention_replaces_the_values_and_not_the_site():
    trace = trace_of(handlers.do(model, data=VALUES))
    fresh = trace_of(by_joint)["theta"]
    np.testing.assert_array_equal(trace["theta"]["value"], fresh["value"])
    assert not trace["theta"]["is_observed"]
    for name, value in VALUES.items():
        np.testing.assert_array_equal(trace[name]["value"], value)
    np.testing.assert_allclose(trace["y"]["fn"].loc, 0.3 + 1.1 + 0.6, rtol=1e-6)
    by_the_joint = trace_of(handlers.do(model, data={"theta": EVENT}))
    assert set(trace) == set(by_the_joint)


def test_a_part_of_an_intervention_is_refused():
    with pytest.raises(ValueError, match=r"without \['v'\]"):
        trace_of(handlers.do(model, data=PART))


# Through the noise -------------------------------------------------------------------------------


def test_values_are_carried_to_the_noise():
    for values in (VALUES, {"theta": EVENT}):
        trace = trace_of(handlers.substitute(noisy, data=values))
        np.testing.assert_allclose(trace["theta_base"]["value"], density().to_base(EVENT), rtol=1e-5)
        np.testing.assert_allclose(trace["tau"]["value"], 0.8, rtol=1e-6)
        z = initialize_model(jr.key(0), noisy, init_strategy=init_to_value(values=values), model_args=(0.4,))[0].z
        np.testing.assert_allclose(z["theta_base"], density().to_base(EVENT), rtol=1e-5)


def test_draws_are_carried_to_the_noise():
    event, named = draws()
    for samples in (named, {"theta": event}, {"theta": event, **named}):
        found = Predictive(noisy, samples, return_sites=["theta", "tau"])(jr.key(0))
        np.testing.assert_allclose(found["theta"], event, rtol=1e-5)
    drawn = Predictive(noisy, num_samples=4)(jr.key(0))
    again = Predictive(noisy, drawn, return_sites=["theta", "theta_base"])(jr.key(1))
    np.testing.assert_array_equal(again["theta_base"], drawn["theta_base"])


def test_a_start_of_a_site_without_names_is_carried_to_the_noise():
    flow = fd.FlowDensity(gaussian_flow(), solver=fd.FixedStep(4))

    @handlers.reparam(config={"x": fd.FlowReparam()})
    def plain():
        numpyro.sample("y", dist.Normal(numpyro.sample("x", flow), 1.0).to_event(1), obs=np.zeros(2))

    value = jnp.array([0.4, -0.3])
    z = initialize_model(jr.key(0), plain, init_strategy=init_to_value(values={"x": value}))[0].z
    np.testing.assert_allclose(z["x_base"], flow.to_base(value), rtol=1e-5)


@pytest.mark.parametrize("values", [VALUES, {"theta": EVENT}], ids=["names", "the joint site"])
def test_noise_cannot_be_conditioned_on_a_value(values):
    with pytest.raises(ValueError, match="FlowReparam expected site `theta` to be latent"):
        trace_of(handlers.condition(noisy, data=values))


def test_an_intervention_through_the_noise():
    for values in (VALUES, {"theta": EVENT}):
        trace = trace_of(handlers.do(noisy, data=values))
        np.testing.assert_allclose(trace["y"]["fn"].loc, 0.3 + 1.1 + 0.6, rtol=1e-6)
        np.testing.assert_array_equal(trace["theta_base"]["value"], trace_of(noisy)["theta_base"]["value"])


def test_a_strategy_for_a_name_is_refused():
    with pytest.raises(ValueError, match=r"sample_sites expected handlers to leave 'tau'.*Fix: config = .*FlowReparam"):
        trace_of(handlers.reparam(model, config={"tau": LocScaleReparam(0.0)}))


def test_a_strategy_that_takes_no_value_is_refused():
    config = {"theta": ExplicitReparam(transforms.AffineTransform(0.0, 2.0))}
    with pytest.raises(ValueError, match=r"sample_sites expected the joint site 'theta' to be sampled as it is"):
        trace_of(handlers.substitute(handlers.reparam(model, config=config), data=VALUES))


def test_a_block_hides_what_it_hides():
    hidden = handlers.substitute(handlers.block(model, hide=list(VALUES)), data=VALUES)
    np.testing.assert_array_equal(trace_of(hidden)["theta"]["value"], trace_of(model)["theta"]["value"])
    inside = handlers.block(handlers.substitute(model, data=VALUES), hide=["y"])
    np.testing.assert_array_equal(trace_of(inside)["theta"]["value"], EVENT)
    with pytest.raises(ValueError, match="a handler hides it"):
        trace_of(handlers.substitute(handlers.block(model, hide=["theta"]), data=VALUES))


def test_values_in_a_scan():
    def steps():
        def step(carry, _):
            values = fd.sample_sites("theta", density())
            return carry + values["a"], values["tau"]

        return scan(step, 0.0, None, length=3)

    event, named = draws(3)
    found = Predictive(steps, {name: value[None] for name, value in named.items()}, return_sites=["theta"])(jr.key(0))
    np.testing.assert_array_equal(found["theta"][0], event)
    with pytest.raises(ValueError, match=r"without \['v'\]"):
        Predictive(steps, {"a": named["a"][None], "tau": named["tau"][None]})(jr.key(0))


def test_what_one_trace_had_another_has():
    for each in (model, noisy):
        first = trace_of(each)
        again = trace_of(handlers.replay(each, trace=first), key=1)
        for name in ("theta", *SHAPES):
            np.testing.assert_array_equal(again[name]["value"], first[name]["value"])
