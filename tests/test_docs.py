"""What the README and the docs say can be run, and names what there is."""

import contextlib
import functools
import re
import warnings
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import sklearn.datasets
import xarray as xr
from conftest import small_network
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import Predictive, init_to_value
from numpyro.infer.util import log_density
from shortened import ShallowNUTS, ShortMCMC, ShortSVI

import flowdensity as fd
from flowdensity.training import divergence, prepare

ROOT = Path(__file__).parents[1]
PUBLIC = {name for name, value in vars(fd).items() if getattr(value, "__module__", "").startswith("flowdensity.")}
PAGES = ["which-tool.md", "faq.md", "coming-from.md"]
"""Pages whose snippets run in their order and share their names."""
FRAGMENTS = {
    "amortized.md": "sampled(model, y=observed)",
    "any-model.md": "assert predictive['y'].shape[1:] == (40,)",
    "columns.md": "sampled(model, y=np.array([0.1, 0.3]))",
    "guides.md": "assert draws['theta'].shape == (1000, 2)",
    "in-a-model.md": "sampled(model, y=np.zeros(4), group=np.arange(4))",
    "likelihoods.md": "sampled(model, observed=np.zeros(3))",
    "trust.md": "assert mcmc.get_samples()['theta'].shape[-1] == 2",
    "which-divergence.md": "assert learned.is_learned",
}
"""Pages whose snippets use names that the page does not define, and what follows them: a run of the last model, for example."""

IMPORTED = {
    "Predictive": Predictive,
    "SVI": ShortSVI,
    "constraints": constraints,
    "handlers": handlers,
    "init_to_value": init_to_value,
    "jnp": jnp,
    "log_density": log_density,
    "np": np,
    "optax": optax,
    "sklearn": sklearn,
}
"""Imports that these snippets leave out."""


