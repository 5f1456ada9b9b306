"""Steps that others ran and published, beside what is expected of them: what the forecast is worth.

Each row states the step as published. The two constants of ``rates`` and the share of the peak that products reach were
chosen by the rows that are not held out; the held-out ones were then computed once.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from lclm_jax.config.model import BackboneConfig
from lclm_jax.plan.analytic_cost import axis_seconds, bytes_of_weights
from lclm_jax.plan.expected.rates import EXPOSED, rates_of
from lclm_jax.plan.expected.work import Attention, Tower, head_seconds, optimizer_seconds, tower_seconds
from lclm_jax.plan.parameters import backbone_parameters
from lclm_jax.plan.topologies import parse_topology
from lclm_jax.types import JsonObject

_LLAMA = {"head_dim": 128, "qk_norm": False, "tie_embeddings": False}
_LLAMA2 = _LLAMA | {"vocab_size": 32000}
_LLAMA3 = _LLAMA | {"vocab_size": 128256, "num_kv_heads": 8}
_WIDE = {"num_layers": 80, "hidden_size": 8192, "num_heads": 64, "num_kv_heads": 8, "mlp_size": 28672}
SHAPES = {
    "llama2-7b": _LLAMA2
    | {"num_layers": 32, "hidden_size": 4096, "num_heads": 32, "num_kv_heads": 32, "mlp_size": 11008},
    "llama2-70b": _LLAMA2 | _WIDE,
    "mistral-7b": _LLAMA2
    | {"num_layers": 32, "hidden_size": 4096, "num_heads": 32, "num_kv_heads": 8, "mlp_size": 14336},
    "llama3.1-8b": _LLAMA3 | {"num_layers": 32, "hidden_size": 4096, "num_heads": 32, "mlp_size": 14336},
    "llama3.1-70b": _LLAMA3 | _WIDE,
    "llama3.1-405b": _LLAMA3 | {"num_layers": 126, "hidden_size": 16384, "num_heads": 128, "mlp_size": 53248},
}

_TPU_RECIPES = "github.com/AI-Hypercomputer/tpu-recipes, training/"
_GPU_RECIPES = "github.com/AI-Hypercomputer/gpu-recipes, training/"
_MAXTEXT = "github.com/AI-Hypercomputer/maxtext, "
_DENSE = ("DENSE_VMEM_LIMIT_FLAG", "LAYOUT_FOR_ALL_REDUCE_SCATTER", "DATA_PARALLEL_OVERLAP", "CF_FOR_ALL_GATHER")
_TRILLIUM = (*_DENSE, "ENABLE_SPARSECORE_OFFLOADING_FOR_ALL_REDUCE", "HOST_OFFLOAD_FLAGS")
_MEGACORE = ("async collective fusion of gathers over several steps", "ag_backward_pipelining", "async all-gather")
_IRONWOOD = ("xla_tpu_scoped_vmem_limit_kib", "sparse_core_collective_offload_all_reduce", "bf16 native emission")
_HOPPER = ("latency hiding scheduler", "pipelined collectives", "combine thresholds of 128 and 64 MiB", "cuBLAS")


class PublishedStep(NamedTuple):
    """One training step of MaxText: what ran, on what, and how long it took."""

    name: str
    topology: str
    model: str
    """A key of ``SHAPES``."""
    rows: int
    """Of one device."""
    length: int
    seconds: float
    saved: frozenset[str]
    """Outputs that wait for the backward pass, on the device or on its host: products, and ``attention``."""
    kernel: str
    blocks: tuple[int, int]
    """Positions of a block, forward and backward."""
    backward_products: int
    flags: tuple[str, ...]
    source: str
    mesh: Mapping[str, int] = MappingProxyType({})
    """Where not all devices share the parameters."""
    held_out: bool = False
    eight_bit: bool = False


_QKV = frozenset({"q", "k", "v"})
_PRODUCTS = frozenset({"q", "k", "v", "o", "gate", "up"})
_TIERS = "maxtext.readthedocs.io, Optimized models tiering (65.4 %, 692 tokens/s a chip)"

# fmt: off
STEPS = (
    PublishedStep("MaxText Llama-3.1-8B, v6e-256", "v6e:16x16", "llama3.1-8b", 4, 8192, 4.546, _QKV | {"o"},
                  "splash", (2048, 2048), 5, _TRILLIUM, _TPU_RECIPES + "trillium/Llama3.1-8B-MaxText/v6e-256"),
    PublishedStep("MaxText Llama-3.1-8B, v6e-8", "v6e:2x4", "llama3.1-8b", 3, 8192, 3.443, _QKV | {"o"},
                  "splash", (2048, 2048), 5, (*_TRILLIUM, "DISABLE_COLLECTIVE_MATMUL"),
                  _TPU_RECIPES + "trillium/Llama3.1-8B-MaxText/v6e-8"),
    PublishedStep("MaxText Mistral-7B, v6e-8", "v6e:2x4", "mistral-7b", 6, 8192, 6.320, _QKV | {"o"},
                  "splash", (2048, 2048), 5, (*_TRILLIUM, "DISABLE_COLLECTIVE_MATMUL"),
                  _TPU_RECIPES + "trillium/Mistral-7B-MaxText", held_out=True),
    PublishedStep("MaxText Llama-3.1-70B, v6e-256", "v6e:16x16", "llama3.1-70b", 5, 8192, 42.656, _QKV,
                  "splash", (2048, 2048), 5, (*_DENSE, "HOST_OFFLOAD_FLAGS"),
                  _TPU_RECIPES + "trillium/Llama3.1-70B-MaxText/v6e-256"),
    PublishedStep("MaxText Llama2-70B, v5p-512", "v5p:4x8x8", "llama2-70b", 4, 4096, 16384 / 692, _QKV | {"o"},
                  "splash", (512, 512), 7, _MEGACORE, _TIERS + "; " + _MAXTEXT + "MaxText/configs/v5p/llama2_70b.sh"),
    PublishedStep("MaxText Llama-3.1-405B, v5p-1024", "v5p:8x8x8", "llama3.1-405b", 2, 8192, 131.474,
                  frozenset({"attention"}), "splash", (2048, 2048), 7,
                  ("DENSE_VMEM_LIMIT_FLAG", "CF_FOR_ALL_GATHER", "HOST_OFFLOAD_FLAGS"),
                  _TPU_RECIPES + "v5p/Llama3.1-405B-MaxText"),
    PublishedStep("MaxText Llama-3.1-70B, 64 Ironwood", "tpu7x:4x4x4", "llama3.1-70b", 2, 8192, 12.20,
                  _QKV | {"attention"}, "splash", (2048, 2048), 5, _IRONWOOD,
                  _TPU_RECIPES + "ironwood/llama3.1-70b/8k-bf16-tpu7x-4x4x4"),
    PublishedStep("MaxText Llama-3.1-405B, 256 Ironwood", "tpu7x:4x8x8", "llama3.1-405b", 3, 8192, 98.34,
                  frozenset({"k", "v"}), "splash", (2048, 2048), 5,
                  (*_IRONWOOD, "gathers and reductions on SparseCores"),
                  _TPU_RECIPES + "ironwood/llama3.1-405b/8k-bf16-tpu7x-4x8x8", held_out=True),
    PublishedStep("MaxText Llama-3.1-70B in fp8, 64 Ironwood", "tpu7x:4x4x4", "llama3.1-70b", 2, 8192, 7.93,
                  _QKV | {"attention"}, "splash", (1024, 2048), 5, _IRONWOOD,
                  _TPU_RECIPES + "ironwood/llama3.1-70b/8k-fp8-tpu7x-4x4x4", held_out=True, eight_bit=True),
    PublishedStep("MaxText Llama2-7B, 8 H100", "h100:8", "llama2-7b", 4, 4096, 16384 * 46.08e9 / 492e12,
                  _PRODUCTS | {"attention"}, "cudnn", (128, 128), 5, _HOPPER,
                  _MAXTEXT + "MaxText/configs/a3/llama_2_7b (492 TFLOP/s; 46.08 GFLOP a token, attention as a square)"),
    PublishedStep("MaxText Llama2-7B, 256 H100", "h100:32x8", "llama2-7b", 4, 4096, 1.500,
                  _PRODUCTS | {"attention"}, "cudnn", (128, 128), 5, _HOPPER,
                  _GPU_RECIPES + "a3mega/llama-2-7b", {"replica": 32, "fsdp": 8}),
    PublishedStep("MaxText Llama-3.1-70B, 256 H200", "h200:32x8", "llama3.1-70b", 2, 8192, 15.516,
                  _QKV | {"o", "attention"}, "cudnn", (128, 128), 5, _HOPPER,
                  _GPU_RECIPES + "a3ultra/llama3-1-70b", {"replica": 2, "fsdp": 128}, held_out=True),
)  # fmt: skip
# fmt: on


class Calibration(NamedTuple):
    """A published step beside the forecast."""

    step: PublishedStep
    parts: dict[str, float]
    """What the seconds go to."""

    @property
    def expected_seconds(self) -> float:
        """Of the whole step."""
        return sum(self.parts.values())

    @property
    def error(self) -> float:
        """Relative; above zero where the forecast is too slow."""
        return self.expected_seconds / self.step.seconds - 1

    def as_json(self) -> JsonObject:
        """With everything that was published of the step."""
        step, shape = self.step, shape_of(self.step)
        return {
            "name": step.name,
            "published_seconds": step.seconds,
            "expected_seconds": self.expected_seconds,
            "error": self.error,
            "held_out": step.held_out,
            "topology": step.topology,
            "rows_per_device": step.rows,
            "row_length": step.length,
            "remat": {"saved": sorted(step.saved), "repeated": sorted(_PRODUCTS - step.saved)},
            "attention": {
                "kernel": step.kernel,
                "blocks": list(step.blocks),
                "backward_products": step.backward_products,
            },
            "products": "fp8" if step.eight_bit else "bfloat16",
            "flags": list(step.flags),
            "parameters": parameters_of(shape),
            "parts": dict(self.parts),
            "source": step.source,
        }


def calibrate() -> list[Calibration]:
    """Every published step beside the forecast by formula; nothing is compiled."""
    return [Calibration(step, expected_parts(step)) for step in STEPS]


def shape_of(step: PublishedStep) -> BackboneConfig:
    """The model of ``step``."""
    return BackboneConfig.model_validate(SHAPES[step.model])


def parameters_of(shape: BackboneConfig) -> int:
    """Of the whole model, its output head too."""
    return backbone_parameters(shape) + shape.vocab_size * shape.hidden_size


def expected_parts(step: PublishedStep) -> dict[str, float]:
    """Seconds of ``step`` by what they go to."""
    topology, shape = parse_topology(step.topology), shape_of(step)
    chip, rates = topology.chip, rates_of(topology.chip)
    tower = Tower(
        shape,
        step.rows,
        step.length,
        Attention(
            step.kernel,
            *step.blocks,
            step.backward_products,
            True,
            ((step.length,),),
            "attention" not in step.saved,
        ),
        _PRODUCTS - step.saved,
        True,
        True,
        eight_bit=step.eight_bit,
    )
    seconds = tower_seconds(tower, chip, rates)
    sizes = {"replica": 1, "fsdp": topology.num_devices, "context": 1, "tensor": 1, **step.mesh}
    whole = chip.dimensions > 0 and sizes["fsdp"] == topology.devices_per_slice
    parameters = parameters_of(shape)
    received = bytes_of_weights(parameters, parameters, sizes, whole)
    # Three passes over the head and, with use_iota_embed, two over the table: MaxText looks up by a product.
    head = head_seconds(shape, tower.positions, 5, chip, rates)
    return {
        "products": seconds.products + head,
        "kernels": seconds.kernels,
        "elementwise": seconds.elementwise,
        "optimizer": optimizer_seconds(parameters / sizes["fsdp"], chip),
        "network": EXPOSED * sum(axis_seconds(axis, count, sizes, topology) for axis, count in received.items()),
    }
