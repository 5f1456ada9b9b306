"""Distillation: the decoder that reads the raw text teaches the one that reads latents."""

from pydantic import model_validator

from lclm_jax.config.base import Tree, key, required

SAME = "same"
"""``distill.teacher``: the decoder of the run itself."""


class DistillConfig(Tree, role="result"):
    """Loss ``(1 - weight) * CE + weight * temperature^2 * KL(teacher || student)`` on the positions that carry loss."""

    weight: float = required("Share of the distillation in the loss; the rest is cross-entropy.", gt=0, le=1)
    temperature: float = key(1.0, "Both distributions are those of the logits divided by it.", gt=0)
    teacher: str = key(
        SAME,
        "Who reads the raw text: same is the decoder itself where it is frozen, else the one that the stage begins"
        " with; or a folder of an imported decoder of the same shape and tokenizer.",
    )
    row_length: int | None = key(
        None,
        "Decoder positions of a row of raw text; what does not fit has no teacher. null: as much as a row can stand"
        " for, row_length + encoder_rows * encoder_row_length.",
        gt=1,
    )
    top_k: int | None = key(None, "Logits of a position that lclm data teach stores (with offline).", gt=0)
    offline: str | None = key(
        None, "Folder of logits that lclm data teach stored once (with top_k); null: the teacher runs in every step."
    )

    @model_validator(mode="after")
    def _check(self):
        if (self.top_k is None) != (self.offline is None):
            raise ValueError(
                f"distill.top_k={self.top_k} and distill.offline={self.offline!r} go together: set both for stored"
                " logits, neither for a teacher that runs in every step"
            )
        return self

    def twin_length(self, row_length: int, encoder_positions: int) -> int | None:
        """Decoder positions of a row of raw text beside each packed row; None: logits are stored, nothing is read.

        ``row_length`` is the packed row's; it comes with ``encoder_positions``, encoder rows times their length.
        """
        if self.offline is not None:
            return None
        return self.row_length or row_length + encoder_positions
