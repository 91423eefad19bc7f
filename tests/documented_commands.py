"""The command lines of the documentation, and what can be checked of each before it runs."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

from nlhf_jax import command, compare, export, main, plan
from nlhf_jax.experiments import sections
from nlhf_jax.experiments.evaluate.config import evaluate_sections
from nlhf_jax.experiments.sample_complexity.config import sample_complexity_sections
from nlhf_jax.experiments.tabular.config import tabular_sections
from nlhf_jax.experiments.token_game.config import token_game_sections

ROOT = Path(__file__).parents[1]
SECTIONS = {
  'language': sections.language_sections,
  'judges': sections.language_sections,
  'evaluate': evaluate_sections,
  'tabular': tabular_sections,
  'sample_complexity': sample_complexity_sections,
  'token_game': token_game_sections,
}
BLOCK = re.compile(r'^```(?:sh|bash|shell|console)\n(.*?)^```', re.S | re.M)
SEPARATORS = ('&&', ';', '|')


def commands(text: str) -> list[list[str]]:
  """The words of each command on a page of Markdown: of its blocks, and within its sentences."""
  sentences = re.sub(r'^```.*?^```', '', text, flags=re.S | re.M)
  programs = {prefix.split()[0] for prefix in HANDLERS}
  found = [words for block in BLOCK.findall(text) for words in split(block)]
  for code in re.findall(r'`([^`\n]+ [^`\n]+)`', sentences):
    if code.split()[0] in programs:
      found += split(code)
  return found


def split(block: str) -> Iterator[list[str]]:
  """The words of each command of a script, without what only the shell reads.

  Variables have the first value that the script gives them.
  """
  values: dict[str, str] = {}
  for line in block.replace('\\\n', ' ').splitlines():
    lexer = shlex.shlex(line, posix=True, punctuation_chars='&;>|')
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ';']:
      if word not in SEPARATORS:
        words.append(re.sub(r'\$(\w+)', lambda name: values[name[1]], word))
        continue
      words = words[1:] if words[:1] == ['do'] else words
      if words[:1] == ['for']:
        values.setdefault(words[1], words[3])
        words = []
      while words and (given := re.fullmatch(r'(\w+)=(.*)', words[0])):
        values.setdefault(*given.groups())
        words = words[1:]
      if words and words != ['done']:
        yield words[: words.index('>')] if '>' in words else words
      words = []


def handler(words: list[str]):
  """The check of a command by its first words; of several, that with the longest prefix.

  Raises:
    LookupError: if there is none.
  """
  first = 'python' if re.search(r'(^|/)python3?$', words[0]) else words[0]
  for length in (3, 2, 1):
    found = HANDLERS.get(' '.join([first, *words[1:length]]))
    if found and len(words) >= length:
      return found
  raise LookupError(f'no handler for {shlex.join(words)}; add one to HANDLERS in {__name__}')


# --- This package ---


def check_run(words: list[str]) -> None:
  """The flags of a run or a plan exist, the config has the fields, numbers are in their ranges."""
  more = {'run': main.FLAGS, 'plan': plan.FLAGS}[words[1]]
  if len(words) > 2:  # not the bare name of the command, in a sentence
    settings, config = read(words, more)
    sections.check(SECTIONS[config.experiment](config))
    command.run_paths(settings)


def read(words: list[str], more: dict[str, str]):
  """The flags and the changed config of a command `nlhf run` or `nlhf plan`, as it reads them."""
  overrides = [word for word in words if word.startswith('--config.')]
  flags = [word for word in words[1:] if word not in overrides]
  settings = command.parse_flags(flags, command.FLAGS | more)
  config = command.load_config(settings.config)
  for override in overrides:
    command.apply_override(override, config, settings.config)
  return settings, config


def check_export(words: list[str]) -> None:
  """The flags exist, and name one place."""
  if len(words) > 2:
    flags = dict(word.removeprefix('--').partition('=')[::2] for word in words[2:])
    assert flags.keys() <= export.FLAGS.keys(), words
    assert {'run', 'policy'} <= flags.keys(), words
    assert ('to' in flags) != ('push' in flags), words


def check_compare(words: list[str]) -> None:
  compare.parse(words[2:])


def check_list(words: list[str]) -> None:
  assert words == ['nlhf', 'list']


# --- Other programs ---


def check_make(words: list[str]) -> None:
  """The targets and the variables of the Makefile exist; flags of a run are checked as such."""
  makefile = (ROOT / 'Makefile').read_text()
  given = {}
  for word in words[1:]:
    name, is_variable, value = word.partition('=')
    pattern = rf'^{name} \?=|\$\({name}\)' if is_variable else rf'^{name}:'
    assert re.search(pattern, makefile, re.M), word
    given |= {name: value} if is_variable else {}
  if 'run' in words:
    config = given.get('CONFIG', 'nash_md')
    check_run(['nlhf', 'run', f'--config={config}', *shlex.split(given.get('ARGS', ''))])


def check_pip(words: list[str]) -> None:
  """What is installed is this checkout, a wheel of it, or a package that it names, with extras."""
  setup = ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  own = setup['options.extras_require']
  needed = setup['options']['install_requires'] + ''.join(own.values())
  for word in words[words.index('pip') + 2 :]:
    name, _, extras = word.removesuffix(']').partition('[')
    if name == '.':
      assert set(extras.split(',')) <= {'', *own}, word
    elif not word.startswith(('-', 'dist')):
      package = re.escape(name) + (rf'\[{extras}\]' if extras else '')
      assert re.search(rf'^{package}[<>=]', needed, re.M), f'{word} is no package that we need'


def check_module(words: list[str]) -> None:
  """The module of `python -m` exists, and so do the files that it reads."""
  assert importlib.util.find_spec(words[2]), words
  assert_files(words[3:])


def assert_files(words: list[str]) -> None:
  """Words that look like a path in this repository are one."""
  for word in words:
    if re.match(r'(tests|examples|benchmarks|launch|configs)/', word):
      assert (ROOT / word).exists(), word


def check_program(words: list[str]) -> None:
  """The program exists, and its source has the flags."""
  assert (ROOT / words[1]).is_file(), words
  tree = ast.parse((ROOT / words[1]).read_text())
  texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
  for word in words[2:]:
    if word.startswith('--'):
      assert word.partition('=')[0] in texts, word
    if word.startswith('--config='):
      command.load_config(word.partition('=')[2])


def check_script(words: list[str]) -> None:
  """A script of the shell exists; flags of a run that follow it are those of a run."""
  script = next(word for word in words if '/' in word)
  assert (ROOT / script).is_file(), words
  flags = [word for word in words[words.index(script) + 1 :] if word.startswith('--')]
  if flags:
    check_run(['nlhf', 'run', *flags])
  if script.endswith('tpu_vm.sh'):
    action = words[words.index(script) + 1]
    assert re.search(rf'^{action}\(\)', (ROOT / script).read_text(), re.M), words


def check_docker(words: list[str]) -> None:
  """Of `docker build`, the file exists, and takes the arguments."""
  if words[1] == 'build':
    text = (ROOT / words[words.index('-f') + 1]).read_text()
    argument = words[words.index('--build-arg') + 1].partition('=')[0]
    assert re.search(rf'^ARG {argument}\b', text, re.M), words
    assert words[-1] == '.'


def check_kubectl(words: list[str]) -> None:
  """Manifests exist, and jobs that are named are in one of them."""
  assert_files(words)
  manifests = ''.join(path.read_text() for path in ROOT.glob('launch/gke/*.yaml'))
  for word in words:
    if word.startswith('job/'):
      assert re.search(rf'\bname: {word.removeprefix("job/")}$', manifests, re.M), word


def check_server(words: list[str]) -> None:
  """A server of another package, which the tests do not install: the name of the model is ours."""
  if '--served-model-name' in words:
    name = words[words.index('--served-model-name') + 1]
    assert name == command.load_config('nash_md').generation_server.model


def check_nothing(words: list[str]) -> None:
  """Commands of the shell and of others, with nothing of this package in them."""


HANDLERS = {
  'nlhf run': check_run,
  'nlhf plan': check_run,
  'nlhf export': check_export,
  'nlhf compare': check_compare,
  'nlhf list': check_list,
  'make': check_make,
  'pip install': check_pip,
  'python -m pip': check_pip,
  'python -m sglang.launch_server': check_server,
  'python -m': check_module,
  'python': check_program,
  'python3': check_program,
  'bash': check_script,
  'launch/local.sh': check_script,
  'launch/tpu_vm.sh': check_script,
  'sbatch': check_script,
  'docker': check_docker,
  'kubectl': check_kubectl,
  'vllm serve': check_server,
  'tensorboard': check_nothing,
  'hf auth': check_nothing,
  'pre-commit install': check_nothing,
  'scancel': check_nothing,
  'tail': check_nothing,
  'source': check_nothing,
  'export': check_nothing,
}
