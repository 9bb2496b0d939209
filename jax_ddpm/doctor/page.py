"""The page of a comparison: one HTML file that contains everything it shows and loads nothing else."""

import html
import importlib.resources
from collections.abc import Sequence

from jax_ddpm.doctor.result import Result, finding_sentence, number
from jax_ddpm.report.html_page import csp_hash

STYLE = """
.layers { border-collapse: collapse; font-size: .875rem; }
.layers th, .layers td { padding: .1rem .75rem .1rem 0; text-align: left; border-bottom: 1px solid var(--line); }
.layers td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.layers tr.first { background: color-mix(in srgb, var(--second) 30%, transparent); }
.layers tr.also { background: color-mix(in srgb, var(--second) 12%, transparent); }
.sentence { font-size: 1.1rem; font-weight: 600; }
"""


def page(result: Result) -> str:
    """The HTML of a comparison, in the style of the page of a run."""
    template = importlib.resources.files("jax_ddpm.report").joinpath("page.html").read_text("utf-8")
    style = template.split("<style>")[1].split("</style>")[0] + STYLE
    styled = f"<style>{style}</style>"
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src {csp_hash(styled, '<style>', '</style>')}"
    )
    title = html.escape(f"{result.their_name} and {result.our_name}")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
{styled}
</head>
<body>
<header><h1>{title}</h1></header>
<main>
<p class="sentence">{html.escape(result.sentence)}</p>
{section("Differences", [finding_text(finding) for finding in result.findings])}
{section("Warnings", result.warning_sentences)}
{section("Set-up", [difference.sentence for difference in result.setup])}
{section("Parameters", parameter_texts(result))}
{section("Notes", result.all_notes)}
<h2>Layers</h2>
<p class="muted">Relative errors: of what reaches a layer, of the layer alone on the same input, and of its output when
nothing is replaced.</p>
<div class="scroll">{table(result)}</div>
</main>
<footer>Made by jax_ddpm. This file contains everything it shows and loads nothing else.</footer>
</body>
</html>
"""


def finding_text(finding) -> str:
    mend = f" Change: {finding.cause.mend}" if finding.cause is not None and finding.cause.mend else ""
    return finding_sentence(finding) + mend


def parameter_texts(result: Result) -> list[str]:
    pairing = result.parameters
    how = {kind: sum(pair.how == kind for pair in pairing.pairs) for kind in ("name", "value", "order")}
    counts = ", ".join(f"{count} by {kind}" for kind, count in how.items() if count)
    names = ", ".join(f'"{theirs}": "{ours}"' for theirs, ours in pairing.table.items())
    return [
        f"{len(pairing.pairs)} arrays are paired: {counts}.",
        *result.wrong_parameters,
        *([f"TORCH_NAMES = {{{names}}}"] if names else []),
    ]


def section(title: str, texts: Sequence[str]) -> str:
    paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in texts)
    return f"<h2>{title}</h2>{paragraphs}" if texts else ""


def table(result: Result) -> str:
    """The tree of layers. Depth is shown by spaces, which need no style attributes."""
    lines = []
    for row in result.rows:
        indent = "&emsp;" * row.depth
        name = f"{indent}{html.escape(row.theirs or row.their_kind)}"
        numbers = "".join(f'<td class="number">{number(e)}</td>' for e in (row.arriving, row.alone, row.inherited))
        ours = html.escape(row.ours or row.our_kind)
        lines.append(f'<tr class="{row.mark}"><td>{name}</td>{numbers}<td>{ours}</td></tr>')
    names = ("layer (theirs)", "arriving", "alone", "inherited", "layer (ours)")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f'<table class="layers"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
