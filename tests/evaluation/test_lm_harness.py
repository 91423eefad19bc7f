"""Our model of the lm-evaluation-harness agrees with its Hugging Face backend."""

import json
import math

import jax
import numpy as np
import pytest

from nlhf_jax.data import tokenizers
from nlhf_jax.experiments.policy_folder import convert_to_llama
from nlhf_jax.models import architectures, weights
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.storage import json_files

lm_eval = pytest.importorskip('lm_eval', reason='the extra `harness` is not installed')
torch = pytest.importorskip('torch')

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from nlhf_jax.errors import Interrupted, UserError  # noqa: E402
from nlhf_jax.evaluation.benchmarks import lm_harness, lm_tasks  # noqa: E402
from nlhf_jax.evaluation.generation import LoadedModel  # noqa: E402
from nlhf_jax.sampling.rollout import Filters  # noqa: E402

MAX_POSITIONS = 48
PLACES = ('harbour', 'market', 'old town', 'river')
DOCS = [
  {
    'question': f'Where did the {who} go at {hour}?',
    'choices': list(PLACES),
    'letters': list('ABCD'),
    'gold': hour % 4,
    'text': f'The {who} went to the {PLACES[hour % 4]} at {hour}. ' * (1 + hour),
  }
  for hour, who in enumerate(('baker', 'nurse', 'old clerk', 'painter', 'guard'))
]


@pytest.fixture(scope='module')
def backends(tmp_path_factory):
  """A small Llama with random weights: in our adapter, and exported in the harness's."""
  folder = tmp_path_factory.mktemp('llama')
  tokenizer = tokenizers.train([doc['text'] for doc in DOCS], 320)
  sizes = architectures.small(
    len(tokenizer), 24, layers=2, heads=4, key_heads=2, head_size=6, hidden=40, rotary_base=1e4
  )
  decoder = make_decoder(sizes._replace(max_positions=MAX_POSITIONS))
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(decoder.init, jax.random.key(0))
  params = jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape, scale=0.3).astype(leaf.dtype), shapes
  )
  exported, config = convert_to_llama(params, sizes, tokenizer)
  weights.save(folder, 'llama', exported, np.float32)
  config.save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  theirs = HFLM(str(folder), device='cpu', dtype='float32', batch_size=3, max_length=MAX_POSITIONS)
  model = LoadedModel(decoder, params, tokenizer, MAX_POSITIONS)
  ours = lm_harness.HarnessModel(model, name='small llama', batch=4)
  return ours, theirs


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  """One task of each type, from a local file."""
  path = tmp_path_factory.mktemp('docs') / 'docs.jsonl'
  json_files.write_lines(path, DOCS)
  common = {
    'dataset_path': 'json',
    'dataset_kwargs': {'data_files': {'test': str(path)}},
    'test_split': 'test',
    'doc_to_text': '{{question}}\nAnswer:',
  }
  choice = {**common, 'output_type': 'multiple_choice', 'doc_to_target': 'gold'}
  return [
    {'task': 'places', 'doc_to_choice': '{{choices}}', **choice},
    {'task': 'letters', 'doc_to_choice': '{{letters}}', **choice},
    {
      'task': 'rolling',
      **common,
      'output_type': 'loglikelihood_rolling',
      'doc_to_text': '',
      'doc_to_target': '{{text}}',
      'metric_list': [{'metric': 'word_perplexity'}, {'metric': 'byte_perplexity'}],
    },
    {
      'task': 'free',
      **common,
      'output_type': 'generate_until',
      'doc_to_target': '{{choices[gold]}}',
      'generation_kwargs': {'until': ['\n', 'e'], 'max_gen_toks': 20},
      'metric_list': [{'metric': 'exact_match'}],
    },
  ]


def requests(kind, *rows):
  return [Instance(request_type=kind, doc={}, arguments=row, idx=i) for i, row in enumerate(rows)]


def test_all_task_types_have_equal_outcomes(backends, tasks):
  alone = TaskManager(include_defaults=False)  # the harness's own are thousands of files
  both = [
    lm_eval.simple_evaluate(model, tasks=tasks, bootstrap_iters=0, task_manager=alone)
    for model in backends
  ]
  for task in tasks:
    name = task['task']
    ours, theirs = (sorted(one['samples'][name], key=lambda x: x['doc_id']) for one in both)
    assert len(ours) == len(DOCS)
    for one, other in zip(ours, theirs, strict=True):
      if name == 'free':
        assert one['resps'] == other['resps']
      else:
        scored = np.array([answer[0] for answer in one['resps']], object)
        expected = np.array([answer[0] for answer in other['resps']], object)
        if name == 'rolling':
          np.testing.assert_allclose(scored.astype(float), expected.astype(float), atol=1e-4)
        else:
          values = [np.array([float(x) for x, _ in side]) for side in (scored, expected)]
          np.testing.assert_allclose(*values, atol=1e-4)
          assert [greedy for _, greedy in scored] == [greedy for _, greedy in expected]
  rows = lm_tasks.alignment_tax(both[1], both[0])
  assert {row['task'] for row in rows} == {task['task'] for task in tasks}
  assert all(abs(row['change']) < 1e-4 * max(1, abs(row['before'])) for row in rows)


