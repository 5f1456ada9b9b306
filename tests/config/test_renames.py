"""Keys that were renamed or are gone: old files load, with a warning that names the new key."""

import logging

import pytest
import yaml
from tests.config.one_run import VALUES

from lclm_jax.config import load_config, override, parse_config, renames
from lclm_jax.errors import LclmError


@pytest.fixture(autouse=True)
def made_up(monkeypatch, caplog):
    monkeypatch.setattr(
        renames, "RENAMED", {"train.report_every": "train.log_every", "stages.NAME.rows": "stages.NAME.batch_rows"}
    )
    monkeypatch.setattr(renames, "GONE", {"train.turbo": "it is always on"})
    caplog.set_level(logging.WARNING)


def test_an_old_name_loads_and_names_the_new_one(caplog):
    base = {name: value for name, value in VALUES["stages"]["base"].items() if name != "batch_rows"} | {"rows": 8}
    values = VALUES | {"stages": {"base": base}, "train": {"report_every": 7}}
    config = parse_config(values, "old.yaml")
    assert config.train.log_every == 7 and config.stages["base"].batch_rows == 8
    assert "old.yaml: the key train.report_every is called train.log_every now" in caplog.text
    assert "stages.base.rows is called stages.base.batch_rows now" in caplog.text
    assert values["train"] == {"report_every": 7}, "the caller's values stay as they are"


def test_files_that_are_merged_may_use_either_name(tmp_path):
    values = {name: value for name, value in VALUES.items() if name != "name"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(values | {"train": {"log_every": 3}}))
    (tmp_path / "over.yaml").write_text("base: base.yaml\ntrain: {report_every: 5}\n")
    assert load_config(tmp_path / "over.yaml").train.log_every == 5
    assert load_config(tmp_path / "over.yaml", ["train.report_every=9"]).train.log_every == 9


def test_dotted_keys_of_studies(caplog):
    assert override(VALUES, "stages.base.rows", 16)["stages"]["base"]["batch_rows"] == 16
    assert override({"a": 1}, "train.turbo", True) == {"a": 1}
    assert "train.turbo is gone and has no effect: it is always on" in caplog.text


def test_both_names_at_once_are_an_error():
    with pytest.raises(LclmError, match=r"train.report_every is the old name of train.log_every, which is set too"):
        parse_config(VALUES | {"train": {"report_every": 1, "log_every": 2}})


@pytest.mark.parametrize(("value", "warns"), [(True, True), ([], False), (None, False)])
def test_a_key_that_is_gone_is_dropped(caplog, value, warns):
    parse_config(VALUES | {"train": {"turbo": value}}, "stored.yaml")
    assert ("train.turbo is gone and has no effect" in caplog.text) == warns
