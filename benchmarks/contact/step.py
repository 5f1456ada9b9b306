"""The train step of 0.6B + 1.7B on drawn rows: time, memory, costs by profile; the same in PyTorch.

Tokens are drawn, so nothing has to be prepared; lengths of segments, spans and windows are as in packed text.
"""

import importlib.util
import statistics
import tempfile
from pathlib import Path

import jax
import numpy as np
from benchmarks.contact.attention import TIMED
from benchmarks.contact.lines import Lines
from benchmarks.contact.profiles import costs

from lclm_jax.batch import Batch, batch_shapes
from lclm_jax.bench.cases import attention_cases
from lclm_jax.bench.step import OurStep, memory_in_use, step_rates
from lclm_jax.bench.timing import measure_peaks
from lclm_jax.config import Config, MeshConfig, load_config
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.train.core.initial_state import random_params
from lclm_jax.types import Params

STAGE = "all"
STEPS, REPEATS = 4, 3


def configuration(small: bool, devices: int) -> Config:
    """That of ``lclm bench step``, with a row for every device of this host."""
    file = Path(__file__).parents[1] / ("step-cpu.yaml" if small else "step.yaml")
    changes = [f"mesh.fsdp={devices}", f"stages.{STAGE}.batch_rows={devices}"]
    if small:
        changes += ["data.pack.row_length=256", "data.pack.encoder_row_length=128", "model.window=128"]
        changes += [
            f"model.{tower}.{key}" for tower in ("encoder", "decoder") for key in ("num_layers=1", "vocab_size=512")
        ]
    config = load_config(file, changes)
    size = config.model.decoder.vocab_size
    model = config.model.model_copy(update={"memory_token_ids": (size - 3, size - 2, size - 1)})
    return config.model_copy(update={"model": model})


def drawn_batch(config: Config, rows: int, seed: int) -> Batch:
    """Rows of segments, each of raw text, a span of latents (up to four windows) and raw text again."""
    rng, model, pack = np.random.default_rng(seed), config.model, config.data.pack
    arrays = {name: np.zeros(size, dtype) for name, (size, dtype) in batch_shapes(model, pack, rows).items()}
    arrays["latent_index"][:] = -1
    for row in range(rows):
        _draw_row({name: array[row] for name, array in arrays.items()}, config, rng)
    return Batch(**arrays)


def _draw_row(row: dict[str, np.ndarray], config: Config, rng: np.random.Generator) -> None:
    model, pack = config.model, config.data.pack
    below, placeholder = min(model.decoder.vocab_size, model.encoder.vocab_size) - 3, model.memory_token_ids[1]
    place, segment, free = 0, 0, 0  # next decoder position, segments, first free encoder position of the row
    encoder = {name: row[f"encoder_{name}"].reshape(-1) for name in ("tokens", "segments", "positions")}
    while place < pack.row_length * 0.98:
        segment += 1
        raw = [int(rng.integers(pack.row_length // 32, pack.row_length // 8)) for _ in range(2)]
        slots, left = [], int(np.exp(rng.uniform(np.log(64), np.log(4 * model.window))))
        while left > 0:
            size = min(left, model.window)
            here = -(-free // model.ratio) * model.ratio
            if here % pack.encoder_row_length + size > pack.encoder_row_length:
                here = (here // pack.encoder_row_length + 1) * pack.encoder_row_length
            if here + size > encoder["tokens"].size:
                break
            window = slice(here, here + size)
            encoder["tokens"][window] = rng.integers(0, below, size)
            begin = here // pack.encoder_row_length * pack.encoder_row_length
            encoder["segments"][window] = encoder["segments"][begin:here].max(initial=0) + 1
            encoder["positions"][window] = np.arange(size)
            row["pool_weights"].reshape(-1)[window] = 1
            slots += range(here // model.ratio, -(-(here + size) // model.ratio))
            left, free = left - size, here + size
        length = min(sum(raw) + len(slots), pack.row_length - place)
        tokens, index = rng.integers(0, below, sum(raw) + len(slots)), np.full(sum(raw) + len(slots), -1)
        tokens[raw[0] : raw[0] + len(slots)], index[raw[0] : raw[0] + len(slots)] = placeholder, slots
        here = slice(place, place + length)
        row["decoder_tokens"][here], row["latent_index"][here] = tokens[:length], index[:length]
        row["decoder_segments"][here], row["decoder_positions"][here] = segment, np.arange(length)
        row["targets"][place : place + length - 1] = tokens[1:length]
        row["loss_weights"][place : place + length - 1] = index[1:length] < 0
        row["latent_segments"][slots], row["latent_positions"][slots] = segment, np.arange(len(slots))
        place += length


def step(lines: Lines) -> None:
    """Seconds, tokens a second, MFU and memory of a step, and its costs."""
    devices = jax.device_count()
    config = configuration(lines.small, devices)
    batches = [drawn_batch(config, devices, seed) for seed in range(1 if lines.small else STEPS)]
    ours = OurStep(config, STAGE, _params(config, devices))
    compile_seconds = ours.compile(batches[0])
    seconds = [ours.run(batches) for _ in range(1 if lines.small else REPEATS)]
    case = f"{config.name}, {devices} rows of {config.data.pack.row_length}"
    rates = step_rates(config, STAGE, batches, seconds)
    figures = rates | {"compile_seconds": compile_seconds, "first_loss": ours.first_loss, **memory_in_use()}
    lines.say("step", case, **figures)

    def profiled() -> dict[str, object]:
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                ours.run(batches)
            found = costs(Path(folder))
        useful = sum(cost.share for cost in found if cost.kind in ("products", "attention"))
        shares = {cost.kind: cost.share for cost in found}
        return {"largest": [str(cost) for cost in found[:3]], "products_and_attention": useful, "shares": shares}

    lines.attempt("costs", case, profiled)


def _params(config: Config, devices: int) -> Params:
    mesh = make_mesh(MeshConfig(fsdp=devices), jax.devices()[:devices])
    with use_mesh(mesh):
        return random_params(config.model, config.seed, mesh)


def pytorch(lines: Lines) -> None:
    """The step of one row in PyTorch, from the same weights, beside what ``step`` said; and torch's attention."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        lines.say("pytorch", failed=f"{' and '.join(missing)} not installed")
        return
    import torch

    if not (torch.cuda.is_available() or lines.small):
        lines.say("pytorch", failed="torch sees no GPU")
        return
    from lclm_jax.bench.torch_attention import torch_rows
    from lclm_jax.bench.torch_step import TorchStep, padding_factor

    config = configuration(lines.small, 1)
    batches = [drawn_batch(config, 1, seed) for seed in range(1 if lines.small else STEPS)]
    theirs = TorchStep(config, STAGE, jax.device_get(_params(config, 1)), batches[0])
    seconds = statistics.median(theirs.run(batches) for _ in range(1 if lines.small else REPEATS))
    padding = statistics.mean(padding_factor(config.model, batch) for batch in batches)
    figures = {"seconds_per_step": seconds, "first_loss": theirs.first_loss, "of_which_padding": padding}
    lines.say("pytorch", "one row", **figures)
    if not lines.small:
        theirs.free()
        peaks = measure_peaks()
        for case in attention_cases(False):
            if f"{TIMED[0].length}" in case.shape:
                for row in torch_rows(case, peaks):
                    lines.say("torch attention", case.shape, **row)
