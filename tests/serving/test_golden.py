"""The torch tower makes the latents that the PyTorch implementation made."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.golden.paths import CASES, CHECKPOINTS

from lclm_serving.config import LclmConfig
from lclm_serving.engine_config import _pad_id, engine_config
from lclm_serving.modeling import LclmForConditionalGeneration
from lclm_serving.weights import state_dict
from lclm_serving.windows import windows_of

TOLERANCE = dict(atol=1e-4, rtol=1e-4)


def model_of(case):
    folder = CHECKPOINTS[case["checkpoint"]]
    config = LclmConfig(
        **engine_config(folder) | case["model_config"] | {"encoder_pad_id": _pad_id(folder / "encoder")}
    )
    options = dict(config=config, state_dict=state_dict(folder), dtype=torch.float32, output_loading_info=True)
    model, found = LclmForConditionalGeneration.from_pretrained(None, **options)
    assert not found["unexpected_keys"] and not found["missing_keys"] - {"language_model.lm_head.weight"}
    return model


@pytest.mark.parametrize("name", CASES)
def test_latents_are_those_of_the_golden_case(name):
    case = json.loads((CASES[name] / "case.json").read_text())
    arrays = load_file(CASES[name] / "arrays.safetensors")
    model = model_of(case)
    compared = 0
    for sample in case["samples"]:
        for region, ids in enumerate(sample["memory_token_ids"]):
            if not ids:
                continue
            windows = windows_of(np.array(ids), model.config)
            for window, expected in zip(windows, sample["windows"][region], strict=True):
                read = len(window.ids)
                assert expected["input_ids"][:read] == window.ids.tolist()
                assert (expected["pool_start"], expected["pool_len"]) == (window.skip, window.pooled)
            (pooled,) = model.pooled([torch.tensor(ids)])
            with torch.no_grad():
                (latents,) = model.adapter([pooled])
            for found, quantity in ((pooled, "latents"), (latents, "projected")):
                expected = arrays.get(f"{sample['id']}/{quantity}/{region}")
                if expected is not None:
                    np.testing.assert_allclose(found.numpy(), expected, **TOLERANCE)
                    compared += 1
    assert compared
