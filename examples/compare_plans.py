"""Compare two pods for a model of the paper, by formula; no accelerator is needed.

    python examples/compare_plans.py

`lclm plan CONFIG --topology T` compiles the real step instead, which takes minutes and gives tighter numbers.
"""

from pathlib import Path

import lclm_jax

EXPERIMENT = "0.6b-4b-cs16-mean-w1024-causal-mlp-O0.yaml"


def main() -> None:
    configs = Path(__file__).parents[1] / "configs"
    config = lclm_jax.load_config(configs / "experiments" / EXPERIMENT, ["mesh.fsdp=-1"])
    stage = list(config.stages)[2]  # end-to-end pretraining, the longest
    print(f"{stage}: {config.stages[stage].steps:,} steps")
    for topology in ("v5p:4x4x4", "v6e:8x8"):
        (plan,) = lclm_jax.plan_stages(config, topology, [stage], compiled=False)
        if plan.program is None or not plan.fits:
            print(f"{topology}: does not fit")
            continue
        print(
            f"{topology:<10} {plan.program.peak_bytes / 1e9:5.1f} of {plan.chip_bytes / 1e9:.0f} GB a chip;"
            f" a step takes at least {plan.program.step_s:.2f} s (bound by {plan.program.bound});"
            f" {plan.days:.1f} days, {plan.chip_hours:,.0f} chip-hours"
        )


if __name__ == "__main__":
    main()
