"""Reports are made of runs and plans that the tests of these packages write by hand."""

from tests.ops.conftest import run, step_fixture
from tests.plan.conftest import plan_of

__all__ = ["plan_of", "run", "step_fixture"]
