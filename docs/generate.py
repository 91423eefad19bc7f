"""Pages of the documentation that are made from the code while the site is built.

mkdocs calls `on_files`. All other functions return a page as Markdown, and need no mkdocs.
"""

import inspect
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from nlhf_jax import configs, ranges
from nlhf_jax.algorithms.__main__ import blocks
from nlhf_jax.algorithms.catalogue import ALGORITHMS
from nlhf_jax.command import load_config
from nlhf_jax.experiments import sections

ROOT = Path(__file__).parents[1]
DESCRIPTIONS = tomllib.loads((Path(__file__).parent / 'descriptions.toml').read_text())
POLICY = 'config.policies.NAME'
TRAININGS = ('sft', 'preference_model', 'reward_model', 'general_preference_model', 'exploiter')
# Configs of experiments with settings of their own, shown as they are.
OTHERS = (
  'evaluate',
  'preferences',
  'tabular',
  'token_game',
  'iterated',
  'commit_and_answer',
  'chosen_prompts',
  'sample_complexity',
)
# The modules that users import, page by page; the pages of `ROOMS` have every module of a folder.
LIBRARY = ('language_model', 'train_step', 'judges.function', 'games', 'structs', 'errors')
# Weights in the search: a setting comes before guides that name it, and the API last.
SETTINGS, LAST = (f'---\nsearch:\n  boost: {weight}\n---\n\n' for weight in (2.5, 0.005))
ROOMS = ('algorithms', 'games', 'judges', 'sampling', 'data', 'models', 'training', 'evaluation')


def on_files(files, config):
  """Adds the generated pages to the files of the site."""
  from mkdocs.structure.files import File

  for path, content in pages().items():
    files.append(File.generated(config, path, content=content))
  for path, source in pictures().items():
    files.append(File.generated(config, path, abs_src_path=str(source)))
  return files


def pictures() -> dict[str, Path]:
  """Path in the site -> file, of the figures of the benchmarks."""
  return {f'images/{path.name}': path for path in ROOT.glob('benchmarks/results/*.png')}


def pages() -> dict[str, str]:
  """Path in the site -> Markdown, of every generated page."""
  made = {
    'algorithms.md': algorithms_page(),
    'settings.md': settings_page(),
    'metrics.md': metrics_page(),
    'api/library.md': library_page(),
  }
  return made | {f'api/{room}.md': room_page(room) for room in ROOMS}


# --- Settings ---


def example_config(source: str) -> ConfigDict:
  """The settings of configs/base.py for a source of data, with an exploiter, and a policy NAME.

  The policy has all sections that only some policies have.
  """
  base = load_config(str(configs.FOLDER / 'base.py') + f':{source}')
  base.policies.NAME = load_config('nash_md').policies.nash_md
  prompted = load_config('chosen_prompts').policies.prompted
  base.policies.NAME.update(opponent=prompted.opponent, prompter=prompted.prompter)
  base.policies.NAME.votes = load_config('iterated').policies.iterated_best_of_n.votes
  base.exploiter = load_config('comparison').exploiter
  return base


def base_fields() -> dict[str, object]:
  """Every field of configs/base.py -> its default; data of both sources."""
  fields = {}
  for source in ('file', 'synthetic'):
    fields |= {f'config.{name}': value for name, value in flatten(example_config(source))}
  return fields


def flatten(section: ConfigDict, prefix: str = '') -> Iterator[tuple[str, object]]:
  """The fields of a section and of those in it, by their names with dots."""
  for name, value in section.items():
    if not isinstance(value, ConfigDict):
      yield prefix + name, value
    # Arguments of an algorithm are on its own page; votes train judges, as all trainings do.
    elif name not in ('arguments', 'training'):
      yield from flatten(value, f'{prefix}{name}.')


def declared_ranges() -> dict[str, str]:
  """Field -> the values that it may take, where the code declares them."""
  found = {}
  for source in ('file', 'synthetic'):
    for section in sections.language_sections(example_config(source)):
      for name, allowed in ranges.declared(section.declaration).items():
        found[f'{section.field}.{name}'] = allowed.text
  return found


