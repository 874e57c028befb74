"""numpyro's samplers and SVI with short runs, for the snippets of the docs and the examples of docstrings.

They are classes, since arviz asks of what class a sampler is.
"""

import numpyro.infer


class ShallowNUTS(numpyro.infer.NUTS):
    """At most seven leapfrog steps a draw."""

    def __init__(self, model):
        super().__init__(model, max_tree_depth=3)


class ShortMCMC(numpyro.infer.MCMC):
    """Twenty draws after twenty of warm-up, silently."""

    def __init__(self, kernel, **options):
        super().__init__(kernel, **options | {"num_warmup": 20, "num_samples": 20, "progress_bar": False})


class ShortSVI(numpyro.infer.SVI):
    """At most four steps, silently."""

    def run(self, rng_key, num_steps, *args, **options):
        return super().run(rng_key, min(num_steps, 4), *args, **options | {"progress_bar": False})
