"""A single process holds all rows of a batch, on any mesh."""

import jax
import numpy as np
import pytest

from nlhf_jax.models import sharding


def test_all_rows_are_local_without_a_mesh():
  assert sharding.local_rows(6).all()


@pytest.mark.parametrize('count', [4, 6, 7])
def test_all_rows_are_local_to_one_process(count):
  with jax.set_mesh(sharding.make_mesh(0, 1, 1)):
    np.testing.assert_array_equal(sharding.local_rows(count), np.ones(count, bool))
