"""What one call of attention asks for, so that each backend can say whether it can honour it."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class AttentionRequest:
    """Everything but the numbers. Every request has segments, with 0 as padding: no backend may ignore them."""

    platform: str
    """``cpu``, ``tpu``, ``gpu``: of the devices that will run it, see ``target``."""
    device_kind: str
    """As the devices call themselves, for example ``TPU v5 lite``."""
    rows: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    causal: bool
    offset: bool
    """Whether each row's queries begin at a place of their own among the keys, known at run time only."""

    def __str__(self) -> str:
        """One line for messages."""
        order = "causal" if self.causal else "bidirectional"
        return (
            f"{order} attention of {self.queries} queries to {self.keys} keys{' with an offset' if self.offset else ''},"
            f" {self.heads}/{self.kv_heads} heads of {self.head_dim}, {self.dtype}, on {self.platform}"
        )


def target() -> tuple[str, str]:
    """(platform, device kind) of the devices that the current computation is compiled for.

    These are the devices of the mesh in use (``jax.set_mesh``), not those of this process: a program compiled ahead of
    time for another machine gets that machine's kernels. Without a mesh, or with one of several kinds of devices:
    JAX's default devices.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return device.platform, device.device_kind
