"""What the README and the docs say can be run, and names what there is."""

import functools
import re
import warnings
from pathlib import Path

import jax
import numpy as np
import numpyro.infer
import pytest
import xarray as xr
from conftest import small_network
from shortened import ShallowNUTS, ShortMCMC, ShortSVI

import flowdensity as fd
from flowdensity.training import divergence, prepare

ROOT = Path(__file__).parents[1]
PUBLIC = {name for name, value in vars(fd).items() if getattr(value, "__module__", "").startswith("flowdensity.")}
PAGES = ["which-tool.md", "faq.md", "coming-from.md"]
"""Pages whose snippets run in their order and share their names."""


def blocks_of(page):
    """The snippets of a page; those in other packages are marked `py` in place of `python`."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


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
    """What the README's first block defines."""
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


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_api_reference_has_every_public_name():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    assert sorted(re.findall(r"^::: flowdensity\.(\w+)$", pages, flags=re.MULTILINE)) == sorted(PUBLIC)
