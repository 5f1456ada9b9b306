"""What tests of prepared data and packed rows share."""

import numpy as np

from lclm_jax.data.packing.rows import span_tokens
from lclm_jax.data.store.shards import lengths_name
from lclm_jax.text.example import Example


def unpack_row(row, ratio) -> list[Example]:
    """The examples of a packed row, in order: the inverse of ``assemble_row``.

    The weight of an example's first token is 0, as nothing in its segment predicts it.
    """
    spans_by_id = span_tokens(row, ratio)
    segments, examples = row["decoder_segments"], []
    for segment in range(1, int(segments.max(initial=0)) + 1):
        where = np.flatnonzero(segments == segment)
        slots = row["latent_index"][where]
        loss = np.concatenate([[0], row["loss_weights"][where[:-1]]]).astype(np.float32)
        ids = list(dict.fromkeys(row["latent_segments"][slots[slots >= 0]].tolist()))
        spans = tuple(spans_by_id[span] for span in ids)
        examples.append(Example(tokens=row["decoder_tokens"][where].copy(), loss=loss, spans=spans))
    return examples


def assert_checksums(split):
    """Every file of a prepared split has the checksum that its manifest says."""
    for shard in split.shards:
        for name, expected in ((shard.file, shard.sha256), (lengths_name(shard.file), shard.lengths_sha256)):
            assert split.storage.digest(name, expected) == expected
