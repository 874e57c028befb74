"""Chains on a device each: in a process of its own, since a CPU is made several devices before JAX starts."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import sys
import jax, jax.numpy as jnp, jax.random as jr, numpy as np, numpyro, numpyro.distributions as dist
from numpyro.infer import HMC, MCMC
sys.path.insert(0, sys.argv[1])
from references import gaussian_flow
import flowdensity as fd

density = fd.FlowDensity(gaussian_flow(), solver=fd.FixedStep(4))

def model():
    theta = numpyro.sample("theta", density)
    numpyro.sample("y", dist.Normal(theta, 0.8).to_event(1), obs=jnp.array([0.5, -1.0]))

def draws(kernel, method):
    mcmc = MCMC(kernel, num_warmup=2, num_samples=5, num_chains=2, chain_method=method, progress_bar=False)
    mcmc.run(jr.key(0))
    return np.asarray(mcmc.get_samples(group_by_chain=True)["theta"])

def hmc():
    return HMC(model, step_size=0.3, num_steps=3, trajectory_length=None, adapt_step_size=False)

assert jax.local_device_count() == 2
kernels = {
    "HMC": hmc,
    "DelayedAcceptance": lambda: fd.DelayedAcceptance(hmc(), exact={"theta": density}),
}
np.savez(sys.argv[2], **{f"{name}, {method}": draws(make(), method)
                         for name, make in kernels.items() for method in ("parallel", "sequential")})
"""


@pytest.mark.slow
def test_chains_on_a_device_each_are_those_one_after_the_other(tmp_path):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / "draws.npz")]
    subprocess.run(arguments, env=environment, check=True, timeout=300)
    with np.load(tmp_path / "draws.npz") as found:
        for kernel in ("HMC", "DelayedAcceptance"):
            parallel = found[f"{kernel}, parallel"]
            assert parallel.shape == (2, 5, 2)
            assert np.all(parallel[0] != parallel[1])
            np.testing.assert_allclose(parallel, found[f"{kernel}, sequential"], rtol=1e-4, atol=1e-4)
