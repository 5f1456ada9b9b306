"""Batches built by hand, and golden checkpoints read straight from their files (independent of data/ and interop/)."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from tests.golden.paths import CASES, CHECKPOINTS

from lclm_jax.batch import Batch
from lclm_jax.config import BackboneConfig, ModelConfig


def build_batch(model: ModelConfig, rows, *, S=None, M=None, R=None) -> Batch:
    """Rows of examples: dicts of ``tokens``, ``places`` ([start, stop) of each span's placeholders) and ``spans``.

    A span is a list of windows: dicts of ``ids``, ``start`` and ``length`` (the pooled part), ``markers``. Every window
    has an encoder row to itself, shifted so that its pooled part starts at a multiple of N. A span without windows
    takes one slot without weight.
    """
    N = model.ratio
    placed = [[_place(window, N) for example in row for span in example["spans"] for window in span] for row in rows]
    empty = [sum(not span for example in row for span in example["spans"]) for row in rows]
    S = S or max(sum(len(example["tokens"]) for example in row) for row in rows)
    M = M or max(1, *(len(windows) + extra for windows, extra in zip(placed, empty, strict=True)))
    longest = max([len(shifted["ids"]) for windows in placed for shifted in windows], default=N)
    R = R or -(-longest // N) * N
    batch = [_row(row, N, S, M, R) for row in rows]
    arrays = {name: np.stack([row[name] for row in batch]) for name in batch[0]}
    if not model.has_markers:
        arrays["marker_index"] = None
    return Batch(**arrays)


def _place(window, N):
    shift = -window["start"] % N
    ids = [0] * shift + list(window["ids"])
    markers = [shift + marker for marker in window.get("markers", [])]
    return {
        "ids": ids,
        "shift": shift,
        "start": shift + window["start"],
        "length": window["length"],
        "markers": markers,
    }


def _row(row, N, S, M, R):
    L, i32 = M * R // N, np.int32
    a = {name: np.zeros(S, i32) for name in ("decoder_tokens", "decoder_segments", "decoder_positions", "targets")}
    a |= {"loss_weights": np.zeros(S, np.float32), "latent_index": np.full(S, -1, i32)}
    a |= {name: np.zeros((M, R), i32) for name in ("encoder_tokens", "encoder_segments", "encoder_positions")}
    a |= {"pool_weights": np.zeros((M, R), np.float32)}
    a |= {name: np.zeros(L, i32) for name in ("latent_segments", "latent_positions", "marker_index")}
    at, encoder_row, span_id = 0, 0, 0
    for segment, example in enumerate(row, 1):
        tokens = np.asarray(example["tokens"])
        here = slice(at, at + len(tokens))
        a["decoder_tokens"][here], a["decoder_segments"][here] = tokens, segment
        a["decoder_positions"][here] = np.arange(len(tokens))
        a["targets"][at : at + len(tokens) - 1] = tokens[1:]
        weights = np.ones(len(tokens)) if example.get("weights") is None else np.asarray(example["weights"])
        a["loss_weights"][at : at + len(tokens) - 1] = weights[1:]
        for span, (start, stop) in zip(example["spans"], example["places"], strict=True):
            span_id, slots = span_id + 1, []
            for window in (_place(window, N) for window in span):
                length, base = len(window["ids"]), encoder_row * R
                inside = slice(window["shift"], length)
                a["encoder_tokens"][encoder_row, :length] = window["ids"]
                a["encoder_segments"][encoder_row, inside] = 1
                a["encoder_positions"][encoder_row, inside] = np.arange(length - window["shift"])
                a["pool_weights"][encoder_row, window["start"] : window["start"] + window["length"]] = 1
                first, count = (base + window["start"]) // N, -(-window["length"] // N)
                for k in range(count):
                    a["marker_index"][first + k] = base + window["markers"][k] if window["markers"] else 0
                slots += range(first, first + count)
                encoder_row += 1
            if not span:
                slots, encoder_row = [encoder_row * R // N], encoder_row + 1
            a["latent_segments"][slots], a["latent_positions"][slots] = span_id, np.arange(len(slots))
            a["latent_index"][at + start : at + stop] = slots
        at += len(tokens)
    return a


def random_example(model: ModelConfig, rng, spans, text=4):
    """An example: text, then for each length in ``spans`` a span with its tags, then text; windows without overlap."""
    N, (start_id, end_id, memory_id) = model.ratio, model.memory_token_ids
    tokens, places, windows = list(rng.integers(0, 60, text)), [], []
    for length in spans:
        ids = rng.integers(0, 60, length)
        cuts = [ids[k : k + model.window] for k in range(0, length, model.window)]
        markers = [[len(cut) + k for k in range(-(-len(cut) // N))] if model.has_markers else [] for cut in cuts]
        tokens_of = [0] * model.window if model.has_pad_markers else range(model.encoder.vocab_size, 2**30)
        windows.append(
            [
                {
                    "ids": [*cut, *tokens_of[: len(marks)]],
                    "start": 0,
                    "length": len(cut),
                    "markers": marks,
                }
                for cut, marks in zip(cuts, markers, strict=True)
            ]
        )
        count = sum(-(-len(cut) // N) for cut in cuts)
        places.append((len(tokens) + 1, len(tokens) + 1 + count))
        tokens += [start_id, *[memory_id] * count, end_id, *rng.integers(0, 60, text)]
    return {"tokens": tokens, "places": places, "spans": windows}


@pytest.fixture
def batches():
    """The builders ``build_batch`` and ``random_example``."""
    return SimpleNamespace(build=build_batch, example=random_example)


def pytest_generate_tests(metafunc):
    """Give every test that asks for a golden case all of them."""
    if "golden_name" in metafunc.fixturenames:
        # tests/parity runs the same cases against the same numbers; here one with several samples stands for all.
        marks = {name: () if name.startswith("18-") else pytest.mark.slow for name in CASES}
        metafunc.parametrize("golden_name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


@pytest.fixture
def golden(golden_name):
    """A golden case: its JSON, expected arrays, ModelConfig, params, and all samples packed in one row."""
    folder = CASES[golden_name]
    case = json.loads((folder / "case.json").read_text())
    source = CHECKPOINTS[case["checkpoint"]]
    model = _golden_model(source, case)
    examples = [_golden_example(sample) for sample in case["samples"]]
    return SimpleNamespace(
        case=case,
        expected=_tensors([folder / "arrays.safetensors"]),
        model=model,
        params=_golden_params(source, model),
        batch=build_batch(model, [examples]),
    )


def _golden_example(sample):
    names = {"input_ids": "ids", "pool_start": "start", "pool_len": "length", "markers": "markers"}
    spans = [[{new: window[old] for old, new in names.items()} for window in span] for span in sample["windows"]]
    labels = sample["labels"] or [-100] * len(sample["input_ids"])
    weights = [float(label >= 0) for label in labels]
    return {"tokens": sample["input_ids"], "places": sample["memory_positions"], "spans": spans, "weights": weights}


def _golden_model(source, case) -> ModelConfig:
    settings = case["model_config"]
    tokenizer = json.loads((source / "decoder" / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return ModelConfig(
        encoder=_backbone(source / "encoder"),
        decoder=_backbone(source / "decoder"),
        adapter={"type": settings["adapter_type"], "num_layers": settings.get("num_adapter_layers", 1)},
        ratio=settings["compression_ratio"],
        window=settings["encoder_window_size"],
        overlap=settings["boundary_overlap"],
        pooling=settings["pooling"],
        mask=settings["encoder_mask_type"],
        memory_token_ids=tuple(ids[f"<|memory{end}|>"] for end in ("_start", "_end", "")),
        compute_dtype="float32",
        remat="none",
    )


def _backbone(folder) -> BackboneConfig:
    config = json.loads((folder / "config.json").read_text())
    return BackboneConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        mlp_size=config["intermediate_size"],
        rope_theta=config.get("rope_theta") or config["rope_parameters"]["rope_theta"],
        norm_eps=config["rms_norm_eps"],
        tie_embeddings=config["tie_word_embeddings"],
    )


def _tensors(files) -> dict[str, np.ndarray]:
    tensors = {}
    for file in files:
        with safe_open(file, "flax") as stored:
            tensors |= {name: np.asarray(stored.get_tensor(name).astype(jnp.float32)) for name in stored.keys()}  # noqa: SIM118
    return tensors


def _golden_params(source, model: ModelConfig):
    encoder = _tensors((source / "encoder").glob("*.safetensors"))
    decoder = _tensors((source / "decoder").glob("*.safetensors"))
    adapter = _tensors((source / "adapter").glob("*.safetensors"))
    params = {"encoder": _tower(encoder, "", model.encoder), "decoder": _tower(decoder, "model.", model.decoder)}
    params["decoder"]["memory_rows"] = decoder["model.embed_tokens.weight"][list(model.memory_token_ids)]
    if not model.decoder.tie_embeddings:
        params["decoder"]["head"] = {"kernel": decoder["lm_head.weight"].T}
    params["adapter"] = {"norm": {"scale": adapter["norm.weight"]}}
    for name in ("fc1", "fc2"):
        params["adapter"][name] = {"kernel": adapter[f"{name}.weight"].T, "bias": adapter[f"{name}.bias"]}
    if model.adapter.type != "mlp":
        shape = model.encoder if model.adapter.type == "attn_mlp" else model.decoder
        prefixes = [f"attention_layers.{k}.decoder_layer." for k in range(model.adapter.num_layers)]
        params["adapter"]["layers"] = _layers(adapter, prefixes, shape)
    return params


def _tower(tensors, prefix, config):
    prefixes = [f"{prefix}layers.{k}." for k in range(config.num_layers)]
    return {
        "embed": {"table": tensors[f"{prefix}embed_tokens.weight"]},
        "layers": _layers(tensors, prefixes, config),
        "final_norm": {"scale": tensors[f"{prefix}norm.weight"]},
    }


def _layers(tensors, prefixes, config):
    def stack(name, shape=None, transpose=True):
        arrays = [tensors[f"{prefix}{name}.weight"] for prefix in prefixes]
        arrays = [array.T if transpose else array for array in arrays]
        return np.stack([array.reshape(shape) if shape else array for array in arrays])

    D, H, K, d = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
    D = tensors[f"{prefixes[0]}input_layernorm.weight"].size
    return {
        "attn_norm": {"scale": stack("input_layernorm")},
        "mlp_norm": {"scale": stack("post_attention_layernorm")},
        "attn": {
            "q": {"kernel": stack("self_attn.q_proj", (D, H, d))},
            "k": {"kernel": stack("self_attn.k_proj", (D, K, d))},
            "v": {"kernel": stack("self_attn.v_proj", (D, K, d))},
            "o": {"kernel": stack("self_attn.o_proj", (H, d, D))},
            "q_norm": {"scale": stack("self_attn.q_norm")},
            "k_norm": {"scale": stack("self_attn.k_norm")},
        },
        "mlp": {name: {"kernel": stack(f"mlp.{name}_proj")} for name in ("gate", "up", "down")},
    }
