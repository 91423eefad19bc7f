"""Every page: one template, one style sheet, no address, and nothing unescaped."""

import importlib
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import nlhf_jax
from docs import generate
from nlhf_jax import compare, compilation, configs
from nlhf_jax.reporting import comparison_page, glossary, layout, provenance, svg
from nlhf_jax.reporting.game_plots import COLOURS, CURVE
from tests.reporting.pages import NASTY, PAGES, POLICIES, write_run

VOID = {'meta', 'input', 'br', 'img', 'link', 'hr'}


class Nesting(HTMLParser):
  """Checks that elements are closed in order; collects ids and text of the elements."""

  def __init__(self):
    super().__init__()
    self.open, self.ids, self.tags = [], [], []

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.ids += [value for name, value in attributes if name == 'id']
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.handle_starttag(tag, attributes)
    if tag not in VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    if tag == 'p' and 'p' not in self.open:
      return
    assert self.open.pop() == tag


@pytest.mark.parametrize('name', PAGES)
def test_page_is_well_formed(pages, name):
  page = pages[name].read_text(encoding='utf-8')
  parser = Nesting()
  parser.feed(page)
  assert parser.open == []
  assert len(parser.ids) == len(set(parser.ids))
  assert parser.tags.count('style') == parser.tags.count('script') - page.count('id="data"') == 1
  assert 'How this was made' in page
  assert not re.search(r'https?:|<link|@import|url\((?!#)|fetch\(|innerHTML|<img|{%', page)
  assert '\n  --ground: #ffffff;' in page.replace('  color-scheme: light dark;\n', '')


@pytest.mark.parametrize('name', ['judges', 'tabular'])
def test_names_on_pages_are_escaped(pages, name):
  page = pages[name].read_text(encoding='utf-8')
  assert '&lt;script&gt;alert' in page
  assert '<script>alert' not in page
  assert '<b>x</b>' not in page


def test_templates_name_no_address():
  for part in resources.files('nlhf_jax.reporting').joinpath('templates').iterdir():
    text = part.read_text('utf-8')
    assert not re.search(r'https?:|src\s*=|<link|@import|url\(|fetch\(|innerHTML|\|\s*safe', text)


def test_matrix_is_sorted_by_lottery(pages):
  page = pages['tabular'].read_text(encoding='utf-8')
  text = re.search('data-matrix="([^"]*)"', page)[1].replace('&#34;', '"')
  data = json.loads(text)
  assert data['names'] == [NASTY, 'scissors', 'rock']
  assert data['shares'] == [0.5, 0.3, 0.2]
  assert np.array(data['win_rate'])[0, 1] == pytest.approx(0.3)


def test_every_curve_has_a_tooltip(pages):
  """Tests of runs compare their metrics with those that docs/descriptions.toml describes."""
  tables = generate.DESCRIPTIONS['metrics']
  described = {
    name for title, rows in tables.items() if title.startswith('Learning curves') for name in rows
  }
  curves = described - {'stage', 'step'}
  assert [name for name in curves if not glossary.explain(name)] == []
  assert glossary.explain('payoff_of_opponent') != glossary.explain('payoff_of_old')
  assert glossary.explain('no_such_metric_by_learned') is None
  page = pages['language'].read_text(encoding='utf-8')
  meaning = glossary.explain('win_rate_against_reference_by_learned')
  assert f'"win rate against reference by learned":"{meaning}"' in page.replace('": "', '":"')


def test_sort_by_share_breaks_ties_by_win_rate():
  data = layout.sort_by_share(
    'abc', [[0.5, 0.4, 0.4], [0.6, 0.5, 0.9], [0.6, 0.1, 0.5]], [0.0, 0.0, 1.0]
  )
  assert data['names'] == ['c', 'b', 'a']
  assert data['win_rate'] == [[0.5, 0.1, 0.6], [0.9, 0.5, 0.6], [0.4, 0.4, 0.5]]


