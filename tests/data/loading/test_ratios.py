"""Stages that draw a ratio for every step."""

import json
from collections import Counter

import numpy as np
import pytest

from lclm_jax.config import ConfigError, parse_config
from lclm_jax.data.loading.loader import make_loader
from lclm_jax.data.loading.position import Position
from lclm_jax.data.loading.row_index import digest_of, joint_digest
from lclm_jax.data.packing.mixture import RatioSchedule, mixtures_by_row
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.errors import LclmError
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(vocab_size=512, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_size=32)
TEXT = "".join(f"The sentence {i} speaks of {chr(97 + i % 26)}. Then it ends!\n" for i in range(40))
STEPS, ROWS = 24, 2


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixed")
    (root / "text").mkdir()
    for i in range(30):
        (root / "text" / f"{i}.txt").write_text(TEXT[i * 7 :])
    train_tokenizer([TEXT], 300, root / "tokenizer")
    spans = {"min_tokens": 6, "max_tokens": 40, "raw_min_tokens": 6, "raw_max_tokens": 20}
    config = parse_config(
        {
            "name": "t",
            "run_dir": str(root / "run"),
            "corpus": {"kind": "folder", "path": str(root / "text"), "validation_share": 0, "held_out_share": 0},
            "tokenizer": {"decoder": str(root / "tokenizer")},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 32},
            "data": {
                "sources": {"cpt": {"collection": "documents", "objective": "cpt", "spans": spans, "max_tokens": 100}},
                "pack": {"row_length": 128, "encoder_rows": 2, "encoder_row_length": 128},
            },
            "stages": {
                "s": {
                    "lr": {"adapter": 1e-3},
                    "steps": STEPS,
                    "mixture": {"cpt": 1},
                    "batch_rows": ROWS,
                    "ratios": [4, 8, 16, 16],
                }
            },
        }
    )
    prepare_corpus(config)
    return config


def open_loader(config, **arguments):
    tokenizer = Tokenizer(config.tokenizer.decoder)
    return make_loader(config, "s", Tokenizers(tokenizer, tokenizer), **arguments)


def batches_of(config, **arguments):
    with open_loader(config, **arguments) as loader:
        return [batch for batch, _ in loader]


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True) if a is not None)


def ratio(batch):
    return batch.encoder_tokens[0].size // batch.latent_segments.shape[1]


def test_schedule_is_a_function_of_seed_and_step(config):
    long = config.model_copy(update={"stages": {"s": config.stages["s"].model_copy(update={"steps": 4000})}})
    schedule, short = RatioSchedule(long, "s"), RatioSchedule(config, "s")
    drawn = [schedule.ratio(step) for step in range(4000)]
    assert [short.ratio(step) for step in range(STEPS)] == drawn[:STEPS]
    counts = Counter(drawn)
    assert counts[16] == pytest.approx(2000, abs=150)
    assert counts[4] == pytest.approx(1000, abs=150)
    assert schedule.steps_before(100) == [drawn[:100].count(n) for n in (4, 8, 16)]
    assert schedule.place(100) == ((4, 8, 16).index(drawn[100]), drawn[:100].count(drawn[100]))
    other = long.model_copy(update={"seed": 1})
    assert [RatioSchedule(other, "s").ratio(step) for step in range(100)] != drawn[:100]


def test_every_batch_has_its_own_ratio_and_is_full(config):
    batches, schedule = batches_of(config), RatioSchedule(config, "s")
    assert [ratio(batch) for batch in batches] == [schedule.ratio(step) for step in range(STEPS)]
    assert {ratio(batch) for batch in batches} == {4, 8, 16}
    for batch in batches:
        for row in range(ROWS):
            pooled = batch.pool_weights[row].reshape(-1, ratio(batch)).any(axis=1)
            assert (batch.latent_index[row] >= 0).sum() == pooled.sum() == (batch.latent_segments[row] > 0).sum()
        assert (batch.decoder_segments > 0).mean() > 0.6


