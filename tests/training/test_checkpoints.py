"""A fit that is stopped goes on from its checkpoint, and ends with the weights that it would have had."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax.random as jr
import numpy as np
import pytest

import flowdensity as fd
from flowdensity import _container
from flowdensity.training.checkpoints import digest_of, open_checkpoint

DATA = np.random.default_rng(0).gamma(2.0, 1.0, (300, 2)).cumsum(axis=1)
SHORT = fd.Training(steps=20, batch_size=32)


def fit(checkpoint, *, seed=0, data=DATA, rows=slice(None), steps=75, **options):
    # Below 2,000 rows: a cross-validation from one Gaussian, another from a mixture, and then the divergence.
    training, learned = fd.Training(steps=steps, batch_size=128, learning_rate=2e-2), fd.objectives.LangevinStein()
    options = {"training": training, "divergence": learned} | options
    network = fd.networks.ResidualMLP(jr.key(1), 2, width=8, depth=1)
    return fd.fit_flow(jr.key(seed), data[rows], network=network, checkpoint=checkpoint, progress=False, **options)


@pytest.fixture(scope="module")
def whole() -> tuple[fd.FlowDensity, fd.results.FitReport]:
    return fit(None)


class Killed(BaseException):
    """What nothing in the package catches."""


def stop_after(monkeypatch, writes):
    """End the fit by an exception after so many files."""
    left, write = [writes], _container.write

    def counted(*args):
        write(*args)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(_container, "write", counted)


# The first file is that of the fit itself; 25 validations follow in each stage.
@pytest.mark.slow
@pytest.mark.parametrize("writes", [20, 35, 45])
def test_a_stopped_fit_ends_with_the_same_weights(tmp_path, monkeypatch, whole, writes):
    with monkeypatch.context() as patched:
        stop_after(patched, writes)
        with pytest.raises(Killed):
            fit(tmp_path)
    density, report = fit(tmp_path)
    assert eqx.tree_equal(density._parts, whole[0]._parts)
    assert {k: h.train for k, h in report.histories.items()} == {k: h.train for k, h in whole[1].histories.items()}
    assert report.residuals.mean.tobytes() == whole[1].residuals.mean.tobytes()


@pytest.mark.slow
def test_a_finished_fit_is_returned_without_training(tmp_path, monkeypatch, whole):
    fit(tmp_path)
    stop_after(monkeypatch, 1)  # a single validation would write
    density, report = fit(tmp_path)
    assert eqx.tree_equal(density._parts, whole[0]._parts)
    assert report.histories.keys() == whole[1].histories.keys()


@pytest.mark.slow
def test_an_interrupted_fit_goes_on(tmp_path, monkeypatch, whole):
    """Ctrl-C gives the best so far; the same call, later, the rest."""
    left, write = [9], _container.write

    def interrupted(*args):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        write(*args)

    with monkeypatch.context() as patched:
        patched.setattr(_container, "write", interrupted)
        with pytest.warns(UserWarning, match="was interrupted"):
            early, _ = fit(tmp_path)
    assert isinstance(early.divergence, fd.ExactDivergence)
    density, report = fit(tmp_path)
    assert not any(history.status == "interrupted" for history in report.histories.values())
    assert eqx.tree_equal(density._parts, whole[0]._parts)


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """The folder of a fit that was stopped as soon as its checkpoint was open."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patched:
        stop_after(patched, 1)
        with pytest.raises(Killed):
            fit(folder)
    return folder


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"data": DATA + 1e-3 * DATA**2}, {"rows": slice(250)}, {"steps": 61}, {"divergence": fd.ExactDivergence()}],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_the_checkpoint_of_another_fit_is_refused(begun, changed):
    before = {file.name: file.read_bytes() for file in begun.iterdir()}
    assert before.keys() == {"fit.checkpoint"}
    with pytest.raises(ValueError, match="fit_flow expected `checkpoint` as a new folder or the folder of this fit"):
        fit(begun, **changed)
    assert before == {file.name: file.read_bytes() for file in begun.iterdir()}


def test_the_checkpoint_of_the_same_fit_is_opened(begun, tmp_path, monkeypatch):
    """It goes on to its next file: equal inputs are not taken for others."""
    folder = tmp_path / "fit"
    shutil.copytree(begun, folder)
    monkeypatch.setattr("flowdensity.training.fit.fit_velocity", lambda *args, **options: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        fit(folder)


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"fit_flow expected `checkpoint` as the path of a folder; .* is a file"):
        fit(tmp_path / "file")
    with pytest.raises(TypeError, match="fit_flow expected `checkpoint` as the path of a folder; got 3"):
        fit(3)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "flow.checkpoint").write_bytes(b"of somebody else")
    with pytest.raises(ValueError, match="or the folder of this fit"):
        fit(tmp_path / "folder")


def test_a_damaged_checkpoint_is_refused(begun, tmp_path):
    content = bytearray((begun / "fit.checkpoint").read_bytes())
    content[-100] ^= 1
    (tmp_path / "fit.checkpoint").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"fit_flow expected a file (as flowdensity wrote it|that flowdensity has written)"
    ):
        fit(tmp_path)


