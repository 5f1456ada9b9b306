"""JAX's backend: why it cannot start on this machine, in words that say what to do."""

import re
import traceback
from pathlib import Path

import jax
from jax._src import hardware_utils, xla_bridge  # which backends and devices are there; there is no public door to it

from lclm_jax.errors import LclmError

_REMEDIES = {
    "cuda": 'needs an NVIDIA driver (nvidia-smi shows the GPUs) and `pip install "lclm-jax[cuda]"`',
    "tpu": 'needs a TPU VM and `pip install "lclm-jax[tpu]"`',
    "rocm": "needs an AMD driver and JAX's plugin for ROCm",
}
_ALIASES = {"gpu": "cuda"}


class BackendError(LclmError):
    """JAX has no device to compute on; the message names the platform asked for, those found, and what to do."""


def backend_error(error: BaseException) -> BackendError | None:
    """What to tell a user about ``error`` if JAX raised it while it started its backend; else None."""
    frames = traceback.extract_tb(error.__traceback__)
    if not any(Path(frame.filename).name == "xla_bridge.py" and frame.name == "backends" for frame in frames):
        return None
    asked = str(getattr(jax.config, "jax_platforms", "") or "")
    wanted = [_ALIASES.get(name, name) for name in asked.split(",") if name]
    found = [name for name in _present() if name not in wanted]
    hint = re.compile(r" \((set JAX_PLATFORMS=|you may need to ).*")  # JAX's own, which knows less of this package
    reason = hint.sub("", _first_line(error)) or "no such device"
    needs = "".join(f"; {name} {_REMEDIES[name]}" for name in wanted if name in _REMEDIES)
    if not asked:
        return BackendError(f"JAX cannot start on this machine ({reason}); set JAX_PLATFORMS=cpu to do without it")
    there = ", ".join(found) or "none"
    return BackendError(
        f"JAX_PLATFORMS={asked} asks for a platform that cannot be used here ({reason}), found: {there}{needs};"
        " or unset JAX_PLATFORMS"
    )


def _present() -> list[str]:
    """Platforms that JAX has the software and this machine the hardware for."""
    absent = {"interpreter", "proxy"}  # of JAX itself: they need another program
    if not hardware_utils.has_visible_nvidia_gpu():
        absent.add("cuda")
    if not hardware_utils.num_available_tpu_chips_and_device_id()[0]:
        absent.add("tpu")
    return sorted({"cpu", *xla_bridge._backend_factories} - absent)


def start_devices() -> list[jax.Device]:
    """All devices, which starts JAX's backend; raises ``BackendError`` if it cannot."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        if (found := backend_error(error)) is None:
            raise
        raise found from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else ""
