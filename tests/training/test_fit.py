"""The fits a user calls: their options, what they return, and how they end."""

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import EPS32, paired, patch_everywhere
from scipy.stats import multivariate_normal, norm

import flowdensity as fd
from flowdensity.training import loop
from flowdensity.training.folds import VALIDATION_SOLVER
from flowdensity.training.loop import TrainingDiverged


def banana(rows: int, seed: int = 0) -> np.ndarray:
    """x ~ N(0, 1), y = x^2 + 0.3 e: nothing that a Gaussian can fit."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    return np.column_stack([x, np.square(x) + 0.3 * rng.normal(size=rows)])


def banana_log_prob(events: np.ndarray) -> np.ndarray:
    x, y = np.asarray(events, np.float64).T
    return norm.logpdf(x) + norm.logpdf(y, np.square(x), 0.3)


ROWS = banana(2500)


def quick(steps: int = 20, batch_size: int = 64, learning_rate: float = 0.005) -> dict:
    return {"training": fd.Training(steps, batch_size, learning_rate), "progress": False}


QUICK = quick()


def quick_network(dim: int = 2, context_dim: int = 0) -> fd.networks.ResidualMLP:
    return fd.networks.ResidualMLP(jr.key(1), dim, context_dim, width=8, depth=1)


# Options -----------------------------------------------------------------------------------------

BAD_OPTIONS = {
    "divergence string": ({"divergence": "hutchinson"}, "divergence", r"got 'hutchinson'"),
    "divergence of other weights": (
        {"divergence": fd.SteinDivergence(lambda time, state, hidden: 0.0)},
        "divergence",
        "only valid for the weights",
    ),
    "divergence class": ({"divergence": fd.ExactDivergence}, "divergence", "got "),
    "path string": ({"path": "condot"}, "path", "got 'condot'"),
    "path class": ({"path": fd.paths.CondOT}, "path", "got "),
    "network function": ({"network": lambda t, x: x}, "network", "got "),
    "network of another dimension": (
        {"network": fd.networks.ResidualMLP(jr.key(0), 3, width=4)},
        "network",
        r"2 dimensions.*got one for 3",
    ),
    "network with a context": (
        {"network": fd.networks.ResidualMLP(jr.key(0), 2, 1, width=4)},
        "network",
        r"0 of context; got one for 2 and 1",
    ),
    "support string": ({"support": "positive"}, "support", "got 'positive'"),
    "training number": ({"training": 100}, "training", "got 100"),
    "training dict": ({"training": {"steps": 100}}, "training", "got dict"),
}


@pytest.mark.parametrize(("options", "argument", "says"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_are_refused_before_training(options, argument, says, monkeypatch):
    patch_everywhere(monkeypatch, "train", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises((TypeError, ValueError), match=rf"(?s)^fit_flow expected .*`{argument}`.*{says}.*Fix: "):
        fd.fit_flow(jr.key(0), ROWS, progress=False, **options)


def test_fit_divergence_checks_its_options_too(mixture_fit, monkeypatch):
    patch_everywhere(monkeypatch, "train", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(TypeError, match=r"^fit_divergence expected `training` of type Training; got 100\. Fix: "):
        fd.fit_divergence(jr.key(0), mixture_fit.density.model, mixture_fit.data, training=100, progress=False)


class Reached(Exception):
    """Training would begin with this."""


def reached(key, model, table, training, *args, **others):
    raise Reached(model, training)


# What comes back ---------------------------------------------------------------------------------

EVENTS = {
    "integers": (np.arange(2500) ** 2 // 100, 1, constraints.real, ()),
    "matrices on the unit interval": (
        1.0 / (1.0 + np.exp(-0.3 * ROWS[:2400].reshape(600, 4, 2))),
        8,
        constraints.unit_interval,
        (4, 2),
    ),
    "two rows": (ROWS[:2], 2, constraints.real, (2,)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("data", "dim", "support", "event_shape"), EVENTS.values(), ids=EVENTS.keys())
def test_an_event_of_any_shape_and_support(data, dim, support, event_shape):
    density, report = fd.fit_flow(
        jr.key(0), data, support=support, network=quick_network(dim), divergence=fd.ExactDivergence(), **QUICK
    )
    assert density.event_shape == event_shape
    assert density.batch_shape == ()
    draws = density.sample(jr.key(1), (50,))
    assert draws.shape == (50, *event_shape)
    assert np.all(density.support(draws))
    assert np.all(np.isfinite(density.log_prob(np.float32(np.asarray(data)[:10]))))
    assert report.seconds["flow"] > 0.0
    # Twenty steps from the fitted Gaussian: the draws are still near the data.
    flat = np.asarray(draws, float).reshape(50, -1)
    columns = np.asarray(data, float).reshape(len(data), -1)
    assert np.all(np.abs(np.median(flat, 0) - np.median(columns, 0)) < 3.0 * columns.std(0))


@pytest.mark.slow
def test_another_divergence_is_taken_as_it_is_and_nothing_is_distilled():
    for divergence in (fd.ExactDivergence(), fd.HutchinsonDivergence(jr.key(5), 2)):
        density, report = fd.fit_flow(
            jr.key(0), ROWS, network=quick_network(), divergence=divergence, path=fd.paths.Trigonometric(), **QUICK
        )
        assert type(density.divergence) is type(divergence)
        assert set(report.losses) == {"flow"}
        assert report.residuals is None
        assert "Stein" not in report.summary()
        assert isinstance(density.model.path, fd.paths.Trigonometric)
        assert density.model.network.width == quick_network().width


@pytest.mark.parametrize(("dim", "kind"), [(3, fd.ExactDivergence), (4, fd.SteinDivergence)])
def test_the_divergence_is_exact_by_default_in_few_dimensions(dim, kind):
    data = np.random.default_rng(0).normal(size=(40, dim))
    network = fd.networks.ResidualMLP(jr.key(1), dim, width=4, depth=1, experts=0)
    density, report = fd.fit_flow(jr.key(0), data, network=network, **quick(2))
    assert isinstance(density.divergence, kind)
    assert ("divergence: exact" in report.summary()) == (kind is fd.ExactDivergence)


@pytest.mark.parametrize(
    ("prediction", "path"),
    [
        ("velocity", None),
        ("noise", fd.paths.CondOT()),
        ("data", fd.paths.VarianceExploding()),
        ("score", fd.paths.Trigonometric()),
    ],
)
def test_a_diffusion_is_made_for_any_path_and_any_prediction(monkeypatch, prediction, path):
    """What each of them is as a model, and that it starts at the fitted Gaussian, is tested in models/test_diffusion.py."""
    monkeypatch.setattr("flowdensity.training.fit.fit_velocity", reached)
    with pytest.raises(Reached) as caught:
        fd.fit_diffusion(jr.key(0), ROWS, path=path, prediction=prediction, network=quick_network(), progress=False)
    model, _ = caught.value.args
    assert isinstance(model, fd.models.GaussianFlow)
    assert model.prediction == prediction
    assert type(model.path) is type(path or fd.paths.VariancePreserving())


@pytest.mark.slow
def test_a_diffusion_is_learned():
    density, report = fd.fit_diffusion(
        jr.key(0),
        ROWS,
        prediction="noise",
        network=quick_network(),
        divergence=fd.ExactDivergence(),
        **quick(200),
    )
    assert set(report.losses) == {"diffusion"}
    losses = report.losses["diffusion"]["validation"]
    assert losses.min() < losses[0]
    # It is better than the fitted Gaussian on rows that it has not seen.
    fresh = banana(2000, seed=5)
    gaussian = multivariate_normal(ROWS.mean(0), np.cov(ROWS.T)).logpdf(fresh)
    gain, error = paired(density.log_prob(np.float32(fresh)), gaussian)
    assert gain > 4.5 * error


def test_the_report_says_how_it_went(positive_fit):
    report = positive_fit.report
    assert set(report.losses) == {"flow", "divergence"}
    for stage, losses in report.losses.items():
        assert set(losses) == {"step", "train", "validation"}
        lengths = {len(series) for series in losses.values()}
        assert len(lengths) == 1
        assert losses["step"][0] == 0
        assert losses["step"][-1] <= 500
        assert np.all(np.isfinite(losses["validation"]))
        assert f"{stage}: {losses['step'][-1]} steps" in report.summary()
    # Of the zero field on whitened data the matching loss is one, to the standard error of the mean of a chi-squared
    # square over the 400 rows held out; training lowers both losses.
    flow = report.losses["flow"]["validation"]
    assert flow[0] == pytest.approx(1.0, abs=4.5 * np.sqrt(2.0 / 400.0))
    assert flow.min() < flow[0]
    assert report.losses["divergence"]["validation"].min() < 0.0
    assert set(report.seconds) >= {"flow", "divergence"}
    assert report.residuals.mean.shape == (8, 3)  # "1", "g" and the one coordinate


@pytest.mark.slow
def test_the_same_key_gives_the_same_fit_whether_it_is_shown_or_not(capfd, monkeypatch):
    # A model that stayed at its reference has no divergence to learn.
    monkeypatch.setattr("flowdensity.training.departure.is_clear", lambda gain: True)
    monkeypatch.setattr("flowdensity.training.departure.choose_reference", lambda *args, **options: None)
    network = quick_network()
    before = jax.tree.map(np.asarray, eqx.filter(network, eqx.is_array))
    densities, texts = [], []
    for progress in ({"progress": False}, {}):
        options = QUICK | {"progress": True, "divergence": fd.objectives.LangevinStein()} | progress
        # With this key, so few steps improve the validation loss.
        density, _ = fd.fit_flow(jr.key(2), ROWS, network=network, **options)
        densities.append(density)
        texts.append(capfd.readouterr())
    points = np.asarray(ROWS[:20], np.float32)
    np.testing.assert_array_equal(*(np.asarray(density.log_prob(points)) for density in densities))

    assert texts[0].out == texts[0].err == texts[1].out == ""
    for word in ("flow", "divergence", "20/20", "train=", "validation="):
        assert word in texts[1].err, word

    # The network that was handed in, twice, is as it was.
    after = eqx.filter(network, eqx.is_array)
    for ours, theirs in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_another_key_gives_another_fit():
    fits = [
        fd.fit_flow(jr.key(key), ROWS, network=quick_network(), divergence=fd.ExactDivergence(), **QUICK)[0]
        for key in (0, 1)
    ]
    points = np.asarray(ROWS[:20], np.float32)
    assert np.any(fits[0].log_prob(points) != fits[1].log_prob(points))


# Small tables: the number of steps by cross-validation --------------------------------------------


@pytest.mark.slow
def test_few_rows_are_learned_from_without_a_part_held_out(monkeypatch):
    """Some steps on 300 rows from the fitted Gaussian: better than that on fresh rows, and never better than the truth."""
    monkeypatch.setattr("flowdensity.training.departure.choose_reference", lambda *args, **options: None)
    # The gain is then computed with the solver of the validation losses.
    monkeypatch.setattr("flowdensity.training.departure.COMPARISON_SOLVER", VALIDATION_SOLVER)
    data, fresh = banana(300), banana(4000, seed=1)
    options = quick(400, 256)
    density, report = fd.fit_flow(jr.key(0), data, network=quick_network(), divergence=fd.ExactDivergence(), **options)
    gaussian = multivariate_normal(data.mean(0), np.cov(data.T)).logpdf(fresh)
    model = np.asarray(density.log_prob(np.float32(fresh)), np.float64)
    gain, error = paired(model, gaussian)
    assert gain > 4.5 * error
    missing, error = paired(banana_log_prob(fresh), model)
    assert missing > -4.5 * error
    flow, history = report.losses["flow"], report.histories["flow"]
    assert history.best_step == flow["step"][np.argmin(flow["validation"])]
    # The same rows at the start and at the best step, per dimension.
    assert history.gain[0] == pytest.approx(2.0 * (flow["validation"][0] - flow["validation"].min()), abs=1e-4)
    assert (
        "held-out log density +{:.3f} +- {:.3f} nats relative to the reference".format(*history.gain)
        in report.summary()
    )


@pytest.mark.slow
def test_few_rows_with_nothing_to_learn_are_left_to_the_fitted_gaussian():
    """Rows of noise and a learning rate that ruins whatever it touches: no step does better than none."""
    data = np.random.default_rng(2).normal(size=(100, 2))
    options = quick(5, learning_rate=3.0)
    learned = fd.objectives.LangevinStein()
    density, report = fd.fit_flow(jr.key(0), data, network=quick_network(), divergence=learned, **options)
    scaling = density.model.scaling
    factor = np.asarray(scaling.scale, np.float64)
    expected = multivariate_normal(np.asarray(scaling.location, np.float64), factor @ factor.T).logpdf(data)
    # Also of the learned divergence, which is then zero.
    assert isinstance(density.divergence, fd.SteinDivergence)
    np.testing.assert_allclose(density.log_prob(np.float32(data)), expected, rtol=32.0 * EPS32, atol=32.0 * EPS32)
    assert report.reference.components is None
    assert report.histories["flow"].best_step == 0
    assert "training did not improve held-out rows, so the reference is used unchanged" in report.summary()
    assert report.summary().startswith(
        "Training of the flow did not improve held-out rows: the result is the reference ("
    )


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 25])
def test_however_few_rows_there_are(rows):
    data = banana(rows)
    density, _ = fd.fit_flow(jr.key(0), data, network=quick_network(), divergence=fd.ExactDivergence(), **quick(5))
    assert np.all(np.isfinite(density.log_prob(np.float32(data))))


@pytest.mark.slow
def test_a_column_that_varies_in_one_row_only():
    """Cross-validation must not whiten by a part of the rows in which the column is constant."""
    data = banana(40)
    data[:, 1] = 0.0
    data[7, 1] = 1.0
    with pytest.warns(UserWarning, match=r"few ties; got data\[:, 1\], in which 97.5% of the rows are 0"):
        density, _ = fd.fit_flow(jr.key(0), data, network=quick_network(), divergence=fd.ExactDivergence(), **quick(5))
    assert np.all(np.isfinite(density.log_prob(np.float32(data))))


# Interrupted and diverging fits ------------------------------------------------------------------


class InterruptStage:
    """Stands in for the progress bar, and presses Ctrl-C at the second update of one stage."""

    def __init__(self, stage):
        self.stage, self.updates, self.desc = stage, 0, None

    def __call__(self, *, desc, **options):
        self.desc, self.updates = desc, 0
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def update(self, count):
        self.updates += 1
        if self.desc == self.stage and self.updates == 2:
            raise KeyboardInterrupt

    def set_postfix(self, **fields):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "divergence", "stages"),
    [("flow", fd.ExactDivergence, {"flow"}), ("divergence", fd.SteinDivergence, {"flow", "divergence"})],
    ids=["flow", "divergence"],
)
def test_an_interrupted_fit_returns_the_best_so_far(stage, divergence, stages, monkeypatch):
    monkeypatch.setattr(loop, "tqdm", InterruptStage(stage))
    # From a mixture there is nothing for the head to learn after so few steps.
    monkeypatch.setattr("flowdensity.training.departure.choose_reference", lambda *args, **options: None)
    monkeypatch.setattr("flowdensity.training.departure.is_clear", lambda gain: True)
    learned = fd.objectives.LangevinStein()
    with pytest.warns(UserWarning, match=f"The {stage} was interrupted at step 2 of 20"):
        # With this key, so few steps improve the validation loss.
        density, report = fd.fit_flow(jr.key(2), ROWS, network=quick_network(), divergence=learned, **QUICK)
    assert isinstance(density.divergence, divergence)
    assert set(report.losses) == stages
    assert "interrupted at step 2" in report.summary()
    assert np.all(np.isfinite(density.log_prob(np.asarray(ROWS[:5], np.float32))))


@pytest.mark.slow
@pytest.mark.parametrize("data", [ROWS, ROWS[:100]], ids=["many rows", "few rows"])
def test_a_fit_that_diverges_says_when_and_keeps_the_best(data):
    with pytest.raises(
        TrainingDiverged, match=r"flow loss was no longer finite by step \d+.*Fix: training = fd\.Training"
    ) as caught:
        fd.fit_flow(
            jr.key(0),
            data,
            network=quick_network(),
            training=fd.Training(steps=100, learning_rate=1e30),
            progress=False,
        )
    error = caught.value
    assert 1 <= error.step <= 100
    assert f"step {error.step}" in str(error)
    assert isinstance(error.best, fd.FlowDensity)
    # The best until then: before the first step it is the fitted Gaussian.
    events = np.asarray(ROWS[:20], np.float32)
    assert np.all(np.isfinite(error.best.log_prob(events)))
    assert np.all(np.isfinite(error.best.sample(jr.key(0), (20,))))


@pytest.mark.slow
def test_a_distillation_that_diverges_keeps_the_flow(mixture_fit):
    with pytest.raises(TrainingDiverged, match="divergence loss was no longer finite") as caught:
        fd.fit_divergence(
            jr.key(0),
            mixture_fit.density.model,
            mixture_fit.data,
            training=fd.Training(steps=100, learning_rate=1e30),
            progress=False,
        )
    best = caught.value.best
    assert isinstance(best, fd.FlowDensity)
    assert np.all(np.isfinite(best.log_prob(np.asarray(mixture_fit.data[:20], np.float32))))
