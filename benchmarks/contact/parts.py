"""One part of a first contact, in a process of its own: ``python -m benchmarks.contact.parts PART FILE SECONDS``."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.contact.lines import Lines


def machine(lines: Lines) -> None:
    """Device, versions, and the rates of a large product and a large copy beside the data sheet's."""
    from lclm_jax.bench.timing import measure_peaks, surroundings
    from lclm_jax.parallel.hardware import CHIPS, chip_of

    about = surroundings()
    lines.say("machine", **about, began=lines.began)
    peaks, chip = measure_peaks(), chip_of(about["device"])
    sheet = CHIPS[chip] if chip else None
    for what, unit, reached, promised in (
        ("product", "tflops", peaks.matmul_flops / 1e12, sheet and sheet.flops / 1e12),
        ("copy", "gbytes", peaks.copy_bytes / 1e9, sheet and sheet.hbm_bytes_per_s / 1e9),
    ):
        share = {"share_of_data_sheet": reached / promised} if promised else {}
        lines.say(what, **{unit: reached}, **share)


def kernels(lines: Lines) -> None:
    """Pooling by the copy's rate; cross-entropy beside chunks of positions and all logits at once."""
    from lclm_jax.bench.cases import cross_entropy_cases, pooling_cases
    from lclm_jax.bench.kernels import measure_case
    from lclm_jax.bench.timing import Peaks, measure_peaks, on_cpu

    peaks = Peaks(1e12, 1e11) if on_cpu() else measure_peaks()
    for case in pooling_cases(lines.small)[: 1 if lines.small else None]:
        for row in measure_case(case, peaks):
            for passes in ("forward", "both"):
                if row["way"] != "reference" and passes in row:
                    lines.say("pooling", f"{case.shape}, {row['way']}, {passes}", **row[passes])
    for case in cross_entropy_cases(lines.small):
        rows = measure_case(case, peaks)
        for row in rows:
            lines.say("cross_entropy ways", f"{row['way']}: {case.shape}", **row)
        ours, *others = ((row["way"], row["both"]["seconds"]) for row in rows if "both" in row)
        if others:
            name, fastest = min(others, key=lambda pair: pair[1])
            lines.say("cross_entropy", f"{ours[0]} beside {name}: {case.shape}", times_faster=fastest / ours[1])


PARTS: dict[str, str | Callable[[Lines], None]] = {
    "machine": machine,
    "correct": "attention:correct",
    "attention": "attention:speeds",
    "kernels": kernels,
    "step": "step:step",
    "pytorch": "step:pytorch",
}
"""Name -> function, or ``module:function``, imported where it is run."""


def main(part: str, path: str, seconds: str, *small: str) -> None:
    """Run ``part``; its lines go to the file ``path``."""
    run = PARTS[part]
    if isinstance(run, str):
        module, _, name = run.partition(":")
        run = getattr(importlib.import_module(f"benchmarks.contact.{module}"), name)
    run(Lines(Path(path), float(seconds), bool(small)))


if __name__ == "__main__":
    main(*sys.argv[1:])
