"""Displays of results: one line for `repr`, a verdict in words first, and HTML that is well formed and escaped."""

from xml.etree import ElementTree

import arviz as az
import jax.random as jr
import numpy as np
import numpyro
import pytest
from references import gaussian_flow

import flowdensity as fd
from flowdensity._display import MARKS, Row, html_table
from flowdensity.diagnostics.findings import Finding
from flowdensity.training.loop import History

GAUSSIAN = fd.FlowDensity(gaussian_flow())
GOOD = Finding("a.good", "a figure", "at most", 1.0, "", "First", 0.5, 0.1)
BAD = Finding("a.<b>", "another & more", "at least", 1.0, "Fit <again>.", "First", 0.0, 0.1, "y[<0>]")
OTHER_BAD = Finding("b.bad", "a third", "at most", 1.0, "Fit <again>.", "Second", 9.0)
UNCLEAR = Finding("b.unclear", "a fourth", "at most", 1.0, "", "Second", 1.1, 0.1)
ABSENT = Finding("c.absent", "a fifth", "at most", 1.0, "", "Third", reason="no <rows>. Fix: rows")


def diagnosis(*findings):
    return fd.results.Diagnosis(findings, {}, 2.0)


def history(*, best_step, steps=10):
    losses = (1.0, 0.5) if steps else (1.0,)
    return History((0, steps)[: len(losses)], losses, losses, best_step)


def reweighted():
    """Weights that need no correction: the density in the model is the exact one."""

    def model():
        numpyro.sample("<theta>", GAUSSIAN)

    draws = {"<theta>": np.asarray(GAUSSIAN.sample(jr.key(1), (2, 100)))}
    posterior = az.from_dict({"posterior": draws}) if hasattr(az, "convert_to_datatree") else az.from_dict(draws)
    return fd.reweight(jr.key(0), posterior, model, {"<theta>": GAUSSIAN}, progress=False)


UNIFORM = np.arange(200) % 20
LEVELS = np.linspace(0.0, 1.0, 100)[None]
RESULTS = {
    "no fault": (
        lambda: diagnosis(GOOD, ABSENT),
        "good",
        "No fault found in 1 figure; not measured: c.absent.",
    ),
    "unclear": (
        lambda: diagnosis(GOOD, UNCLEAR),
        "unclear",
        "No fault found in 2 figures; unclear: b.unclear.",
    ),
    "one bad": (lambda: diagnosis(GOOD, OTHER_BAD), "bad", "1 of 2 figures is bad: b.bad."),
    "bad": (
        lambda: diagnosis(GOOD, BAD, OTHER_BAD, UNCLEAR, ABSENT),
        "bad",
        "2 of 4 figures are bad: a.<b>, b.bad.",
    ),
    "support": (
        lambda: fd.results.SupportCheck(np.ones((1, 100)), 2000, True),
        "good",
        "The posterior lies where the density has data: 0.00% of the draws have a lower density than 99.9% of 2000 held-out "
        "rows.",
    ),
    "no support": (
        lambda: fd.results.SupportCheck(0.0 * LEVELS, 2000, False),
        "bad",
        "The posterior reaches a region where the density has no data: 100.00% of the draws have a lower density than 99.9% of "
        "2000 samples of the density.",
    ),
    "ranks": (lambda: fd.results.Ranks({"<a>": UNIFORM, "b": UNIFORM}, 19, UNIFORM), "good", "No fault found in 2 sites and"),
    "bad ranks": (lambda: fd.results.Ranks({"<a>": 0 * UNIFORM, "b": UNIFORM}, 19, UNIFORM), "bad", "1 of 3 tests is bad: <a>."),
    "reweighted": (reweighted, "good", "The weights can be trusted: Pareto k 0.00, threshold 0.57; "),
    "fit": (
        lambda: fd.results.FitReport({"flow": history(best_step=10), "divergence": history(best_step=0, steps=0)}, {"flow": 3.0}),
        "good",
        "Fit finished: flow and divergence in 3 s.",
    ),
    "fit at its reference": (
        lambda: fd.results.FitReport({"flow": history(best_step=0)}, {"flow": 3.0}, columns="columns: <none> & more"),
        "unclear",
        "Training of the flow did not improve held-out rows: the result is the reference (3 s).",
    ),
    "interrupted fit": (
        lambda: fd.results.FitReport({"flow": history(best_step=10)}, {"flow": 3.0}, interrupted=("flow", "divergence")),
        "unclear",
        "Interrupted after 3 s; not completed: flow, divergence.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_results_say_their_verdict_first_in_every_display(name):
    make, verdict, conclusion = RESULTS[name]
    result = make()
    assert result.conclusion.startswith(conclusion)
    assert str(result) == result.summary()
    assert result.summary().startswith(result.conclusion)
    assert repr(result) == f"<{type(result).__name__}: {result.conclusion}>"
    html = result._repr_html_()
    page = ElementTree.fromstring(html)  # raises where it is not well formed
    title, mark, text = page.find("p")
    assert title.text
    assert mark.text.strip() == MARKS[verdict][0]
    assert text.text.strip() == result.conclusion
    assert not page.findall(".//script")
    # What is told in text is also in the table.
    shown = " ".join(page.itertext())
    for word in result.summary().replace(":", " ").split():
        assert word.strip(".,;()") in shown or word in ("(2", "s)", "-", "least", "expected)")


def test_each_finding_has_a_row_with_its_verdict():
    findings = (GOOD, BAD, OTHER_BAD, UNCLEAR, ABSENT)
    page = ElementTree.fromstring(diagnosis(*findings)._repr_html_())
    rows = [["".join(cell.itertext()) for cell in row] for row in page.iter("tr")]
    headings = [row[0] for row in rows[1:] if len(row) == 1]
    assert headings == ["First", "Second", "Third"]
    table = [row for row in rows[1:] if len(row) > 1]
    assert [row[0] for row in table] == [finding.id for finding in findings]
    assert [row[-1] for row in table] == [f"{MARKS[each.verdict][0]} {each.verdict}" for each in findings]
    assert table[1][1:4] == ["another & more", "0 ± 0.1 at y[<0>]", "at least 1"]
    notes = [note.text for note in page.findall("p")[1:]]
    assert notes == ["What to do: a.<b>, b.bad: Fit <again>.", "Not measured: c.absent: no <rows>. Fix: rows"]


def test_a_table_escapes_what_it_shows_and_spans_its_columns():
    html = html_table("<i>", "1 < 2 & 3", ["<h>", Row(("<b>", '"x"'), "bad"), Row(("c", "d"))], header=("1", "2", "3"))
    assert "<b>" not in html
    assert "<i>" not in html
    page = ElementTree.fromstring(html)
    assert page.find(".//th[@colspan]").get("colspan") == "3"
    assert [cell.text for cell in page.iter("td")] == ["<b>", '"x"', f"{MARKS['bad'][0]} bad", "c", "d"]


def test_a_report_of_a_fit_is_short():
    """Its lists of losses are thousands of characters long."""
    losses = (0.1,) * 1000
    report = fd.results.FitReport({"flow": History(tuple(range(1000)), losses, losses, 999)}, {"flow": 1.0})
    assert len(repr(report)) < 80
    assert "\n" not in repr(report)
