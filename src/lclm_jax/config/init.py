"""Where the first stage's weights come from."""

from pydantic import model_validator

from lclm_jax.config.base import Tree, key


class InitConfig(Tree):
    """Folders in the Hugging Face layout that the first stage starts from; what none gives starts at random."""

    encoder: str | None = key(None, "Imported backbone (lclm import --role encoder) that the encoder starts from.")
    decoder: str | None = key(None, "Imported backbone (lclm import --role decoder) that the decoder starts from.")
    lclm: str | None = key(None, "Complete imported or exported LCLM that the whole model starts from.")

    @model_validator(mode="after")
    def _check(self):
        if self.lclm and (self.encoder or self.decoder):
            raise ValueError(
                f"init.lclm={self.lclm!r} gives all weights, so init.encoder and init.decoder must be null; set one or"
                " the other"
            )
        return self

    @property
    def given(self) -> bool:
        """Whether any part starts from imported weights."""
        return bool(self.encoder or self.decoder or self.lclm)
