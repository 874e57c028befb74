"""One kind of density: what is public on one learned density works on the other, or says why not."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.batch_util import vmap_over
from references import (
    CONTEXTS,
    NAMED,
    ExactGaussianFlow,
    amortized,
    conditional_gaussian_flow,
    gaussian_flow,
    named_flow,
    random_log_density,
)

import flowdensity as fd

SOLVER = fd.FixedStep(4)
FLOW = fd.FlowDensity(named_flow(conditional=True), {"s": np.array([0.2, -0.4]), "t": np.array(0.1)}, solver=SOLVER)
DENSITIES = {"flow": FLOW, "amortized": amortized(FLOW)}
EVENT = FLOW.sample(jr.key(0))
ARGUMENTS: dict[str, tuple[Any, ...] | None] = {
    **dict.fromkeys(
        ("arguments", "base", "context_shape", "divergence", "flow", "is_amortized", "model", "sites", "solver")
    ),
    **dict.fromkeys(("has_rsample", "state_log_prob", "support", "arg_constraints", "reparametrized_params")),
    **dict.fromkeys(("pytree_data_fields", "pytree_aux_fields")),
    "from_base": (np.zeros(4),),
    "get_args": (),
    "given": ({"s": np.zeros((3, 2)), "t": np.zeros(3)},),
    "log_prob": (EVENT,),
    "pack": ({"a": 0.5, "tau": 1.0, "v": np.ones(2)},),
    "sample": (jr.key(0), (2,)),
    "sample_diffusion": (jr.key(0), (2,)),
    "sample_with_intermediates": (jr.key(0), (2,)),
    "to_base": (EVENT,),
    "unpack": (EVENT,),
    "with_divergence": (fd.HutchinsonDivergence(jr.key(0)),),
    "with_solver": (fd.FixedStep(2),),
}
"""What each public member is called with; None for one that is not called."""
REFUSED = {("amortized", "with_divergence")}
density_of = pytest.mark.parametrize("kind", DENSITIES)


def public_members() -> set[str]:
    """What the package's densities define, beside what they have from numpyro."""
    classes = (fd.AbstractLearnedDensity, fd.FlowDensity, fd.AmortizedDensity)
    return {name for cls in classes for name in vars(cls) if not name.startswith("_")}


def test_every_public_member_is_tried():
    assert public_members() == set(ARGUMENTS)
    assert set(dir(fd.FlowDensity)) - {"_abc_impl"} == set(dir(fd.AmortizedDensity)) - {"_abc_impl"}


@pytest.mark.parametrize("member", ARGUMENTS)
@density_of
def test_every_public_member_works_or_says_why_not(kind, member):
    density, arguments = DENSITIES[kind], ARGUMENTS[member]
    if (kind, member) in REFUSED:
        with pytest.raises(
            (TypeError, NotImplementedError), match=rf"{type(density).__name__}\.{member} expected"
        ) as raised:
            getattr(density, member)(*arguments)
        names = {"density": density}
        exec(str(raised.value).rpartition("Fix: ")[2], names)
        jax.block_until_ready(jax.tree.leaves(getattr(names["density"], member)(*arguments)))
    elif arguments is None:
        getattr(density, member)
    else:
        jax.block_until_ready(jax.tree.leaves(getattr(density, member)(*arguments)))


def test_an_amortized_density_has_what_its_flow_has():
    fast = DENSITIES["amortized"]
    assert fast.sites == NAMED
    values = fast.unpack(EVENT)
    assert {name: value.shape for name, value in values.items()} == {"a": (), "tau": (), "v": (2,)}
    np.testing.assert_array_equal(fast.pack(values), EVENT)
    noise = FLOW.to_base(EVENT)
    np.testing.assert_array_equal(fast.to_base(EVENT), noise)
    np.testing.assert_array_equal(fast.from_base(noise), FLOW.from_base(noise))
    np.testing.assert_array_equal(fast.sample(jr.key(1), (3,)), FLOW.sample(jr.key(1), (3,)))
    np.testing.assert_array_equal(fast.sample_diffusion(jr.key(1), (3,)), FLOW.sample_diffusion(jr.key(1), (3,)))
    np.testing.assert_array_equal(fast.context, FLOW.context)
    assert (fast.divergence, fast.solver) == (FLOW.divergence, FLOW.solver)


@density_of
def test_the_flow_is_the_density_that_it_was_distilled_from(kind):
    density = DENSITIES[kind]
    assert type(density.flow) is fd.FlowDensity
    assert jax.tree.structure(density.flow) == jax.tree.structure(FLOW)
    np.testing.assert_array_equal(density.flow.log_prob(EVENT), FLOW.log_prob(EVENT))
    assert (density.flow is density) == (kind == "flow")