def test_a_damaged_stage_is_refused(tmp_path):
    opened = open_checkpoint("fit_flow", tmp_path, 1)
    opened.write("flow", {}, np.zeros(100))
    content = bytearray((tmp_path / "flow.checkpoint").read_bytes())
    content[-100] ^= 1
    (tmp_path / "flow.checkpoint").write_bytes(content)
    with pytest.raises(ValueError, match="fit_flow expected a file as flowdensity wrote it"):
        opened.read("flow", np.zeros(100))


@pytest.mark.slow
def test_other_fits_keep_theirs(tmp_path, whole):
    """`fit_divergence` and `distill`: finished, they are returned as they were."""
    model = whole[0].model
    for folder, call in {
        "divergence": lambda: fd.fit_divergence(
            jr.key(3), model, DATA, training=SHORT, checkpoint=tmp_path / "divergence", progress=False
        ),
        "log density": lambda: fd.distill(
            jr.key(4), whole[0], labels=64, width=8, training=SHORT, checkpoint=tmp_path / "log density", progress=False
        ),
        "likelihood": lambda: fd.fit_likelihood(
            jr.key(5), DATA, model=model, divergence=fd.ExactDivergence(), training=fd.Training(steps=4, batch_size=16),
            checkpoint=tmp_path / "likelihood", progress=False,
        ),
    }.items():  # fmt: skip
        first, _ = call()
        files = {file.name: file.stat().st_mtime_ns for file in (tmp_path / folder).iterdir()}
        assert set(files) == {"fit.checkpoint", f"{folder.replace(' ', '-')}.checkpoint"}
        again, _ = call()
        assert files == {file.name: file.stat().st_mtime_ns for file in (tmp_path / folder).iterdir()}
        assert eqx.tree_equal(*(getattr(each, "_parts", getattr(each, "_arrays", each)) for each in (first, again)))


@pytest.mark.slow
def test_another_process_goes_on_with_a_distillation(tmp_path):
    """It has the leaves of a numpyro distribution in an order of its own."""
    script = f"""
import sys
import jax.random as jr
import numpy as np
import flowdensity as fd
from flowdensity.training import distill
from references import untrained_flow

distill.labeled = lambda *args, **options: sys.exit(0)  # the checkpoint is open, and work begins
density = fd.FlowDensity(untrained_flow(jr.key(0), np.random.default_rng(0).normal(size=(50, 2))))
print(list(density.gather_pytree_data_fields()))
fd.distill(jr.key(1), density, checkpoint={str(tmp_path)!r}, progress=False)
"""
    orders = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        orders.add(done.stdout)
    assert len(orders) == 2  # else another pair of seeds shows it
    assert [file.name for file in tmp_path.iterdir()] == ["fit.checkpoint"]


def test_the_digest_knows_numbers_keys_and_types_and_no_addresses():
    same = [digest_of((jr.key(0), np.arange(3.0), lambda x: x, 1)) for _ in range(2)]
    assert same[0] == same[1]
    others = [
        (jr.key(1), 1),
        (jr.key(0), 2),
        (jr.key(0), 1.0),
        (jr.PRNGKey(0), 1),
        (np.zeros(2), 1),
        (np.zeros((2, 1)), 1),
    ]
    assert (
        len({digest_of(other) for other in [*others, (fd.paths.CondOT(), 1), (fd.paths.Trigonometric(), 1)]})
        == len(others) + 2
    )


def test_a_checkpoint_gives_back_keys_of_both_kinds(tmp_path):
    opened = open_checkpoint("fit", tmp_path, 1)
    tree = (jr.key(3), jr.PRNGKey(4), np.float32(2.5), None)
    opened.write("a stage, with a comma", {"done": 1}, tree)
    header, back = opened.read("a stage, with a comma", tree)
    assert header == {"done": 1}
    assert jr.key_data(back[0]).tolist() == jr.key_data(jr.key(3)).tolist()
    assert back[1].tolist() == jr.PRNGKey(4).tolist()
    assert back[2] == 2.5
    assert opened.read("another", tree) is None


CHILD = """
import os, pathlib, signal, sys
sys.path.insert(0, {tests!r})
import test_checkpoints

writes, replace = 0, pathlib.Path.replace

def interrupted(partial, target):
    global writes
    writes += 1
    if writes == {writes}:
        os.truncate(partial, partial.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(partial, target)

pathlib.Path.replace = interrupted
test_checkpoints.fit({folder!r})
"""


@pytest.mark.slow
def test_killed_three_times_while_it_writes_it_ends_with_the_same_weights(tmp_path, whole):
    """SIGKILL with half of a file on disk, each time in a process of its own: in two stages, and of the first file."""
    for writes in (1, 20, 25):
        code = CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path), writes=writes)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert sum(file.name.startswith(".") for file in tmp_path.iterdir()) == 1  # the half that was written
    density, _ = fit(tmp_path)
    assert eqx.tree_equal(density._parts, whole[0]._parts)
    assert all(re.fullmatch(r"[\w-]+\.checkpoint", file.name) for file in tmp_path.iterdir())
