import pytest

from lclm_jax.ablate.jobs import jobs_of
from lclm_jax.ablate.variants import expand, shared_config, slug, variant_config, variant_hash
from lclm_jax.config import ConfigError, load_study

BASE = """
tokenizer: {vocab_size: 300}
model:
  encoder: &tower
    {vocab_size: 300, hidden_size: 8, num_layers: 1, num_heads: 2, num_kv_heads: 1, head_dim: 4, mlp_size: 8}
  decoder: *tower
  ratio: 4
  window: 16
data:
  pack: {row_length: 64, encoder_rows: 1, encoder_row_length: 64}
  sources: {cpt: {collection: documents, objective: cpt}, repeat: {collection: documents, objective: reconstruction}}
stages:
  one: {lr: {adapter: 1e-3}, steps: 30, batch_rows: 4, mixture: {cpt: 1, repeat: 1}}
  two: {lr: {decoder: 1e-3}, steps: 10, batch_rows: 4, mixture: {cpt: 1}}
"""


@pytest.fixture
def study(tmp_path):
    """A study written to a folder: ``study(text, *overrides)``."""
    (tmp_path / "base.yaml").write_text(BASE)

    def write(text, *overrides):
        path = tmp_path / "study.yaml"
        path.write_text(f"config: base.yaml\nsmallest_effect: 0.1\nrun_dir: {tmp_path}/{{name}}\n{text}")
        return load_study(path, overrides)

    return write


FACTORS = "factors: {model.pooling: [mean, concat, eos], size: {small: {}, wide: {model.encoder.mlp_size: 16}}}\n"


def test_one_factor_at_a_time(study):
    variants = expand(study(FACTORS))
    assert [v.name for v in variants] == ["baseline", "pooling=concat", "pooling=eos", "size=wide"]
    assert variants[0].overrides == {"model.pooling": "mean"}
    assert variants[3].overrides == {"model.pooling": "mean", "model.encoder.mlp_size": 16}
    assert variants[3].levels == {"model.pooling": "mean", "size": "wide"}


def test_grid(study):
    names = [v.name for v in expand(study(FACTORS + "design: grid\n"))]
    assert names == [
        "baseline",
        "size=wide",
        "pooling=concat",
        "pooling=concat, size=wide",
        "pooling=eos",
        "pooling=eos, size=wide",
    ]


def test_list_and_further_rows(study):
    variants = expand(study("design: list\nvariants: {narrow: {model.window: 8}}\n"))
    assert [(v.name, v.overrides) for v in variants] == [("baseline", {}), ("narrow", {"model.window": 8})]
    assert expand(study(FACTORS + "variants: {narrow: {model.window: 8}}\n"))[-1].name == "narrow"


def test_a_variant_is_the_base_with_its_overrides_in_a_folder_of_its_own(study):
    tree = study(FACTORS + "settings: {model.window: 8}\nrows_for: {pooling: eos}\n")
    config = variant_config(tree, expand(tree)[3], seed=7)
    assert (config.model.window, config.model.encoder.mlp_size, config.seed) == (8, 16, 7)
    assert config.run_dir == f"{tree.run_dir}/runs/size-wide/seed-7"
    shared = shared_config(tree)
    assert config.data.prepared == f"{shared.run_dir}/data"
    assert config.tokenizer.decoder == f"{shared.run_dir}/tokenizer"
    assert config.planned(config.model).pooling == "eos"


@pytest.mark.parametrize(
    ("budget", "steps"),
    [("", (30, 10)), ("steps: 100\n", (75, 25)), ("tokens: 20480\n", (60, 20))],  # a step has 4 rows of 64
)
def test_a_budget_is_divided_as_the_base_divides_its_steps(study, budget, steps):
    tree = study(FACTORS + budget)
    config = variant_config(tree, expand(tree)[1], 0)
    assert tuple(stage.steps for stage in config.stages.values()) == steps


def test_what_is_counted_in_steps_keeps_its_share_of_a_budget(study):
    changes = "settings: {stages.one.warmup_steps: 6, stages.one.mixture_changes: {15: {cpt: 1}},"
    changes += " stages.one.skip_steps: ['12-14', '20']}\n"
    by_budget = {}
    for budget in ("", "steps: 400\n", "steps: 4\n"):
        tree = study(FACTORS + changes + budget)
        one = variant_config(tree, expand(tree)[1], 0).stages["one"]
        by_budget[budget] = (one.warmup, dict(one.mixture_changes), one.skip_steps)
    assert by_budget == {
        "": (6, {15: {"cpt": 1.0}}, ("12-14", "20")),
        "steps: 400\n": (60, {150: {"cpt": 1.0}}, ("120-149", "200-209")),
        "steps: 4\n": (1, {2: {"cpt": 1.0}}, ("1-1",)),
    }


def test_the_budget_is_the_same_when_a_stage_is_taken_out(study):
    tree = study("design: list\nsteps: 100\nvariants: {short: {stages.two: null}}\n")
    assert {name: stage.steps for name, stage in variant_config(tree, expand(tree)[1], 0).stages.items()} == {
        "one": 100
    }


def test_a_hash_changes_with_the_variant_alone(study):
    tree = study(FACTORS)
    base, concat, *_ = expand(tree)
    assert variant_hash(tree, base) != variant_hash(tree, concat)
    moved = study(FACTORS, "run_dir=/elsewhere", "seeds=[5, 6]")
    assert variant_hash(tree, base) == variant_hash(moved, base)
    assert variant_hash(tree, base) != variant_hash(study(FACTORS, "steps=12"), base)


def test_jobs_are_variants_or_runs(study):
    assert [(j.variant.name, j.seeds) for j in jobs_of(study(FACTORS, "together=true"))][:2] == [
        ("baseline", (0, 1, 2)),
        ("pooling=concat", (0, 1, 2)),
    ]
    alone = jobs_of(study(FACTORS))
    assert [j.seeds for j in alone[:4]] == [(0,), (1,), (2,), (0,)]
    assert len({job.path for job in alone}) == len(alone) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variants: {a: {corpus.kind: folder}}\n", "overrides corpus.kind, which all variants share"),
        ("variants: {a: {model.windw: 8}}\n", "unknown key model.windw; did you mean 'window'"),
        ("variants: {baseline: {}}\n", "several variants named 'baseline'"),
        ("variants: {a b: {}, a-b: {}}\n", "have the folder a-b|has the folder a-b|the folder a-b"),
        ("seeds: [1]\nvariants: {a: {}}\n", "gives no interval"),
        ("factors: {model.window: [16]}\n", "has 1 value"),
        ("steps: 5\ntokens: 5\nvariants: {a: {}}\n", "both bound a run"),
        ("primry: x\nvariants: {a: {}}\n", "unknown key primry; did you mean 'primary'"),
        ("primary: loss\nvariants: {a: {}}\n", "primary='loss': Input should be 'held_out_loss'"),
        ("", "nothing varies"),
    ],
)
def test_errors_name_the_value_and_the_fix(study, text, message):
    with pytest.raises(ConfigError, match=message):
        tree = study(text)
        for job in jobs_of(tree):
            variant_config(tree, job.variant, 0)


def test_slug():
    assert slug("type=attn_mlp, mask=bidirectional") == "type-attn_mlp-mask-bidirectional"
