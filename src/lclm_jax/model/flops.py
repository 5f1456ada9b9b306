"""FLOPs of a train step by formula: what the model needs, and what a program with rematerialisation executes.

Pure arithmetic on the configuration. A multiply-add is two FLOPs; norms, softmax and other elementwise work is left
out, as in every published MFU. Rows count as full: one segment of S positions in the decoder and full windows in the
encoder; rows of several segments need less attention, which neither the model's nor the program's count knows.
"""

from typing import NamedTuple

from lclm_jax.config.data import PackConfig
from lclm_jax.config.model import BackboneConfig, LoraConfig, ModelConfig
from lclm_jax.config.registry.attention_backends import ATTENTION_BACKENDS, AttentionCost
from lclm_jax.config.registry.remat_policies import RematPolicy
from lclm_jax.config.tree import StageConfig
from lclm_jax.model.adapter import adapter_of
from lclm_jax.model.layers import Products
from lclm_jax.model.pooling import pooling_of


class Passes(NamedTuple):
    """FLOPs of one part by pass."""

    forward: float
    inputs: float
    """Gradient towards the inputs."""
    weights: float
    """Gradient of the weights."""
    again: float
    """Executed beyond what the model needs: recomputation, masked halves of blocks."""

    @property
    def model(self) -> float:
        """What the mathematics needs."""
        return self.forward + self.inputs + self.weights

    @property
    def executed(self) -> float:
        """What the program does."""
        return self.model + self.again

    def times(self, count: float) -> "Passes":
        """Of ``count`` such parts."""
        return Passes(*(count * flops for flops in self))


NOTHING = Passes(0.0, 0.0, 0.0, 0.0)


class StepFlops(NamedTuple):
    """FLOPs of an optimizer step over all devices, by part."""

    encoder: Passes
    adapter: Passes
    """With the products of a pooling that has any."""
    decoder: Passes
    head: Passes
    teacher: Passes = NOTHING
    """Of a decoder that reads raw text, with its head (distillation)."""

    @property
    def model(self) -> float:
        """Numerator of the MFU."""
        return sum(part.model for part in self)

    @property
    def executed(self) -> float:
        """What the program does."""
        return sum(part.executed for part in self)


def step_flops(model: ModelConfig, stage: StageConfig, pack: PackConfig, backend: str = "splash") -> StepFlops:
    """FLOPs of one optimizer step of ``stage``: ``batch_rows`` full rows laid out as ``pack`` says.

    Args:
        model: shapes, remat policy.
        stage: what trains, rows of a step.
        pack: the stage's row layout.
        backend: attention of the target platform, a key of ``ATTENTION_BACKENDS``.
    """
    trains = {part: stage.peak_lr(part) is not None for part in ("adapter", "encoder", "decoder")}
    cost, rows = ATTENTION_BACKENDS[backend].cost, stage.batch_rows
    encoder_learns = through_encoder(model, stage)
    encoder_rows = rows * pack.encoder_rows
    run = _Run(model.remat_of("encoder"), cost, model.mask == "causal", model.lora.encoder)
    stacks = []
    for count, ratio in model.encoder_stacks:
        shape = model.encoder.model_copy(update={"num_layers": count})
        length, window = pack.encoder_row_length // ratio, model.window // ratio
        stacks.append(_stack(shape, encoder_rows, length, window, trains["encoder"], encoder_learns, run))
    encoder = Passes(*map(sum, zip(*stacks, strict=True)))
    decoder = _stack(
        model.decoder, rows, pack.row_length, pack.row_length, trains["decoder"], True,
        _Run(model.remat_of("decoder"), cost, True, model.lora.decoder),
    )  # fmt: skip
    latents = encoder_rows * pack.encoder_row_length // model.ratio
    adapter = latent_flops(model, trains["adapter"], encoder_learns).times(latents)
    positions = rows * pack.row_length
    forward = 2.0 * positions * model.decoder.hidden_size * model.decoder.vocab_size
    # The logits are taken again in the backward pass, whatever the remat policy.
    head = Passes(forward, forward, forward * trains["decoder"], forward)
    return StepFlops(encoder, adapter, decoder, head, _teacher_flops(model, stage, pack, cost))


def _teacher_flops(model: ModelConfig, stage: StageConfig, pack: PackConfig, cost: AttentionCost) -> Passes:
    """FLOPs of distillation beside those of the step without it: a forward pass over raw text, and logits.

    The logits of both are taken once forward and once backward; the student's are those of the cross-entropy, taken
    again, and so are the products that bring their gradient home.
    """
    distill, positions = stage.distill, stage.batch_rows * pack.row_length
    if distill is None:
        return NOTHING
    logits = 2.0 * positions * model.decoder.vocab_size
    student = logits * model.decoder.hidden_size * (3 + (stage.peak_lr("decoder") is not None))
    twin_length = distill.twin_length(pack.row_length, pack.encoder_rows * pack.encoder_row_length)
    if twin_length is None:
        return Passes(0.0, 0.0, 0.0, student)
    run = _Run(model.remat_of("decoder"), cost, True, model.lora.decoder)
    read = _stack(model.decoder, stage.batch_rows, twin_length, twin_length, False, False, run)
    taught = logits * model.decoder.hidden_size
    return Passes(read.forward + taught, 0.0, 0.0, read.again + taught + student)


