"""What a comparison found, as text, as data and as a page."""

import html
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jax_ddpm.doctor.causes import describe
from jax_ddpm.doctor.forced import TOLERANCE, Check
from jax_ddpm.doctor.parameters import ParameterPairing
from jax_ddpm.doctor.records import Call, Finding
from jax_ddpm.doctor.setup import SetupDifference
from jax_ddpm.doctor.source import scope, source_line

MARKS = {"first": "  <-- first difference", "also": "  <-- differs", "warning": "  <-- warning", "": ""}


@dataclass
class Row:
    """One pair of modules in the tree of layers."""

    theirs: str
    ours: str
    their_kind: str
    our_kind: str
    depth: int
    arriving: float
    """Relative error of what reaches the module, made by the code between modules."""
    alone: float
    """Relative error of the output for the same input (of a module with others inside: of the code between them)."""
    inherited: float
    """Relative error of the output in a run in which nothing is replaced."""
    mark: str
    """ "first" for the first culprit, "also" for other places that differ, "warning", else empty."""


@dataclass
class Result:
    """The result of `compare`. `print` shows it; a notebook shows a table."""

    their_name: str
    our_name: str
    setup: list[SetupDifference]
    parameters: ParameterPairing
    checks: list[Check]
    findings: list[Finding]
    """Places that differ, in the order of execution; those that only a probe shows come last."""
    warnings: list[Finding]
    """Layers that agree on usual inputs, and lose digits where the mean is large: variances in one pass."""
    their_calls: Sequence[Call]
    our_calls: Sequence[Call]
    notes: list[str] = field(default_factory=list)
    weights: Mapping[str, np.ndarray] | None = None
    """Ours with the weights of theirs, by path, if such a copy was compared; in Linen the collection comes first."""

    @property
    def equal(self) -> bool:
        """Whether no difference was found in parameters or layers, nor a decisive one in the set-up.

        Warnings do not count.
        """
        return not (self.findings or self.wrong_parameters or self.decisive_setup)

    @property
    def finding(self) -> Finding | None:
        """The first place that differs."""
        return self.findings[0] if self.findings else None

    @property
    def decisive_setup(self) -> list[SetupDifference]:
        return [difference for difference in self.setup if difference.decisive]

    @property
    def wrong_parameters(self) -> list[str]:
        """Sentences about parameters that are missing or have other values."""
        pairing, found = self.parameters, []
        if pairing.unpaired_theirs:
            found.append(f"Parameters of theirs without a partner in ours: {some(pairing.unpaired_theirs)}.")
        if pairing.unpaired_ours:
            found.append(f"Parameters of ours without a partner in theirs: {some(pairing.unpaired_ours)}.")
        different = pairing.different
        if different:
            names = [f"{p.theirs} ({p.remark})" if p.remark else p.theirs for p in different]
            found.append(f"{len(different)} of {len(pairing.pairs)} parameters have other values: {some(names)}.")
        return found

    @property
    def all_notes(self) -> list[str]:
        """What was assumed and done, in sentences."""
        pairing, notes = self.parameters, list(self.notes)
        narrow = [check for check in self.checks if check.tolerance > TOLERANCE]
        if narrow:
            names = some([check.pair.theirs.path or "the whole network" for check in narrow], 4)
            worst = max(check.tolerance for check in narrow)
            notes.append(
                f"Computed in float32 or narrower on one side, and judged with a tolerance of its rounding "
                f"(up to {worst:.0e}): {names}."
            )
        if pairing.tied:
            notes.append(f"Tied in theirs, one array under several names: {'; '.join(map(' = '.join, pairing.tied))}.")
        if pairing.their_buffers:
            notes.append(f"Buffers of theirs that ours does not have: {some(pairing.their_buffers)}.")
        ambiguous = [pair.theirs for pair in pairing.pairs if pair.ambiguous]
        if ambiguous:
            notes.append(f"Neither shape nor kind of layer tells whether these are transposed: {some(ambiguous)}.")
        return notes

    @property
    def sentence(self) -> str:
        """One sentence: equal, or the first difference and its cause."""
        if self.decisive_setup and (self.finding is None or self.finding.cause is None):
            return self.decisive_setup[0].sentence
        if self.parameters.different and self.finding is not None and self.finding.place == "glue":
            return self.wrong_parameters[-1]  # code between modules may use them
        if self.finding is not None:
            return finding_sentence(self.finding)
        if self.wrong_parameters:
            return self.wrong_parameters[0]
        leaves = sum(not check.inside for check in self.checks)
        worst = max((check.inherited for check in self.checks), default=0.0)
        return (
            f"Equal: all {leaves} layers compute the same; the largest relative difference is {worst:.1e} in float64."
        )

    @property
    def rows(self) -> list[Row]:
        """The tree of layers in the order of execution, outer modules before those inside."""
        marks = {id(finding.pair): "warning" for finding in self.warnings}
        marks |= {id(finding.pair): "also" for finding in self.findings}
        if self.finding:
            marks[id(self.finding.pair)] = "first"
        with_probes = {id(finding.pair): finding.error for finding in self.findings if finding.probe}
        depth: dict[int, int] = {}
        rows = []
        for check in sorted(self.checks, key=lambda check: check.pair.ours.number):
            ours = check.pair.ours
            depth[ours.number] = 0 if ours.parent is None else depth.get(self.paired_parent(ours, depth), -1) + 1
            theirs, key = check.pair.theirs, id(check.pair)
            errors = max(check.arriving, default=0.0), with_probes.get(key, check.alone), check.inherited
            names = theirs.path, ours.path, theirs.kind, ours.kind
            rows.append(Row(*names, depth[ours.number], *errors, marks.get(key, "")))
        return rows

    def paired_parent(self, call: Call, known) -> int | None:
        parent = call.parent
        while parent is not None and parent not in known:
            parent = self.our_calls[parent].parent
        return parent

    def __str__(self) -> str:
        lines = [self.sentence]
        if self.sentence in self.wrong_parameters and self.finding is not None:
            lines.append(finding_sentence(self.finding))
        cause = self.finding.cause if self.finding is not None else None
        if cause is not None and cause.mend and cause.mend not in self.sentence:
            lines.append(f"Change: {cause.mend}")
        if cause is not None and self.finding.place == "gradient":
            lines.append(f"Relative difference of the gradients: {number(self.finding.error).strip()}.")
        groups = grouped(self.findings)
        if groups and len(groups[0]) > 1:
            lines.append(f"The same holds for {names(groups[0][1:])}.")
        if len(groups) > 1:
            lines.append("Other places that differ (by themselves; they do not inherit an error):")
            lines += [f"  {with_others(group)}" for group in groups[1:6]]
            lines += [f"  and {sum(map(len, groups[6:]))} more"] if len(groups) > 6 else []
        lines += [text for text in self.wrong_parameters if text != self.sentence]
        lines += [difference.sentence for difference in self.setup if difference.sentence != self.sentence]
        lines += self.all_notes
        lines += [textwrap.fill(f"Warning: {text}", 120) for text in self.warning_sentences]
        return "\n".join([*lines, "", *self.tree()])

    __repr__ = __str__

    @property
    def warning_sentences(self) -> list[str]:
        """One for each kind of warning."""
        wait = " This can wait until no layer differs." if self.findings else ""
        return [warning_sentence(group) + wait for group in grouped(self.warnings)]

    def tree(self, limit: int = 200) -> list[str]:
        """The lines of the tree of layers. Of long ones, the layers that agree are left out."""
        rows = self.rows
        names = ["  " * row.depth + (row.theirs or row.their_kind) for row in rows]
        width = min(max(map(len, names), default=0), 60)
        head = f"{'layer (theirs)'.ljust(width)}  arriving  alone     inherited  layer (ours)"
        lines = [head]
        for name, row in zip(names, rows, strict=True):
            if len(rows) > limit and not row.mark and row.depth > 1:
                continue
            mark = MARKS[row.mark]
            errors = f"{number(row.arriving)}  {number(row.alone)}  {number(row.inherited)}  "
            lines.append(f"{name.ljust(width)}  {errors} {row.ours or row.our_kind}{mark}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The result as data that JSON can hold; errors that are not finite are None."""
        pairing = self.parameters
        return {
            "equal": self.equal,
            "sentence": self.sentence,
            "theirs": self.their_name,
            "ours": self.our_name,
            "findings": [finding_data(finding) for finding in self.findings],
            "warnings": [finding_data(finding) for finding in self.warnings],
            "setup": [vars(difference) for difference in self.setup],
            "parameters": {
                "pairs": [
                    {
                        "theirs": p.theirs,
                        "ours": list(p.ours),
                        "how": p.how,
                        "error": finite(p.error),
                        "remark": p.remark,
                    }
                    for p in pairing.pairs
                ],
                "unpaired_theirs": pairing.unpaired_theirs,
                "unpaired_ours": pairing.unpaired_ours,
                "buffers": pairing.their_buffers,
                "tied": [list(names) for names in pairing.tied],
                "torch_names": pairing.table,
                "transferred": pairing.transferred,
            },
            "layers": [{name: finite(value) for name, value in vars(row).items()} for row in self.rows],
            "notes": self.all_notes,
        }

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    def _repr_html_(self) -> str:
        colours = {"first": "background:#f8d7da", "also": "background:#fff3cd", "warning": "", "": ""}
        words = {mark: text.removeprefix("  <-- ") for mark, text in MARKS.items()}
        left = "text-align:left"
        cells = "".join(
            f'<tr style="{colours[row.mark]}"><td style="padding-left:{row.depth}em;{left}">'
            f"{html.escape(row.theirs or row.their_kind)}</td>"
            f"<td>{number(row.arriving)}</td><td>{number(row.alone)}</td><td>{number(row.inherited)}</td>"
            f'<td style="{left}">{html.escape(row.ours or row.our_kind)}</td><td>{words[row.mark]}</td></tr>'
            for row in self.rows
        )
        texts = str(self).split("\n\n")[0].splitlines()
        paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in texts[1:])
        head = "<th>layer (theirs)</th><th>arriving</th><th>alone</th><th>inherited</th><th>layer (ours)</th><th></th>"
        return (
            f"<p><b>{html.escape(texts[0])}</b></p>{paragraphs}<table><thead><tr>{head}</tr></thead>"
            f"<tbody>{cells}</tbody></table>"
        )


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """The findings in order, in groups: layers of one kind with the same cause or none; places that share a cause.

    Code between layers belongs to a class. The same cause in several modules of a class is one group, but not two
    places in one module.
    """
    groups: dict[Any, list[Finding]] = {}
    for number, finding in enumerate(findings):
        key: Any = number if finding.cause is None else id(finding.cause)
        if finding.place == "layer":
            cause = finding.cause and (finding.cause.name, finding.cause.mend)
            key = cause, finding.searched, finding.probe, finding.pair.theirs.kind, finding.pair.ours.kind
        twin = next((key for key, group in groups.items() if is_same_code(group, finding)), key)
        groups.setdefault(twin, []).append(finding)
    return list(groups.values())


