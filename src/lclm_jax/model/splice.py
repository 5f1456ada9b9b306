"""Latents into the decoder's input embeddings."""

import jax
import jax.numpy as jnp


def splice(embeddings_BSD: jax.Array, latents_BLD: jax.Array, latent_index_BS: jax.Array) -> jax.Array:
    """Position s becomes latent ``latent_index_BS[b, s]``, or stays text where the index is -1.

    With indices ``-1 0 1 -1`` the row is text, latent 0, latent 1, text. A gather and a select: nothing is written to
    by two positions, and latents that no position names are simply unused.
    """
    slot_BS = jnp.maximum(latent_index_BS, 0)
    picked_BSD = jnp.take_along_axis(latents_BLD.astype(embeddings_BSD.dtype), slot_BS[..., None], axis=1)
    return jnp.where((latent_index_BS >= 0)[..., None], picked_BSD, embeddings_BSD)
