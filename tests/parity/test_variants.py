"""Settings that no stored case has: our latents and logits beside those of an independent computation with torch.

The towers are transformers' own; windows, pooling and splice are written out again, span by span.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.exporting import export_model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

from lclm_jax.interop.load import load_hf
from lclm_jax.model.lclm import abstract_params
from lclm_jax.parity.case import load_case
from lclm_jax.parity.check import LATENTS, LOGITS, compare
from lclm_jax.parity.model import _forward, greedy_ids

COPY = Path(__file__).parents[1] / "golden" / "reference"
CASE = "07-mean-bidir-mlp-n16-w16-o8"
NAMES = ("ratio", "window", "overlap", "pooling", "mask", "adapter", "layers")
# Overlaps that N does not divide, windows of one group, spans shorter than a group, deep adapters of both kinds.
VARIANTS = [
    (2, 6, 5, "mean", "bidirectional", "mlp", 1),
    (32, 32, 3, "mean", "causal", "mlp", 1),
    (8, 8, 16, "eos", "causal", "mlp", 1),
    (4, 20, 7, "eos", "bidirectional", "mlp_attn", 3),
    (2, 16, 1, "concat", "bidirectional", "mlp", 1),
    (8, 24, 0, "concat", "causal", "mlp_attn", 2),
    (4, 16, 4, "mean", "causal", "attn_mlp", 3),
    (1, 8, 2, "eos", "bidirectional", "attn_mlp", 2),
]


class Torch:
    """The model of ``folder`` once more."""

    def __init__(self, folder, settings, pad_id):
        self.decoder = transformers.AutoModelForCausalLM.from_pretrained(folder / "decoder", dtype=torch.float32)
        self.encoder = transformers.AutoModel.from_pretrained(folder / "encoder", dtype=torch.float32)
        self.adapter = load_file(folder / "adapter" / "adapter.safetensors")
        self.settings, self.pad_id = settings, pad_id

    def pooled(self, span):
        """[latents, width] of a span."""
        n, w, o = (self.settings[name] for name in ("ratio", "window", "overlap"))
        both = self.settings["mask"] == "bidirectional"
        groups = []
        for start in range(0, len(span), w):
            stop = min(start + w, len(span))
            left, right = max(0, start - o), min(len(span), stop + o) if both else stop
            count = -(-(stop - start) // n)
            markers = [self.pad_id] * count if self.settings["pooling"] == "eos" else []
            hidden = self._encode([*span[left:right], *markers], both)
            if markers:
                groups.append(hidden[-count:])
                continue
            for first in range(start, stop, n):
                group = hidden[first - left : min(first + n, stop) - left]
                if self.settings["pooling"] == "concat":
                    group = torch.cat([group, torch.zeros(n - len(group), group.shape[1])]).reshape(1, -1)
                groups.append(group.mean(0, keepdim=True) if self.settings["pooling"] == "mean" else group)
        return torch.cat(groups)

    def _encode(self, ids, both):
        size = len(ids)
        see = torch.ones(size, size, dtype=torch.bool)
        see = see if both else see.tril()
        mask = torch.zeros(1, 1, size, size).masked_fill(~see, torch.finfo(torch.float32).min)
        return self.encoder(torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]

    def project(self, pooled):
        """[latents, decoder width]."""
        a, kind = self.adapter, self.settings["adapter"]
        x = self._attend(pooled, self.encoder.config) if kind == "attn_mlp" else pooled
        x = x * torch.rsqrt((x**2).mean(-1, keepdim=True) + 1e-6) * a["norm.weight"]
        x = torch.nn.functional.gelu(x @ a["fc1.weight"].T + a["fc1.bias"]) @ a["fc2.weight"].T + a["fc2.bias"]
        return self._attend(x, self.decoder.config) if kind == "mlp_attn" else x

    def _attend(self, x, config):
        config._attn_implementation = "eager"
        x = x[None]
        positions = torch.arange(x.shape[1])[None]
        turn = Qwen3RotaryEmbedding(config)(x, positions)
        for layer in range(self.settings["layers"]):
            block, prefix = Qwen3DecoderLayer(config, 0), f"attention_layers.{layer}.decoder_layer."
            block.load_state_dict({k.removeprefix(prefix): v for k, v in self.adapter.items() if k.startswith(prefix)})
            x = block(x, attention_mask=None, position_ids=positions, position_embeddings=turn)
            x = x[0] if isinstance(x, tuple) else x
        return x[0]

    def logits(self, tokens, latents, placeholder):
        """[positions, vocabulary]."""
        embeds = self.decoder.get_input_embeddings()(torch.tensor(tokens, dtype=torch.long))
        embeds[torch.tensor(tokens == placeholder)] = torch.cat(latents)
        return self.decoder(inputs_embeds=embeds[None]).logits[0]


def variant_folder(tmp_path, settings):
    """A case and a checkpoint of ``settings``: the towers of a stored one, a random adapter."""
    values = json.loads((COPY / "cases" / CASE / "case.json").read_text())
    values["model_config"] = {
        "compression_ratio": settings["ratio"],
        "encoder_window_size": settings["window"],
        "pooling": settings["pooling"],
        "encoder_mask_type": settings["mask"],
        "boundary_overlap": settings["overlap"],
        "adapter_type": settings["adapter"],
        "num_adapter_layers": settings["layers"],
    }
    stored = COPY / "checkpoints" / values["checkpoint"]
    model, params = load_hf(stored)
    adapter = model.adapter.model_copy(update={"type": settings["adapter"], "num_layers": settings["layers"]})
    changes = {name: settings[name] for name in ("ratio", "window", "overlap", "pooling", "mask")}
    model = model.model_copy(update={"adapter": adapter, **changes})
    rng = np.random.default_rng(0)
    params["adapter"] = jax.tree.map(
        lambda leaf: rng.normal(scale=0.1, size=leaf.shape).astype(np.float32), abstract_params(model)["adapter"]
    )
    tokenizers = dict(decoder_tokenizer=stored / "decoder", encoder_tokenizer=stored / "encoder")
    export_model(params, model, tmp_path / "checkpoints" / "variant", **tokenizers)
    kept = ("id", "kind", "messages", "target", "text")
    values |= {"checkpoint": "variant", "samples": [{k: s[k] for k in kept if k in s} for s in values["samples"]]}
    (tmp_path / CASE).mkdir()
    (tmp_path / CASE / "case.json").write_text(json.dumps(values))
    return load_case(tmp_path / CASE, tmp_path / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant)))
def test_an_independent_computation_agrees(variant, tmp_path, mesh):
    settings = dict(zip(NAMES, variant, strict=True))
    case = variant_folder(tmp_path, settings)
    theirs = Torch(tmp_path / "checkpoints" / "variant", settings, case.encoder.pad_id)
    names = list(case.samples)
    batch = case.batch([[name] for name in names])
    found = jax.device_get(_forward(case.params, batch, model=case.model))
    for row, name in enumerate(names):
        example = case.examples[name]
        slots = batch.latent_index[row][batch.latent_index[row] >= 0]
        with torch.no_grad():
            pooled = [theirs.pooled(span.tolist()) for span in example.spans]
            latents = [theirs.project(group) for group in pooled]
            logits = theirs.logits(example.tokens, latents, case.decoder.memory_ids.placeholder)
        checks = [
            compare(name, "latents", found["latents"][row][slots], torch.cat(pooled), LATENTS),
            compare(name, "projected", found["projected"][row][slots], torch.cat(latents), LATENTS),
            compare(name, "logits", found["logits"][row, : len(example.tokens)], logits, LOGITS),
        ]
        assert [str(check) for check in checks if not check.ok] == []
    check_greedy_ids(case, theirs, names)


def check_greedy_ids(case, theirs, names):
    """Three new tokens, each from the whole sequence again."""
    ids = greedy_ids(case, [case.prompt(name) for name in names], 3)
    for name, new in zip(names, ids, strict=True):
        prompt = case.prompt(name)
        with torch.no_grad():
            latents = [theirs.project(theirs.pooled(span.tolist())) for span in prompt.spans]
            tokens = np.concatenate([prompt.tokens, new[:-1]])
            logits = theirs.logits(tokens, latents, case.decoder.memory_ids.placeholder)
        assert logits[-len(new) :].argmax(-1).tolist() == list(new)
