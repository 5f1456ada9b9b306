"""A checksum of every array of a state, the same on every mesh: proof that what was restored is what was saved."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.train.freeze import path_name


def fingerprint(tree: Any) -> dict[str, int]:
    """Path of each leaf to the sum of its bits as words, modulo 2**32.

    A sum does not depend on the order of its terms, so it is the same for every sharding; one flipped bit changes it.
    Reads each array once on its devices and brings one number per leaf to the host.
    """
    sums = jax.device_get(_sums(tree))
    return {path_name(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(sums)}


@jax.jit
def _sums(tree: Any) -> Any:
    def total(leaf: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(leaf, np.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        return words.astype(jnp.uint32).sum(dtype=jnp.uint32)

    return jax.tree.map(total, tree)