def is_same_code(group: Sequence[Finding], finding: Finding) -> bool:
    """Whether the code of one class makes the difference of all, in another module each, by one kind of mistake."""
    around = scope(finding)
    if finding.place != "glue" or finding.cause is None or around is None or any(one.place != "glue" for one in group):
        return False
    others = [scope(one) for one in group]
    return all(
        other is not None and type(other.module) is type(around.module) and other.path != around.path
        for other in others
    ) and all(one.cause is not None and one.cause.name == finding.cause.name for one in group)


def with_others(group: Sequence[Finding]) -> str:
    """The sentence of the first finding, and the places of the others."""
    more = f" The same holds for {names(group[1:])}." if group[1:] else ""
    return f"{finding_sentence(group[0])}{more}"


def warning_sentence(group: Sequence[Finding]) -> str:
    """One sentence for all layers of a warning."""
    first = group[0]
    if len(group) == 1:
        return finding_sentence(first)
    says = first.cause.sentence.split(": ", 1)[1]
    return f"{len(group)} layers ({first.pair.theirs.kind}): {says}"


def names(findings: Sequence[Finding]) -> str:
    return some([finding.pair.theirs.path or "the whole network" for finding in findings])


def finding_sentence(finding: Finding) -> str:
    """The cause's sentence, or where the difference is and that its cause is not known. Then our line."""
    line = source_line(finding)
    above = " and above" if finding.place == "glue" else ""
    return f"{difference_sentence(finding)} See {line}{above}." if line else difference_sentence(finding)


