import jax
import pytest

from lclm_jax.config import MeshConfig, parse_config
from lclm_jax.errors import LclmError
from lclm_jax.parallel import make_mesh, validate_mesh


@pytest.fixture
def fits(make_model):
    """``fits(mesh sizes, stage, model changes)``: check a small configuration against eight devices."""

    def check(sizes, stage=None, pack=None, **model):
        config = parse_config(
            {
                "name": "tiny",
                "tokenizer": {"vocab_size": 64},
                "model": make_model(**model).model_dump(),
                "data": {
                    "sources": {"cpt": {"collection": "documents", "objective": "cpt"}},
                    "pack": {"row_length": 24, "encoder_rows": 1, "encoder_row_length": 16} | (pack or {}),
                },
                "stages": {
                    "only": {"lr": {"adapter": 1}, "steps": 1, "mixture": {"cpt": 1}, "batch_rows": 8} | (stage or {})
                },
            }
        )
        validate_mesh(config, make_mesh(MeshConfig(**sizes), jax.devices()))

    return check


def test_what_fits_passes_and_idle_devices_are_named(fits, caplog):
    fits(dict(fsdp=4, tensor=2))
    fits(dict(replica=2, fsdp=2, context=2))
    assert not caplog.text
    fits(dict(fsdp=2, context=2, tensor=2), stage={"batch_rows": 6, "microbatches": 3})
    assert "2 encoder rows a microbatch are spread over 2 of 8 devices" in caplog.text


@pytest.mark.parametrize(
    "sizes, changes, message",
    [
        (dict(fsdp=2, tensor=4), {}, r"model.decoder.num_kv_heads=2 is not a multiple of the 4 devices of mesh.tensor"),
        (dict(fsdp=4, tensor=2), {"vocab_size": 63}, r"model.decoder.vocab_size=63 .*--pad-to 128"),
        (
            dict(fsdp=8),
            {"hidden_size": 20},
            r"hidden_size=20 is not a multiple of the 8 devices of mesh.fsdp \* mesh.cont",
        ),
    ],
    ids=["heads", "vocabulary", "width"],
)
def test_sizes_of_the_model(fits, make_backbone, sizes, changes, message):
    with pytest.raises(LclmError, match=message):
        fits(sizes, decoder=make_backbone(**changes), memory_token_ids=(1, 2, 3))


def test_rows_and_positions(fits):
    with pytest.raises(
        LclmError,
        match=r"4 rows, which is not a multiple of the 8 .*batch_rows a multiple of 16, or take devices for 4 parts",
    ):
        fits(dict(fsdp=8), stage={"microbatches": 2})
    message = r"row_length=24, which is not a multiple of 16, 2 pieces for each of the 8 devices of mesh.context"
    with pytest.raises(LclmError, match=message):
        fits(dict(fsdp=1, context=8), pack={"row_length": 24})
