"""No dead fields: perturbing any key of the model changes a shape, the numbers, the program, or is an error."""

import copy
import functools
import zlib
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from pydantic import ValidationError

from lclm_jax.config import MeshConfig, ModelConfig, describe_keys
from lclm_jax.errors import LclmError
from lclm_jax.interop.hf_config import backbone_json
from lclm_jax.interop.hf_weight_map import flatten, nest
from lclm_jax.model import abstract_params, forward, init_params, logits, token_nll
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.parity.case import case_batch
from lclm_jax.text.example import Example

TOWER = dict(vocab_size=24, hidden_size=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, mlp_size=12)
TOWER |= dict(rope_theta=100.0, norm_eps=1e-2, max_positions=64)
LORA = dict(rank=2, alpha=4.0, dropout=0.0, targets=("q", "v"))
BASE = dict(
    encoder=dict(TOWER),  # not one object: a change of one tower must leave the other alone
    decoder=dict(TOWER),
    adapter={"type": "attn_mlp", "num_layers": 1},
    ratio=2,
    window=4,
    memory_token_ids=(21, 22, 23),
    compute_dtype="float32",
    remat="none",
)
TOKENS = 7
"""Length of the span: not a multiple of the ratio, the window, or twice either."""

# key -> (another value, what must happen). One entry stands for both towers.
TOWER_CHANGES = {
    "preset": ("qwen4_0p6b", "error"),
    "vocab_size": (32, "shape"),
    "hidden_size": (16, "shape"),
    "num_layers": (3, "shape"),
    "num_heads": (4, "shape"),
    "num_kv_heads": (2, "shape"),
    "head_dim": (8, "shape"),
    "mlp_size": (16, "shape"),
    "rope_theta": (10.0, "numbers"),
    "norm_eps": (1e-1, "numbers"),
    "qk_norm": (False, "shape"),
    "qkv_bias": (True, "error"),  # with qk_norm; the rest is in tests/interop/test_families.py
    "rope_scaling.type": ("llama3", "error"),
    "rope_scaling.factor": (2.0, "error"),
    "rope_scaling.original_positions": (8, "error"),
    "rope_scaling.low_freq_factor": (2.0, "error"),
    "rope_scaling.high_freq_factor": (8.0, "error"),
    "rope_scaling.beta_fast": (16.0, "error"),
    "rope_scaling.beta_slow": (2.0, "error"),
    "rope_scaling.truncate": (False, "error"),
    "rope_scaling.attention_factor": (2.0, "error"),
}
TOWERS = ("encoder", "decoder")
LORA_CHANGES = {
    "rank": (4, "shape"),
    "alpha": (8.0, "numbers"),
    "dropout": (0.5, "program"),
    "targets": (("q",), "shape"),
}
CHANGES = {
    **{f"{tower}.{name}": change for tower in ("encoder", "decoder") for name, change in TOWER_CHANGES.items()},
    **{f"lora.{tower}.{name}": change for tower in ("encoder", "decoder") for name, change in LORA_CHANGES.items()},
    "decoder.tie_embeddings": (False, "shape"),
    "encoder.tie_embeddings": (False, "export"),
    "decoder.max_positions": (32, "export"),
    "encoder.max_positions": (3, "error"),
    "adapter.type": ("mlp_attn", "numbers"),
    "adapter.num_layers": (2, "shape"),
    "ratio": (4, "numbers"),
    "span_ratios": ((2, 4), "program"),
    "window": (6, "numbers"),
    "overlap": (1, "numbers"),
    "pooling": ("eos", "numbers"),
    "pool_before_last": (1, "numbers"),
    "mask": ("bidirectional", "numbers"),
    "memory_token_ids": ((20, 22, 23), "numbers"),
    "compute_dtype": ("bfloat16", "numbers"),
    "param_dtype": ("bfloat16", "numbers"),
    "embedding_std": (0.5, "initial values"),
    # Without the extra [quantize] it is refused; tests/model/test_quantized.py has the rest.
    "quantize.encoder": ("int8", "numbers" if find_spec("qwix") else "missing"),
    "quantize.decoder": ("int8", "numbers" if find_spec("qwix") else "missing"),
    "remat": ("full", "program"),
    # With remat=none every product is saved; what they do is in tests/model/test_remat.py.
    **{f"remat_tensors.{tower}.{where}": (["q"], "error") for tower in TOWERS for where in ("device", "host")},
    "scan_layers": (False, "program"),
    "attention": ("chunked", "program"),
    "pooling_backend": ("pallas_tpu", "refusal"),
    "loss_chunk": (2, "program"),
}
KEYS = [name for name, default, *_ in describe_keys(ModelConfig) if default]


