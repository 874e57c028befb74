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

import flowdensity as fd
from flowdensity.training import divergence, prepare

ROOT = Path(__file__).parents[1]
PUBLIC = {name for name, value in vars(fd).items() if getattr(value, "__module__", "").startswith("flowdensity.")}
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


# Classes, since arviz asks of what class a sampler is.


class ShallowNUTS(numpyro.infer.NUTS):
    """At most seven leapfrog steps a draw."""

    def __init__(self, model):
        super().__init__(model, max_tree_depth=3)


class ShortMCMC(numpyro.infer.MCMC):
    """Twenty draws after twenty of warm-up, silently."""

    def __init__(self, kernel, **options):
        super().__init__(kernel, **options | {"num_warmup": 20, "num_samples": 20, "progress_bar": False})


@pytest.fixture(scope="module")
def namespace():
    """What the README's first block defines, with training and sampling cut short."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fit_flow", "fit_divergence"):
            patch.setattr(fd, name, functools.partial(getattr(fd, name), steps=100, batch_size=64, progress=False))
        short = functools.partial(fd.distill, labels=1024, width=16, steps=50, progress=False)
        patch.setattr(fd, "distill", short)
        patch.setattr(prepare, "ResidualMLP", lambda key, dim, contexts, **_: small_network(0, dim, contexts))
        patch.setattr(divergence, "TRUNK", (32, 1))
        patch.setattr(numpyro.infer, "NUTS", ShallowNUTS)
        patch.setattr(numpyro.infer, "MCMC", ShortMCMC)
        names = {}
        exec(BLOCKS[0], names)
        theta = np.random.default_rng(0).normal(size=2500)
        chains = theta.reshape(2, 1250)
        yield names | {
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


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS[1:], ids=lambda block: block.split("\n")[0])
def test_readme_blocks_run(namespace, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict(namespace)
    with warnings.catch_warnings():
        # So short a training has much to be warned of.
        warnings.simplefilter("ignore", UserWarning)
        exec(block, names)
    if "FlowReparam" in block:
        names["mcmc"].run(names["key"], y=np.zeros(2))
        assert names["mcmc"].get_samples()["theta_base"].shape == (20, 2)
    if "given" in block:
        mcmc = names["MCMC"](names["NUTS"](names["model"]))
        mcmc.run(names["key"], observed=np.zeros(3))
        assert mcmc.get_samples()["theta"].shape == (20,)
    if "sample_sites" in block:
        mcmc = names["MCMC"](names["NUTS"](names["model"]))
        mcmc.run(names["key"], y=0.5)
        assert (mcmc.get_samples()["tau"] > 0.0).all()
    if "distill" in block:
        names["mcmc"].run(names["key"])
        assert names["mcmc"].get_samples()["theta"].shape == (20, 2)
    if "AutoFlow" in block:
        assert np.isfinite(names["svi"].run(names["key"], 3, y=np.zeros(2), progress_bar=False).losses).all()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_api_reference_has_every_public_name():
    page = (ROOT / "docs/api.md").read_text()
    assert sorted(re.findall(r"^::: flowdensity\.(\w+)$", page, flags=re.MULTILINE)) == sorted(PUBLIC)
