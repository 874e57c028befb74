"""Text descriptions of objects and results, and HTML tables of results for notebooks.

Nothing is computed to describe an object. Its arrays may be stacked or traced, and are described by their shapes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias
from xml.etree.ElementTree import Element, SubElement, tostring

import equinox as eqx
import jax

MARKS = {
    "good": ("\N{CHECK MARK}", "#2e7d32"),
    "unclear": ("?", "#b26a00"),
    "bad": ("\N{BALLOT X}", "#c62828"),
    "not measured": ("\N{EN DASH}", "#757575"),
}
"""Symbol and color of each verdict. Each verdict has its own symbol and color, legible on light and dark pages."""
CELL = "text-align: left; padding: 0.1em 0.8em 0.1em 0;"
"""Style of a cell. Styles are inline, since notebooks drop style sheets when they are exported."""


def shown(module: Any, *more: str) -> str:
    """Describe a module by the call of its constructor, with its own fields and `more`; keys are left out.

    Unlike equinox's description, it includes fields with default values.
    """
    fields = {field.name: getattr(module, field.name, None) for field in dataclasses.fields(module)}
    parts = [f"{name}={_value(value)}" for name, value in fields.items() if not _is_key(value)]
    return f"{type(module).__name__}({', '.join([*parts, *more])})"


def weights_of(tree: Any) -> str:
    """Describe the number of weights of a network, or of each network in a stack: the entries of its floating-point arrays."""
    count = sum(leaf.size for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf))
    stack = _stack_of(tree)
    if not stack:
        return f"{count:,} weights"
    return f"{count // max(1, math.prod(stack)):,} weights each, a stack of {stack}"


def _stack_of(tree: Any) -> tuple[int, ...]:
    """Axes that `jax.vmap` has added to the arrays of a network: the axes of a linear layer's weights before its matrix."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, eqx.nn.Linear))
    layers = [node for node in nodes if isinstance(node, eqx.nn.Linear)]
    return tuple(getattr(layers[0].weight, "shape", ())[:-2]) if layers else ()


def _value(value: Any) -> str:
    return eqx.tree_pformat(value, width=10_000) if eqx.is_array(value) else repr(value)


def _is_key(value: Any) -> bool:
    return eqx.is_array(value) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)


class Row(NamedTuple):
    """Row of a table: the text of its cells, and a verdict, which is shown after them if it is one of `MARKS`."""

    cells: tuple[str, ...]
    verdict: str = ""


Rows: TypeAlias = Sequence[Row | str]
"""Rows of a table. A string is a heading across all columns."""


def one_line(result: object, conclusion: str) -> str:
    """Return a one-line `repr`: the type of a result and its conclusion."""
    return f"<{type(result).__name__}: {conclusion}>"


def html_table(
    title: str, conclusion: str, rows: Rows, *, header: Sequence[str] = (), notes: Sequence[str] = (), verdict: str = ""
) -> str:
    """Return a self-contained HTML table without scripts.

    Args:
        title: name of the result, in bold.
        conclusion: the verdict in words, shown after the title.
        rows: rows and headings.
        header: titles of the columns.
        notes: paragraphs below the table.
        verdict: one of `MARKS`, whose symbol is shown before the conclusion.

    Returns:
        HTML that is also well-formed XML, so that any text, such as a name with `<`, is escaped.
    """
    # Without `color`, text has the color of the page, which may be light or dark.
    page = Element("div", {"class": "flowdensity"})
    opening = SubElement(page, "p", style="margin: 0.3em 0;")
    SubElement(opening, "strong").text = title
    if verdict in MARKS:
        _marked(SubElement(opening, "span"), f" {MARKS[verdict][0]}", verdict)
    SubElement(opening, "span").text = f" {conclusion}"
    table = SubElement(page, "table", style="border-collapse: collapse; font-size: 0.9em;")
    width = max(len(header), *(len(row.cells) + bool(row.verdict) for row in rows if isinstance(row, Row)), 1)
    if header:
        _cells(SubElement(SubElement(table, "thead"), "tr"), "th", header)
    body = SubElement(table, "tbody")
    for row in rows:
        line = SubElement(body, "tr")
        if isinstance(row, str):
            style = f"{CELL} padding-top: 0.6em;"
            SubElement(line, "th", colspan=str(width), style=style).text = row
            continue
        _cells(line, "td", row.cells)
        if row.verdict in MARKS:
            _marked(SubElement(line, "td", style=CELL), f"{MARKS[row.verdict][0]} {row.verdict}", row.verdict)
    for note in notes:
        SubElement(page, "p", style="margin: 0.3em 0;").text = note
    return tostring(page, encoding="unicode", short_empty_elements=False)


def _cells(line: Element, tag: str, texts: Sequence[str]) -> None:
    for text in texts:
        SubElement(line, tag, style=CELL).text = text


def _marked(element: Element, text: str, verdict: str) -> None:
    element.set("style", f"{element.get('style', '')} color: {MARKS[verdict][1]};".strip())
    element.text = text
