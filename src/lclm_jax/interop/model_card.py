"""The model card of an export: what it is, its shape, what was measured, how to use it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from lclm_jax.config import BackboneConfig, LoraConfig, ModelConfig
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import ReadOnlyJson
from lclm_jax.version import __version__

_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [lclm, context-compression]
---

# {title}

A latent context language model (LCLM): the encoder reads text in windows of {window} tokens and pools every {ratio}
tokens into one latent; the adapter projects the latents into the decoder's embedding space; the decoder reads them in
place of the text. Written by lclm_jax {version} from {origin}, as {dtype}.
"""

_USE = """
## Use

Text between `<|memory_start|>` and `<|memory_end|>` is compressed, in any message of a chat. In JAX, with `lclm-jax`:

    lclm generate FOLDER --prompt '<|memory_start|>text to compress<|memory_end|>What does it say?'
"""

_USE_ENGINES = """
In transformers, with `lclm-serving[transformers]`:

    import lclm_serving
    from transformers import AutoModelForCausalLM, AutoProcessor

    model, processor = (auto.from_pretrained("FOLDER") for auto in (AutoModelForCausalLM, AutoProcessor))
    text = "<|memory_start|>text to compress<|memory_end|>What does it say?"
    inputs = processor.apply_chat_template([{"role": "user", "content": text}])
    print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0]))

As a server, with `lclm-serving[vllm]`:

    vllm serve FOLDER

`decoder/` is an ordinary causal language model with its tokenizer, `encoder/` a base model with its own, `adapter/`
holds the projection, `model_config.json` the compression.
"""

_USE_PEFT = """
The weights are those of the base model. Its LoRA is in `lora/`: `lclm generate` applies it, elsewhere `peft` does, to
the decoder and to the encoder alike, as far as each has a folder there:

    peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("FOLDER/decoder"), "FOLDER/lora/decoder")
"""


def write_card(
    folder: Path, model: ModelConfig, dtype: str, lora: str, origin: str, evaluation: ReadOnlyJson | None
) -> None:
    """Write ``README.md`` into an exported folder.

    Args:
        folder: the export.
        model: its configuration.
        dtype: how its weights are stored.
        lora: what became of its LoRA, if it has any: ``merge`` or ``peft``.
        origin: what was exported, in words.
        evaluation: the content of ``eval.json``; None: nothing was measured of these weights, and the card says so.
    """
    title = f"LCLM, {model.ratio}x compression"
    head = dict(title=title, window=model.window, ratio=model.ratio, version=__version__, origin=origin, dtype=dtype)
    settings = [*_settings(model, lora), *_texts(Tokenizer.from_folder(folder / "decoder"))]
    text = _HEAD.format(**head) + "\n## Configuration\n\n" + _table(("key", "value"), settings)
    towers = (("encoder", model.encoder), ("decoder", model.decoder))
    text += "\n" + _table(
        ("", "layers", "hidden", "heads/kv", "head", "mlp", "vocabulary", "tied"), [_tower(*tower) for tower in towers]
    )
    text += "\n## Measured results\n\n" + (_results(evaluation) if evaluation else "None of these weights.\n") + _USE
    text += _USE_PEFT if lora == "peft" else _USE_ENGINES
    (folder / "README.md").write_text(text, encoding="utf-8")


def _settings(model: ModelConfig, lora: str) -> list[tuple[str, object]]:
    adapter: str = model.adapter.type
    if model.adapter.row.blocks:
        adapter += f", {model.adapter.num_layers} attention layers"
    return [
        ("tokens per latent", model.ratio),
        ("window", model.window),
        ("overlap", model.overlap),
        ("pooling", model.pooling),
        ("mask inside a window", model.mask),
        ("adapter", adapter),
        *_lora(model, lora),
    ]


def _texts(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """How texts begin and answers end, where this is not all said by the names of the tokenizer's tokens."""

    def shown(*ids: int) -> str:
        texts = [tokenizer.decode([index]).replace("|", "\\|") for index in ids]  # a bar would end the cell
        return ", ".join(f"`{text}` ({index})" for text, index in zip(texts, ids, strict=True))

    if tokenizer.bos_id is not None:
        yield "a text begins with", shown(tokenizer.bos_id)
    if tokenizer.stop_ids - {tokenizer.eos_id, tokenizer.pad_id}:
        yield "an answer ends with", shown(*sorted(tokenizer.stop_ids))


def _lora(model: ModelConfig, what: str) -> Iterator[tuple[str, str]]:
    for tower in ("encoder", "decoder"):
        lora: LoraConfig | None = getattr(model.lora, tower)
        if lora is not None:
            place = "merged into the kernels" if what == "merge" else f"in `lora/{tower}/`, not merged"
            yield f"LoRA of the {tower}", f"rank {lora.rank}, alpha {lora.alpha:g}, {' '.join(lora.targets)}; {place}"


def _tower(name: str, tower: BackboneConfig) -> tuple[object, ...]:
    heads = f"{tower.num_heads}/{tower.num_kv_heads}"
    sizes = (tower.num_layers, tower.hidden_size, heads, tower.head_dim, tower.mlp_size, tower.vocab_size)
    return (name, *sizes, "yes" if tower.tie_embeddings else "no")


def _results(evaluation: ReadOnlyJson) -> str:
    rows = [(f"loss, {name} (nats per token)", entry) for name, entry in evaluation["loss_nats"].items()]
    rows += [("recovered share of the context gain", evaluation["recovered_share"])]
    rows += [("verbatim token accuracy", evaluation["verbatim_token_accuracy"])]
    text = _table(("quantity", "value", "standard error", "count"), [(name, *_estimate(entry)) for name, entry in rows])
    split, tokens = evaluation["split"], evaluation["held_out_tokens"]
    return f"Measured on the {split} split, {tokens:,} tokens; standard errors are over files.\n\n{text}"


def _estimate(entry: ReadOnlyJson) -> tuple[str, str, object]:
    error = entry["standard_error"]
    return f"{entry['value']:.4f}", "unknown" if error is None else f"{error:.4f}", entry["count"]


def _table(head: tuple[str, ...], rows: Iterable[Iterable[object]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)
