"""The LCLM as a model of lm-eval, in lm-eval's own environment (``make test-suite-systems``)."""

import json
import os
import subprocess
from pathlib import Path

from tests.suite_systems.test_kvpress import folder  # noqa: F401 - the fixture

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("LM_EVAL_PYTHON", str(ROOT / ".venv-lm-eval/bin/python"))
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}\n\nWhich is it?",
        "doc_to_choice": [" one", " two"],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    },
    "reply": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}\n\nSay it:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def test_tasks_of_both_kinds_run(folder, tmp_path):  # noqa: F811
    rows = [{"context": "12345678901" * 4, "answer": "one"}, {"context": "98765432109" * 4, "answer": "two"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        files = {"data_files": {"test": str(tmp_path / "data.jsonl")}}
        task |= {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))
    command = [PYTHON, "-m", "lclm_jax.suite.lm_eval_model", "--model", "lclm", "--model_args", f"folder={folder}"]
    command += [
        "--include_path",
        str(tmp_path),
        "--tasks",
        ",".join(TASKS),
        "--output_path",
        str(tmp_path / "out.json"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob("out*.json")
    results = json.loads(path.read_text())["results"]
    assert 0 <= results["choice"]["acc,none"] <= 1
    assert results["reply"]["exact_match,none"] in (0, 0.5, 1)
