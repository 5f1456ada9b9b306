import jax
import jax.numpy as jnp
import pytest

from lclm_jax.train.profiling import OutOfMemory, Profile, memory_advice, remedies


def test_a_trace_holds_the_steps_of_its_range(tmp_path):
    profile = Profile("2-3", tmp_path / "profile")
    for step in range(5):
        profile.begin(step)
        assert profile._running == (step in (2, 3))
        result = jnp.ones(4).sum()
        profile.end(step, result)
    assert list(tmp_path.rglob("*.xplane.pb")) and list(tmp_path.rglob("perfetto_trace.json.gz"))
    nothing = Profile(None, tmp_path / "none")
    nothing.begin(0)
    nothing.end(0, None)
    nothing.close()
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match='is not a range; write "FIRST-LAST"'):
        Profile("9-2", tmp_path)


def test_a_full_memory_names_the_three_cheapest_remedies(make_config):
    config = make_config(batch_rows=8)
    first = r"(?s)does not fit .*1. --set stages.only.microbatches=2: 4 rows at once"
    with pytest.raises(OutOfMemory, match=first), memory_advice(config, "only"):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory_advice(config, "only"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
    assert len(remedies(config, "only")) == 3
    alone = make_config(batch_rows=8, microbatches=8)
    assert remedies(alone, "only")[0].startswith("--set model.remat=full")
