"""A pretrained model is trained, then exported for transformers and peft."""

import importlib
import json
import re
import resource
import shutil
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
import yaml

from nlhf_jax import export
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import export_push
from nlhf_jax.experiments.export_policy import write_policy
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.experiments.language.finished_run import load_entry
from nlhf_jax.experiments.model_config import make_model
from nlhf_jax.models import scoring
from nlhf_jax.storage import json_lines

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def trained(adapter_run):
  """The experiment, its results and their folder."""
  return adapter_run.experiment, adapter_run.results, adapter_run.folder


def log_probs_of(experiment, params):
  """Log-probabilities of the chosen responses, [n, T], and their mask."""
  prompts, left, *_ = experiment.corpus.held_out.comparisons
  message = jax.jit(
    lambda params: scoring.log_probs(experiment.model.decoder, params, prompts, left)
  )
  return np.asarray(message(params))[:, 0], left.mask[:, 0]


def of_torch(model, experiment):
  prompts, left, *_ = experiment.corpus.held_out.comparisons
  tokens = np.concatenate([prompts.tokens, left.tokens[:, 0]], axis=1)
  mask = np.concatenate([prompts.mask, left.mask[:, 0]], axis=1)
  positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
  with torch.no_grad():
    logits = model.eval()(
      input_ids=torch.tensor(tokens),
      attention_mask=torch.tensor(mask.astype(int)),
      position_ids=torch.tensor(positions),
    ).logits.float()
  length = left.tokens.shape[-1]
  log_p = torch.log_softmax(logits[:, -length - 1 : -1], dim=-1).numpy()
  return np.take_along_axis(log_p, tokens[:, -length:, None], axis=-1)[..., 0]


def agree(model, experiment, params):
  ours, kept = log_probs_of(experiment, params)
  np.testing.assert_allclose(of_torch(model, experiment)[kept], ours[kept], atol=2e-4)


def test_pretrained_model_enters_the_tournament(trained):
  _, results, folder = trained
  assert results['policies'] == ['sft', 'nash_md']
  asked = [json.loads(line)['prompt'] for line in (folder / 'run' / 'samples.jsonl').open()]
  talks = [prompt for prompt in asked if 'assistant' in prompt]
  assert all(prompt.startswith('tell ') for prompt in set(asked) - set(talks))
  assert all('again' in prompt for prompt in talks)


def test_checkpoints_hold_adapters_only(trained):
  experiment, _, folder = trained
  size = sum(
    path.stat().st_size for path in experiment.stages['nash_md'].folder.rglob('*') if path.is_file()
  )
  assert size < (folder / 'model' / 'model.safetensors').stat().st_size


def test_exported_adapter_agrees_with_peft(trained, tmp_path):
  experiment, _, folder = trained
  params = load_entry(experiment, 'nash_md')
  write_policy(experiment, params, tmp_path / 'adapter', merged=False)
  base = transformers.AutoModelForCausalLM.from_pretrained(folder / 'model')
  plain = of_torch(base, experiment)
  adapted = peft.PeftModel.from_pretrained(base, tmp_path / 'adapter')
  agree(adapted, experiment, params)
  assert np.abs(of_torch(adapted, experiment) - plain).max() > 1e-3


def test_merged_export_keeps_the_other_files(trained, tmp_path):
  experiment, _, folder = trained
  params = load_entry(experiment, 'nash_md')
  write_policy(experiment, params, tmp_path / 'merged', merged=True)
  agree(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'merged'), experiment, params)
  for name in ('tokenizer.json', 'tokenizer_config.json', 'generation_config.json'):
    assert (tmp_path / 'merged' / name).read_bytes() == (folder / 'model' / name).read_bytes()


