"""All file formats of preferences, and the errors for malformed files."""

import json

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.games import files, tables

NAMES = ('rock', 'paper', 'scissors')
P = np.array([[0.5, 0.25, 0.75], [0.75, 0.5, 0.125], [0.25, 0.875, 0.5]])
WINS = np.array([[0.0, 1, 6], [3, 0, 1], [2, 7, 0]])  # P = WINS / (WINS + WINS^T)
MATRIX = '0.5,0.25,0.75\n0.75,0.5,0.125\n0.25,0.875,0.5\n'
NAMED = ',rock,paper,scissors\nrock,,0.25,0.75\npaper,0.75,,0.125\nscissors,0.25,0.875,\n'
PAIRS = 'left,right,left_wins,right_wins\nrock,paper,1,3\npaper,scissors,1,7\nscissors,rock,2,6\n'


@pytest.fixture
def write(tmp_path):
  """A function that writes a file and returns its path."""

  def write(content, name='mine.csv'):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)

  return write


@pytest.fixture
def write_json(write):
  return lambda value: write(json.dumps(value), 'mine.json')


def labelled(rows, names=NAMES):
  """A matrix of text with names in its first row and column."""
  return '\n'.join(
    [','.join(('', *names)), *(f'{n},{r}' for n, r in zip(names, rows, strict=True))]
  )


GOOD_FILES = {
  'plain': (MATRIX, ('1', '2', '3')),
  'named': (NAMED, NAMES),
  'names above': ('rock,paper,scissors\n' + MATRIX, NAMES),
  'names beside': ('rock,0.5,0.25,0.75\npaper,0.75,0.5,0.125\nscissors,0.25,0.875,0.5\n', NAMES),
  'a word in the corner': ('model' + NAMED, NAMES),
  'numbers as names': (
    NAMED.replace('rock', '0').replace('paper', '1').replace('scissors', '2'),
    ('0', '1', '2'),
  ),
  'some numbers as names': (
    NAMED.replace('rock', '7').replace('paper', '3.5'),
    ('7', '3.5', 'scissors'),
  ),
  'a comma in a name': (NAMED.replace('rock', '"rock, the"'), ('rock, the', *NAMES[1:])),
  'spaces': (NAMED.replace(',', ' , '), NAMES),
  'empty lines': (NAMED.replace('\n', '\n\n') + '  \n', NAMES),
  'Windows': ('\ufeff' + NAMED.replace('\n', '\r\n'), NAMES),
  'no end of the last line': (NAMED.strip(), NAMES),
  'words for missing': (
    NAMED.replace('rock,,', 'rock,NA,').replace('paper,0.75', 'paper,nan'),
    NAMES,
  ),
  'one entry of each pair': (
    ',rock,paper,scissors\nrock,,0.25,0.75\npaper,,,0.125\nscissors,,,\n',
    NAMES,
  ),
}


@pytest.mark.parametrize('name', GOOD_FILES)
def test_csv_matrices_are_read(write, name):
  text, names = GOOD_FILES[name]
  table = files.read(write(text))
  assert table.names == names
  np.testing.assert_allclose(table.payoff, P - 0.5, atol=1e-15)


def test_two_actions_are_read(write):
  for text in (',0.25\n0.75,\n', 'a,b\n,0.25\n0.75,\n', 'a,,0.25\nb,0.75,\n'):
    np.testing.assert_array_equal(files.read(write(text)).payoff, [[0, -0.25], [0.25, 0]])


def test_entries_setting_decides_the_kind(write):
  rows = [','.join(map(str, row)) for row in WINS]
  assert files.read(write(labelled(rows)), 'counts').notes == tables.from_counts(WINS).notes
  rows = [','.join(map(str, row)) for row in 4 * P - 2]
  table = files.read(write(labelled(rows)), 'payoffs', scale=4.0)
  np.testing.assert_allclose(table.payoff, P - 0.5)
  with pytest.raises(UserError, match=r'0\.5 is a count of wins of an action against itself'):
    files.read(write(MATRIX), 'counts')


