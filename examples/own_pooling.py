"""Train a model with a pooling of your own: a mean of the group's states, weighted by one learned score each.

    python examples/own_pooling.py

The class lies in a module that every process can import; here that is this file.
"""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

import lclm_jax
from lclm_jax.config import ModelConfig
from lclm_jax.model.layers import Module, Products


class ScoredPooling(Module):
    """Scores start at zero: it begins as mean pooling."""

    model: ModelConfig

    @nn.compact
    def __call__(self, hidden_BLNE: jax.Array, weights_BLN: jax.Array) -> jax.Array:
        """pooled_BLE."""
        score_E = self.declare("score", nn.initializers.zeros, hidden_BLNE.shape[-1:], ("norm",))
        scores_BLN = jnp.einsum("BLNE,E->BLN", hidden_BLNE, score_E)
        shares_BLN = jax.nn.softmax(jnp.where(weights_BLN > 0, scores_BLN, -1e30))
        return jnp.einsum("BLN,BLNE->BLE", shares_BLN, hidden_BLNE).astype(hidden_BLNE.dtype)

    def products(self) -> Products:
        """Multiply-adds of one latent: the scores, and the weighted sum."""
        size = self.model.ratio * self.model.encoder.hidden_size
        return Products(kernels=size, first=size, states=size)


def main() -> None:
    lclm_jax.register_pooling("scored", ScoredPooling, any_ratio=True)
    overrides = ["model.pooling=scored", "name=tiny-scored", "stages.only.steps=20"]
    config = lclm_jax.load_config(Path(__file__).with_name("tiny.yaml"), overrides)
    lclm_jax.prepare_data(config, workers=1)
    lclm_jax.train_stages(config)
    model = lclm_jax.load_model(config.run_dir)
    score_E = model.params["adapter"]["pool"]["score"]
    print(f"after training the scores reach {float(abs(score_E).max()):.1e}: the pooling has learned")


if __name__ == "__main__":
    main()
