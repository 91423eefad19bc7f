"""`transformers` generates from an export with its own template, and stops where training stopped.

The tokenizer ends texts with <|endoftext|>, and its template ends answers with <|im_end|>.
"""

import itertools
import json

import jax
import peft
import pytest
import torch
import transformers

from nlhf_jax.evaluation.generation import LoadedModel, make_respond
from nlhf_jax.experiments.export_policy import write_policy
from nlhf_jax.experiments.language.config import make_experiment
from tests.data import chats
from tests.experiments import pretrained
from tests.models import families

QUESTION = [{'role': 'user', 'content': 'What is it?'}]
ENDING = chats.CHATML + "{{ '' if add_generation_prompt else eos_token }}"  # after the last turn


def write_model(folder, template):
  """A model that answers every question with `ab`, whatever the question is."""
  chats.save(folder, *chats.chatml(template))
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  (newline,), (first,), (last,) = (tokenizer.encode(text) for text in ('\n', 'a', 'b'))
  chain = [newline, first, last, tokenizer.convert_tokens_to_ids('<|im_end|>'), first]
  model = families.save(
    'llama',
    folder,
    vocab_size=512,
    num_hidden_layers=1,
    max_position_embeddings=512,
    eos_token_id=tokenizer.eos_token_id,
  )
  with torch.no_grad():  # logits depend on the last token alone
    for name, parameter in model.named_parameters():
      if name.endswith(('o_proj.weight', 'down_proj.weight', 'embed_tokens.weight', 'head.weight')):
        parameter.zero_()
      if name == 'model.norm.weight':
        parameter.fill_(1)
    for place, (token, following) in enumerate(itertools.pairwise(chain)):
      model.model.embed_tokens.weight[token, place] = 1
      model.lm_head.weight[following, place] = 5
  model.save_pretrained(folder)
  transformers.GenerationConfig(
    eos_token_id=tokenizer.eos_token_id, repetition_penalty=1.01
  ).save_pretrained(folder)


@pytest.fixture(
  scope='module',
  params=[chats.CHATML, pytest.param(ENDING, marks=pytest.mark.slow)],
  ids=['plain', 'with eos_token'],
)
def exported(request, toy, tmp_path_factory):
  """The experiment, and the folder with the exports `adapter`, `merged` and `whole`."""
  folder = tmp_path_factory.mktemp('stops')
  write_model(folder / 'model', request.param)
  pretrained.write_comparisons(folder / 'comparisons.jsonl')
  config = pretrained.config(folder, toy, write=False)
  config.data.prompt_length = 200
  for rank in (2, 0):
    config.model.lora.rank = rank
    experiment = make_experiment(config, 'stops', folder / 'stages')
    params = experiment.model.begin(jax.random.key(0))
    write_policy(experiment, params, folder / ('merged' if rank else 'whole'), merged=True)
    if rank:
      write_policy(experiment, params, folder / 'adapter', merged=False)
  return experiment, params, folder


def generate(model, folder, **settings):
  """The response to the question by `transformers`, in tokens."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  tokens = tokenizer.apply_chat_template(
    QUESTION, add_generation_prompt=True, return_tensors='pt', return_dict=True
  )
  output = model.generate(**tokens, max_new_tokens=20, **settings)
  return tokenizer.decode(output[0][tokens['input_ids'].shape[1] :])


@pytest.mark.parametrize('kind', ['whole', 'merged'])
def test_transformers_stops(exported, kind):
  experiment, params, folder = exported
  model = transformers.AutoModelForCausalLM.from_pretrained(folder / kind)
  assert generate(model, folder / kind) == 'ab<|im_end|>'
  before = transformers.AutoModelForCausalLM.from_pretrained(folder / 'model')
  assert generate(before, folder / 'model').startswith('ab<|im_end|>ab<|im_end|>ab')
  settings = json.loads((folder / kind / 'generation_config.json').read_text())
  assert settings['repetition_penalty'] == 1.01
  assert json.loads((folder / kind / 'config.json').read_text())['eos_token_id'] == (
    experiment.corpus.tokenizer.eos_token_id
  )
  if kind == 'whole':  # the program itself responds alike
    loaded = LoadedModel(experiment.model.decoder, params, experiment.corpus.tokenizer, 512)
    assert make_respond(loaded, length=8)([QUESTION], 0.0, 0) == ['ab']


def test_adapter_stops(exported):
  folder = exported[-1]
  settings = transformers.GenerationConfig.from_pretrained(folder / 'adapter')
  for auto in (peft.AutoPeftModelForCausalLM, transformers.AutoModelForCausalLM):
    model = auto.from_pretrained(folder / 'adapter')
    assert generate(model, folder / 'adapter', generation_config=settings) == 'ab<|im_end|>'


@pytest.mark.parametrize('kind', ['whole', 'merged', 'adapter'])
def test_tokenizer_and_template_name_the_stop_token(exported, kind):
  folder = exported[-1]
  before, after = (
    transformers.AutoTokenizer.from_pretrained(folder / name) for name in ('model', kind)
  )
  assert (before.eos_token, after.eos_token) == ('<|endoftext|>', '<|im_end|>')
  talk = [*QUESTION, {'role': 'assistant', 'content': 'ab'}]
  assert after.apply_chat_template(talk, tokenize=False) == (
    before.apply_chat_template(talk, tokenize=False)
  )


def test_everyone_may_read_the_files(exported):
  folder = exported[-1]
  for kind in ('whole', 'adapter'):
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder / kind).iterdir()}
    assert set(modes.values()) == {0o644}
