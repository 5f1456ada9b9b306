"""Load an export in plain transformers, and feed its decoder latents in place of tokens.

    python examples/transformers_with_latents.py [EXPORT]

Needs torch and transformers. The decoder is a stock causal language model: it reads latents through `inputs_embeds`.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lclm_jax


def main(folder: str = "runs/tiny/export") -> None:
    text = "def area(radius):\n    return 3.14159 * radius ** 2\n"
    (latents_LD,) = lclm_jax.load_model(folder).latents([text])

    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "decoder")
    decoder = AutoModelForCausalLM.from_pretrained(Path(folder) / "decoder", dtype=torch.float32)
    table = decoder.get_input_embeddings()

    def embed(words: str) -> torch.Tensor:
        return table(tokenizer(words, add_special_tokens=False, return_tensors="pt").input_ids)[0]

    latents = torch.tensor(latents_LD.astype("float32"))
    pieces = [embed("<|memory_start|>"), latents, embed("<|memory_end|>Repeat the text.")]
    embeddings = torch.cat(pieces)[None]
    with torch.no_grad():
        ids = decoder.generate(inputs_embeds=embeddings, max_new_tokens=24, do_sample=False)
    print(f"{embeddings.shape[1]} positions, {len(latents)} of them latents of {len(text)} characters")
    print(f"transformers says {tokenizer.decode(ids[0], skip_special_tokens=True)!r}")

    prompt = f"<|memory_start|>{text}<|memory_end|>Repeat the text."
    (ours,) = lclm_jax.load_model(folder).generate([prompt], lclm_jax.Sampling(max_new_tokens=24))
    print(f"lclm_jax says     {ours.text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
