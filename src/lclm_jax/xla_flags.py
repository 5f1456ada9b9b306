"""Flags of ``XLA_FLAGS`` that XLA would not take, found before it ends the process on them. Imports no JAX."""

import functools
import os
import re
import subprocess
import sys

from lclm_jax.errors import LclmError

_KNOWN_GOOD = re.compile(r"--xla_force_host_platform_device_count=[1-9][0-9]*")
_PROBE = "import jaxlib.xla_client as client; client.CompileOptions().executable_build_options.debug_options"
_PROBE_SECONDS = 120


def check_xla_flags() -> None:
    """Refuse flags of ``XLA_FLAGS`` that XLA would not take: it ends the process on them, when it first reads them.

    XLA is asked in a process of its own, unless only simulated devices are set, or it has read its flags already.

    Raises:
        LclmError: names the flag.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    if all(_KNOWN_GOOD.fullmatch(flag) for flag in flags) or _has_started():
        return
    if (reason := _refusal(os.environ["XLA_FLAGS"])) is not None:
        raise LclmError(
            f"XLA does not take XLA_FLAGS ({reason}); correct it, or unset it (a cluster file sets it by the key"
            " environment)"
        )


def _has_started() -> bool:
    """Whether JAX has started a backend in this process; it is not imported to find out."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()


@functools.cache
def _refusal(flags: str) -> str | None:
    """What XLA says against ``flags``; None: it takes them, or nothing is known of them."""
    command, environment = [sys.executable, "-c", _PROBE], {**os.environ, "XLA_FLAGS": flags}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_PROBE_SECONDS, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if not done.returncode or "Traceback" in done.stderr:  # which would be an error of the probe's own
        return None
    said = [line.partition("] ")[2] or line for line in done.stderr.splitlines() if "--" in line]
    return said[0].strip() if said else f"it ends with status {done.returncode}"
