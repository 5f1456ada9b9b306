"""The style that all plots share."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display is needed or looked for
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinguishable to colour-blind readers and in grey.
COLOURS = {"none": "#D55E00", "latents": "#0072B2", "raw": "#009E73", "ink": "#333333"}
CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_STYLE = {
    "figure.dpi": 130,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def styled(width: float = 7.2, height: float = 3.8, grid: bool = True) -> AbstractContextManager[None]:
    """The shared style, for figures of ``width`` x ``height`` inches that are made inside the block."""
    return plt.rc_context(_STYLE | {"figure.figsize": (width, height), "axes.grid": grid})  # type: ignore[arg-type]


def smooth(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Centred running mean over about a twentieth of the points."""
    array = np.asarray(values, float)
    window = np.ones(max(1, len(array) // 20))
    if not len(array):
        return array
    # Near an end fewer points are in the window: divide by how many there are.
    return np.convolve(array, window, mode="same") / np.convolve(np.ones(len(array)), window, mode="same")


def save(figure: "Figure", path: Path) -> None:
    """Write ``figure`` to ``path``, whose folder is made, and release it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
