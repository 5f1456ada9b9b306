"""Settings of XLA that a correct run depends on, made before the first device is touched."""

import os
from importlib.metadata import version

_YNN = "xla_cpu_experimental_ynn_fusion_type"
_LAST_KNOWN = (0, 12)


def avoid_known_faults() -> None:
    """Keep XLA's CPU compiler from its YNNPACK fusions.

    With jaxlib 0.10.2, a jitted ``jacrev`` through scanned layers mixed up its last rows as soon as there were more
    than 32 of them: wrong gradients, no warning (seen by tests/model/test_leaks.py). jaxlib 0.11.2 and 0.12 compute
    them right, but coarsely: with 0.12, gradients of one device and of eight differed by up to 3e-5 of their norm, and
    by 2e-6 without the fusions (tests/model/test_lora.py). A training step was no slower without them. A user's own
    setting of the flag wins; accelerators are not affected. Releases that are not known to have the flag are left
    alone, as XLA ends the process on an unknown one. Called on import of this package: XLA reads the flags when the
    first device is touched.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    release = tuple(int(part) for part in version("jaxlib").split(".")[:2])
    if release <= _LAST_KNOWN and _YNN not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_YNN}=".strip()
