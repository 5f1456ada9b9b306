"""Where the first stage's weights come from."""

from pydantic import model_validator

from lclm_jax.config.base import Tree, key


class InitConfig(Tree):
    """Folders in the Hugging Face layout that the first stage starts from; what none gives starts at random."""

    encoder: str | None = key(None, "Imported backbone (lclm import --role encoder) that the encoder starts from.")
    decoder: str | None = key(None, "Imported backbone (lclm import --role decoder) that the decoder starts from.")
    lclm: str | None = key(None, "Complete imported or exported LCLM that the whole model starts from.")
    run: str | None = key(
        None, "Run to start from: its folder, FOLDER@STAGE or FOLDER@STAGE@STEP; by default its newest checkpoint."
    )

    @model_validator(mode="after")
    def _check(self):
        for name, whole in (("lclm", self.lclm), ("run", self.run)):
            others = {"encoder": self.encoder, "decoder": self.decoder, "lclm": self.lclm, "run": self.run}
            given = [f"init.{other}" for other, value in others.items() if value and other != name]
            if whole and given:
                raise ValueError(
                    f"init.{name}={whole!r} gives all weights, so {' and '.join(given)} must be null; set one or the"
                    " other"
                )
        return self

    @property
    def given(self) -> bool:
        """Whether any part starts from imported weights."""
        return bool(self.encoder or self.decoder or self.lclm or self.run)
