"""The public Python API: lazy, complete, documented."""

import inspect
import subprocess
import sys

import pytest

import lclm_jax
from lclm_jax.config.registry.adapters import ADAPTERS
from lclm_jax.config.registry.poolings import POOLINGS


def test_importing_starts_nothing():
    code = "import sys, lclm_jax; lclm_jax.load_config; assert not {'jax', 'flax', 'grain', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [name for name in lclm_jax.__all__ if name != "__version__"])
def test_every_public_name_is_documented_and_typed(name):
    value = getattr(lclm_jax, name)
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, parameter
            assert parameter.kind is not inspect.Parameter.VAR_KEYWORD


def test_other_names_are_refused_with_the_list_of_names():
    with pytest.raises(AttributeError, match="load_model"):
        _ = lclm_jax.load_everything
    assert dir(lclm_jax) == lclm_jax.__all__


def test_no_public_name_is_that_of_a_subpackage():
    """A submodule that is imported would take the name's place."""
    code = (
        "import pathlib, lclm_jax\n"
        "modules = {path.stem for path in pathlib.Path(lclm_jax.__file__).parent.iterdir()}\n"
        "assert not modules & set(lclm_jax.__all__), modules & set(lclm_jax.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_registered_name_is_a_value_of_the_configuration(make_model):
    class Own:
        """Stands for a module."""

    try:
        lclm_jax.register_pooling("own", Own, any_ratio=True)
        lclm_jax.register_adapter("own", Own)
        model = make_model(pooling="own", adapter={"type": "own"})
        assert model.pooling_row.any_ratio
        with pytest.raises(lclm_jax.LclmError, match=r"'own' is taken"):
            lclm_jax.register_pooling("own", Own)
        with pytest.raises(lclm_jax.LclmError, match=r"'mlp' is taken"):
            lclm_jax.register_adapter("mlp", Own)
    finally:
        POOLINGS.pop("own", None)
        ADAPTERS.pop("own", None)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(lclm_jax.LclmError, match=r"lacks config.yaml.*lacks model_config.json"):
        lclm_jax.load_model(tmp_path)