def test_new_model_is_exported_as_a_llama(toy, tmp_path):
  config = toy(importlib.import_module('nlhf_jax.configs.nash_md').get_config())
  experiment = make_experiment(config, 'toy', tmp_path)
  params = experiment.model.begin(jax.random.key(0))
  write_policy(experiment, params, tmp_path / 'model', merged=False)
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'model')
  agree(model, experiment, params)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'model')
  assert len(tokenizer) == model.config.vocab_size
  assert model.config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
  ('changes', 'vocabulary', 'message'),
  [
    ({}, 4097, 'its tokenizer has 4097 tokens, but its embedding only 4096'),
    ({'data.prompt_length': 60}, 500, 'exceed the 64 positions of the model'),
    ({'model.lora.targets': 'query,heads'}, 500, "there is no layer 'heads'"),
    ({'model.compute': 'float16'}, 500, "config.model.compute='float16' must be one of"),
    ({'model.remat': 'all'}, 500, "config.model.remat='all' must be one of nothing, layers, dots"),
  ],
)
def test_models_that_do_not_fit_are_refused(trained, toy, changes, vocabulary, message):
  folder = trained[-1]
  config = toy(importlib.import_module('nlhf_jax.configs.nash_md').get_config('file'))
  config.data.update(prompt_length=16, response_length=8)
  config.model.hf = str(folder / 'model')
  config.model.lora.rank = 2
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=re.escape(message)):
    make_model(config, vocabulary)


def test_texts_need_room_for_what_reads_them(trained, toy):
  config = toy(importlib.import_module('nlhf_jax.configs.nash_md').get_config('file'))
  config.data.update(prompt_length=50, response_length=8)
  config.model.hf = str(trained[-1] / 'model')
  with pytest.raises(UserError, match='two responses of 8 exceed the 64 positions'):
    make_model(config, 500)
  config.judges = 'lengths'
  for policy in config.policies.values():
    policy.judge = 'lengths'
  assert make_model(config, 500).sizes.max_positions == 64
  config.data.prompt_length = 57
  with pytest.raises(UserError, match='a response of 8 exceed the 64 positions'):
    make_model(config, 500)
  config.tournament.update(best_of=2, best_of_judge='learned')
  with pytest.raises(UserError, match='two responses of 8 exceed the 64 positions'):
    make_model(config, 500)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--to=there'], '--policy is missing'),
    (['--policy=nash_md'], '--to is missing'),
    (['--policy=nobody', '--to=there'], 'must be one of sft, self_play, nash_md'),
    (['--policy=nash_md', '--to=there'], "the stage 'sft' is not done"),
    (['--policy=nash_md', '--to=.'], 'is not empty'),
    (['--policy=nash_md', '--to=there', '--merged=perhaps'], 'is not True or False'),
    (['--policy=nash_md', '--push=us/nash', '--yes=perhaps'], 'is not True or False'),
    (['--policy=nash_md', '--to=there', '--yes=True'], '--push=ORG/NAME, which is missing'),
  ],
)
def test_user_errors_print_one_line(arguments, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'something').touch()
  config = f'--config={ROOT}/configs/nash_md.py'
  small = ['--config.data.posts=8', '--config.data.held_out=4']
  assert export.main(['export', config, *small, *arguments]) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


@pytest.fixture
def run_folder(trained, adapter_run, tmp_path):
  """A work directory with a config and results, and stages beside it."""
  folder = tmp_path / 'run'
  folder.mkdir()
  json_lines.write_json(folder / 'config.json', adapter_run.config.to_dict())
  shutil.copyfile(adapter_run.folder / 'run' / 'results.json', folder / 'results.json')
  (tmp_path / 'stages').symlink_to(adapter_run.folder / 'stages')
  return folder


def test_run_is_exported_with_a_card(run_folder, tmp_path, capsys):
  (tmp_path / '.out.draft').mkdir()  # of an export that was killed
  (tmp_path / '.out.draft' / 'old').touch()
  flags = [f'--run={run_folder}', '--policy=nash_md', f'--to={tmp_path / "out"}']
  assert export.main(['export', *flags]) == 0, capsys.readouterr().err
  names = {path.name for path in (tmp_path / 'out').iterdir()}
  assert names >= {'adapter_model.safetensors', 'adapter_config.json', 'tokenizer.json'}
  assert not names & {'old', 'config.json'}
  assert not (tmp_path / '.out.draft').exists()
  card = (tmp_path / 'out' / 'README.md').read_text()
  metadata = yaml.safe_load(card.split('---')[1])
  assert metadata['library_name'] == 'peft'
  assert metadata['tags'][-1] == 'nash_md_pg'
  assert 'Win rate of nash_md under the judge `learned`' in card
  assert '| algorithm | nash_md_pg |' in card
  assert str(tmp_path) not in card
  # A second export does not replace the first.
  assert export.main(['export', *flags]) == 2
  assert 'is not empty' in capsys.readouterr().err