def test_tasks_from_files_have_scores(backends, tasks, tmp_path):
  ours, _ = backends
  paths = write_tasks(tmp_path, tasks[0], tasks[3])
  manager, pieces = lm_tasks.find_tasks(paths)
  assert [piece.name for piece in pieces] == paths
  outcomes = [lm_tasks.evaluate(ours, manager, piece, limit=3) for piece in pieces]
  found = lm_tasks.merge(outcomes)
  assert json.loads(json.dumps(found)) == found
  assert {row['task'] for row in lm_tasks.scores(found)} == {'places', 'free'}
  (row,) = (row for row in lm_tasks.scores(found) if row['metric'] == 'acc')
  assert row['score'] in (0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)
  assert found['n-samples']['places']['effective'] == 3
  with pytest.raises(UserError, match="the task 'free' occurs twice"):
    lm_tasks.merge([*outcomes, outcomes[1]])


def write_tasks(folder, *tasks):
  """Files of tasks, as JSON, which is YAML."""
  for task in tasks:
    (folder / f'{task["task"]}.yaml').write_text(json.dumps(task))
  return [str(folder / f'{task["task"]}.yaml') for task in tasks]


@pytest.mark.parametrize('content', ['- a list', 'task: bad\noutput_type: nonsense\n', 'a: [', ''])
def test_files_without_tasks_are_refused(content, backends, tmp_path):
  ours, _ = backends
  (tmp_path / 'bad.yaml').write_text(content)

  def run():
    manager, (piece,) = lm_tasks.find_tasks([str(tmp_path / 'bad.yaml')])
    lm_tasks.evaluate(ours, manager, piece)

  with pytest.raises(UserError, match=r"cannot run '.*bad\.yaml'"):
    run()


def test_settings_change_with_file_data_and_code(tasks, tmp_path):
  (tmp_path / 'docs.jsonl').write_text('{}\n')
  (tmp_path / 'code.py').write_text('def shown(doc):\n  return "red"\n')
  files = {'data_files': {'test': str(tmp_path / 'docs.jsonl')}}
  path = tmp_path / 'places.yaml'
  content = json.dumps(tasks[0] | {'dataset_kwargs': files})

  def settings(text):
    path.write_text(text)
    return lm_tasks.find_tasks([str(path)], trust=True)[1][0].settings

  seen = [settings(content), settings(content)]
  assert seen[0] == seen[1]
  seen.append(settings(content.replace('Answer', 'Word')))
  (tmp_path / 'docs.jsonl').write_text('{}\n{}\n')
  seen.append(settings(content))
  with_code = content[:-1] + ', "doc_to_text": !function code.shown}'
  seen.append(settings(with_code))
  (tmp_path / 'code.py').write_text('def shown(doc):\n  return "blue"\n')
  seen.append(settings(with_code))
  assert len({json.dumps(one) for one in seen[1:]}) == 5


CODE = {  # of a task's file, all of which could run code
  'function': '"doc_to_text": !function code.shown',
  'function in a list': '"metric_list": [{"metric": !function code.shown}]',
  'filter': '"filter_list": [{"name": "x", "filter": [{"function": !function code.shown}]}]',
  'class': '"class": !function code.Task',
  'metric of a folder': '"metric_list": [{"metric": "./code"}]',
  'metric of the hub': '"metric_list": [{"metric": "exact_match", "hf_evaluate": true}]',
  'prompt': '"use_prompt": "promptsource:a"',
  'pickle': '"dataset_path": "pandas"',
  'included': '"include": "other.yaml"',
}


@pytest.mark.parametrize('code', CODE)
def test_code_of_task_files_needs_trust(code, tasks, tmp_path):
  trace = tmp_path / 'trace'
  (tmp_path / 'code.py').write_text(f'open({str(trace)!r}, "w")\nshown = Task = print\n')
  (tmp_path / 'other.yaml').write_text('{"doc_to_text": !function code.shown}')
  (tmp_path / 'places.yaml').write_text(f'{json.dumps(tasks[0])[:-1]}, {CODE[code]}}}')
  with pytest.raises(UserError, match=r"places\.yaml' runs .* set config.harness.trust_tasks=True"):
    lm_tasks.find_tasks([str(tmp_path / 'places.yaml')])
  assert not trace.exists()


def test_templates_of_tasks_run_no_code(backends, tasks, tmp_path):
  trace = tmp_path / 'trace'
  escape = "{{ cycler.__init__.__globals__['os'].system('touch " + str(trace) + "') }}"
  ours, _ = backends
  manager, (piece,) = lm_tasks.find_tasks(write_tasks(tmp_path, tasks[0] | {'doc_to_text': escape}))
  with pytest.raises(UserError, match=r'cannot run .*SecurityError'):
    lm_tasks.evaluate(ours, manager, piece)
  assert not trace.exists()


