"""First contact with an accelerator: ``python benchmarks/first_contact.py --out contact`` says pass, tune or rewrite.

Ten minutes on one H100, H200 or TPU host: are the kernels right, how fast in which blocks, what do libraries reach,
what does the train step spend its time on. On a CPU ``--small`` runs all of it in a minute, kernels in Pallas'
interpreter; only what is correct counts then. docs/how-to/first-contact.md has the rules.

Every part is a process of its own with a time of its own: a part that fails, hangs or breaks the device is a line in
the report, not its end. Results are written after every part to ``results.json`` and ``report.md``. The parts need JAX,
pydantic, pyyaml, psutil, flax and optax, the part ``pytorch`` torch and transformers too; this file needs Python alone.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.contact.rules import Line, compared, report  # noqa: E402  the path comes first

PARTS = {
    "machine": (40, "product and copy: what everything else is a share of"),
    "correct": (150, "values and gradients of every kernel against the reference"),
    "attention": (170, "tilings, packed against one segment, libraries"),
    "kernels": (70, "pooling and cross-entropy"),
    "step": (100, "the step of 0.6B + 1.7B, and its profile"),
    "pytorch": (70, "the same step in PyTorch"),
}
"""Part -> (seconds of ten minutes, what it measures), in order."""

_FAST_COMPILER = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""With ``--small`` compiling is nearly all of the work."""


def main() -> None:
    """Run the parts; write what they said."""
    parser = argparse.ArgumentParser(description="What an accelerator makes of the kernels and the train step.")
    parser.add_argument("--out", type=Path, default=Path("contact"), help="folder of results.json and report.md")
    parser.add_argument("--small", action="store_true", help="small shapes, kernels interpreted: on a CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=10, help="for all parts; each gets its share")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    for part in dict.fromkeys(["machine", *options.parts]):  # what the others are judged by
        seconds = PARTS[part][0] * options.minutes / 10
        sys.stderr.write(f"{part}: {PARTS[part][1]}, at most {seconds:.0f} s\n")
        began = time.monotonic()
        lines = compared([*lines, *run_part(part, seconds, options.out, options.small)])
        sys.stderr.write(f"{part}: took {time.monotonic() - began:.0f} s\n")
        (options.out / "results.json").write_text(json.dumps(lines, indent=1), encoding="utf-8")
        (options.out / "report.md").write_text(report(lines), encoding="utf-8")
    sys.stdout.write(report(lines))


def run_part(part: str, seconds: float, out: Path, small: bool) -> list[Line]:
    """What a part wrote; if it did not end well, a line that says so."""
    results = out / f"{part}.jsonl"
    results.unlink(missing_ok=True)
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": str(out.resolve() / "compiled")}
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants memory as well
    if small:
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": _FAST_COMPILER}
    command = [sys.executable, "-m", "benchmarks.contact.parts", part, str(results), str(seconds), *["small"] * small]
    began = time.monotonic()
    with (out / f"{part}.log").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            code = child.wait(timeout=seconds * 1.15 + 10)  # it should end by itself
            why = "" if code == 0 else f"ended with {code}: {last_words(out / f'{part}.log')}"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            why = f"stopped after {time.monotonic() - began:.0f} s; what it had written counts"
    lines = [json.loads(text) for text in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []
    return [*lines, {"what": "part", "case": part, "failed": why}] if why else lines


def last_words(log: Path) -> str:
    """The last line of a log that is not empty: what an exception said."""
    texts = [text for text in log.read_text(encoding="utf-8", errors="replace").splitlines() if text.strip()]
    return texts[-1].strip()[:300].replace("|", "/") if texts else "it said nothing"


if __name__ == "__main__":
    main()