class StandIn:
  """Of the client of the hub: it records what it would upload."""

  calls: ClassVar[list] = []
  error: ClassVar[Exception | None] = None

  def create_repo(self, name, **options):
    self.calls.append(('create', name, options))
    if self.error:
      raise self.error

  def upload_folder(self, *, repo_id, folder_path, commit_message):
    files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
    self.calls.append(('upload', repo_id, files))


@pytest.fixture
def hub(monkeypatch):
  """A stand-in for the hub."""
  monkeypatch.setattr(export_push, 'HfApi', StandIn)
  monkeypatch.setattr(StandIn, 'calls', [])
  return StandIn


def test_push_uploads_nothing_until_confirmed(run_folder, hub, tmp_path, capsys):
  flags = [f'--run={run_folder}', '--policy=nash_md', '--push=us/nash']
  assert export.main(['export', *flags]) == 0
  printed = capsys.readouterr().out
  assert 'Would upload to https://huggingface.co/us/nash:' in printed
  assert re.search(r'^  adapter_model\.safetensors  [\d,]+ bytes$', printed, re.M)
  assert 'Nothing was uploaded; add --yes=True' in printed
  assert hub.calls == []
  assert sorted(path.name for path in tmp_path.iterdir()) == ['run', 'stages']


def test_push_uploads_the_folder_with_its_card(run_folder, hub, tmp_path, capsys):
  to = tmp_path / 'out'
  flags = [f'--run={run_folder}', '--policy=nash_md', '--push=us/nash', '--yes=True', f'--to={to}']
  assert export.main(['export', *flags]) == 0
  created, (what, name, files) = hub.calls
  assert created == ('create', 'us/nash', {'private': True, 'exist_ok': True})
  assert (what, name) == ('upload', 'us/nash')
  assert files == {path.name: path.read_bytes() for path in to.iterdir()}
  assert b"folder = 'us/nash'\n" in files['README.md']
  assert 'Uploaded: https://huggingface.co/us/nash' in capsys.readouterr().out


def test_a_refused_push_is_a_sentence_without_the_token(run_folder, hub, monkeypatch, capsys):
  monkeypatch.setattr(hub, 'error', OSError('401 for the token hf_abcDEF123'))
  flags = [f'--run={run_folder}', '--policy=nash_md', '--push=us/nash', '--yes=True']
  assert export.main(['export', *flags]) == 2
  printed = ''.join(capsys.readouterr())
  assert 'error: --push=us/nash: the upload failed (401 for the token hf_...); log in' in printed
  assert 'abcDEF' not in printed


def test_a_push_without_a_network_is_a_sentence(run_folder, hub, monkeypatch, capsys):
  # As the client's: neither of the hub's errors, nor one of the system's.
  monkeypatch.setattr(hub, 'error', type('ConnectError', (Exception,), {})('Connection refused'))
  flags = [f'--run={run_folder}', '--policy=nash_md', '--push=us/nash', '--yes=True']
  assert export.main(['export', *flags]) == 2
  assert 'the upload failed (Connection refused)' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['nash', 'us/nash/2', 'us/', '/nash', 'us/na sh', '-/x', '../x'])
def test_push_needs_the_name_of_a_repository(name, run_folder, hub, capsys):
  flags = [f'--run={run_folder}', '--policy=nash_md', f'--push={name}', '--yes=True']
  assert export.main(['export', *flags]) == 2
  assert 'is no name on the hub; write ORG/NAME.' in capsys.readouterr().err
  assert hub.calls == []


def test_full_disk_leaves_no_export(run_folder, tmp_path, capsys):
  flags = [f'--run={run_folder}', '--policy=nash_md', f'--to={tmp_path / "out"}']
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
  try:
    status = export.main(['export', *flags])
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert status == 2
  message = capsys.readouterr().err
  assert f"cannot write '{tmp_path / 'out'}': " in message
  assert message.count('\n') == 1
  assert sorted(path.name for path in tmp_path.iterdir()) == ['run', 'stages']
  assert export.main(['export', *flags]) == 0


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--run=nowhere', '--policy=sft', '--to=x'], "'nowhere' is not the work directory of a run"),
    (['--run=damaged', '--policy=sft', '--to=x'], 'is damaged'),
    (['--run=list', '--policy=sft', '--to=x'], 'is damaged'),
    (['--run=damaged', '--config=nash_md', '--policy=sft', '--to=x'], 'leave them out'),
  ],
)
def test_what_is_no_run_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for name, text in {'damaged': '{', 'list': '[3]'}.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text(text)
  assert export.main(['export', *arguments]) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1
