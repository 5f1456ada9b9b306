"""What rounding in a store of latents costs: ``python benchmarks/store_codes.py RUN``.

The recovered share of a trained run on its held-out documents, with the encoder's vectors as they are and as each code
of ``lclm_store`` keeps them: the same places, tokens and weights, so that differences are those of the rounding.
"""

import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from lclm_jax.config import load_config
from lclm_jax.data.store.shards import open_split
from lclm_jax.eval.context_gain import recovered_share
from lclm_jax.eval.examples import continuation_variants, spread_places, with_bos
from lclm_jax.eval.score import Scorer
from lclm_jax.inference.generate import place
from lclm_jax.model import lclm
from lclm_jax.parallel import make_mesh
from lclm_jax.text.run_tokenizers import load_tokenizers, resolve
from lclm_jax.train.checkpoints.run_params import latest_checkpoint, load_params
from lclm_store.codes import CODES, pack, unpack

encode_exactly = lclm._encode_pooled


def kept(vectors: np.ndarray, code: str) -> np.ndarray:
    """``vectors`` [..., width] as a store gives them back."""
    rows = np.nan_to_num(np.asarray(vectors, np.float32)).reshape(-1, vectors.shape[-1])
    return unpack(pack(rows, code), code, *rows.shape).reshape(vectors.shape)


def use_code(code: str | None) -> None:
    """Let the encoder's vectors pass through ``code``; None: as they are."""

    def encode(params, model, batch, key, scale_E):
        assert scale_E is None, "the norm of the adapter comes after the store"
        pooled_BLE = encode_exactly(params, model, batch, key, None)
        if code is None:
            return pooled_BLE
        shape = jax.ShapeDtypeStruct(pooled_BLE.shape, np.float32)
        rounded_BLE = jax.pure_callback(lambda x: kept(x, code), shape, pooled_BLE.astype(np.float32))
        return rounded_BLE.astype(pooled_BLE.dtype)

    lclm.fused_norm_scale = lambda params, model: None
    lclm._encode_pooled = encode
    jax.clear_caches()


def main(run: Path) -> None:
    """Print the recovered share by code."""
    config = load_config(run / "config.yaml")
    tokenizers = load_tokenizers(config)
    config = resolve(config, tokenizers)
    settings, model, mesh = config.eval, config.model, make_mesh(config.mesh)
    stage, step = latest_checkpoint(config, None, None)
    params = place(load_params(config, stage, step, mesh, False), model, mesh)
    documents = open_split(config, settings.collection, "held_out")
    following = settings.continuation_tokens + 1
    places = spread_places(documents, settings.examples, settings.context_tokens, following, Counter())
    memory, bos = tokenizers.decoder.memory_ids, tokenizers.decoder.bos_id
    variants = [continuation_variants(one, settings.continuation_tokens, memory, model.ratio) for one in places]
    clusters = np.array([one.record for one in places])
    pad_id = tokenizers.encoder.pad_id if model.has_pad_markers else None

    def scores(name):
        scorer = Scorer(params, model, mesh, settings.batch_rows, pad_id)
        return scorer.score([with_bos(one[name], bos) for one in variants])

    use_code(None)
    base = {name: scores(name) for name in ("none", "raw")}
    exact = None
    for code in (None, *CODES):
        use_code(code)
        share = recovered_share({**base, "latents": scores("latents")}, clusters).as_dict()
        exact = share["value"] if exact is None else exact
        sys.stdout.write(
            f"{code or 'as encoded':10} recovered share {share['value']:.5f} +- {share['standard_error']:.5f},"
            f" moved by {share['value'] - exact:+.5f}\n"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