def test_resuming_hosts_and_workers_change_nothing(config, tmp_path):
    whole = batches_of(config)
    with open_loader(config) as loader:
        for _ in range(7):
            next(loader)
        state = loader.state()
        described = loader.describe(7 * ROWS)
        n, shown, stats = loader.row(7 * ROWS + 1)
    rest = batches_of(config, start=Position.from_state(state), index_folder=tmp_path / "other")
    assert len(rest) == STEPS - 7
    assert all(map(equal, rest, whole[7:]))
    assert described
    assert n == ratio(whole[7]) and equal(shown, [None if rows is None else rows[1:2] for rows in whole[7]])
    assert stats.decoder_tokens == (whole[7].decoder_segments[1] > 0).sum()
    halves = [batches_of(config, host=((part,), 2)) for part in range(2)]
    for batch, first, second in zip(whole, *halves, strict=True):
        for name, rows, one, two in zip(batch._fields, batch, first, second, strict=True):
            if rows is not None:
                assert np.array_equal(rows, np.concatenate([one, two])), name


def test_ratios_take_different_records_of_an_epoch(config):
    with open_loader(config) as loader:
        seen = []
        for index in loader.indices.values():
            mixture = index.maker.mixture
            supply = mixture._supplies[0]
            epochs = [
                set(mixture.records(0, range(e * supply.records, (e + 1) * supply.records))[0][1].tolist())
                for e in range(3)
            ]
            seen.append(epochs)
        everything = set(range(30))
        for epoch in range(3):
            assert set.union(*(one[epoch] for one in seen)) == everything
            assert sum(len(one[epoch]) for one in seen) == len(everything)
        info = loader.info(config.stages["s"])
        assert info["rows"] == STEPS * ROWS
        assert info["decoder_fill"] > 0.6


@pytest.fixture(scope="module")
def many(config, tmp_path_factory):
    """A stage of one epoch over more documents, two of its sources being the same text."""
    root = tmp_path_factory.mktemp("many")
    (root / "text").mkdir()
    for i in range(200):
        (root / "text" / f"{i:03d}.txt").write_text(TEXT[i % 97 * 7 : 1200 + i % 97 * 7 + i % 13 * 90])
    values = config.model_dump(mode="json")
    values |= {"run_dir": str(root / "run")}
    values["corpus"]["path"] = str(root / "text")
    values["data"]["prepared"] = str(root / "prepared")
    source = values["data"]["sources"]["cpt"] | {"when_exhausted": "stop", "epochs": 1}
    values["data"]["sources"] = {"cpt": source, "repeat": source | {"objective": "reconstruction"}}
    values["data"]["pack"]["block_examples"] = 60
    values["stages"]["s"]["mixture"] = {"cpt": 0.6, "repeat": 0.4}
    parsed = parse_config(values)
    prepare_corpus(parsed)
    return parsed


def test_all_ratios_come_to_the_end_of_an_epoch_together(many, tmp_path):
    """With equal parts, one ratio ended long before the others: 58 % of the records were read in an epoch."""
    with open_loader(many, index_folder=tmp_path) as loader:
        epochs = []
        for index, steps in zip(loader.indices.values(), (1, 1, 2), strict=True):
            supplies, rows = index.maker.mixture._supplies, 0
            cursor = index.origin
            while all(used + 3 < supply.records for used, supply in zip(cursor.consumed, supplies, strict=True)):
                cursor = index.block_at(cursor).after
                rows = cursor.row
            read = max(used / supply.records for used, supply in zip(cursor.consumed, supplies, strict=True))
            epochs.append(rows / steps / read)
        assert max(epochs) / min(epochs) < 1.08, epochs
        parts = [index.maker.mixture._supplies[0] for index in loader.indices.values()]
        assert parts[0].records < parts[1].records < 0.5 * parts[2].records
        assert sum(part.records for part in parts) == 200


