"""Tables on the terminal, none of whose lines is broken."""

import pytest

from nlhf_jax.experiments.language import tournament_stage
from nlhf_jax.reporting import formatting
from nlhf_jax.storage import json_lines


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')


def test_columns_that_do_not_fit_stand_below_with_the_names_of_the_rows():
  columns = [f'column {number}' for number in range(12)]
  cells = [[f'{row}.{number}' for number in range(12)] for row in range(2)]
  lines = formatting.format_text('A title', ['first', 'second'], columns, cells).splitlines()
  title, *table = lines
  assert title == 'A title'
  assert max(map(len, lines)) <= 80
  blocks = [table[start : start + 3] for start in range(0, len(table), 3)]
  assert ''.join(block[0] for block in blocks).split() == ' '.join(columns).split()
  for row, name in enumerate(['first', 'second'], 1):
    assert {block[row].split()[0] for block in blocks} == {name}
    assert [cell for block in blocks for cell in block[row].split()[1:]] == cells[row - 1]


def test_a_table_that_fits_is_one_block_and_a_long_title_is_broken_between_words():
  text = formatting.format_text(' '.join(['word'] * 20), ['row'], ['head'], [['cell']])
  title, table = [' '.join(['word'] * 16), 'word word word word'], ['       head', '  row  cell']
  assert text.splitlines() == title + table


def test_a_column_wider_than_the_terminal_stands_alone():
  text = formatting.format_text('A title', ['row'], ['a', 'x' * 90, 'b'], [['1', '2', '3']])
  assert [line.split()[-1] for line in text.splitlines()[1:]] == ['a', '1', 'x' * 90, '2', 'b', '3']


def test_tables_of_a_run_fit_into_80_columns(toy_run, capsys):
  results = json_lines.read_json(toy_run.folder / 'run' / 'results.json')
  tournament_stage.print_tables(results)
  tournament_stage.print_policies(results)
  printed = capsys.readouterr().out.splitlines()
  assert [line for line in printed if len(line) > 80] == []
  assert any(
    line.split() == ['report', 'list', 'question', 'none', 'best', 'counter', 'wins']
    for line in printed
  )