def test_matrix_with_left_and_right_actions(write):
  table = files.read(write(labelled([',0.25', '0.75,'], ('left', 'right'))))
  assert table.names == ('left', 'right')


def test_lists_of_pairs_are_read(write):
  table = files.read(write(PAIRS))
  assert table.names == NAMES
  np.testing.assert_allclose(table.payoff, P - 0.5)
  pulled = files.read(write(PAIRS), prior=1.0)
  np.testing.assert_allclose(pulled.payoff, tables.from_counts(WINS, prior=1.0).payoff)


def test_pairs_sum_both_orders_and_ties(write):
  text = 'judge,Right,Left,ties,left_wins,right_wins\nme,b,a,2,3,1\nyou,a,b,0,1,4\nyou,b,c,0,0,0\n'
  table = files.read(write(text))
  assert table.names == ('a', 'b', 'c')
  # a won 3 + 4 and tied 2 of 11.
  np.testing.assert_allclose(table.payoff[0], [0, 8 / 11 - 0.5, 0])
  assert table.notes[0] == 'Columns not used: judge.'
  assert '2 of the comparisons are ties, half a win for both.' in table.notes


def test_lists_of_votes_are_read(write):
  """The winner by name or by side; a tie is half a vote."""
  votes = 'rock,paper,right\npaper,rock,paper\nrock,paper,tie\nscissors,paper,left\n'
  table = files.read(write('left,right,winner\n' + votes))
  assert table.names == NAMES
  np.testing.assert_allclose(
    table.payoff, [[0, -1 / 3, 0], [1 / 3, 0, -0.5], [0, 0.5, 0]], atol=1e-15
  )
  assert table.notes[0] == '4 comparisons, 1 to 3 of a pair that met.'


@pytest.mark.parametrize('names', [(), NAMES])
@pytest.mark.parametrize(
  ('key', 'entries', 'value'),
  [
    ('probabilities', 'probabilities', P),
    ('payoffs', 'payoffs', P - 0.5),
    ('wins', 'counts', WINS),
  ],
)
def test_json_matrices_are_read(write_json, key, entries, value, names):
  """Objects declare the kind of their numbers; for lists the setting decides."""
  named = {'names': list(names)} if names else {}
  for batch in (value, np.stack([value, value.T])):
    table = files.read(write_json({key: batch.tolist(), **named}))
    assert table.names == (names or ('1', '2', '3'))
    same = files.read(write_json(batch.tolist()), entries)
    np.testing.assert_array_equal(table.payoff, same.payoff)
    expected = np.stack([P, P.T]) if batch.ndim == 3 else P
    np.testing.assert_allclose(table.payoff, expected - 0.5)


def test_json_may_have_ties_and_missing_entries(write_json):
  wins, ties = [[0, 3], [1, 0]], [[0, 2], [2, 0]]
  table = files.read(write_json({'wins': wins, 'ties': ties}), prior=0.5)
  assert table.payoff[0, 1] == pytest.approx(4.5 / 7 - 0.5)
  table = files.read(write_json([[None, 0.25], [None, None]]))
  np.testing.assert_array_equal(table.payoff, [[0, -0.25], [0.25, 0]])


@pytest.mark.parametrize('dtype', [np.float64, np.float32, np.int64])
def test_npy_matrices_are_read(tmp_path, dtype):
  for wins in (WINS, np.stack([WINS, WINS.T])):
    np.save(tmp_path / 'mine.npy', wins.astype(dtype))
    table = files.read(tmp_path / 'mine.npy', 'counts')
    np.testing.assert_array_equal(table.payoff, tables.from_counts(wins).payoff)
    assert table.payoff.dtype == np.float64


