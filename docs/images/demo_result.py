"""Draws ``demo-result.png`` from the recorded report of the demo: ``python docs/images/demo_result.py``."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
REPORT = HERE.parent / "demo" / "demo" / "report.json"
NAMES = {"raw": "raw text,\n32 tokens", "latents": "compressed 4×,\n8 latents"}
COLOURS = {"raw": "#4a7fb5", "latents": "#d1495b"}


def draw(out: Path) -> None:
    """Left: what a context saves; right: how well the text behind the latents is repeated."""
    evaluation = json.loads(REPORT.read_text(encoding="utf-8"))["evaluation"]
    style = {"font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold"}
    plt.rcParams.update({**style, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 2.9), width_ratios=(1.2, 1), layout="constrained")

    for place, name in enumerate(NAMES):
        gain, error = (evaluation["gain_nats"][name][key] for key in ("value", "standard_error"))
        left.barh(place, gain, xerr=error, color=COLOURS[name], height=0.55, capsize=3)
        left.text(gain + error + 0.004, place, f"{gain:.4f} ± {error:.4f}", va="center")
    left.set_yticks(range(len(NAMES)), NAMES.values())
    left.set_xlim(0, 0.23)
    left.set_xticks([0, 0.05, 0.1, 0.15, 0.2])
    share = evaluation["recovered_share"]
    left.set_xlabel("loss saved on the 32 tokens that follow (nats per token)")
    left.set_title(f"Value of a context: {share['value']:.3f} ± {share['standard_error']:.3f} recovered", loc="left")

    depth = evaluation["verbatim_accuracy_by_depth"]
    right.plot(range(1, len(depth) + 1), [point["value"] for point in depth], color=COLOURS["latents"], marker=".")
    right.set_ylim(0, 1.02)
    right.set_xlabel("place of the token in the compressed span")
    right.set_ylabel("tokens right")
    accuracy = evaluation["verbatim_token_accuracy"]
    right.set_title(f"Verbatim repetition: {accuracy['value']:.4f} ± {accuracy['standard_error']:.4f}", loc="left")
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    draw(HERE / "demo-result.png")
