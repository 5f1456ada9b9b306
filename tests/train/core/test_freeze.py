import jax
import pytest

from lclm_jax.config import StageConfig
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import abstract_params
from lclm_jax.train.core.freeze import FROZEN, groups_of, label_leaves, merge, path_name, split, stage_rules


def stage(**lr):
    return StageConfig(lr=lr, steps=4, mixture={"cpt": 1})


def labels_by_path(labels):
    leaves = jax.tree_util.tree_flatten_with_path(labels, is_leaf=lambda x: x is None)[0]
    return {path_name(path): group for path, group in leaves}


def test_stage_0_trains_the_adapter_and_the_memory_rows(model):
    labels = label_leaves(stage_rules(stage(adapter=1e-3), abstract_params(model)), abstract_params(model))
    by_path = labels_by_path(labels)
    assert by_path["decoder/memory_rows"] == "memory_rows"
    assert by_path["adapter/fc1/kernel"] == "adapter"
    assert by_path["decoder/embed/table"] is FROZEN
    assert by_path["encoder/layers/attn/q/kernel"] is FROZEN
    assert groups_of(labels) == ("adapter", "memory_rows")


def test_a_later_stage_trains_everything(model):
    labels = label_leaves(
        stage_rules(stage(adapter=1e-3, encoder=1e-4, decoder=1e-5), abstract_params(model)), abstract_params(model)
    )
    assert FROZEN not in labels_by_path(labels).values()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("adapter/.*", "adapter"),), "matches no rule"),
        ((("adpter/.*", "adapter"), (".*", FROZEN)), "'adpter/.*' takes no parameter"),
        (((".*", FROZEN),), "trains nothing"),
    ],
)
def test_a_wrong_table_is_an_error(model, rules, message):
    with pytest.raises(LclmError, match=message):
        label_leaves(rules, abstract_params(model))


def test_split_and_merge_are_inverse(model):
    params = abstract_params(model)
    trainable, frozen = split(params, label_leaves(stage_rules(stage(adapter=1e-3), params), params))
    assert set(trainable) == {"adapter", "decoder"}
    assert set(trainable["decoder"]) == {"memory_rows"}
    assert merge(trainable, frozen) == params
    with pytest.raises(LclmError, match="more than one branch"):
        merge(trainable, params)