def training_field(field: str) -> str | None:
  """The part of a field's name after that of a training, such as `optimizer.clip`."""
  match = re.fullmatch(rf'config\.(?:{"|".join(TRAININGS)}|policies\.NAME)\.(.+)', field)
  return match and match[1]


def described(field: str) -> str:
  """The name by which `descriptions.toml` has a field: trainings share their descriptions."""
  own, shared = DESCRIPTIONS['settings'], training_field(field)
  return field if field in own or shared is None else f'TRAINING.{shared}'


def settings_page() -> str:
  """Every field of configs/base.py: type, default, range and meaning."""
  fields, allowed, texts = base_fields(), declared_ranges(), DESCRIPTIONS['settings']
  groups: dict[str, list[str]] = {}
  for field, value in fields.items():
    name = described(field)
    if name.startswith('TRAINING'):
      continue
    row = [entry(field, meaning(value, allowed.get(field), texts[name])), shown(value)]
    group = field.split('.')[1] if field.count('.') > 1 else 'general'
    groups.setdefault(group, []).append(line(row))
  parts = [SETTINGS + DESCRIPTIONS['intro']['settings'].lstrip()]
  for group, rows in groups.items():
    parts.append(f'## {group}\n')
    parts.append('\n'.join([line(['field', 'default']), '|---|---|', *rows]))
    parts.append('')
  return '\n'.join([*parts, trainings_part(fields, allowed), other_configs()])


def trainings_part(fields: Mapping[str, object], allowed: Mapping[str, str]) -> str:
  """The settings that every training has, with the values of each kind."""
  names = [field.removeprefix('config.sft.') for field in fields if field.startswith('config.sft.')]
  rows = []
  for name in names:
    defaults = [
      shown(fields[f'config.{part}.{name}'])
      for part in ('sft', 'preference_model', 'policies.NAME', 'exploiter')
    ]
    text = DESCRIPTIONS['settings'][f'TRAINING.{name}']
    about = meaning(fields[f'config.sft.{name}'], allowed.get(f'config.sft.{name}'), text)
    rows.append(line([entry(name, about), *defaults]))
  head = ['field', 'sft', 'judges', 'policies', 'exploiter']
  table = [line(head), line(['---'] * len(head)), *rows]
  return '\n'.join([DESCRIPTIONS['intro']['trainings'], *table, ''])


def other_configs() -> str:
  """The configs with settings of their own, as they are."""
  parts = [DESCRIPTIONS['intro']['other_configs']]
  for name in OTHERS:
    text = (configs.FOLDER / f'{name}.py').read_text()
    parts.append(f'### {name}\n\n```python title="configs/{name}.py"\n{text}```\n')
  return '\n'.join(parts)


def line(cells: list[str]) -> str:
  """A row of a table."""
  return f'| {" | ".join(str(cell).replace("|", chr(92) + "|") for cell in cells)} |'


def entry(name: str, text: str, number: int = 0) -> str:
  """A name and its meaning in a cell; the name is a heading, so that the search finds the cell.

  `number` tells entries of one name apart.
  """
  anchor = re.sub(r'[^\w.]+', '-', name) + (f'_{number}' if number else '')
  return f'<h4 id="{anchor}">`{name}`</h4> {text}'


def meaning(value: object, allowed: str | None, text: str) -> str:
  """What a setting means, with its type and its range."""
  kind = {bool: 'True or False', int: 'integer', float: 'number', str: 'text'}[type(value)]
  return f'{text}. *{kind}{f", {allowed}" if allowed else ""}*'


def shown(value: object) -> str:
  """A default, as a flag would set it."""
  return f'`{value}`' if value != '' else 'empty'


# --- Algorithms ---