BAD_CSV = {
  'the file is empty': '\ufeff \n\n',
  'line 1 is one cell; separate cells by commas': '0.5;0.5\n0.5;0.5\n',
  'line 3 has length 2, but line 1 has 3': '0.5,0.5,0.5\n\n0.5,0.5\n',
  'line 2, cell 3: "62%" is not a number': NAMED.replace('0.25,0.75', '62%,38%'),
  "row 2 is 'paper', but column 2 is 'stone'": NAMED.replace('rock,paper,', 'rock,stone,', 1),
  "actions 1 and 2 are both named 'rock'": NAMED.replace('paper', 'rock'),
  'action 2 has an empty name': NAMED.replace('paper', ''),
  '2 rows of 3 numbers are not square; give a row and a column to each action, or a list': (
    NAMED[: NAMED.index('scissors,0')]
  ),
  '0 rows of 3 numbers are not square': ',a,b,c\n',
  '2 rows of 3 numbers are not square; give': '0.5,0.5,0.5\n0.5,0.5,0.5\n',
  'there is one action': ',a\na,0.5\n',
  'not UTF-8 (byte 2)': NAMED.encode().replace(b'rock', b'\xe9ock'),
  'line 2: not valid CSV': 'a,b\n"0.5,0.5\n',
  'is no probability in [0, 1]; correct it, or call the numbers counts': '0,3\n1,0\n',
  'it has left,right': 'left,right\na,b\n',
  'it has left,right,left_wins': 'left,right,left_wins\na,b,1\n',
  'it has left,right,winner,left_wins,right_wins': 'left,right,winner,left_wins,right_wins\n',
  'it has left,right,winner,winner': 'left,right,winner,winner\na,b,a,b\n',
  'the list has no line below its header': 'left,right,winner\n',
  "line 2: 'a' against 'a' must be two names": 'left,right,winner\na,a,a\n',
  "line 2: '' against 'a' must be two names": 'left,right,winner\n,a,a\n',
  "line 3: the winner 'c' must be left, right, tie, 'a' or 'b'": (
    'left,right,winner\na,b,tie\na,b,c\n'
  ),
  "line 2: the winner '' must be": 'left,right,winner\na,b,\n',
  "line 2: the name 'left' is also a keyword": 'left,right,winner\nb,left,left\n',
  "line 2, right_wins: '-1' is no count": 'left,right,left_wins,right_wins\na,b,1,-1\n',
  "line 2, left_wins: '' is no count": 'left,right,left_wins,right_wins\na,b,,1\n',
  "line 2, ties: 'inf' is no count": 'left,right,left_wins,right_wins,ties\na,b,1,1,inf\n',
  'line 2, left_wins: "one" is not a number': 'left,right,left_wins,right_wins\na,b,one,1\n',
  'there are no comparisons': 'left,right,left_wins,right_wins\na,b,0,0\n',
}


@pytest.mark.parametrize('words', BAD_CSV)
def test_bad_csv_is_refused(write, words):
  path = write(BAD_CSV[words])
  with pytest.raises(UserError) as error:
    files.read(path)
  assert words in str(error.value)
  assert str(error.value).startswith(f'{path}: ')
  assert str(error.value).endswith('.')


def test_bad_cell_without_names_is_found(write):
  with pytest.raises(UserError, match='line 1, cell 2: "0,5" is not a number; correct it'):
    files.read(write(MATRIX.replace('0.25', '"0,5"', 1)))


