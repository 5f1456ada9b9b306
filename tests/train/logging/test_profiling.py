import jax
import jax.numpy as jnp
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.errors import LclmError
from lclm_jax.parallel import make_mesh
from lclm_jax.train.logging.profiling import StepProfiler
from lclm_jax.train.supervise.out_of_memory import OutOfMemory, memory_advice, remedies


def test_a_trace_holds_the_steps_of_its_range(make_config, tmp_path):
    profile = StepProfiler("2-3", tmp_path / "profile")
    for step in range(5):
        profile.begin(step)
        assert profile._running == (step in (2, 3))
        result = jnp.ones(4).sum()
        profile.end(step, result)
    assert list(tmp_path.rglob("*.xplane.pb")) and list(tmp_path.rglob("perfetto_trace.json.gz"))
    nothing = StepProfiler(None, tmp_path / "none")
    nothing.begin(0)
    nothing.end(0, None)
    nothing.close()
    assert not (tmp_path / "none").exists()
    with pytest.raises(LclmError, match='is not a range; write "FIRST-LAST"'):
        make_config(train={"profile_steps": "9-2"})


def test_a_full_memory_names_the_three_cheapest_remedies(make_config):
    config, mesh = make_config(batch_rows=8), make_mesh(MeshConfig(fsdp=4), jax.devices()[:4])
    first = r"(?s)does not fit .*1. --set stages.only.microbatches=2: 4 rows at once"
    with pytest.raises(OutOfMemory, match=first), memory_advice(config, "only", mesh):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory_advice(config, "only", mesh):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
    assert len(remedies(config, "only", dict(mesh.shape))) == 3


def test_remedies_are_such_as_the_mesh_allows(make_config):
    def first(rows, **sizes):
        config = make_config(batch_rows=8, microbatches=8 // rows)
        config = config.model_copy(update={"model": config.model.model_copy(update={"remat": "full"})})
        return remedies(config, "only", {"replica": 1, "fsdp": 1, "context": 1, "tensor": 1} | sizes)[0]

    assert first(8, fsdp=4).startswith("--set stages.only.microbatches=2: 4 rows at once")
    assert first(4, fsdp=4).startswith("--set mesh.context=2 --set mesh.fsdp=2: 2 devices share a row")
    assert first(4, fsdp=2, replica=2).startswith("--set mesh.replica=1 --set mesh.fsdp=-1")
    assert first(1).startswith("--set train.optimizer.moment_dtype=bfloat16")