def algorithms_page() -> str:
  """The catalogue: what each algorithm does and when to use it; citation, record, config, tests."""
  printed = {block.split('(')[0]: block for block in blocks()}
  trained, tested = configs_by_algorithm(), tests_by_algorithm()
  parts, group = [DESCRIPTIONS['intro']['algorithms']], None
  for name, make in ALGORITHMS.items():
    if make.__module__ != group:
      group = make.__module__
      parts.append(DESCRIPTIONS['algorithm_groups'][group.rpartition('.')[2]])
    parts.append(f'### {name}\n\n{prose(inspect.getdoc(make))}\n')
    # Not in the search: 58 such lines would come before the answers to newcomers' questions.
    use = DESCRIPTIONS['use_when'][name]
    parts.append(f'**Use when** {use}.\n{{ data-search-exclude }}\n')
    allowed = ranges.declared(make)
    arguments = [
      f'`{argument}` {allowed[argument].text}' if argument in allowed else f'`{argument}`'
      for argument in inspect.signature(make).parameters
    ]
    parts.append(f'Arguments: {"; ".join(arguments)}.\n' if arguments else 'No arguments.\n')
    facts = printed[name].partition('\n')[2]
    parts.append(f'```text\n{inspect.cleandoc(facts)}\n```\n')
    parts.append(
      f'Configs: {listed(trained[name])}. Laws: {listed(tested[name])}.\n'
      if name in trained
      else f'A stage of every run. Laws: {listed(tested[name])}.\n'
    )
  return '\n'.join(parts)


def prose(text: str) -> str:
  """A docstring as Markdown: equations stay as they are, and papers become links."""
  parts = re.split(r'(`[^`]*`)', text)
  parts[::2] = [re.sub(r'([*_<\[\]])', r'\\\1', part) for part in parts[::2]]
  link = r'[arXiv \1](https://arxiv.org/abs/\1)'
  return re.sub(r'(?:\barXiv\s)?\b(\d{4}\.\d{5})\b', link, ''.join(parts))


def listed(names: list[str]) -> str:
  """Names as code, separated by commas."""
  return ', '.join(f'`{name}`' for name in names) or 'none'


def configs_by_algorithm() -> dict[str, list[str]]:
  """Algorithm -> the shipped configs with a policy that it trains, that of its name first."""
  found: dict[str, list[str]] = {}
  for name in configs.names():
    policies = load_config(name).get('policies', {}).values()
    for algorithm in dict.fromkeys(row.algorithm for row in policies):
      found.setdefault(algorithm, []).append(name)
  return {
    algorithm: sorted(names, key=lambda name: (name not in algorithm, name))
    for algorithm, names in found.items()
  }


def tests_by_algorithm() -> dict[str, list[str]]:
  """Algorithm -> the files of tests/laws that name it."""
  texts = {path.name: path.read_text() for path in sorted(ROOT.glob('tests/laws/test_*.py'))}
  return {
    name: [file for file, text in texts.items() if re.search(rf'\b{name}\b', text)]
    for name in ALGORITHMS
  }


# --- Metrics and the library ---


def metrics_page() -> str:
  """Every metric of the learning curves and of the result files."""
  parts, seen = [DESCRIPTIONS['intro']['metrics']], Counter()
  for title, rows in DESCRIPTIONS['metrics'].items():
    parts.append(f'## {title}\n\n| metric |\n|---|')
    for name, text in rows.items():
      parts.append(line([entry(name, text, seen[name])]))
      seen[name] += 1
    parts.append('')
  return '\n'.join(parts)


def library_page() -> str:
  """The functions that users import."""
  names = [f'::: nlhf_jax.{name}' for name in LIBRARY]
  return '\n\n'.join([LAST + DESCRIPTIONS['intro']['library'].lstrip(), *names])


def room_page(room: str) -> str:
  """Every module of a folder of the package."""
  folder = ROOT / 'nlhf_jax' / room
  names = [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in sorted(folder.rglob('*.py'))
    if not path.stem.startswith('__')
  ]
  names = [name for name in names if name.removeprefix('nlhf_jax.') not in LIBRARY]
  return '\n\n'.join([f'{LAST}# nlhf_jax.{room}', *(f'::: {name}' for name in names)])