BAD_JSON = {
  'not valid JSON (Expecting value: line 1 column 2': '[oops]',
  'not valid JSON (maximum recursion depth': '[' * 100_000,
  'not UTF-8': b'["\xe9"]',
  'it has []': '3',
  "it has ['names']": '{"names": ["a"]}',
  "it has ['payoffs', 'wins']": '{"payoffs": [], "wins": []}',
  "it has ['payoffs', 'ties']": '{"payoffs": [], "ties": []}',
  "it has ['name', 'wins']": '{"wins": [], "name": []}',
  'names must be a list of strings': '{"wins": [[0, 1], [1, 0]], "names": [1, 2]}',
  'there are 1 names for 2 actions': '{"wins": [[0, 1], [1, 0]], "names": ["a"]}',
  'row 2 has length 1; it must be a list as long as there are rows, 2': '[[0.5, 0.5], [0.5]]',
  'row 2 is 0.5; it must be a list': '[[0.5, 0.5], 0.5]',
  '[] must be a list of rows': '[]',
  '"abc" must be a list of rows': '{"payoffs": "abc"}',
  'row 1, column 2: "x" is not a number': '[[0.5, "x"], [0.5, 0.5]]',
  'row 1, column 2: true is not a number': '[[0.5, true], [0.5, 0.5]]',
  'row 1, column 2: [1] is not a number': '[[0.5, [1]], [0.5, 0.5]]',
  'row 1, column 2: inf is no probability': '[[0.5, Infinity], [0.5, 0.5]]',
  'row 1, column 2: 1000': f'[[0.5, 1{"0" * 400}], [0.5, 0.5]]',
  'prompt 2 has 3 actions, but prompt 1 has 2': json.dumps(
    [np.eye(2).tolist(), np.eye(3).tolist()]
  ),
  'prompt 2, row 1 has length 1': '[[[0.5, 0.5], [0.5, 0.5]], [[0.5], [0.5, 0.5]]]',
  'ties of shape (2, 2) must be': json.dumps({'wins': WINS.tolist(), 'ties': [[0, 0], [0, 0]]}),
}


@pytest.mark.parametrize('words', BAD_JSON)
def test_bad_json_is_refused(write, words):
  path = write(BAD_JSON[words], 'mine.json')
  with pytest.raises(UserError) as error:
    files.read(path)
  assert words in str(error.value)
  assert str(error.value).startswith(f'{path}: ')


def test_bad_npy_is_refused(tmp_path):
  path = tmp_path / 'mine.npy'
  for array, words in (
    (np.array([[None, 'a']], object), 'no array of numbers'),
    (np.array([['a', 'b']]), 'the array is of dtype <U1; save real numbers'),
    (np.eye(2) * 1j, 'the array is of dtype complex128'),
    (np.zeros((2, 3)), r'these are of the shape \[2, 3\]'),
    (np.zeros((1, 1, 2, 2)), r'these are of the shape \[1, 1, 2, 2\]'),
  ):
    np.save(path, array, allow_pickle=True)
    with pytest.raises(UserError, match=words):
      files.read(path)
  np.save(path, P)
  whole = path.read_bytes()
  broken = whole.replace(b'(3, 3)', b'(3, 3 ')
  for content in (whole[:-8], whole[:20], broken, b'PK\x03\x04', b'no array'):
    path.write_bytes(content)
    with pytest.raises(UserError, match='no array of numbers'):
      files.read(path)


def test_unreadable_files_are_refused(tmp_path, write):
  with pytest.raises(UserError, match=r'cannot read .*none\.csv.: No such file or directory; give'):
    files.read(tmp_path / 'none.csv')
  (tmp_path / 'folder.csv').mkdir()
  with pytest.raises(UserError, match='Is a directory'):
    files.read(tmp_path / 'folder.csv')
  for name in ('mine.txt', 'mine', 'mine.npz'):
    with pytest.raises(
      UserError, match=r'unknown kind; give a \.csv, \.json, \.jsonl or \.npy file'
    ):
      files.read(write(MATRIX, name))
  assert files.read(write(MATRIX, 'MINE.CSV')).payoff.shape == (3, 3)


def test_settings_of_other_entries_are_refused(write):
  with pytest.raises(UserError, match=r'entries=.wins. must be one of probabilities, payoffs, cou'):
    files.read(write(MATRIX), 'wins')
  for settings, words in (
    (dict(scale=2.0), 'scale=2 is for payoffs, and these are probabilities; leave it at 1, or'),
    (dict(prior=1.0), r'prior=1 is for counts, .* they are that \(entries=counts\)'),
  ):
    with pytest.raises(UserError, match=words):
      files.read(write(MATRIX), **settings)
