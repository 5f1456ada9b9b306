"""Encode a document to latents, and count what they cost and save.

    python examples/latents_of_a_document.py [EXPORT] [DOCUMENT]

EXPORT is the folder that examples/train_with_a_hook.py wrote, or any exported or published model.
"""

import sys
import time
from pathlib import Path

import lclm_jax


def main(folder: str = "runs/tiny/export", document: str = __file__) -> None:
    model = lclm_jax.load_model(folder)
    text = Path(document).read_text(encoding="utf-8")
    (latents_LD,) = model.latents([text])  # compiles
    begun = time.perf_counter()
    (latents_LD,) = model.latents([text])
    seconds = time.perf_counter() - begun

    raw = len(model.decoder_tokenizer.encode(text, plain=True))
    decoder = model.model.decoder
    cache_bytes = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * 2  # keys and values, bfloat16
    print(f"{raw:,} tokens became {len(latents_LD):,} latents of width {latents_LD.shape[1]} in {seconds * 1e3:.1f} ms")
    print(f"stored in bfloat16 the latents take {latents_LD.size * 2:,} bytes")
    print(
        f"the decoder's key/value cache takes {len(latents_LD) * cache_bytes:,} bytes instead of {raw * cache_bytes:,}"
    )

    (answer,) = model.generate(
        [f"<|memory_start|>{text[:60]}<|memory_end|>Repeat the text."], lclm_jax.Sampling(max_new_tokens=24)
    )
    print(f"asked to repeat the first 60 characters, the model says {answer.text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