def test_figures_follow_the_scheme_and_name_their_curves():
  figure = Figure(figsize=(8, 4), layout='constrained')
  axes = figure.add_subplot()
  axes.plot([1, 2], [1, 2], color=COLOURS[0], label='a $ <b>', gid=f'{CURVE}a <b>')
  axes.plot([1, 2], [2, 1], color=COLOURS[1], label='dashed', linestyle='--')
  figure.legend(loc='outside right center')
  drawn, keys = svg.render_narrow(figure, 'one')
  assert 'var(--line-0)' in drawn
  assert 'data-tip="a &lt;b&gt;"' in drawn
  assert 'id="one-' in drawn
  assert not re.search(r'#ffffff|<metadata|https?:|xmlns', drawn)
  assert keys == [
    svg.Key('a $ <b>', 'var(--line-0)', ''),
    svg.Key('dashed', 'var(--line-1)', '6 3'),
  ]
  assert len(figure.legends) == 1
  assert figure.get_size_inches().tolist() == [8, 4]
  assert svg.render_narrow(figure, 'one')[0] == drawn


def test_provenance_names_what_differs(tmp_path, monkeypatch):
  from nlhf_jax.configs import tabular

  config = tabular.get_config().to_dict() | {'only': 'newton'}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  monkeypatch.setattr('sys.argv', ['nlhf', 'run', '--config=tabular', '--config.only=new ton'])
  monkeypatch.setattr(compilation, 'count_programs', lambda: 1234)
  made = provenance.describe(tmp_path, {'newton': 1.5})
  assert made.defaults == 'tabular'
  assert made.settings == [('only', '""', '"newton"')]
  assert made.facts['Command'] == "nlhf run --config=tabular '--config.only=new ton'"
  assert made.facts['Programs compiled'] == '1,234'
  assert {'Version', 'Device'} <= made.facts.keys()
  monkeypatch.setattr('sys.argv', ['pytest'])
  assert 'Command' not in provenance.describe(tmp_path / 'none', {}).facts


@pytest.mark.parametrize('kind', configs.EXAMPLES)
def test_every_page_says_how_it_was_made(kind, tmp_path, monkeypatch):
  example = configs.EXAMPLES[kind]
  config = importlib.import_module(f'nlhf_jax.configs.{example}').get_config().to_dict()
  field = 'seed' if 'seed' in config else 'tau'  # nothing in `tabular` is random
  (tmp_path / 'config.json').write_text(json.dumps(config | {field: 70}))
  line = ['run', f'--config={example}', f'--config.{field}=70']
  monkeypatch.setattr('sys.argv', ['nlhf', *line])
  monkeypatch.setattr(compilation, 'count_programs', lambda: 42)
  PAGES[kind](tmp_path / 'report.html')
  page = (tmp_path / 'report.html').read_text()
  made = page[page.index('<footer id="made"') : page.index('</footer>')]
  facts = dict(re.findall('<dt>(.*?)</dt><dd>(?:<code>)?(.*?)(?:</code>)?</dd>', made))
  assert facts.pop('Command') == f'nlhf {" ".join(line)}'
  assert facts.pop('Version') == f'nlhf_jax {nlhf_jax.__version__}'
  (device,) = jax.devices()
  assert facts.pop('Device') == f'1 \u00d7 {device.device_kind} ({device.platform})'
  assert facts.pop('Software').endswith(f'JAX {jax.__version__}')
  assert field != 'seed' or facts.pop('Seed') == '70'
  assert facts.pop('Programs compiled') == '42'
  if (Path(__file__).parents[2] / '.git').exists():
    assert re.match(r'[0-9a-f]{12}(, with changes)?$', facts.pop('Commit'))
  assert facts == {}
  cells = re.findall('<tr><th scope="row"><code>(.*?)</code></th>(.*?)</tr>', made)
  changed = [(name, row) for name, row in cells if name.startswith('config.')]
  assert changed == [(f'config.{field}', f'<td>{config[field]}</td><td>70</td>')]
  seconds = [row for name, row in cells if not name.startswith('config.')]
  assert seconds
  assert all(re.fullmatch(r'<td class="number">\d+\.\d</td>', row) for row in seconds)


