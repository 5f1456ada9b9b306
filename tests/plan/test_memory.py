"""What the formula of memory says of optimizers, beside the state that they make."""

import importlib.util
from pathlib import Path

import jax
import pytest

from lclm_jax.config.model import RematTensors, RematTowers
from lclm_jax.model.flops import step_flops
from lclm_jax.model.lclm import abstract_params
from lclm_jax.plan.memory import estimate
from lclm_jax.plan.parameters import parameter_counts
from lclm_jax.train.core.optimizer import make_optimizer

spec = importlib.util.spec_from_file_location("plan_conftest", Path(__file__).with_name("conftest.py"))
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)
ONE = {"replica": 1, "fsdp": 1, "context": 1, "tensor": 1}


def arguments(**settings):
    """(bytes of what a step is given by formula, bytes of the optimizer's state) on one device."""
    config = conftest.small_config()
    optimizer = config.train.optimizer.model_copy(update=settings)
    config = config.model_copy(update={"train": config.train.model_copy(update={"optimizer": optimizer})})
    params = abstract_params(config.model)
    made = make_optimizer(optimizer, config.stages["all"], params)
    state = jax.tree.leaves(jax.eval_shape(made.init, params))
    return estimate(config, "all", ONE).arguments, sum(leaf.size * leaf.dtype.itemsize for leaf in state)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_the_state_of_every_optimizer_is_counted(kind):
    (adamw, adamw_state), (found, state) = arguments(kind="adamw"), arguments(kind=kind)
    assert adamw - found == adamw_state - state
    assert kind == "adamw" or state < adamw_state


def test_moments_in_bfloat16_and_averages_are_counted():
    counts = parameter_counts(conftest.small_config().model)
    plain, _ = arguments()
    assert plain - arguments(moment_dtype="bfloat16")[0] == 2 * sum(counts.values())
    assert arguments(ema_decay=0.9)[0] - plain == 4 * sum(counts.values())


def test_weights_that_stay_gathered_are_counted():
    config = conftest.small_config()
    kept = config.model_copy(update={"train": config.train.model_copy(update={"gather_once": True})})
    found, plain = (estimate(one, "all", ONE | {"tensor": 2}).saved for one in (kept, config))
    size = {"float32": 4, "bfloat16": 2}[config.model.compute_dtype]
    assert found - plain == size * sum(parameter_counts(config.model).values()) / 2


def test_products_that_are_kept_cost_memory_and_save_arithmetic():
    config = conftest.small_config()

    def found(remat="full", **tensors):
        """(bytes that the decoder's layers keep, FLOPs that its backward pass repeats) in one step."""
        towers = RematTowers(decoder=RematTensors(**tensors))
        model = config.model.model_copy(update={"remat": remat, "remat_tensors": towers})
        saved = estimate(config.model_copy(update={"model": model}), "all", ONE).saved
        return saved, step_flops(model, config.stages["all"], config.pack("all")).decoder.again

    kept, again = found()
    decoder, positions = config.model.decoder, config.stages["all"].batch_rows * config.pack("all").row_length
    heads = decoder.num_heads * decoder.head_dim
    width, size = heads + decoder.mlp_size, {"float32": 4, "bfloat16": 2}[config.model.compute_dtype]
    per_position = decoder.num_layers * width * positions
    rows_at_once = config.stages["all"].microbatches
    on_device, fewer = found(device=("q", "up"))
    assert on_device - kept == pytest.approx(per_position * size / rows_at_once)
    assert again - fewer == pytest.approx(2 * per_position * decoder.hidden_size)
    assert found(host=("q", "up")) == (kept, fewer)
    assert found("dots", device=())[1] < found(device=("q", "k", "v", "o", "gate"))[1]
