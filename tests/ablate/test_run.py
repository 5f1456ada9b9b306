"""A study of two variants on made-up text: the same rows for all, seeds together or alone, resumed, never run twice."""

import sys

import jax
import numpy as np
import pytest
from tests.data.helpers import unpack_row
from tests.devices import only_one_device

from lclm_jax.ablate.jobs import collect, done, jobs_of, open_jobs
from lclm_jax.ablate.measure import Measurer
from lclm_jax.ablate.run import StudyTooSmall, check_size, prepare, run_job, run_study
from lclm_jax.ablate.train_seeds import train_single, train_vmapped
from lclm_jax.ablate.variants import expand, variant_config
from lclm_jax.config import load_study
from lclm_jax.data.loading.loader import make_loader
from lclm_jax.errors import LclmError
from lclm_jax.text.run_tokenizers import load_tokenizers, resolve

STUDY = """
config: base.yaml
together: true
seeds: [0, 1]
steps: 6
smallest_effect: 100
factors: {model.ratio: [4, 8]}
variants: {marked: {model.pooling: eos, model.mask: bidirectional}}
rows_for: {ratio: 4, pooling: eos, mask: bidirectional}
"""
BASE = """
corpus: {collections: {documents: {format: synthetic, max_bytes: 60000}}, held_out_share: 0.2}
tokenizer: {vocab_size: 300}
model:
  encoder: &tower
    {vocab_size: 300, hidden_size: 8, num_layers: 1, num_heads: 2, num_kv_heads: 1, head_dim: 4, mlp_size: 8}
  decoder: *tower
  ratio: 4
  window: 16
  compute_dtype: float32
  remat: none
data:
  pack: {row_length: 64, encoder_rows: 1, encoder_row_length: 64}
  sources:
    repeat: {collection: documents, objective: reconstruction, spans: {law: fixed, min_tokens: 16, max_tokens: 16}}
stages:
  one: {lr: {adapter: 1e-2, encoder: 1e-2, decoder: 1e-2}, steps: 2, batch_rows: 8, mixture: {repeat: 1}}
  two: {lr: {adapter: 1e-2, encoder: 1e-2, decoder: 1e-2}, steps: 1, batch_rows: 8, mixture: {repeat: 1}}
train: {probe: {examples: 8}}
eval: {context_tokens: 16, continuation_tokens: 8, repetition_tokens: 16}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study with its corpus prepared."""
    root = tmp_path_factory.mktemp("study")
    (root / "base.yaml").write_text(BASE)
    (root / "study.yaml").write_text(STUDY)
    tree = load_study(root / "study.yaml", [f"run_dir={root}/out"])
    prepare(tree)
    return tree


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """JAX has one device, for all tests here; the mesh of it."""
    with only_one_device() as mesh:
        yield mesh


