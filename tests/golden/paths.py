"""Where the stored outputs of the PyTorch implementation lie: all of them in the repository."""

from pathlib import Path

HERE = Path(__file__).parent
REFERENCE = HERE / "reference"
"""Four cases and what belongs to them, whole: what ``lclm golden`` reads."""
CASES = {path.name: path for path in sorted((HERE / "all" / "cases").iterdir())}
"""Name -> folder of every case, its logits cut to the last positions (``trim``)."""
CHECKPOINTS = {path.name: path for root in ("all", "reference") for path in (HERE / root / "checkpoints").iterdir()}
"""Name -> folder of every model."""

assert len(CASES) == 18 and len(CHECKPOINTS) == 7, "the stored outputs are incomplete"
