from types import SimpleNamespace

import numpy as np
import pytest

from lclm_jax.bench.simulated.corpus import SimulatedSplit
from lclm_jax.config import PackConfig, SourceConfig, SpanConfig
from lclm_jax.data.packing.block_sizing import sample_averages
from lclm_jax.data.packing.sources import CptSource, SourceSetup

TOKENIZERS = SimpleNamespace(decoder=SimpleNamespace(bos_id=None))


class KnownSplit(SimulatedSplit):
    """Documents whose tokens are counted, as a manifest does."""

    @property
    def mean_tokens(self):
        return float(self.numbers("decoder_tokens", np.arange(len(self))).mean())


@pytest.mark.parametrize("seed", range(3))
def test_the_sizes_of_all_records_are_known_from_a_sample_and_their_tokens(make_model, seed):
    spans = SpanConfig(law="uniform", min_tokens=8, max_tokens=64, raw_min_tokens=8, raw_max_tokens=64)
    config = SourceConfig(collection="c", objective="cpt", max_tokens=512, spans=spans)
    setup = SourceSetup(make_model(window=64), PackConfig(row_length=512, encoder_row_length=256), TOKENIZERS, seed)
    split = KnownSplit(6e6, median=120)
    source = CptSource("cpt", config, split, setup)
    exact = source.plan(0, np.arange(len(split))).tokens.sum() / len(split)
    assert sample_averages(source, seed).positions == pytest.approx(exact, rel=0.005)
    alone = CptSource("cpt", config, SimulatedSplit(6e6, median=120), setup)
    assert sample_averages(alone, seed).positions != pytest.approx(exact, rel=0.005), (
        "documents of very different length"
    )
