"""Double precision, for games whose equilibria are known to many digits."""

import jax
import pytest


@pytest.fixture
def float64():
  """Within the test alone: the switch is a context, so that other tests stay in float32."""
  with jax.enable_x64(True):
    yield
