"""Model FLOPs utilisation (MFU) of a step, by part of the model, and peak memory."""

from collections.abc import Callable

import jax
import psutil
from jax.sharding import Mesh

from lclm_jax.config import Config
from lclm_jax.model.flops import step_flops
from lclm_jax.parallel.hardware import peak_flops


def make_utilisation(config: Config, stage: str, mesh: Mesh) -> Callable[[float], dict[str, float]]:
    """Seconds of a step -> ``encoder_mfu``, ``adapter_mfu``, ``decoder_mfu`` and their sum ``mfu``.

    With a teacher that runs in every step (distillation) ``teacher_mfu`` is part of the sum, too.
    Each is what the model needs of that part (``model.flops``; rows count as full, the head is the decoder's) over what
    all devices of ``mesh`` could do in bfloat16 in the seconds. Empty on devices whose peak is unknown.
    """
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    if peak is None:
        return lambda _: {}
    flops = step_flops(config.model, config.stages[stage], config.pack(stage))
    parts = {
        "encoder_mfu": flops.encoder.model,
        "adapter_mfu": flops.adapter.model,
        "decoder_mfu": flops.decoder.model + flops.head.model,
        **({"teacher_mfu": flops.teacher.model} if flops.teacher.model else {}),
        "mfu": flops.model,
    }
    return lambda seconds: {name: needed / (peak * mesh.size * seconds) for name, needed in parts.items()}


def memory_bytes() -> int:
    """Peak memory of this process's first device or, where the backend does not tell, what the process holds now."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use") or psutil.Process().memory_info().rss)
