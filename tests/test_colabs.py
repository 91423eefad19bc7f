"""Every notebook runs in a kernel of its own, from the first cell to the last.

Their outputs are committed, for readers who do not run them.
"""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.conftest import OPTIMISED

ROOT = Path(__file__).parent.parent
MOST_BYTES = 300_000  # of a notebook with its outputs
NOTEBOOKS = sorted((ROOT / 'colabs').glob('*.ipynb'))
# What the text of a notebook says, as its cells print it.
FACTS = {
  'sample_complexity': (
    r'gap of the plug-in policy +0\.002771',
    r'the identity is off by less than 1e-15',
    r'tau +0\.5: slope -0\.8\d at first, -1\.0\d in the end; measured / closed form (0\.9|1\.0)',
    r'tau 0\.002: slope -0\.3\d at first, -(0\.9|1\.0)\d in the end; measured / closed form 1\.0',
    r'the plug-in policy against itself +0\.000',
    r'version_space +2\.\de-02 6\.\de-03',
    r'self-play +\d\.\de-02',
    r'fitted +slope -1\.00',
  ),
  'language_model_game': (
    r'nash_md +the best style against it wins [01]\.\d{3}, quality -?[01]\.\d\d',
    r'this run, in all',
  ),
  'explore_a_run': (
    r'3 policies \(sft, self_play, nash_md\), \d prompts, judge: oracle',
    r'nash_md +share of the lottery [01]\.\d{3}, Borda 0\.\d{3}',
    r'P\(report beats list\) = 0\.666',
    r'\na cycle\n',
    r'\d cycles of policies',
  ),
  'smollm2': (
    r'metrics of each step: .*payoff',
    r'the trained policy wins 0\.\d\d against the model it started from, on 8 prompts',
  ),
  'tabular_convergence': (
    r"Nash equilibrium: \{'report': 0\.333, 'list': 0\.333, 'question': 0\.333\}",
    r'Nash-MD, constant step +not to 1e-28',
    r'self-play +20\d\d updates to 1e-28',
    r'extragradient +\d\d updates to 1e-28',
    r'Newton +7 updates to 1e-28',
    r'step 3\.859: exploitability \d\.\de-(29|3\d) after',
    r'step 4\.716: exploitability 1\.\de-02 after',
    r'beta 0\.12500   KL 0\.000556 nats',
    r'beta 0\.50000   KL 0\.009182 nats',
    r'beta 1\.00000   KL 0\.044081 nats',
  ),
}


class ThisPython(AsyncKernelManager):
  """Kernels run on the interpreter of the tests, whatever kernels are installed."""

  @property
  def kernel_spec(self):
    return KernelSpec(
      argv=[sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}'],
      display_name='this Python',
      language='python',
    )


def execute(notebook, **variables):
  """Runs the notebook in place, in its folder, and returns what its cells printed."""
  client = NotebookClient(
    notebook,
    timeout=300,
    kernel_manager_class=ThisPython,
    resources={'metadata': {'path': str(ROOT / 'colabs')}},
  )
  client.execute(env=os.environ | OPTIMISED | {'PYTHONPATH': str(ROOT)} | variables)
  return ''.join(output.get('text', '') for cell in code(notebook) for output in cell.outputs)


def code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def check_figures(notebook):
  """Every cell that ends in a figure shows it, and no other output that is an object."""
  for cell in code(notebook):
    shown = [set(output.data) for output in cell.outputs if 'data' in output]
    draws = len(re.findall(r'^(?:game_plots|figure, )', cell.source, re.M))
    assert len(shown) == draws, cell.source
    assert all('image/png' in kinds for kinds in shown), cell.source


def choose_sizes(name, folder, request):
  """The variables with which a notebook is short enough for a test."""
  if name == 'language_model_game':
    return {'NLHF_SFT_STEPS': '4', 'NLHF_STEPS': '4', 'NLHF_RUN': str(folder / 'run')}
  if name == 'explore_a_run':
    return {'NLHF_RUN': str(request.getfixturevalue('toy_run').folder / 'run')}
  if name == 'smollm2':
    if not Path(os.environ.get('NLHF_SMOLLM2', '')).is_file():
      pytest.skip('no SmolLM2-135M-Instruct; set NLHF_SMOLLM2 to its GGUF file')
    return {'NLHF_STEPS': '2'}
  return {}


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_whole_notebook_runs(path, tmp_path, request):
  notebook = nbformat.read(path, as_version=4)
  printed = execute(notebook, **choose_sizes(path.stem, tmp_path, request))
  check_figures(notebook)
  for fact in FACTS[path.stem]:
    assert re.search(fact, printed), f'{fact} not in\n{printed}'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_its_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert notebook.metadata.kernelspec.name == 'python3'
  assert path.stat().st_size < MOST_BYTES
  assert 'colab-badge.svg' in notebook.cells[0].source
  assert all(cell.execution_count for cell in code(notebook))
  check_figures(notebook)
  outputs = [output for cell in code(notebook) for output in cell.outputs]
  assert not [output for output in outputs if output.output_type == 'error']
  printed = ''.join(output.get('text', '') for output in outputs)
  assert printed
  assert str(ROOT) not in printed
  assert '/tmp/' not in printed


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_without_the_package_or_an_address_the_first_cell_fails(path, monkeypatch):
  notebook = nbformat.read(path, as_version=4)
  source = code(notebook)[0].source
  assert re.findall(r'%pip install .*', source) == [
    "%pip install --quiet {'git+' + REPOSITORY}"  # never a name that anybody may claim
  ]
  program = re.sub(r'%.*', 'pass', source)
  monkeypatch.delenv('NLHF_REPOSITORY', raising=False)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(RuntimeError, match='nlhf_jax is missing: set REPOSITORY above'):
    exec(program, {})


def test_a_missing_table_is_replaced(tmp_path):
  notebook = nbformat.read(ROOT / 'colabs' / 'tabular_convergence.ipynb', as_version=4)
  kept = {'setup', 'table'}
  notebook.cells = [cell for cell in code(notebook) if kept & {*cell.metadata.get('tags', ())}]
  printed = execute(notebook, NLHF_SHARED=str(tmp_path))
  check_figures(notebook)
  assert f'{tmp_path}/data/games/rrps_bots_43_raw.csv is missing; set `path`' in printed
  assert re.search(r'Borda winner +wins +64\.3% on average, +0\.0% at worst', printed)
  assert re.search(r'\nNash +wins .* 50\.0% at worst', printed)