def difference_sentence(finding: Finding) -> str:
    if finding.cause is not None:
        return finding.cause.sentence
    theirs, ours = finding.pair.theirs, finding.pair.ours
    whole = "the whole network"
    names = f"{theirs.path or whole} (theirs, {theirs.kind}) and {ours.path or whole} (ours, {ours.kind})"
    if finding.place == "gradient":
        return (
            f"All outputs agree, but the gradients of {names} differ by {number(finding.error).strip()}, "
            f"that of {finding.parameter} among them. The cause is not known."
        )
    probe = f" for inputs of {finding.probe}" if finding.probe else ""
    a, b = finding.values
    shapes = (
        f" Shapes: theirs {a.shape}, ours {b.shape}." if a is not None and b is not None and a.shape != b.shape else ""
    )
    if finding.place == "layer":
        text = f"The layers {names} differ by {number(finding.error).strip()}{probe}: same input, other output."
    elif finding.target == "input":
        text = (
            f"What reaches {names} differs by {number(finding.error).strip()}: the code before it, between the layers."
        )
    else:
        text = (
            f"The outputs of {names} differ by {number(finding.error).strip()} although the layers inside agree: "
            "the code between or after them."
        )
    pattern = "" if shapes or a is None or b is None else f" {describe(finding)}"
    known = "The cause is not known." if finding.searched else "Its cause was not searched."
    return f"{text}{shapes} {known}{pattern}"


def finding_data(finding: Finding) -> dict[str, Any]:
    return {
        "place": finding.place,
        "theirs": finding.pair.theirs.path,
        "ours": finding.pair.ours.path,
        "target": finding.target,
        "error": finite(finding.error),
        "probe": finding.probe,
        "sentence": finding_sentence(finding),
        "cause": None if finding.cause is None else {**vars(finding.cause), "residual": finite(finding.cause.residual)},
    }


def some(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float) -> str:
    """A relative error in eight characters."""
    if not math.isfinite(value):
        return "(other) " if math.isnan(value) else "infinite"
    return ("0" if value == 0 else f"{value:.1e}").ljust(8)
