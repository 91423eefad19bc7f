"""Single responses, good or bad: read, split, and learned by KTO; pairs beside them are split."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import training_data
from nlhf_jax.data import dataset, tokenizers
from nlhf_jax.data.batches import batches
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language import run as language
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Prompts, Responses

WORDS = ['tea', 'rain', 'drum', 'moon', 'bread', 'river', 'stone', 'glass', 'cloud', 'salt']
LABELLED = [
  {
    'prompt': f'about {word}',
    'completion': f'{"good" if i % 2 else "bad"} {word}',
    'label': i % 2 > 0,
  }
  for word in WORDS
  for i in range(2)
]
PAIRS = [
  {'prompt': f'of {word}', 'left': f'a {word}', 'right': f'b {word}', 'preference': 0.7}
  for word in WORDS
]


def write(path, rows):
  json_lines.write(path, rows)
  return str(path)


@pytest.fixture(scope='module')
def make(tmp_path_factory):
  """A function that makes a corpus of files."""

  def make(path, schema):
    data = dataset.FileData(path, schema, '', '1/1', False, 0.2, 24, 24, 400)
    return dataset.make_file_corpus(data, 0, '', tmp_path_factory.getbasetemp() / 'unpaired')

  return make


def labelled(corpus):
  """The unpaired responses of a corpus as (prompt, response, payoff)."""
  found = []
  for split in (corpus.train, corpus.held_out):
    batch = split.unpaired.all() if split is corpus.train else split.unpaired
    assert batch.right is None
    texts = [
      tokenizers.response_texts(corpus.tokenizer, side.tokens, side.mask)
      for side in (batch.prompts, batch.left)
    ]
    found += zip(*texts, batch.payoff.ravel().tolist(), strict=True)
  return sorted((prompt.strip(), *rest) for prompt, *rest in found)


def test_labels_become_payoffs(make, tmp_path):
  corpus = make(write(tmp_path / 'a.jsonl', LABELLED), 'unpaired')
  expected = [(row['prompt'], row['completion'], row['label'] - 0.5) for row in LABELLED]
  assert labelled(corpus) == sorted(expected)
  for split, prompts in (('train', 8), ('held_out', 2)):
    expected = {'prompts': prompts, 'demonstrations': prompts, 'comparisons': 0}
    assert corpus.account[split] == expected | {'unpaired': 2 * prompts}
  shown = corpus.held_out.demonstrations.left  # good responses alone
  texts = tokenizers.response_texts(corpus.tokenizer, shown.tokens, shown.mask)
  assert {text.split()[0] for text in texts} == {'good'}


def test_pairs_beside_unpaired_responses_are_split(make, tmp_path):
  paths = [write(tmp_path / 'a.jsonl', LABELLED), write(tmp_path / 'b.jsonl', PAIRS)]
  corpus = make(','.join(paths), 'unpaired,graded')
  expected = [(row['prompt'], row['completion'], row['label'] - 0.5) for row in LABELLED]
  expected += [
    (row['prompt'], row[side], sign * 0.2)
    for row in PAIRS
    for side, sign in (('left', 1), ('right', -1))
  ]
  found = labelled(corpus)
  assert [one[:2] for one in found] == [one[:2] for one in sorted(expected)]
  np.testing.assert_allclose([one[2] for one in found], [one[2] for one in sorted(expected)], 1e-6)
  assert sum(corpus.account[split]['comparisons'] for split in ('train', 'held_out')) == 10


def test_pairs_alone_stay_pairs(make, tmp_path):
  corpus = make(write(tmp_path / 'b.jsonl', PAIRS), 'graded')
  assert corpus.train.unpaired is corpus.train.comparisons
  assert training_data(catalogue.kto(0.1, 1.0, 1.0)) == 'unpaired'
  assert training_data(catalogue.dpo(0.1)) == 'comparisons'


def test_batches_of_unpaired_responses_have_one_side(make, tmp_path):
  corpus = make(write(tmp_path / 'a.jsonl', LABELLED), 'unpaired')
  batch = batches(corpus.train.unpaired, 4, 0)[0]
  assert batch.right is None
  assert batch.payoff.shape == (4, 1, 1)


def test_mismatches_of_unpaired_responses_come_from_the_next_row():
  tokens = jnp.array([[[10]], [[20]], [[30]]])
  prompts = Prompts(jnp.zeros((3, 1), jnp.int32), jnp.ones((3, 1), bool))
  payoff = jnp.array([[[0.5]], [[-0.5]], [[0.5]]])
  single = Comparison(prompts, Responses(tokens, tokens > 0), None, payoff)
  selected = catalogue.kto(2.0, 1.5, 0.5).select(single, jax.random.key(0))
  np.testing.assert_array_equal(selected.left.tokens[..., 0], [[10, 20], [20, 30], [30, 10]])
  np.testing.assert_array_equal(selected.payoff[..., 0], [[0.5, 0], [-0.5, 0], [0.5, 0]])
  assert selected.right is None


@pytest.fixture
def kto(config_named, tmp_path):
  """KTO on a file of unpaired responses, toy size, without judges that learn."""
  config = config_named('kto', 'file')
  config.data.update(path=write(tmp_path / 'a.jsonl', LABELLED), schema='unpaired', held_out=0.2)
  config.judges = 'lengths'
  return config


def test_judges_and_other_algorithms_need_pairs(kto, tmp_path):
  kto.judges = 'learned'
  with pytest.raises(UserError, match=r'has too few comparisons for config\.pref'):
    make_experiment(kto, 'kto', tmp_path)
  kto.judges, kto.policies.kto.algorithm = 'lengths', 'dpo'
  kto.policies.kto.arguments = {'beta': 0.1}
  with pytest.raises(UserError, match=r'has too few comparisons for config.policies.kto: at least'):
    make_experiment(kto, 'kto', tmp_path)


@pytest.mark.slow
def test_kto_learns_from_unpaired_responses(kto, tmp_path):
  kto.policies.kto.update(steps=120, batch=8, evaluate_every=120)
  kto.policies.kto.optimizer.update(learning_rate=0.01, warmup=0)
  experiment = make_experiment(kto, 'kto', tmp_path / 'stages')
  results = language.run(experiment, tmp_path)
  assert results['policies'] == ['sft', 'kto']
  rows = [row for row in json_lines.read(tmp_path / 'metrics.jsonl') if row['stage'] == 'kto']
  losses = [row['loss'] for row in rows if 'loss' in row]
  # w_D (1 - sigmoid) and w_U (1 - sigmoid) are 1/2 at the start.
  assert losses[-1] < 0.45
  sampled = [json.loads(line)['responses'] for line in (tmp_path / 'samples.jsonl').open()]
  assert any('good' in responses['kto'] for responses in sampled)
