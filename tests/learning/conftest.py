"""Double precision, and the problems that the tests of learning share."""

import jax
import pytest


@pytest.fixture
def float64():
  """Within the test alone: the switch is a context, so that other tests stay in float32."""
  with jax.enable_x64(True):
    yield
