"""A few inputs of each fuzzing target, the same every time; ``make fuzz`` goes on for as long as it is told."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz.targets import Targets

EXAMPLES = {"configurations": 60, "tokenizers": 40, "models": 25, "checkpoints": 15}


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return Targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize(
    "name", ["texts", "rows", "damaged_files", "chats", "tokenizers", "configurations", "models", "checkpoints"]
)
def test_any_input_is_used_or_refused(targets, name):
    @settings(max_examples=EXAMPLES.get(name, 20), derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def run(data):
        targets.all[name](data)

    run()
