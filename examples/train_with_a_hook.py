"""Train from Python, and watch the loss with a function of your own.

    python examples/train_with_a_hook.py

Writes runs/tiny, which the other examples read, and the model in the Hugging Face layout in runs/tiny/export.
"""

from pathlib import Path

import lclm_jax

losses: list[float] = []


def keep_loss(step: lclm_jax.StepInfo) -> None:
    """Called after every tenth step; metrics are plain floats."""
    losses.append(step.metrics["loss_nats"])
    print(f"step {step.step}: {losses[-1]:.3f} nats per token")


def main() -> None:
    config = lclm_jax.load_config(Path(__file__).with_name("tiny.yaml"))
    lclm_jax.prepare_data(config, workers=1)
    lclm_jax.train_stages(config, hooks=[lclm_jax.Hook(every=10, call=keep_loss)])
    if losses:  # a second call finds the stage finished
        print(f"the loss fell from {losses[0]:.2f} to {losses[-1]:.2f}")
    print(f"exported to {lclm_jax.export_run(config)}")


if __name__ == "__main__":
    main()
