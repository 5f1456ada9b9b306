"""When a figure passes, asks for tuning, or for a new kernel: written down before anything was measured.

Every measure is such that more is better, and none depends on which machine it is, but for the few rows that name
chips. Needs nothing but Python.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Line = Mapping[str, Any]
"""One result: ``what`` was measured, on which ``case``, and the figures."""


class Rule(NamedTuple):
    """What to make of one figure of the lines that say ``what``."""

    what: str
    measure: str
    passes: float
    tunes: float
    """At least this much: better settings may do. Below: another kernel or another program is needed."""
    then: str
    """What to do if it does not pass."""
    chips: str = ""
    """Regular expression that the kind of the device must match."""


_RIGHT = "rewrite it: no other figure of this kernel means anything until it is right"
_MACHINE = "not the project's: look at clocks, power and driver (lclm doctor)"

RULES = (
    Rule("correct", "right", 1, 1, _RIGHT),
    Rule("product", "share_of_data_sheet", 0.65, 0.5, _MACHINE),
    Rule("copy", "share_of_data_sheet", 0.75, 0.6, _MACHINE),
    # Splash on a v6e reaches 30 % of the peak, since heads of 128 half-fill its units (tokamax's timings).
    Rule("forward", "share_of_product", 0.35, 0.2, "blocks first, then the kernel", "v6|7x"),
    Rule("backward", "share_of_product", 0.3, 0.18, "blocks first, then the kernel", "v6|7x"),
    # 550 and 450 of about 750 TFLOP/s that a product reaches on an H100.
    Rule("forward", "share_of_product", 0.7, 0.45, "the fastest tiling; if that does not pass, another kernel"),
    Rule("backward", "share_of_product", 0.55, 0.35, "the fastest tiling; if that does not pass, another kernel"),
    Rule("tiling", "speed_of_default", 0.95, 0.0, "make the fastest one the default"),
    Rule("packed", "times_faster", 5, 3, "see which blocks are visited: kernels/block_mask.py"),
    Rule("library", "times_faster", 1, 0.75, "take the library's where it can do segments, or its tiling"),
    Rule("pooling", "share_of_copy", 0.85, 0.6, "bytes in flight: stages and elements a thread"),
    Rule("cross_entropy", "times_faster", 0.95, 0.75, "model.loss_chunk first, then the scan"),
    Rule("step", "mfu", 0.4, 0.25, "the three largest costs, in turn"),
    Rule("costs", "products_and_attention", 0.75, 0.55, "fuse, save or avoid the largest of the other costs"),
    Rule("pytorch", "times_faster", 2, 1.2, "the three largest costs, in turn"),
)


class Verdict(NamedTuple):
    """A line as a rule judges it."""

    line: Line
    rule: Rule
    value: float
    word: str
    """``pass``, ``tune`` or ``rewrite``."""


def judge(lines: Iterable[Line], device: str) -> list[Verdict]:
    """The lines that a rule is for, in order. The first rule that fits a line and the ``device`` judges it."""
    found = []
    for line in lines:
        for rule in RULES:
            value = line.get(rule.measure)
            if rule.what == line["what"] and re.search(rule.chips, device) and isinstance(value, (bool, int, float)):
                word = "pass" if value >= rule.passes else "tune" if value >= rule.tunes else "rewrite"
                found.append(Verdict(line, rule, float(value), word))
                break
    return found


def compared(lines: Iterable[Line]) -> list[Line]:
    """``lines``; those of PyTorch's step say how many times faster ours is, of as many rows a device."""
    lines = list(lines)
    steps = [line["seconds_per_step"] for line in lines if line["what"] == "step"]
    return [
        {**line, "times_faster": line["seconds_per_step"] / steps[0]}
        if line["what"] == "pytorch" and steps and "seconds_per_step" in line
        else line
        for line in lines
    ]


def rules_table() -> str:
    """The rules in Markdown."""
    head = "| measured | figure | pass | tune | then |\n|---|---|---|---|---|\n"
    rows = [
        f"| {rule.what}{f' ({rule.chips})' if rule.chips else ''} | {rule.measure} | {rule.passes:g}"
        f" | {f'{rule.tunes:g}' if rule.tunes != rule.passes else '-'} | {rule.then} |\n"
        for rule in RULES
    ]
    return head + "".join(rows).replace("v6|7x", "v6, 7x")


def report(lines: list[Line]) -> str:
    """What was found, in Markdown: verdicts, costs of the step, and what failed or had no time."""
    about = next((line for line in lines if line["what"] == "machine"), {})
    device, timed = str(about.get("device", "unknown device")), about.get("platform") != "cpu"
    verdicts = judge([line for line in lines if timed or line["what"] == "correct"], device)
    out = [f"# First contact: {device}\n", f"{about.get('versions', '')}, {about.get('began', '')}\n"]
    if not timed:
        out.append("Times on a CPU say nothing: only what is correct is judged.\n")
    words = [verdict.word for verdict in verdicts]
    out.append(", ".join(f"{words.count(word)} {word}" for word in ("pass", "tune", "rewrite")) + ".\n")
    out.append("| what | case | figure | value | verdict | next |\n|---|---|---|---|---|---|")
    for line, rule, value, word in sorted(verdicts, key=lambda v: ("rewrite", "tune", "pass").index(v.word)):
        then = "" if word == "pass" else rule.then
        out.append(f"| {rule.what} | {line.get('case', '')} | {rule.measure} | {value:.3g} | **{word}** | {then} |")
    for line in lines:
        if "largest" in line:
            out.append(f"\nLargest costs of the step: {'; '.join(line['largest'])}.")
    failed = [line for line in lines if "failed" in line]
    if failed:
        out.append("\n| failed, refused or without time | case | why |\n|---|---|---|")
        out += [f"| {line['what']} | {line.get('case', '')} | {line['failed']} |" for line in failed]
    return "\n".join(out) + "\n"