# --- Comparison of two runs


def test_comparison_shows_both_runs(pages):
  page = pages['comparison'].read_text(encoding='utf-8')
  assert page.count('class="plot"') == 2 + 4  # a judge each; stages and metrics
  assert 'nash_md responds to the same prompts' in page
  assert 'Both runs have the same settings.' in page
  assert 'Each run trains its own judge (learned)' in page


def test_words_that_differ_are_marked():
  marked = comparison_page.mark_words('a <b> c', 'a d c')
  assert marked == 'a <ins>&lt;b&gt;</ins> c'
  assert comparison_page.mark_words('', 'a') == ''
  assert comparison_page.mark_words('same', 'same') == 'same'


def test_numbers_of_results_have_names():
  found = comparison_page.flatten_numbers(
    {
      'kl': {'a': 1.5, 'b': None},
      'ranking': {'oracle': [{'policy': 'a', 'lottery': 1.0}]},
      'methods': {'x': {'gap': [0.5, 0.25], 'seconds': [1, 2]}},
      'benchmarks': [{'title': 'T', 'columns': ['s', 'n'], 'rows': [['a', 2, 'text']]}],
      'tables': {'win_rate': [[0.5]]},
      'unique': True,
      'bad': float('nan'),
    }
  )
  assert found == {
    'kl.a': 1.5,
    'ranking.oracle.a.lottery': 1.0,
    'methods.x.gap (last)': 0.25,
    'T.a.s': 2,
  }


@pytest.fixture
def runs(tmp_path):
  """Two folders with finished runs."""
  for name in ('one', 'two'):
    (tmp_path / name).mkdir()
    write_run(tmp_path / name, 'language', {'policies': [*POLICIES], 'comparisons': 2}, [])
  return tmp_path / 'one', tmp_path / 'two'


def refusal(capsys, *arguments):
  assert compare.main(['nlhf compare', *map(str, arguments)]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  return error


def test_compare_command_writes_the_page(runs, tmp_path, capsys):
  assert compare.main(['nlhf compare', *map(str, runs), f'--to={tmp_path}/page.html']) == 0
  assert (tmp_path / 'page.html').exists()
  assert 'Comparison: ' in capsys.readouterr().out
  assert compare.main(['nlhf compare', '--help']) == 0


@pytest.mark.parametrize(
  ('change', 'expected'),
  [
    (lambda run: (run / 'results.json').unlink(), 'finish the run first'),
    (lambda run: (run / 'results.json').write_text('{"a": '), 'is damaged'),
    (lambda run: (run / 'results.json').write_text('[]'), 'holds no results'),
    (lambda run: (run / 'config.json').unlink(), 'give the work directory of a run'),
    (lambda run: (run / 'config.json').write_text('{}'), 'not the config of a run'),
    (lambda run: (run / 'config.json').write_text('{"experiment": "tabular"}'), 'kind tabular'),
    (lambda run: (run / 'results.json').write_text('{"other": 1}'), 'no figure in common'),
    (lambda run: (run / 'samples.jsonl').write_text('\n{}\n'), 'line 2, is damaged'),
    (lambda run: (run / 'metrics.jsonl').write_bytes(b'\xff\n'), 'line 1, is damaged'),
  ],
)
def test_compare_refuses_in_one_sentence(runs, change, expected, capsys):
  change(runs[1])
  assert expected in refusal(capsys, *runs)


def test_compare_refuses_bad_arguments(runs, capsys):
  one, two = runs
  assert 'two runs, not 1' in refusal(capsys, one)
  assert 'the same run' in refusal(capsys, one, Path(f'{one}/../one'))
  assert "'--out=x' is not a flag" in refusal(capsys, one, two, '--out=x')
  assert 'is a folder' in refusal(capsys, one, two, f'--to={one}')