def through_encoder(model: ModelConfig, stage: StageConfig) -> bool:
    """Whether the backward pass goes through the encoder: it trains, its LoRA does, or its learned markers do."""
    parts = ["encoder", "encoder_lora"] + (["adapter"] if model.pooling_row.markers == "learned" else [])
    return any(stage.peak_lr(part) is not None for part in parts)


class _Run(NamedTuple):
    """How a stack runs."""

    remat: RematPolicy
    cost: AttentionCost
    causal: bool
    lora: LoraConfig | None


def _stack(shape: BackboneConfig, rows: int, length: int, window: int, trains: bool, learns: bool, run: _Run) -> Passes:
    """FLOPs of a backbone's layers over ``rows`` rows of ``length`` positions in windows of ``window``.

    ``learns``: the backward pass goes through it, whether its own kernels train or not.
    """
    products = kernel_sizes(shape)
    positions, layers = rows * length, shape.num_layers
    matmul = 2.0 * positions * layers * sum(products.values())
    width = 2.0 * shape.num_heads * shape.head_dim * layers * rows
    needed = width * _needed_pairs(length, window, run.causal)
    done = width * _computed_pairs(length, run.causal, run.cost.block)
    low_rank = 2.0 * positions * layers * _lora_sizes(shape, run.lora)
    forward = matmul + low_rank + 2 * needed
    again = 2 * (done - needed)
    if not learns:
        return Passes(forward, 0.0, 0.0, again)
    inputs = matmul + low_rank + 4 * needed
    weights = matmul * trains + low_rank
    again += run.cost.backward_products * done - 4 * needed
    if repeated := run.remat.repeated:
        again += matmul * (1 - sum(products[name] for name in products.keys() - repeated) / sum(products.values()))
        again += low_rank
    if not run.remat.saves_attention:
        again += 2 * done
    return Passes(forward, inputs, weights, again)


def kernel_sizes(shape: BackboneConfig) -> dict[str, int]:
    """Weights of each projection of one layer."""
    width, heads, kv = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    mlp = width * shape.mlp_size
    return {"q": width * heads, "k": width * kv, "v": width * kv, "o": heads * width} | dict.fromkeys(
        ("gate", "up", "down"), mlp
    )


def _lora_sizes(shape: BackboneConfig, lora: LoraConfig | None) -> int:
    """Weights of the low-rank updates of one layer."""
    if lora is None:
        return 0
    width, heads, kv = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    ends = {"q": width + heads, "k": width + kv, "v": width + kv, "o": heads + width}
    ends |= dict.fromkeys(("gate", "up", "down"), width + shape.mlp_size)
    return lora.rank * sum(ends[target] for target in lora.targets)


def _needed_pairs(length: int, window: int, causal: bool) -> float:
    """Query-key pairs of one row that the mask allows."""
    windows, rest = divmod(length, window)
    return windows * _allowed(window, causal) + _allowed(rest, causal)


def _computed_pairs(length: int, causal: bool, block: int | None) -> float:
    """Query-key pairs of one row in the blocks that are computed."""
    if block is None or not causal:
        return float(length**2)
    block = min(block, length)
    blocks = -(-length // block)
    return block**2 * blocks * (blocks + 1) / 2


def _allowed(size: int, causal: bool) -> float:
    return size * (size + 1) / 2 if causal else float(size**2)


def latent_flops(model: ModelConfig, trains: bool, encoder_learns: bool) -> Passes:
    """FLOPs of one latent on its way through pooling and adapter.

    ``trains``: whether their parameters do; ``encoder_learns``: whether the backward pass goes on into the encoder.
    """
    pooling, adapter = pooling_of(model), adapter_of(model)
    through_pooling = encoder_learns or (trains and pooling is not None)
    passes = [_passes(adapter.products(), trains, through_pooling)]
    if pooling is not None:
        passes.append(_passes(pooling.products(), trains, encoder_learns))
    return Passes(*map(sum, zip(*passes, strict=True)))


def _passes(products: Products, trains: bool, learns: bool) -> Passes:
    kernels, first, states = (2.0 * count for count in products)
    # Where nothing before it learns, the gradient stops at the inputs of the first products.
    inputs = kernels + 2 * states if learns else (kernels - first + 2 * states) * trains
    return Passes(kernels + states, inputs, kernels * trains, 0.0)