def test_the_solver_of_an_amortized_density_is_that_of_its_samples():
    fast = DENSITIES["amortized"]
    fine = fast.with_solver(fd.FixedStep(32))
    assert type(fine) is fd.AmortizedDensity
    np.testing.assert_array_equal(fine.log_prob(EVENT), fast.log_prob(EVENT))
    fine_flow = FLOW.with_solver(fd.FixedStep(32))
    np.testing.assert_array_equal(fine.sample(jr.key(2), (3,)), fine_flow.sample(jr.key(2), (3,)))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda d: d.log_prob(np.zeros(3)), ValueError, r"\.log_prob expected `value`"),
        (lambda d: d.log_prob({"a": 0.0, "tau": 1.0, "v": np.ones(2)}), TypeError, r"\.log_prob .*Fix: value = density\.pack"),
        (lambda d: d.to_base("a"), TypeError, r"\.to_base expected `value`.*Fix: value = density\.sample"),
        (lambda d: d.from_base(np.zeros(3)), ValueError, r"\.from_base expected `noise`"),
        (lambda d: d.sample(0), TypeError, r"\.sample expected `key`"),
        (lambda d: d.sample_diffusion(0), TypeError, r"\.sample_diffusion expected `key`"),
        (lambda d: d.pack({"a": 0.0}), ValueError, r"\.pack expected values"),
        (lambda d: d.unpack(np.zeros(3)), ValueError, r"\.unpack expected `event`"),
        (lambda d: d.given(np.zeros(2)), ValueError, r" expected `context`"),
        (lambda d: d.with_solver(16), TypeError, r" expected `solver`"),
    ],
)  # fmt: skip
@density_of
def test_errors_speak_of_the_density_that_was_called(kind, call, error, says):
    name = type(DENSITIES[kind]).__name__
    with pytest.raises(error, match=rf"^{name}{says}") as raised:
        call(DENSITIES[kind])
    assert "density.flow" not in str(raised.value)


def test_a_density_without_names_says_so():
    for density in (fd.FlowDensity(gaussian_flow()), amortized(fd.FlowDensity(gaussian_flow()))):
        name = type(density).__name__
        with pytest.raises(TypeError, match=rf"^{name}\.pack expected a density of named values.*Fix: "):
            density.pack({"a": 0.0})
        with pytest.raises(TypeError, match=rf"^{name}\.unpack expected a density of named values.*Fix: "):
            density.unpack(np.zeros(2))


@pytest.mark.parametrize("flags", [(None, None), (None, True), (True, None), (True, False), (False, True)])
def test_an_amortized_density_validates_as_it_is_told_or_else_as_its_flow(flags):
    own, flows = flags
    flow = fd.FlowDensity(gaussian_flow(), validate_args=flows)
    fast = fd.AmortizedDensity(random_log_density(2), flow, validate_args=own)
    expected = flows if own is None else own
    for density in (fast, fast.with_solver(SOLVER)):
        assert vars(density).get("_validate_args") is expected


def test_vmap_over_the_contexts_of_an_amortized_density():
    fast = amortized(fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS, solver=SOLVER))
    events = fast.sample(jr.key(3))
    values = jax.vmap(lambda d, x: d.log_prob(x), in_axes=(vmap_over(fast, context=0), 0))(fast, events)
    np.testing.assert_allclose(values, fast.log_prob(events), rtol=1e-5)


# The interface -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["flow", "state_log_prob"])
def test_an_implementer_is_told_what_is_missing(missing):
    members = {"flow": property(lambda self: None), "state_log_prob": property(lambda self: None)}
    del members[missing]
    incomplete = type("Incomplete", (fd.AbstractLearnedDensity,), members)
    with pytest.raises(TypeError, match=f"abstract.*{missing}"):
        incomplete(gaussian_flow())


def test_divergences_say_what_they_are():
    exact, learned = {fd.ExactDivergence}, {fd.SteinDivergence}
    for kind in (fd.ExactDivergence, fd.HutchinsonDivergence, fd.HutchPlusPlusDivergence, fd.SteinDivergence):
        assert kind.is_exact == (kind in exact)
        assert kind.is_learned == (kind in learned)


# Displays ----------------------------------------------------------------------------------------

