"""Stages over a prepared corpus that grows."""

import pickle
import shutil

import pytest

from lclm_jax.config import RunPaths, parse_config
from lclm_jax.data.loading.generation import stage_generation
from lclm_jax.data.loading.loader import make_loader
from lclm_jax.data.loading.position import Position
from lclm_jax.data.prepare.run import prepare_corpus


@pytest.fixture
def growing(run, tmp_path):
    """A run whose corpus has grown, a loader that was open meanwhile, and what it had said."""
    values, tokenizers = run
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(8):
        (raw / f"{i}.txt").write_text("".join(f"Line {60 * i + k} of {i}. It ends!\n" for k in range(60)))
    corpus = {"collections": {"documents": {"format": "text", "paths": [str(raw)], "suffixes": [".txt"]}}}
    corpus |= {"held_out_share": 0.0, "validation_share": 0.0}
    sources = {"cpt": values["data"]["sources"]["cpt"]}
    pack = values["data"]["pack"] | {"block_examples": 10}
    data = values["data"] | {"sources": sources, "prepared": str(tmp_path / "prepared"), "pack": pack}
    stage = values["stages"]["mixed"] | {"mixture": {"cpt": 1}}
    stages = {"one": stage, "two": stage, "mixed": stage | {"ratios": [4, 8]}}
    config = parse_config(values | {"corpus": corpus, "data": data, "stages": stages, "run_dir": str(tmp_path / "run")})
    prepare_corpus(config)
    loaders = {name: make_loader(config, name, tokenizers) for name in ("one", "mixed")}
    rows = {name: [loader.describe(row) for row in range(40)] for name, loader in loaders.items()}
    states = {name: loader.state(8) for name, loader in loaders.items()}
    for i in range(8, 14):
        (raw / f"{i}.txt").write_text("".join(f"Line {60 * i + k} of {i}. It ends!\n" for k in range(60)))
    prepare_corpus(config)
    yield config, tokenizers, loaders, rows, states
    for loader in loaders.values():
        loader.close()


def records(loader):
    return {one["record"] for row in range(40) for one in loader.describe(row)}


def test_a_stage_that_began_keeps_its_rows_and_a_new_one_reads_all(growing):
    config, tokenizers, open_before, rows, states = growing
    for name in ("one", "mixed"):
        for index_is_there in (True, False):
            if not index_is_there:
                shutil.rmtree(RunPaths(config).stage(name) / "index")
            start = Position.from_state(states[name])
            assert stage_generation(config, name, tokenizers, start.index_digest) == 0
            with make_loader(config, name, tokenizers, start) as loader:
                assert loader.digest == open_before[name].digest
                assert [loader.describe(row) for row in range(40)] == rows[name]
                assert loader.state(8) == states[name]
        assert len(pickle.loads(pickle.dumps(open_before[name].maker.indices[0].maker.sources[0]))) == 8  # in a worker
    assert stage_generation(config, "two", tokenizers) == 1
    with make_loader(config, "two", tokenizers) as loader:
        assert max(records(loader)) >= 8
    shutil.rmtree(RunPaths(config).stage("one") / "index")
    with make_loader(config, "one", tokenizers) as loader:
        assert max(records(loader)) >= 8, "neither an index nor a checkpoint: it begins anew"
