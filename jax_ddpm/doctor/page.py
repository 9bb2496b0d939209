"""The page of a comparison: one HTML file that contains everything it shows and loads nothing else."""

import html
import importlib.resources
import time
from collections.abc import Sequence

from jax_ddpm.doctor.result import MARKS, Result, finding_sentence, grouped, number, with_others
from jax_ddpm.doctor.result import names as names_of
from jax_ddpm.report.html_page import csp_hash

STYLE = """
.layers { border-collapse: collapse; font-size: .875rem; }
.layers th, .layers td { padding: .1rem .75rem .1rem 0; text-align: left; border-bottom: 1px solid var(--line); }
.layers td.number { font-variant-numeric: tabular-nums; }
.layers td { white-space: nowrap; }
.layers tr.first { background: color-mix(in srgb, var(--second) 30%, transparent); }
.layers tr.first td { font-weight: 600; }
.layers tr.also { background: color-mix(in srgb, var(--second) 12%, transparent); }
.sentence { font-size: 1.1rem; font-weight: 600; }
"""
WORDS = {mark: text.removeprefix("  <-- ") for mark, text in MARKS.items()}


def page(result: Result, theirs: str = "", ours: str = "", shapes: Sequence[str] = ()) -> str:
    """The HTML of a comparison, in the style of the page of a run.

    theirs, ours: where the two modules come from, such as "unet.py:UNet". shapes: those of the inputs.
    """
    template = importlib.resources.files("jax_ddpm.report").joinpath("page.html").read_text("utf-8")
    style = template.split("<style>")[1].split("</style>")[0] + STYLE
    styled = f"<style>{style}</style>"
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src {csp_hash(styled, '<style>', '</style>')}"
    )
    names = f"{theirs or result.their_name} and {ours or result.our_name}"
    title = html.escape(f"Port doctor: {names}")
    about = [
        f"Theirs is {result.their_name}, ours {result.our_name}",
        *([f"inputs {', '.join(shapes)}"] * bool(shapes)),
    ]
    others = [with_others(group) for group in grouped(result.findings)[1:]]
    first = grouped(result.findings)[0][1:] if result.findings else []
    same = f"<p>The same holds for {html.escape(names_of(first))}.</p>" if first else ""
    wrong = [text for text in result.wrong_parameters if text != result.sentence]
    if result.finding is not None and finding_sentence(result.finding) != result.sentence:
        others.insert(0, finding_sentence(result.finding))
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
<p class="muted">{html.escape("; ".join(about))}. {time.strftime("%Y-%m-%d %H:%M")}.</p>
<p class="sentence">{html.escape(result.sentence)}</p>
{same}
{section("Other differences", others)}
{section("Warnings", result.warning_sentences)}
{section("Set-up", [difference.sentence for difference in result.setup if difference.sentence != result.sentence])}
{section("Parameters", parameter_texts(result, wrong))}
{section("Notes", result.all_notes)}
<h2>Layers</h2>
<p class="muted">Relative errors: of what reaches a layer, of the layer alone on the same input, and of its output when
nothing is replaced. The second column names the layers that differ and those with a warning.</p>
<div class="scroll">{table(result)}</div>
</main>
<footer>Made by jax_ddpm. This file contains everything it shows and loads nothing else.</footer>
</body>
</html>
"""


def parameter_texts(result: Result, wrong: Sequence[str]) -> list[str]:
    pairing = result.parameters
    how = {kind: sum(pair.how == kind for pair in pairing.pairs) for kind in ("name", "value", "order")}
    counts = ", ".join(f"{count} by {kind}" for kind, count in how.items() if count)
    names = ", ".join(f'"{theirs}": "{ours}"' for theirs, ours in pairing.table.items())
    return [
        f"{len(pairing.pairs)} arrays are paired: {counts}.",
        *wrong,
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
        lines.append(f'<tr class="{row.mark}"><td>{name}</td><td>{WORDS[row.mark]}</td>{numbers}<td>{ours}</td></tr>')
    names = ("layer (theirs)", "result", "arriving", "alone", "inherited", "layer (ours)")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f'<table class="layers"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