GIVEN_LATER = fd.FlowDensity(conditional_gaussian_flow(), solver=SOLVER)
STACK = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), GIVEN_LATER)
SHOWN = {
    "named": (
        FLOW,
        "<FlowDensity of shape (4,), sites a: real, tau: positive, v[2]: positive, batch shape ()\n"
        " conditional on sites s[2]: real, t: real, given\n"
        " ExactGaussianFlow(dim=4) with ExactDivergence() and FixedStep(steps=4, method=Bosh3())>",
    ),
    "amortized": (
        amortized(fd.FlowDensity(gaussian_flow())),
        "<AmortizedDensity of shape (2,), support real, batch shape ()\n"
        " log_prob by LogDensityNetwork(1,196 weights); samples by ExactGaussianFlow(dim=2) with "
        "FixedStep(steps=16, method=Bosh3())>",
    ),
    "contexts": (
        GIVEN_LATER.given(CONTEXTS),
        "<FlowDensity of shape (2,), support real, batch shape (4,)\n"
        " conditional on a context of shape (3,), given\n"
        " ExactGaussianFlow(dim=2) with ExactDivergence() and FixedStep(steps=4, method=Bosh3())>",
    ),
    "a stack": (
        STACK,
        "<FlowDensity of shape (2,), support real, batch shape (), a stack of (3,)\n"
        " conditional on a context of shape (3,), not given\n"
        " ExactGaussianFlow(dim=2) with ExactDivergence() and FixedStep(steps=4, method=Bosh3())>",
    ),
    "a simplex": (
        fd.FlowDensity(ExactGaussianFlow(np.zeros(2), np.eye(2), support=dist.constraints.simplex, event_shape=(3,))),
        "<FlowDensity of shape (3,), support simplex, batch shape ()\n"
        " ExactGaussianFlow(dim=2) with ExactDivergence() and FixedStep(steps=16, method=Bosh3())>",
    ),
    "bounds that are arrays": (
        fd.FlowDensity(ExactGaussianFlow(np.zeros(1), np.eye(1), support=dist.constraints.interval(jnp.zeros(1), jnp.ones(1)))),
        "<FlowDensity of shape (1,), support _Interval, batch shape ()\n"
        " ExactGaussianFlow(dim=1) with ExactDivergence() and FixedStep(steps=16, method=Bosh3())>",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("density", "text"), SHOWN.values(), ids=SHOWN.keys())
def test_a_density_is_displayed_in_a_few_lines(density, text):
    assert repr(density) == text


@pytest.mark.parametrize("density", [one for one, _ in SHOWN.values()], ids=SHOWN.keys())
def test_a_display_computes_nothing(density):
    shown = []
    jaxpr = jax.make_jaxpr(lambda d: shown.append(repr(d)))(density)
    assert jaxpr.eqns == []
    leaves, structure = jax.tree.flatten(density)
    shown.append(repr(jax.tree.unflatten(structure, [object()] * len(leaves))))
    own = repr(density)
    assert shown[0] == own
    # Without its arrays the number of dimensions is not known, nor that of weights, nor what stands in a constraint.
    assert shown[1].count("\n") == own.count("\n")


PARTS = {
    "FixedStep(steps=8, method=Bosh3())": fd.FixedStep(8),
    "Adaptive(rtol=1e-05, atol=1e-05, method=Tsit5(), max_steps=4096)": fd.solvers.Adaptive(),
    "ExactDivergence()": fd.ExactDivergence(),
    "HutchinsonDivergence(probes=4, distribution='rademacher')": fd.HutchinsonDivergence(jr.key(0), 4),
    "HutchPlusPlusDivergence(probes=3, distribution='rademacher')": fd.HutchPlusPlusDivergence(jr.key(0)),
    "CondOT()": fd.paths.CondOT(),
    "VariancePreserving(beta_min=0.1, beta_max=20.0)": fd.paths.VariancePreserving(),
    "VarianceExploding(sigma_min=0.01, sigma_max=100.0)": fd.paths.VarianceExploding(),
    "ResidualMLP(dim=2, context_dim=3, 350 weights)": fd.networks.ResidualMLP(
        jr.key(0), 2, 3, width=4, depth=1, frequencies=2
    ),
    "LogDensityNetwork(1,196 weights)": random_log_density(2),
}


def test_a_stack_of_networks_is_displayed_as_one():
    one = fd.networks.ResidualMLP(jr.key(0), 2, 3, width=4, depth=1, frequencies=2)
    stack = eqx.filter_vmap(lambda key: fd.networks.ResidualMLP(key, 2, 3, width=4, depth=1, frequencies=2))(
        jr.split(jr.key(0), (5,))
    )
    assert repr(one) == "ResidualMLP(dim=2, context_dim=3, 350 weights)"
    assert repr(stack) == "ResidualMLP(dim=2, context_dim=3, 350 weights each, a stack of (5,))"
    images = eqx.filter_vmap(lambda key: fd.networks.UNet(key, (4, 4, 1)))(jr.split(jr.key(0), 3))
    assert repr(images) == repr(fd.networks.UNet(jr.key(0), (4, 4, 1)))[:-1] + " each, a stack of (3,))"


@pytest.mark.parametrize(("text", "part"), PARTS.items(), ids=[text.partition("(")[0] for text in PARTS])
def test_parts_are_displayed_in_one_line(text, part):
    assert repr(part) == text
    shown = []
    jax.eval_shape(lambda tree: shown.append(repr(tree)), part) if jax.tree.leaves(part) else shown.append(text)
    assert re.sub(r"\s", "", shown[0]) == re.sub(r"\s", "", text)