@pytest.fixture(scope="module")
def first_job(study):
    """Job 0 and, after it ran, what its training gave."""
    job, trained = jobs_of(study)[0], []

    def kept(*arguments):
        trained.append(train_vmapped(*arguments))
        return trained[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lclm_jax.ablate.run.train_vmapped", kept)
        run_job(study, job, lambda *_: None)
    return job, trained[0]


def resolved(study, variant, seed):
    config = variant_config(study, variant, seed)
    return resolve(config), load_tokenizers(config)


def test_all_variants_have_the_same_examples_in_every_row(study):
    rows = []
    for variant in expand(study):
        config, tokenizers = resolved(study, variant, 0)
        with make_loader(config, "one", tokenizers) as loader:
            batch, _ = next(loader)
        for row in range(3):
            one = {name: array[row] for name, array in batch._asdict().items() if array is not None}
            spans = [span.tolist() for example in unpack_row(one, config.model.ratio) for span in example.spans]
            rows.append((variant.name, row, spans))
    for row in range(3):
        first, *others = [spans for _, number, spans in rows if number == row]
        assert first and all(spans == first for spans in others)


@pytest.mark.slow
def test_seeds_together_learn_what_each_learns_alone(study, first_job):
    _, together = first_job
    config, _ = resolved(study, expand(study)[0], study.seeds[1])
    alone = train_single(config)
    assert together.losses.shape == (2, 6) and not np.allclose(together.losses[0], together.losses[1], rtol=1e-3)
    np.testing.assert_allclose(together.losses[1], alone.losses[0], rtol=2e-5)
    for ours, theirs in zip(jax.tree.leaves(together.params[1]), jax.tree.leaves(alone.params[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_a_job_is_measured_stored_and_not_run_again(study, first_job, caplog, monkeypatch):
    caplog.set_level("INFO")
    job, _ = first_job
    result = done(study, job)
    assert list(result.seeds) == [0, 1] and len(result.measures["held_out_loss"]) == 2
    assert len(result.verbatim_by_depth[0]) == 16 and len(result.curves["train_loss"][0]) == 6
    assert 4 < result.measures["held_out_loss"][0] < 7  # ln 300 = 5.7
    # 16 tokens of a span are 4 latents; the text, the tags and the request stand beside them.
    assert 0.5 < result.cost.positions_per_raw_token < 1 and result.cost.decoder_flops > result.cost.encoder_flops > 0
    monkeypatch.setattr("lclm_jax.ablate.run._trained", None)
    run_job(study, job, lambda *_: None)
    assert "already done" in caplog.text
    changed = study.model_copy(update={"steps": 9})
    assert done(changed, jobs_of(changed)[0]) is None


def test_held_out_loss_is_that_of_the_baseline_s_sources(study, first_job, one_device):
    variant = expand(study)[1]
    config, tokenizers = resolved(study, variant, 0)
    base, _ = resolved(study, expand(study)[0], 0)
    _, trained = first_job  # with another ratio, which no parameter depends on
    values, depths = Measurer(config, base, tokenizers, one_device)(trained.params[0])
    assert values["recovered_share"] == pytest.approx(
        (values["no_context_loss"] - values["latent_loss"]) / (values["no_context_loss"] - values["raw_loss"]),
        nan_ok=True,
    )
    assert len(depths) == 16 and np.mean(depths) == pytest.approx(values["verbatim_accuracy"], abs=2e-3)


# Stands in for the training of a job: its held-out loss is its number.
STAND_IN = """
import sys, json
from pathlib import Path
from lclm_jax.ablate.jobs import jobs_of
from lclm_jax.ablate.variants import variant_hash
from lclm_jax.ablate.results import VariantResult
from lclm_jax.config import load_study
study = load_study(sys.argv[1], ["run_dir=" + sys.argv[2]])
number = int(sys.argv[-1])
if number == 1 and not Path(sys.argv[3]).exists():
    sys.exit(3)
job = jobs_of(study)[number]
values = json.loads(sys.argv[4]) if number == 0 else [5.0, 5.1]
template = VariantResult.read(Path(sys.argv[5]))
from dataclasses import replace
replace(template, variant=job.variant.name, config_hash=variant_hash(study, job.variant),
        measures={"held_out_loss": values}).write(job.path)
with open(sys.argv[2] + "/ran", "a") as file:
    file.write(f"{number} ")
"""


def test_a_study_stops_at_a_failure_goes_on_and_skips_what_is_done(study, first_job, tmp_path):
    template = first_job[0].path
    yaml, out, switch = template.parents[3] / "study.yaml", tmp_path / "out", tmp_path / "switch"
    tree = load_study(yaml, [f"run_dir={out}", "seeds=[0, 1]"])
    command = [sys.executable, "-c", STAND_IN, str(yaml), str(out), str(switch), "[4.0, 4.2]", str(template)]
    with pytest.raises(LclmError, match=r"job 1 \(ratio=8, seeds 0, 1\) exited with status 3"):
        run_study(tree, command)
    switch.touch()
    assert [number for number, _ in open_jobs(tree)] == [1, 2]
    run_study(tree, command)
    run_study(tree, command)
    assert (out / "ran").read_text().split() == ["0", "1", "2"]
    assert list(collect(tree)) == ["baseline", "ratio=8", "marked"]
    small = tree.model_copy(update={"smallest_effect": 0.1})
    # Differences 1.0 and 0.9 have a standard deviation of 0.0707, at most 3.95 times that.
    with pytest.raises(StudyTooSmall, match=r"at most 0.279\d\); smallest_effect=0.1 needs \d+ seeds"):
        check_size(small)
