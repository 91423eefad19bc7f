"""Malformed matrices and lists of votes are refused in one sentence."""

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.games import files
from tests.games.malformed_games import GOOD, NAMES, inputs

INPUTS = list(inputs())


def write(folder, ending, content):
  path = folder / f'file.{ending}'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def test_there_are_more_than_hundred_different_files():
  assert len({name for name, *_ in INPUTS}) == len(INPUTS) > 100


@pytest.mark.parametrize(('ending', 'content'), GOOD.values(), ids=GOOD)
def test_every_form_of_votes_is_read(ending, content, tmp_path):
  table = files.read(write(tmp_path, ending, content))
  assert table.names == NAMES
  np.testing.assert_array_equal(table.payoff, [[0, -0.5, 0.5], [0.5, 0, 0], [-0.5, 0, 0]])


@pytest.mark.parametrize(
  ('ending', 'content'), [it[1:] for it in INPUTS], ids=[it[0] for it in INPUTS]
)
def test_malformed_file_is_refused(ending, content, tmp_path):
  path = write(tmp_path, ending, content)
  with pytest.raises(UserError) as error:
    files.read(path)
  assert str(path) in str(error.value)
  assert len(str(error.value).split('\n')) == 1
  assert len(str(error.value)) < 1000