def blocks_of(page):
    """The snippets of a page, without those of another file; those in other packages are marked `py` in place of `python`."""
    return re.findall(r"```python\n(?!--8<--)(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


BLOCKS = blocks_of("README.md")


@pytest.fixture(scope="module")
def shortened():
    """Training and sampling are cut short."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fit_flow", "fit_divergence"):
            patch.setattr(
                fd,
                name,
                functools.partial(getattr(fd, name), training=fd.Training(steps=100, batch_size=64), progress=False),
            )
        patch.setattr(
            fd,
            "fit_posterior",
            functools.partial(
                fd.fit_posterior, num_simulations=300, training=fd.Training(steps=100, batch_size=64), progress=False
            ),
        )
        short = functools.partial(fd.distill, labels=1024, width=16, training=fd.Training(steps=50), progress=False)
        patch.setattr(fd, "distill", short)
        patch.setattr(prepare, "ResidualMLP", lambda key, dim, contexts, **_: small_network(0, dim, contexts))
        patch.setattr(divergence, "TRUNK_SIZE", (32, 1))
        patch.setattr(numpyro.infer, "NUTS", ShallowNUTS)
        patch.setattr(numpyro.infer, "MCMC", ShortMCMC)
        patch.setattr(numpyro.infer, "SVI", ShortSVI)
        yield


@pytest.fixture(scope="module")
def namespace(shortened):
    """The names that the first block of the README defines, and those that its other blocks use."""
    names = {}
    exec(BLOCKS[0], names)
    theta = np.random.default_rng(0).normal(size=2500)
    chains = theta.reshape(2, 1250)
    return names | {
        "key": jax.random.key(2),
        "data": names["population"],
        "theta": theta,
        "velocity": lambda t, x, context: 0.5 * x,
        "x": theta + 1.0,
        "idata": xr.Dataset(
            {name: (("chain", "draw"), value) for name, value in (("mu", chains), ("tau", np.exp(chains)))}
        ),
    }


@pytest.mark.slow
def test_readme_first_block_samples_a_posterior(namespace):
    assert namespace["mcmc"].get_samples()["theta"].shape == (40, 2)


def sampled(names, model, **observed):
    """Draws of a short run of a block's model."""
    mcmc = names["MCMC"](names["NUTS"](model))
    mcmc.run(names["key"], **observed)
    return mcmc.get_samples()


def check_likelihood(names):
    assert sampled(names, names["model"], observed=np.zeros(3))["theta"].shape == (20,)


def check_sites(names):
    draws = sampled(names, names["model"], y=0.5)
    assert draws["mu"].shape == draws["tau"].shape == (20,)
    assert (draws["tau"] > 0.0).all()


def check_posterior(names):
    assert names["refined"].posterior["posterior"]["rate"].shape[1] == 1000


def check_divergence(names):
    assert isinstance(names["divergence"], fd.SteinDivergence)
    assert set(names["report"].losses) == {"divergence"}


def check_field(names):
    check_divergence(names)
    assert isinstance(names["density"].model, fd.VelocityField)
    assert np.isfinite(names["density"].log_prob(np.zeros((3, 2)))).all()


def check_reparam(names):
    names["mcmc"].run(names["key"], y=np.zeros(2))
    draws = names["mcmc"].get_samples()
    assert draws["theta_base"].shape == draws["theta"].shape == (20, 2)


def check_distilled(names):
    names["mcmc"].run(names["key"])
    assert names["mcmc"].get_samples()["theta"].shape == (20, 2)


def check_guide(names):
    losses = names["svi"].run(names["key"], 3, y=np.zeros(2), progress_bar=False).losses
    assert losses.shape == (3,)
    assert np.isfinite(losses).all()


def check_diagnosis(names):
    assert np.asarray(names["repaired"].resample()["posterior"]["theta"]).shape[-1] == 2


def check_files(names):
    assert {"population.flow", "my-fit"} <= {file.name for file in Path.cwd().iterdir()}
    assert isinstance(names["density"], fd.FlowDensity)


CHECKS = {
    "context=theta": check_likelihood,
    "fd.fit_posterior": check_posterior,
    "fd.sample_sites": check_sites,
    "fd.HutchPlusPlusDivergence": check_divergence,
    "fd.VelocityField": check_field,
    "fd.FlowReparam": check_reparam,
    "fd.distill": check_distilled,
    "fd.AutoFlow": check_guide,
    "fd.diagnose": check_diagnosis,
    "fd.save": check_files,
}
"""What a block of the README must come to, by something that only this block has."""


def test_every_readme_block_has_its_check():
    assert [[mark for mark in CHECKS if mark in block] for block in BLOCKS[1:]] == [[mark] for mark in CHECKS]


@pytest.mark.slow
@pytest.mark.parametrize("mark", CHECKS)
def test_readme_blocks_run(namespace, mark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict(namespace)
    (block,) = (block for block in BLOCKS[1:] if mark in block)
    with warnings.catch_warnings():
        # So short a training has much to be warned of.
        warnings.simplefilter("ignore", UserWarning)
        exec(block, names)
    CHECKS[mark](names)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run_in_order(shortened, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks, names = blocks_of(f"docs/{page}"), {}
    assert blocks
    with warnings.catch_warnings():
        # So short a training has much to be warned of.
        warnings.simplefilter("ignore", UserWarning)
        for number, block in enumerate(blocks):
            exec(compile(block, f"<block {number} of {page}>", "exec"), names)


def given(page, names):
    """The names that the snippets of a page use without defining them."""
    rng, key = np.random.default_rng(0), jax.random.key(2)
    observed, data, theta = np.zeros(2), names["population"][:300], rng.normal(size=(300, 8))
    density, fast = names["density"], names["prior"]

    def model(y):
        theta = numpyro.sample("theta", density)
        numpyro.sample("y", dist.Normal(theta, 0.3).to_event(1), obs=y)

    def sampled(model, **observed):
        run = ShortMCMC(ShallowNUTS(model), num_chains=2, chain_method="vectorized")
        run.run(key, **observed)
        return run

    common = IMPORTED | names
    common |= {"key": key, "data": data, "observed": observed, "sampled": sampled, "model": model, "density": density}
    own = {
        "columns.md": lambda: {
            "rows": np.column_stack([np.round(theta[:, 0], 1), np.round(5.0 * theta[:, 1]), theta[:, 2]]),
            "row": np.zeros(3),
            "likelihood": fd.fit_flow(key, rng.normal(size=300), context=rng.normal(size=300))[0],
        },
        "guides.md": lambda: {"y": observed},
        "in-a-model.md": lambda: {
            "mu": theta[:, 0],
            "tau": np.exp(theta[:, 1]),
            "sigma": np.exp(theta[:, 1]),
            "theta": theta,
            "y": np.zeros(8),
            "simulated": theta[:, 2],
        },
        "likelihoods.md": lambda: {name: theta[:, number] for number, name in enumerate("aby")},
        "trust.md": lambda: {
            "held_out": data,
            "report": names["report"],
            "fast": fast,
            "y": observed,
            "posterior": az.from_numpyro(sampled(model, y=observed), log_likelihood=False),
        },
    }
    return common | own.get(page, dict)()


@pytest.mark.slow
@pytest.mark.parametrize("page", FRAGMENTS)
def test_the_fragments_of_a_page_run(namespace, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        # So short a training has much to be warned of.
        warnings.simplefilter("ignore", UserWarning)
        names = given(page, namespace)
        for number, block in enumerate([*blocks_of(f"docs/{page}"), FRAGMENTS[page]]):
            # A page may stop the program at a bad diagnosis.
            with contextlib.suppress(SystemExit):
                exec(compile(block, f"<block {number} of {page}>", "exec"), names)


def test_every_page_with_snippets_runs():
    pages = {page.name for page in (ROOT / "docs").glob("*.md") if blocks_of(f"docs/{page.name}")}
    assert pages == {*PAGES, *FRAGMENTS}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_api_reference_has_every_public_name():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    assert sorted(re.findall(r"^::: flowdensity\.(\w+)$", pages, flags=re.MULTILINE)) == sorted(PUBLIC)
