"""Texts become two splits of tokens that share no prompt; so do real judgements."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax.data import dataset, tokenizers
from nlhf_jax.data.batches import Examples
from nlhf_jax.errors import UserError
from nlhf_jax.tasks.summaries import corpus as synthetic
from nlhf_jax.tasks.summaries import generator
from tests.data.chats import FAMILIES, save

SYNTHETIC = dict(
  posts=40,
  held_out=10,
  prompt_length=25,
  response_length=14,
  vocabulary=1024,
)
FILE = dict(
  schema='comparisons',
  split='',
  part='1/1',
  skip_bad=False,
  held_out=0.3,
  prompt_length=24,
  response_length=24,
  vocabulary=400,
)
# Ten prompts, of which prompt i has i % 3 + 1 comparisons, in no particular order.
RECORDS = [
  {'prompt': f'question {i % 10}', 'chosen': f'good {i} <eos>', 'rejected': f'<pad> {i} \U0001f389'}
  for i in range(30)
  if i // 10 <= i % 10 % 3
]


def make_file_corpus(folder, pretrained='', seed=0, **settings):
  return dataset.make_file_corpus(dataset.FileData(**settings), seed, pretrained, folder)


@pytest.fixture
def make(tmp_path):
  """A function that writes records to a file and makes a corpus of it."""

  def make(records, **changes):
    path = tmp_path / 'mine.jsonl'
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return make_file_corpus(path=str(path), folder=tmp_path / 'kept', **FILE | changes)

  return make


@pytest.fixture
def make_synthetic(tmp_path):
  """A function that makes a corpus of the embedded task."""

  def make(pretrained='', seed=0, **changes):
    data = synthetic.SyntheticData(**SYNTHETIC | changes)
    return synthetic.make_synthetic_corpus(data, seed, pretrained, tmp_path)

  return make


def whole(part):
  """Examples or arrays as arrays."""
  return part.all() if isinstance(part, Examples) else part


def prompts(corpus, prompts):
  prompts = whole(prompts)
  return tokenizers.response_texts(corpus.tokenizer, prompts.tokens, prompts.mask)


def comparisons(corpus, split):
  """The comparisons of a split, decoded."""
  batch = whole(split.comparisons)
  assert np.all(batch.payoff == 0.5)
  assert batch.payoff.shape == (len(batch.prompts.tokens), 1, 1)
  sides = [
    tokenizers.response_texts(corpus.tokenizer, *side[:2]) for side in (batch.left, batch.right)
  ]
  return [
    {'prompt': prompt, 'chosen': left, 'rejected': right}
    for prompt, left, right in zip(prompts(corpus, batch.prompts), *sides, strict=True)
  ]


def graded(corpus, split):
  """The comparisons of a split as (prompt, left, right, payoff)."""
  batch = whole(split.comparisons)
  sides = [
    tokenizers.response_texts(corpus.tokenizer, *side[:2]) for side in (batch.left, batch.right)
  ]
  return list(zip(prompts(corpus, batch.prompts), *sides, batch.payoff.ravel(), strict=True))


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('share', [0.01, 0.3, 0.99])
def test_splits_share_no_prompt_and_lose_no_comparison(make, seed, share):
  corpus = make(RECORDS, seed=seed, held_out=share)
  parts = [comparisons(corpus, split) for split in (corpus.train, corpus.held_out)]
  key = lambda record: sorted(record.items())
  assert sorted([*parts[0], *parts[1]], key=key) == sorted(RECORDS, key=key)
  train, tested = ({record['prompt'] for record in part} for part in parts)
  assert not train & tested
  assert len(tested) == min(max(1, round(share * 10)), 9)


def test_prompts_are_unique_and_chosen_responses_are_demonstrations(make):
  corpus = make(RECORDS)
  for split in (corpus.train, corpus.held_out):
    records = comparisons(corpus, split)
    found = prompts(corpus, split.prompts)
    assert sorted(found) == sorted({record['prompt'] for record in records})
    assert whole(split.demonstrations).right is None
    shown = tokenizers.response_texts(corpus.tokenizer, *whole(split.demonstrations).left[:2])
    assert shown == [record['chosen'] for record in records]


@pytest.mark.parametrize('reorder', [list, reversed])
def test_split_depends_on_seed_not_line_order(make, reorder):
  def tested(records, seed):
    corpus = make(records, seed=seed)
    return set(prompts(corpus, corpus.held_out.prompts))

  assert tested(list(reorder(RECORDS)), 0) == tested(RECORDS, 0)
  assert len({frozenset(tested(RECORDS, seed)) for seed in range(6)}) > 1


def test_long_responses_are_cut_and_counted(make, capsys):
  long = [{'prompt': f'question {i}', 'chosen': 'a b ' * 40, 'rejected': 'no'} for i in range(3)]
  corpus = make([*long, *RECORDS])
  masks = [whole(split.comparisons).left.mask for split in (corpus.train, corpus.held_out)]
  assert np.concatenate(masks).all(axis=(1, 2)).sum() == 3
  (printed,) = capsys.readouterr().out.splitlines()
  assert printed.endswith('cut 3 of 44 responses to config.data.response_length=24 tokens.')
  assert (corpus.account['cut'], corpus.account['responses']) == (3, 44)


def test_graded_preferences_and_ties_are_kept(make):
  rows = [
    {'prompt': f'q {i}', 'left': f'a {i}', 'right': f'b {i}', 'preference': i / 20, 'votes': 20}
    for i in range(21)
  ]
  corpus = make(rows, schema='graded')
  found = [*graded(corpus, corpus.train), *graded(corpus, corpus.held_out)]
  for prompt, left, right, payoff in found:
    number = int(prompt.split()[1])
    assert (left, right) == (f'a {number}', f'b {number}')
    assert payoff == np.float32(number / 20 - 0.5)
  assert (corpus.account['ties'], corpus.account['graded']) == (1, 18)
  # Ties give no demonstration; the preferred responses of the others do.
  shown = [whole(split.demonstrations) for split in (corpus.train, corpus.held_out)]
  texts = [
    text for part in shown for text in tokenizers.response_texts(corpus.tokenizer, *part.left[:2])
  ]
  assert sorted(texts) == sorted(f'{"ab"[i < 10]} {i}' for i in range(21) if i != 10)


def test_several_files_make_one_corpus(make, tmp_path):
  def write(name, rows):
    path = tmp_path / name
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)

  sources = {
    'demonstrations': [{'prompt': f'question {i}', 'response': f'shown {i}'} for i in range(4, 14)],
    'prompts': [{'prompt': f'question {i}'} for i in range(12, 20)],
  }
  paths = [write(f'{schema}.jsonl', rows) for schema, rows in sources.items()]
  own = write('own.jsonl', RECORDS)
  corpus = make_file_corpus(
    path=','.join([own, *paths]),
    folder=tmp_path / 'kept',
    **FILE | {'schema': ','.join(['comparisons', *sources])},
  )
  by_split = [set(prompts(corpus, split.prompts)) for split in (corpus.train, corpus.held_out)]
  assert by_split[0] | by_split[1] == {f'question {i}' for i in range(20)}
  assert not by_split[0] & by_split[1]
  shown = [whole(split.demonstrations) for split in (corpus.train, corpus.held_out)]
  for part, known in zip(shown, by_split, strict=True):
    assert set(prompts(corpus, part.prompts)) <= known
  texts = [
    text for part in shown for text in tokenizers.response_texts(corpus.tokenizer, *part.left[:2])
  ]
  assert sorted(texts) == sorted(row['response'] for row in sources['demonstrations'])
  assert sum(corpus.account[name]['comparisons'] for name in ('train', 'held_out')) == len(RECORDS)


def test_prompts_alone_make_a_corpus(make):
  corpus = make([{'prompt': f'question {i}'} for i in range(9)], schema='prompts')
  for name, count in (('train', 6), ('held_out', 3)):
    expected = {'prompts': count, 'demonstrations': 0, 'comparisons': 0, 'unpaired': 0}
    assert corpus.account[name] == expected
  assert len(prompts(corpus, corpus.train.prompts)) == 6


def test_thirds_are_disjoint_and_independent_of_line_order(make):
  rows = [{'prompt': f'question {i}', 'chosen': 'a', 'rejected': 'b'} for i in range(30)] * 2

  def third(number, rows):
    corpus = make(rows, part=f'{number}/3')
    return [set(prompts(corpus, split.prompts)) for split in (corpus.train, corpus.held_out)]

  thirds, (held_out, *others) = zip(*(third(number, rows) for number in (1, 2, 3)), strict=True)
  assert held_out == others[0] == others[1]
  assert sum(map(len, (*thirds, held_out))) == len(set().union(*thirds, held_out)) == 30
  assert max(map(len, thirds)) - min(map(len, thirds)) <= 1
  assert third(2, rows[::-1]) == [thirds[1], held_out]
  for part in ('0/3', '4/3', '1', 'a/b', '1/0'):
    with pytest.raises(UserError, match=f"^config.data.part='{part}' must be like 1/3"):
      make(rows, part=part)
  with pytest.raises(UserError, match='are there to train on; use fewer parts'):
    make(rows, part='1/30')


def test_tokenised_texts_are_reused_until_a_setting_changes(make, tmp_path, monkeypatch):
  kept = lambda: sorted(tmp_path.glob('kept/data-*'))
  first = make(RECORDS)
  (place,) = kept()
  before = {file: file.stat().st_mtime_ns for file in place.iterdir()}
  monkeypatch.setattr(tokenizers, 'train', None)
  again = make(RECORDS, response_length=12, seed=3, held_out=0.5)  # these do not change the tokens
  assert kept() == [place]
  assert {file: file.stat().st_mtime_ns for file in place.iterdir()} == before
  assert tokenizers.settings(again.tokenizer) == tokenizers.settings(first.tokenizer)
  monkeypatch.undo()
  make(RECORDS[1:])
  make(RECORDS, vocabulary=300)
  make(RECORDS, skip_bad=True)
  assert len(kept()) == 4


LONG = [{'prompt': 'why ' * 40, 'chosen': 'yes', 'rejected': 'no'}]


def test_a_prompt_that_is_too_long_is_refused(make, tmp_path):
  with pytest.raises(UserError) as refused:
    make(RECORDS + LONG)
  sentence = str(refused.value)
  assert sentence.startswith(f"{tmp_path}/mine.jsonl, line {len(RECORDS) + 1}: field 'prompt' has ")
  assert 'leaves no room for a response (config.data.prompt_length=24)' in sentence
  assert 'raise that length' in sentence


def test_prompts_that_are_too_long_can_be_skipped(make, capsys):
  corpus = make(RECORDS + LONG + LONG, skip_bad=True)
  counts = [len(whole(split.comparisons).payoff) for split in (corpus.train, corpus.held_out)]
  assert sum(counts) == len(RECORDS)
  assert list(corpus.account['dropped'].values()) == [2]
  assert "skipped 2 rows: field 'prompt' leaves no room" in capsys.readouterr().out


@pytest.mark.parametrize(
  ('records', 'found'),
  [
    ([], 'no rows found'),
    (RECORDS[:1], '1 different prompt found'),
    ([RECORDS[0] | {'chosen': str(i)} for i in range(5)], '1 different prompt found'),
  ],
)
def test_too_few_comparisons_are_refused(make, tmp_path, records, found):
  with pytest.raises(UserError, match=f'^{tmp_path}/mine.jsonl: {found}; (write|add) '):
    make(records)


def test_skipping_all_prompts_is_refused(make):
  with pytest.raises(UserError, match='0 different prompts found'):
    make(LONG, skip_bad=True)


def test_the_embedded_task_has_two_splits(make_synthetic):
  corpus = make_synthetic()
  assert corpus.oracle
  assert corpus.annotator
  texts = []
  for split, count in ((corpus.train, 40), (corpus.held_out, 10)):
    split = type(split)(*map(whole, split))
    posts = prompts(corpus, split.prompts)
    texts.extend(posts)
    assert len(posts) == count
    assert all(len(generator.key_facts(post)) == 5 for post in posts)
    for part in (split.demonstrations, split.comparisons):
      jax.tree.map(np.testing.assert_array_equal, part.prompts, split.prompts)
    assert set(np.round(3 * (split.comparisons.payoff + 0.5)).ravel()) <= {0, 1, 2, 3}
  assert len(set(texts)) == 50


def test_the_embedded_task_depends_only_on_the_seed(make_synthetic):
  one, again, other = (make_synthetic(seed=seed) for seed in (0, 0, 1))
  for part in range(3):
    jax.tree.map(np.testing.assert_array_equal, whole(one.train[part]), whole(again.train[part]))
  jax.tree.map(np.testing.assert_array_equal, one.held_out, again.held_out)
  assert not np.array_equal(whole(one.train.prompts).tokens, whole(other.train.prompts).tokens)


@pytest.mark.parametrize(
  ('field', 'value', 'blamed'),
  [
    ('prompt_length', 20, 'prompt_length'),
    ('prompt_length', 0, 'prompt_length'),
    ('response_length', 11, 'response_length'),
    ('vocabulary', 300, 'prompt_length'),
  ],
)
def test_too_short_lengths_for_embedded_task_are_refused(make_synthetic, field, value, blamed):
  with pytest.raises(UserError, match=f'^config.data.{blamed}=.* is too short; .* tokens'):
    make_synthetic(**{field: value})


@pytest.fixture
def alpaca(shared, monkeypatch):
  monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
  from benchmarks import alpaca_comparisons

  return lambda count: alpaca_comparisons.comparisons(shared / 'data' / 'alpaca_eval', count)


def test_real_judgements_become_a_corpus(alpaca, make):
  records = alpaca(300)
  assert len(records) == 300
  lengths = {'prompt_length': 64, 'response_length': 128, 'vocabulary': 4096}
  corpus = make(records, schema='graded', skip_bad=True, held_out=0.1, **lengths)
  both = [graded(corpus, split) for split in (corpus.train, corpus.held_out)]
  assert min(map(len, both)) > 10
  assert not corpus.account['dropped']
  assert corpus.account['graded'] == 300
  assert sorted([*both[0], *both[1]]) == sorted(
    (row['prompt'], row['left'], row['right'], np.float32(row['preference'] - 0.5))
    for row in records
  )


def test_too_many_real_judgements_are_refused(alpaca):
  with pytest.raises(ValueError, match='fewer than 1000000'):
    alpaca(1_000_000)


@pytest.fixture(scope='module', params=['llama', 'chatml', 'mistral'])
def chat(request, tmp_path_factory):
  """The folder of a tokenizer with a chat template."""
  return save(tmp_path_factory.mktemp('chat'), *FAMILIES[request.param][0]())


def turns(number):
  texts = [f'question {number}', f'answer {number}', 'and why?']
  roles = ('user', 'assistant', 'user')
  return [{'role': role, 'content': text} for role, text in zip(roles, texts, strict=True)]


def test_conversations_become_a_corpus_with_a_chat_tokenizer(make, chat):
  talks = [
    {'prompt': turns(i // 2), 'chosen': f'good {i}', 'rejected': f'bad {i}'} for i in range(20)
  ]
  corpus = make([*RECORDS, *talks], pretrained=chat, prompt_length=250, response_length=60)
  assert len(corpus.tokenizer) == len(tokenizers.load(chat))
  shown, by_split = [], []
  for split in (corpus.train, corpus.held_out):
    read = tokenizers.prompt_texts(corpus.tokenizer, *whole(split.prompts))
    assert len(set(read)) == len(read)
    by_split.append(set(read))
    parts = whole(split.comparisons)
    for prompt, chosen in zip(
      tokenizers.prompt_texts(corpus.tokenizer, *parts.prompts),
      tokenizers.response_texts(corpus.tokenizer, *parts.left[:2]),
      strict=True,
    ):
      assert prompt in read
      shown.append((prompt.endswith('and why?'), chosen))
    stops = (parts.left.tokens == corpus.tokenizer.eos_token_id) & parts.left.mask
    assert np.all(stops.sum(axis=(1, 2)) == 1)
  assert not by_split[0] & by_split[1]
  assert len(by_split[1]) == 6  # 0.3 of ten questions and ten conversations
  expected = [(False, row['chosen']) for row in RECORDS] + [(True, row['chosen']) for row in talks]
  assert sorted(shown) == sorted(expected)


def test_conversations_need_a_chat_template(make, tmp_path, capsys):
  talk = {'prompt': turns(0), 'chosen': 'yes', 'rejected': 'no'}
  with pytest.raises(UserError) as refused:
    make([*RECORDS, talk])
  sentence = str(refused.value)
  where = f'{tmp_path}/mine.jsonl, line {len(RECORDS) + 1}: '
  assert sentence.startswith(f'{where}there is no chat template for a conversation; ')
  assert 'name a model whose chat template accepts it in config.model.hf' in sentence
  corpus = make([*RECORDS, talk, talk], skip_bad=True)
  assert sum(corpus.account[split]['prompts'] for split in ('train', 'held_out')) == 10
  assert 'skipped 2 rows: there is no chat template for a conv' in capsys.readouterr().out
  with pytest.raises(UserError, match='0 different prompts found'):
    make([talk, talk], skip_bad=True)


def test_conversation_refused_by_template_is_bad_line(make, tmp_path):
  folder = save(tmp_path / 'gemma', *FAMILIES['gemma'][0]())
  talk = {'prompt': [{'role': 'system', 'content': 'a'}, *turns(0)], 'chosen': 'b', 'rejected': 'c'}
  problem = rf'line {len(RECORDS) + 1}: the chat template refuses .* \(no system messages'
  with pytest.raises(UserError, match=problem):
    make([*RECORDS, talk], pretrained=folder, prompt_length=250, response_length=60)


def test_the_embedded_task_works_with_a_chat_tokenizer(chat, make_synthetic):
  corpus = make_synthetic(prompt_length=250, response_length=120, pretrained=chat)
  own = make_synthetic()
  for split, plain in ((corpus.train, own.train), (corpus.held_out, own.held_out)):
    read = tokenizers.prompt_texts(corpus.tokenizer, *whole(split.prompts))
    assert read == prompts(own, plain.prompts)
    assert texts_of_comparisons(corpus, split) == texts_of_comparisons(own, plain)
  with pytest.raises(UserError, match=r'^config.data.prompt_length=25 .* \d+ tokens; raise it'):
    make_synthetic(pretrained=chat)


def texts_of_comparisons(corpus, split):
  compared = whole(split.comparisons)
  sides = (whole(split.demonstrations).left, compared.left, compared.right)
  return [tokenizers.response_texts(corpus.tokenizer, *side[:2]) for side in sides]


def test_a_tokenizer_that_cannot_be_loaded_is_refused(make, tmp_path):
  with pytest.raises(UserError, match=f"^config.model.hf='{tmp_path}' holds no tokenizer"):
    make(RECORDS, pretrained=str(tmp_path))