def test_interruption_ends_the_run_between_batches(backends):
  ours, _ = backends
  stop = lambda: (_ for _ in ()).throw(Interrupted('here'))
  own, ours._before_batch = ours._before_batch, stop
  try:
    with pytest.raises(Interrupted):
      ours.loglikelihood(requests('loglikelihood', ('The baker', ' went')))
    with pytest.raises(Interrupted):
      ours.generate_until(requests('generate_until', ('The', {'until': [], 'max_gen_toks': 8})))
  finally:
    ours._before_batch = own


def test_log_likelihoods_agree_for_any_context(backends):
  long = DOCS[-1]['text'] * 3
  rows = [
    ('', 'The baker'),
    ('The baker ', 'went'),
    ('The baker', ' went'),
    (long, ' to the market at noon.'),
    ('The', long[:60]),
    ('The baker', ' went'),
  ]
  found, expected = (model.loglikelihood(requests('loglikelihood', *rows)) for model in backends)
  np.testing.assert_allclose(
    *(np.array([x for x, _ in side]) for side in (found, expected)), atol=1e-4
  )
  assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_greedy_continuation_is_recognised(backends):
  ours, _ = backends
  context = ours.tok_encode('The baker')
  (found,) = ours._sample([context], Filters(top_k=1), 5)
  other = [*found[:-1], (found[-1] + 1) % 300]
  asked = [(None, context, tokens) for tokens in (found, other)]
  assert [greedy for _, greedy in ours._loglikelihood_tokens(asked)] == [True, False]


@pytest.mark.slow
def test_generations_stop_at_the_same_place(backends):
  rows = [
    ('The baker', {'until': ['zz'], 'max_gen_toks': 40}),
    ('Where did the old clerk go? ' * 4, {'until': 'a', 'max_gen_toks': 12}),
    ('The nurse', {'until': ['zz'], 'max_new_tokens': 7, 'do_sample': False, 'temperature': 0.9}),
    ('The', {'until': ['t', '\n'], 'max_gen_toks': 40}),
  ]
  piece = lm_harness.CHUNK
  try:
    lm_harness.CHUNK = 16  # so that some generations take several chunks
    found, expected = (
      model.generate_until(requests('generate_until', *rows)) for model in backends
    )
  finally:
    lm_harness.CHUNK = piece
  assert found == expected
  assert len(found[0]) > len(found[2]) > 0


def test_samples_differ_and_top_one_is_greedy(backends):
  ours, _ = backends
  ask = lambda **changed: ours.generate_until(
    requests('generate_until', ('The', {'until': [], 'max_gen_toks': 12, **changed}))
  )
  sampled = {'do_sample': True, 'temperature': 1.5}
  assert ask(**sampled) != ask(**sampled)
  assert ask(**sampled, top_k=1) == ask()
  with pytest.raises(UserError, match='num_beams'):
    ask(num_beams=4)
  with pytest.raises(UserError, match='60 tokens, and 48 fit'):
    ask(max_gen_toks=60)


def test_chat_template_is_applied(backends):
  talk = [{'role': 'user', 'content': 'Where?'}]
  ours, theirs = (model.apply_chat_template(talk) for model in backends)
  assert ours == theirs == ' Where?<sep>'
  found, expected = (model.tok_encode(ours) for model in backends)
  assert found == expected
  assert backends[0].tokenizer_name == 'small llama'


def test_answers_enter_the_harness_cache(backends, tmp_path):
  ours, _ = backends
  cached = lm_eval.api.model.CachingLM(ours, str(tmp_path / 'answers.db'))
  asked = requests('loglikelihood', ('The baker', ' went'), ('The baker', ' sat'))
  first = cached.loglikelihood(asked)
  score, ours._score = ours._score, None  # scoring again would fail
  try:
    assert cached.loglikelihood(asked) == first
  finally:
    ours._score = score
    ours.set_cache_hook(lm_eval.api.model.CacheHook(None))


def test_tax_is_after_minus_before():
  before = {'results': {'arc': {'acc,none': 0.5, 'acc_stderr,none': 0.03, 'alias': 'arc'}}}
  after = {
    'results': {
      'arc': {'acc,none': 0.4, 'acc_stderr,none': 0.04, 'alias': 'arc'},
      'other': {'acc,none': 1.0},
    }
  }
  (row,) = lm_tasks.alignment_tax(before, after)
  assert row == {
    'task': 'arc',
    'metric': 'acc',
    'before': 0.5,
    'after': 0.4,
    'change': pytest.approx(-0.1),
    'error': pytest.approx(0.05),
  }
  after['results']['arc']['acc_stderr,none'] = 'N/A'
  assert math.isnan(lm_tasks.alignment_tax(before, after)[0]['error'])
