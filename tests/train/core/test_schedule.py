import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.golden.paths import REFERENCE

from lclm_jax.config import StageConfig
from lclm_jax.errors import LclmError
from lclm_jax.train.core.schedule import Schedule, stage_schedules

# Update -> learning rate of the PyTorch implementation: peak 1e-3, 200 steps, warm-up 20, floor 1e-6.
GOLDEN = {0: 5e-05, 19: 1e-3, 20: 0.0009999239237306174, 100: 0.0005786390152875954, 198: 1.076076269382561e-06}


@pytest.mark.parametrize("on_device", [False, True])
def test_golden_values(on_device):
    schedule = Schedule(1e-3, 200, 20, 1e-6)
    for update, expected in GOLDEN.items():
        rate = jax.jit(schedule)(jnp.int32(update + 1)) if on_device else schedule(update + 1)
        np.testing.assert_allclose(rate, expected, rtol=1e-6)


def test_all_golden_schedules():
    cases = {
        name: case
        for name, case in json.loads((REFERENCE / "lr_schedule.json").read_text()).items()
        if isinstance(case, dict)
    }
    for name, case in cases.items():
        ranks = case["num_processes"]  # the reference steps its schedule once per process
        updates = ranks * np.arange(case["num_training_steps"]) + 1
        for column, peak in enumerate(case["base_lrs"]):
            schedule = Schedule(
                peak,
                case["num_training_steps"] * ranks,
                case["num_warmup_steps"] * ranks,
                case["min_lr"],
                cosine_fraction=case["cosine_fraction"],
            )
            expected = np.array(case["lr"])[:, column]
            np.testing.assert_allclose(schedule(updates), expected, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(("steps", "warmup", "fraction"), [(50, 7, 0.7), (200, 7, 0.8), (1000, 250, 0.35)])
def test_a_cosine_over_a_part_takes_whole_steps(steps, warmup, fraction):
    """Relative error at every step, down to a floor of zero; the PyTorch implementation rounds the steps down."""
    step = np.arange(warmup, steps + 1)
    done = np.clip((step - warmup) / int((steps - warmup) * fraction), 0, 1)
    expected = 1e-3 * 0.5 * (1 + np.cos(np.pi * done))
    np.testing.assert_allclose(Schedule(1e-3, steps, warmup, cosine_fraction=fraction)(step), expected, rtol=1e-6)


def test_the_floor_is_reached_in_the_last_whole_step():
    schedule = Schedule(1e-3, 50, 3, 1e-6, cosine_fraction=0.7)  # 47 steps after the warm-up, 32.9 of them
    assert schedule(34) > 1.001e-6 and schedule(35) == schedule(50) == np.float32(1e-6)


def test_constant_and_warm_up_longer_than_the_run():
    assert Schedule(1e-3, 10, 2, kind="constant")(9) == np.float32(1e-3)
    np.testing.assert_allclose(Schedule(1e-3, 10, 100)(10), 1e-4, rtol=1e-6)


def test_a_floor_above_the_peak_is_an_error_in_a_stage():
    stage = StageConfig(lr={"adapter": 1e-7}, steps=10, mixture={"cpt": 1}, min_lr=1e-6)
    with pytest.raises(LclmError, match=r"min_lr=1e-06 is above the peak learning rate 1e-07 of part adapter"):
        stage_schedules(stage, ("adapter",))


def test_warm_up_stable_decay():
    schedule = Schedule(1.0, 100, 10, 0.1, "wsd", decay_share=0.2)
    assert [round(float(schedule(step)), 3) for step in (5, 10, 50, 80, 90, 100, 120)] == [
        0.5, 1.0, 1.0, 1.0, 0.55, 0.1, 0.1,
    ]  # fmt: skip