def build(**changes) -> ModelConfig:
    """The base model with dotted ``changes``."""
    values = copy.deepcopy(BASE)
    for dotted, value in copy.deepcopy(changes).items():
        node = values
        *parents, last = dotted.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return ModelConfig(**values)


def leaves(model):
    """Parameters whose values depend on their path alone."""

    def draw(path, leaf):
        return np.random.default_rng(zlib.crc32(path.encode())).normal(scale=0.5, size=leaf.shape).astype(leaf.dtype)

    return nest({path: draw(path, leaf) for path, leaf in flatten(abstract_params(model))})


def shapes(model):
    return {path: leaf.shape for path, leaf in flatten(abstract_params(model))}


def batch(model):
    """Text around one span; both tags are in it."""
    start, end, placeholder = (21, 22, 23)
    inside = [placeholder] * -(-TOKENS // model.ratio)
    tokens = np.array([1, 2, start, *inside, end, 3, 4, 5, 6], np.int32)
    weights = np.array([0, 1, *[0] * (len(inside) + 2), 1, 1, 1, 1], np.float32)
    example = Example(tokens, weights, (np.arange(3, 3 + TOKENS, dtype=np.int32),))
    return case_batch([[example]], model, pad_id=0, row_length=16)


def numbers(model):
    """Logits of the text after the span."""

    # Optimised code would take longer to make than it saves.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params, packed):
        return logits(params, model, forward(params, model, packed))

    packed = batch(model)
    last = int(np.flatnonzero(packed.loss_weights[0])[-1])
    return np.asarray(run(leaves(model), packed), np.float32)[0, last - 3 : last + 1]


def program(model):
    """Text of the gradient's program, dropout on where the model has any."""

    def loss(params, packed):
        key = {} if model.lora == ModelConfig(**BASE).lora else {"key": jax.random.key(0)}
        return token_nll(params, model, forward(params, model, packed, **key), packed.targets).sum()

    return str(jax.make_jaxpr(jax.grad(loss))(leaves(model), batch(model)))


@functools.cache
def base_numbers(lora):
    return numbers(with_lora(lora))


def with_lora(lora, **changes):
    return build(**({f"lora.{lora}": LORA} if lora else {}), **changes)


def test_every_key_is_here():
    assert set(KEYS) == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_a_key_matters(name):
    value, kind = CHANGES[name]
    lora = name.split(".")[1] if name.startswith("lora.") else None
    base = with_lora(lora)
    if kind == "error":
        with pytest.raises(ValidationError):
            build(**{name: value})
        return
    model = with_lora(lora, **{name: value})
    assert (shapes(model) != shapes(base)) == (kind == "shape")
    if kind == "shape":
        return
    if kind == "export":
        tower = name.split(".")[0]
        one, other = (backbone_json(getattr(m, tower), True, "float32", {}) for m in (base, model))
        assert one != other
        return
    if kind == "initial values":
        one, other = (
            str(jax.make_jaxpr(lambda key, m=m: init_params(m, key))(jax.random.key(0))) for m in (base, model)
        )
        assert one != other
        return
    with use_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        if kind == "missing":
            with pytest.raises(LclmError, match="needs the package qwix"):
                program(model)
        elif kind == "refusal":
            with pytest.raises(LclmError, match="compiled for cpu"):
                program(model)
        elif kind == "program":
            assert program(model) != program(base)
        else:
            assert np.abs(numbers(model) - base_numbers(lora)).max() > 1e-4


def test_concat_pooling_widens_the_adapter():
    assert shapes(build(pooling="concat")) != shapes(build())
