"""The tokenizers of a run, and the configuration with what they fill in."""

from lclm_jax.config import Config, RunPaths
from lclm_jax.errors import LclmError
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers, check_vocabularies


def load_tokenizers(config: Config) -> Tokenizers:
    """The run's tokenizers; the same object twice where there is one folder."""
    paths = RunPaths(config)
    if config.tokenizer.decoder is None and not (paths.decoder_tokenizer / "tokenizer.json").exists():
        raise LclmError(f"{paths.root} has no tokenizer yet; run `lclm data prepare` or `lclm pipeline`")
    decoder = Tokenizer.from_folder(paths.decoder_tokenizer, config.tokenizer.chat_template)
    same = str(paths.encoder_tokenizer) == str(paths.decoder_tokenizer)
    tokenizers = Tokenizers(decoder, decoder if same else Tokenizer.from_folder(paths.encoder_tokenizer))
    check_vocabularies(config.model.decoder.vocab_size, config.model.encoder.vocab_size, tokenizers)
    return tokenizers


def read_tokenizers(config: Config) -> Tokenizers:
    """The run's tokenizers for preparation, which may come before the sizes of the vocabularies are checked."""
    paths = RunPaths(config)
    decoder = Tokenizer(paths.decoder_tokenizer, chat_template=config.tokenizer.chat_template)
    return Tokenizers(decoder, Tokenizer(paths.encoder_tokenizer))


def resolve(config: Config, tokenizers: Tokenizers | None = None) -> Config:
    """``config`` with the ids of the memory tokens filled in from the decoder's tokenizer (None: the run's)."""
    if config.model.memory_token_ids is not None:
        return config
    tokenizers = tokenizers or load_tokenizers(config)
    model = config.model.model_copy(update={"memory_token_ids": tuple(tokenizers.decoder.memory_ids)})
    return config.model_copy(update={"model": model})