def test_a_stage_that_began_with_equal_parts_keeps_them(many, tmp_path):
    schedule = RatioSchedule(many, "s")
    with open_loader(many, index_folder=tmp_path) as loader:
        new = {ratio: index.folder for ratio, index in loader.indices.items()}
        indices = list(loader.indices.values())
    for ratio in schedule.ratios:  # as version 0.1 stored them
        stored = json.loads((new[ratio] / "index.json").read_text())
        inputs = {name: value for name, value in stored["inputs"].items() if name != "parts"} | {"format": 3}
        layout = {name: value for name, value in stored["layout"].items() if name != "parts"}
        digest = digest_of(inputs)
        old = new[ratio].parent / digest[:16]
        new[ratio].rename(old)
        values = {"digest": digest, "layout": layout, "inputs": inputs}
        (old / "index.json").write_text(json.dumps(values))
    with open_loader(many, index_folder=tmp_path) as loader:
        assert [index.maker.mixture._supplies[0].records for index in loader.indices.values()] == [66, 66, 66]
        assert loader.digest not in ("", joint_digest([index.digest for index in indices], schedule))
    other = many.model_copy(update={"stages": {"s": many.stages["s"].model_copy(update={"ratios": (4, 8, 8, 16)})}})
    with open_loader(other, index_folder=tmp_path / "other") as loader:
        assert loader.digest != joint_digest([index.digest for index in indices], schedule)


def test_a_mixture_changes_at_its_step_whatever_the_ratios(config, tmp_path):
    values = config.model_dump(mode="json")
    values["data"]["sources"]["repeat"] = {**values["data"]["sources"]["cpt"], "objective": "reconstruction"}
    values["data"]["pack"]["block_examples"] = 12
    values["stages"]["s"] |= {"steps": 120, "ratios": [4, 8, 16], "mixture_changes": {"60": {"repeat": 1}}}
    with open_loader(parse_config(values), index_folder=tmp_path) as loader:
        kinds = [{one["source"] for one in loader.describe(step * ROWS)} for step in range(120)]
    assert all(kind == {"cpt"} for kind in kinds[:60])
    assert all(kind == {"repeat"} for kind in kinds[75:]), "it holds from the next block of each ratio's rows"
    later = mixtures_by_row(parse_config(values), "s", (0, 3))
    values["stages"]["s"]["steps"] = 20
    assert mixtures_by_row(parse_config(values), "s", (0, 3)) == later, "how long the stage is changes no row"


def test_impossible_ratios_are_refused(config):
    def with_ratios(ratios, **model):
        values = config.model_dump(mode="json")
        values["stages"]["s"]["ratios"] = ratios
        values["model"] |= model
        return parse_config(values)

    with pytest.raises(ConfigError, match="multiple of ratio=12"):
        with_ratios([4, 12])
    with pytest.raises(ConfigError, match=r"needs model.pooling=mean or attention, not concat"):
        with_ratios([4, 8], pooling="concat")
    with pytest.raises(LclmError, match=r"made 1 updates with 4 rows.*cannot be resumed with another batch_rows"):
        open_loader(config, start=Position(2 * ROWS, step=1))


def test_rows_of_spans_with_their_own_ratios_resume(config, tmp_path):
    values = config.model_dump()
    values["model"] |= {"span_ratios": (4, 8, 16)}
    values["stages"]["s"] |= {"ratios": (), "steps": 6}
    spans = parse_config(values)
    whole = batches_of(spans, index_folder=tmp_path / "one")
    assert {tuple(batch.latent_ratios.shape) for batch in whole} == {(ROWS, 2 * 128 // 4)}
    assert {*np.concatenate([batch.latent_ratios.ravel() for batch in whole]).tolist()} == {0, 4, 8, 16}
    with open_loader(spans, index_folder=tmp_path / "one") as loader:
        for _ in range(2):
            next(loader)
        state = loader.state()
    rest = batches_of(spans, start=Position.from_state(state), index_folder=tmp_path / "other")
    assert len(rest) == 4 and all(map(equal, rest, whole[2:]))
    values["stages"]["s"] |= {"ratios": (4, 8)}
    with pytest.raises(ConfigError, match=r"and model.span_ratios=.* one for every span; remove one of the two"):
        parse_config(values)
    values["stages"]["s"]["ratios"], values["data"]["sources"]["cpt"]["spans"]["ratio"] = (), 32
    with pytest.raises(ConfigError, match=r"cpt.spans.ratio=32 is not one of model.span_ratios=\[4, 8, 16\]"):
        parse_config(values)
