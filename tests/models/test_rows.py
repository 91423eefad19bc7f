"""Which rows of a batch a process holds: all of them where there is one process, on any mesh."""

import jax
import numpy as np
import pytest

from nlhf_jax.models import sharding


def test_without_a_mesh_all_rows_are_here():
  assert sharding.local_rows(6).all()


@pytest.mark.parametrize('count', [4, 6, 7])
def test_one_process_holds_all_rows_of_a_mesh(count):
  with jax.set_mesh(sharding.make_mesh(0, 1, 1)):
    np.testing.assert_array_equal(sharding.local_rows(count), np.ones(count, bool))
