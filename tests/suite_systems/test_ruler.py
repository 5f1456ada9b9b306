"""RULER samples equal those of NVIDIA's scripts for equal seeds (``make test-suite-systems``)."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.suite.conftest import count_tokens

from lclm_jax.suite.tasks.ruler.design import TASKS
from lclm_jax.suite.tasks.ruler.generate import generate
from lclm_jax.suite.tasks.ruler.sources import Sources

HERE = Path(__file__).parent
ALL, FEW = Sources(), Sources()
FEW.nouns, FEW.adjectives = ALL.nouns[::10], ALL.adjectives[::10]


def few_words(name):
    """All keys of needles in one task, a hundredth of them in the others: NVIDIA's scripts sort six million."""
    return name.startswith("niah") and name != "niah_single_1"


def theirs(name, length, count, seed, folder):
    """What ``prepare.py`` would run, template ``base``."""
    (place,) = importlib.util.find_spec("long_context_eval").submodule_search_locations
    home = Path(place)
    config = yaml.safe_load((home / "synthetic.yaml").read_text())[name]
    constants = {}
    exec((home / "data/synthetic/constants.py").read_text(), constants)
    design = constants["TASKS"][config["task"]]
    arguments = {
        "save_dir": folder,
        "save_name": name,
        "tokenizer_path": "none",
        "tokenizer_type": "hf",
        "max_seq_length": length,
        "tokens_to_generate": design["tokens_to_generate"],
        "num_samples": count,
        "random_seed": seed,
        "template": design["template"] + design["answer_prefix"],
        **config["args"],
    }
    words = "few-words" if few_words(name) else "all-words"
    command = [sys.executable, str(HERE / "nvidia_ruler.py"), words, str(home / f"data/synthetic/{config['task']}.py")]
    command += [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (folder / name / "validation.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("length", "seed"), [(4096, 42), (16384, 43)])
@pytest.mark.parametrize("name", TASKS)
def test_samples_are_equal(name, length, seed, tmp_path):
    wanted = theirs(name, length, 5, seed, tmp_path)
    ours = generate(name, length, 5, count_tokens, FEW if few_words(name) else ALL, seed)
    for one, other in zip(ours, wanted, strict=True):
        assert one.prompt("raw") + one.prefix == other["input"]
        assert list(one.answers) == other["outputs"]
