import json
from contextlib import closing

import jax
import numpy as np
import pytest
from tests.exporting import export_model
from tests.tiny_exports import TOWER

from lclm_jax.config import ModelConfig, RunPaths
from lclm_jax.errors import LclmError
from lclm_jax.inference.generate import Generator
from lclm_jax.model.lclm import init_params
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer
from lclm_jax.train.logging.metrics import MetricsLog
from lclm_jax.tune import answers, run
from lclm_jax.tune.answers import LOSS
from lclm_jax.tune.settings import STAGE, TuneOptions, layout_of, parts_of, write_settings

COLOURS = ("red", "green", "blue", "grey")
OPTIONS = TuneOptions(("adapter",), epochs=2, held_out=0.2, evaluations=4, answers=2, max_new_tokens=2)
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</{{ message.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LCLM with random weights."""
    root = tmp_path_factory.mktemp("model")
    text = " ".join(f"The {colour} box holds {number} coins." for colour in COLOURS for number in range(30))
    train_tokenizer([text, "What does it hold? <user></user><assistant></assistant>"], 320, root / "tokenizer")
    (root / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    ids = tuple(Tokenizer.from_folder(root / "tokenizer").memory_ids)
    tower = TOWER | {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "mlp_size": 16}
    model = ModelConfig(encoder=tower, decoder=tower, ratio=4, window=16, memory_token_ids=ids, compute_dtype="float32")
    params = jax.device_get(init_params(model, jax.random.key(0)))
    tokenizers = {f"{part}_tokenizer": root / "tokenizer" for part in ("decoder", "encoder")}
    export_model(params, model, root / "model", **tokenizers)
    return root / "model"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = []
    for number in range(60):
        context = " ".join(f"The {colour} box holds {(number * 7 + i) % 30} coins." for i, colour in enumerate(COLOURS))
        answer = f"{number * 7 % 30} coins"
        lines.append({"context": context, "question": "What does the red box hold?", "answer": answer})
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_settings_follow_from_the_model_and_the_rows(folder, rows, tmp_path):
    options = TuneOptions(parts_of(["decoder_lora", "adapter"]), overrides=("stages.tune.lr.adapter=0.01",))
    config = write_settings(folder, rows, tmp_path, options)
    assert config.stages[STAGE].lr.adapter == 0.01 and config.stages[STAGE].lr.decoder_lora == 2e-4
    assert config.stages[STAGE].lr.decoder is None
    assert config.model.lora.decoder is not None and config.model.lora.encoder is None
    assert config.model.ratio == 4 and config.init.lclm == str(folder)
    run.prepare_data(config, workers=1)
    layout = layout_of(config, options, devices=2)
    stage = layout["stage"]
    assert stage["batch_rows"] % 2 == 0 and stage["microbatches"] * 2 == stage["batch_rows"]  # a row on each at a time
    sized = write_settings(folder, rows, tmp_path, options, layout)
    assert sized.pack(STAGE).row_length % 64 == 0 and sized.stages[STAGE].steps >= options.evaluations
    with pytest.raises(LclmError, match=r"rows to train on and 0 held out are too few; give more rows"):
        none = write_settings(folder, rows, tmp_path / "none", TuneOptions(("adapter",), held_out=1e-9))
        run.prepare_data(none, workers=1)
        layout_of(none, options, devices=1)
    with pytest.raises(LclmError, match="is no LCLM"):
        run.tune(tmp_path, rows, tmp_path / "out", options)


def test_tuning_ends_when_the_held_out_loss_stops_falling(folder, rows, tmp_path, monkeypatch):
    config = write_settings(folder, rows, tmp_path, OPTIONS)
    asked = []
    monkeypatch.setattr(run, "train", lambda *_, hooks: asked.append(hooks[0].call(None)))
    with closing(MetricsLog(RunPaths(config).stage(STAGE) / run.NAME, 0, True)) as log:
        for step, loss in enumerate((3.0, 2.0, 2.5, 2.4)):
            log.write({"step": step, LOSS: loss})
        run._train(config, patience=3)
        assert asked == [None]  # goes on
        log.write({"step": 4, LOSS: 2.1})
        run._train(config, patience=3)
    assert asked == [None]


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_from_an_export_to_a_tuned_export(folder, rows, tmp_path):
    out = tmp_path / "tuned"
    result = run.tune(folder, rows, out, OPTIONS)
    assert result["after"]["loss_nats"] < result["before"]["loss_nats"]
    best = min(result["held_out_loss"].values())
    np.testing.assert_allclose(result["after"]["loss_nats"], best, rtol=1e-4)  # the export is the best step
    assert result["before"]["questions"] == 2 and 1 < result["before"]["effective_ratio"] < 4
    before, after = (Generator.from_folder(path).params for path in (folder, out))
    np.testing.assert_array_equal(before["encoder"]["embed"]["table"], after["encoder"]["embed"]["table"])
    assert (before["adapter"]["fc1"]["kernel"] != after["adapter"]["fc1"]["kernel"]).any()
    assert json.loads((tmp_path / "tuned.run" / "tune.json").read_text())["step"] == result["step"]


@pytest.mark.parametrize(
    ("text", "wanted", "score"),
    [("The", "the", 1.0), ("", "The", 1.0), ("word", "The", 0.0), ("", "word", 0.0), ("two words", "two", 2 / 3)],
)
def test_f1_of_answers_that_are_articles_alone_is_that_of_squad_2(text, wanted, score):
    assert answers._f1(text, wanted) == pytest.approx(score)
