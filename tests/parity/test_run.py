"""``run_golden`` on the copy of a few reference cases, and that it can fail."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lclm_jax.errors import LclmError
from lclm_jax.parity.check import EXACT, LATENTS, Tolerance, compare, same
from lclm_jax.parity.run import run_golden

COPY = Path(__file__).parents[1] / "golden" / "reference"


def subset(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (COPY / name).is_dir():
            shutil.copytree(COPY / name, folder / name)
        else:
            shutil.copyfile(COPY / name, folder / name)
    return folder


def test_the_copy_passes():
    checks = list(run_golden(COPY))
    assert [str(check) for check in checks if not check.ok] == []
    quantities = {f"{check.case} {check.quantity}" for check in checks}
    for expected in (
        "lr_schedule plain",
        "pack_sequences batches/1",
        "tokenizer_cases full_with_answer",
        "07-mean-bidir-mlp-n16-w16-o8 s0/windows",
        "07-mean-bidir-mlp-n16-w16-o8 grad/norm/encoder",
        "07-mean-bidir-mlp-n16-w16-o8 s0/greedy_repetition_penalty_1.1",
        "09-eos-bidir-mlp-n8-w32-o8 s0/latents/1",
        "15-empty-region-n8-w1024 s0/projected/0",
        "16-batch-n8-w64 batch/loss",
        "16-batch-n8-w64 batch/labels",
        "training/16-batch-n8-w64--adapter param_change_norms",
    ):
        assert expected in quantities


def test_wrong_expectations_fail(tmp_path):
    case = "cases/15-empty-region-n8-w1024"
    folder = subset(tmp_path, "checkpoints", case)
    values = json.loads((folder / case / "case.json").read_text())
    values["samples"][0]["input_ids"][3] += 1
    values["samples"][1]["greedy"]["ids"][0] += 1
    (folder / case / "case.json").write_text(json.dumps(values))
    arrays = load_file(folder / case / "arrays.safetensors")
    arrays["s1/latents/0"] = arrays["s1/latents/0"] + np.float32(0.001)
    save_file(arrays, folder / case / "arrays.safetensors")
    failed = {check.quantity for check in run_golden(folder) if not check.ok}
    assert failed == {"s0/input_ids", "s1/greedy", "s1/latents/0"}


def test_a_folder_without_cases_is_an_error(tmp_path):
    with pytest.raises(LclmError, match="no golden cases"):
        list(run_golden(tmp_path))


def test_comparisons():
    assert compare("c", "q", [1.0, 2.0001], [1.0, 2.0], LATENTS).ok
    assert not compare("c", "q", [1.0, 2.001], [1.0, 2.0], LATENTS).ok
    assert not compare("c", "q", [np.nan], [1.0], LATENTS).ok
    assert not compare("c", "q", [1.0], [1.0, 1.0], LATENTS).ok
    assert compare("c", "q", [0.001, 1.0], [0.0, 1.0], Tolerance(of_peak=1e-2)).ok
    assert same("c", "q", np.array([1, 2]), [1, 2]).ok
    wrong = same("c", "q", {"a": [1, 2, 3]}, {"a": [1, 5]})
    assert (wrong.ok, wrong.max_abs, wrong.allowed) == (False, 2.0, str(EXACT))
