"""Devices of a run: the mesh, time limits of several processes, and the environment that is set before JAX starts."""

import re
from collections.abc import MutableMapping
from typing import Annotated

from pydantic import AfterValidator

from lclm_jax.config.base import Tree, key

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY")

_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def _check(environment: dict[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
    for name in environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"environment.{name} is not a variable name; use letters, digits and _")
        if _SECRET.search(name.upper()):
            raise ValueError(
                f"environment.{name} looks like a secret, and configurations are saved with every run; export it in the"
                " shell or mount it from the cluster's secret store"
            )
    return environment


Environment = Annotated[dict[str, str | tuple[str, ...]], AfterValidator(_check)]

"""Variable -> its value, or the flags that make it."""


def apply_environment(environment: Environment, target: MutableMapping[str, str]) -> None:
    """Set ``environment`` in ``target`` (``os.environ``), before anything imports JAX; what the user set wins.

    ``XLA_FLAGS`` and ``LIBTPU_INIT_ARGS`` are put before the user's flags (the last of a flag counts); another variable
    is set only if the user has not.
    """
    for name, value in environment.items():
        text = value if isinstance(value, str) else " ".join(value)
        if name in _FLAGS:
            target[name] = f"{text} {target.get(name, '')}".strip()
        else:
            target.setdefault(name, text)


class MeshConfig(Tree, role="layout"):
    """Devices by axis; one axis may be -1: whatever is left."""

    replica: int = key(1, "Data-parallel copies across slow links.")
    fsdp: int = key(-1, "Data-parallel devices that share parameters and optimizer state.")
    context: int = key(1, "Devices that share the positions of a decoder row.")
    tensor: int = key(1, "Devices that share heads and MLP width.")
