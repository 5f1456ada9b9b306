"""The policies of activation checkpointing by name, in the order in which a search for a plan tries them."""

from typing import NamedTuple

PRODUCTS = ("q", "k", "v", "o", "gate", "up")
"""Products of a block with weights whose output its backward pass needs: all but the last one, ``down``."""


class RematPolicy(NamedTuple):
    """What the backward pass finds saved of each block; from this follow its memory and the FLOPs that are repeated.

    A block's input is always saved.
    """

    recomputes: bool = True
    """False: everything is saved."""
    saves_attention: bool = False
    """Output and log-sum-exp of attention: the backward pass runs no forward kernel."""
    saves_dots: bool = False
    """Products with weights."""
    encoder: str | None = None
    """The policy that the encoder follows instead; None: the same."""
    device: tuple[str, ...] = ()
    """Products with weights that are saved besides, of ``PRODUCTS``."""
    host: tuple[str, ...] = ()
    """Products with weights that wait for the backward pass in the host's memory."""

    @property
    def keeps_products(self) -> bool:
        """Whether products are picked to be saved, where others are not."""
        return self.recomputes and self.saves_dots

    @property
    def repeated(self) -> frozenset[str]:
        """The products with weights that the backward pass takes again."""
        return frozenset() if self.saves_dots else frozenset(PRODUCTS) - {*self.device, *self.host}


REMAT_POLICIES: dict[str, RematPolicy] = {
    "full": RematPolicy(),
    "decoder_attention": RematPolicy(saves_attention=True, encoder="full"),
    "attention": RematPolicy(saves_attention=True),
    "dots": RematPolicy(saves_dots=True),
    "dots_attention": RematPolicy(saves_attention=True, saves_dots=True),
    "none": RematPolicy(recomputes=False, saves_attention=True, saves_dots=True),
}


def remat_of(name: str, tower: str) -> RematPolicy:
    """The policy ``name`` as ``tower`` (encoder, decoder) follows it."""
    policy = REMAT_POLICIES[name]
    return REMAT_POLICIES[policy.encoder] if tower == "encoder" and policy.encoder else policy
