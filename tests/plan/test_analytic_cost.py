"""The formula of collective bytes beside programs that were compiled for TPUs (docs/explanation/scaling.md)."""

from pathlib import Path

import pytest

from lclm_jax.config import load_config
from lclm_jax.plan.analytic_cost import analytic_cost
from lclm_jax.plan.topologies import parse_topology

FILE = Path(__file__).parents[2] / "configs" / "experiments" / "0.6b-4b-cs16-mean-w1024-causal-mlp-O0.yaml"
LONG_ROWS = ("data.pack.row_length=131072", "data.pack.encoder_rows=128", "mesh.context=8", "model.remat=full")


@pytest.mark.parametrize(
    ("rows", "changes", "axis", "compiled"),
    [
        (64, ("model.remat=full",), "fsdp", 37.77),
        (8, LONG_ROWS, "context", 51.72),
    ],
    ids=["weights", "keys and values of long rows"],
)
def test_collectives_receive_the_bytes_of_the_compiled_program(rows, changes, axis, compiled):
    config = load_config(FILE, (f"stages.stage2.batch_rows={rows}", "stages.stage2.microbatches=1", *changes))
    received = analytic_cost(config, "stage2", parse_topology("v5p:4x4x4")).collective_bytes
    assert received[axis] / 1e9 == pytest.approx(compiled, rel=0.05)
