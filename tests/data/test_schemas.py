"""Every schema reads rows in the layout in which they were published."""

import gzip
import json
from collections import Counter

import pytest

from nlhf_jax.data import examples, schemas
from nlhf_jax.data.conversations import Message
from nlhf_jax.data.readers import Problem
from nlhf_jax.data.schemas import Example

POST = {
  'id': 't3_1abcde',
  'subreddit': 'relationships',
  'title': 'I lost my violin',
  'post': 'It was on the train.\n\nWhat now?',
}
ASKED = (
  'SUBREDDIT: r/relationships\n\nTITLE: I lost my violin\n\n'
  'POST: It was on the train.\n\nWhat now?\n\nTL;DR:'
)
OPENAI = {
  'info': POST | {'site': None, 'article': None},
  'summaries': [
    {'text': ' Lost a violin.', 'policy': 'sup2', 'note': ''},
    {'text': ' Trains, what now?', 'policy': 'ref', 'note': 'short'},
  ],
  'choice': 1,
  'worker': 'x1',
  'batch': 'batch3',
  'split': 'train',
  'extra': {'confidence': None},
}
NEWS = {
  'id': 'f00',
  'post': None,
  'title': None,
  'subreddit': None,
  'site': 'cnndm',
  'article': 'It rained.',
}


def transcript(*turns):
  """A transcript in the layout of Anthropic."""
  names = ('Human', 'Assistant')
  return ''.join(f'\n\n{names[i % 2]}: {text}' for i, text in enumerate(turns))


def talk(*turns):
  roles = ('user', 'assistant')
  return [{'content': text, 'role': roles[i % 2]} for i, text in enumerate(turns)]


ULTRAFEEDBACK = {
  'prompt': 'Say hi.',
  'prompt_id': '00ff',
  'chosen': talk('Say hi.', 'Hi!'),
  'rejected': talk('Say hi.', 'No.'),
  'messages': talk('Say hi.', 'Hi!'),
  'score_chosen': 8.5,
  'score_rejected': 3.0,
}
ALPACA = {
  'instruction': 'Say hi.',
  'output_1': 'Hi!',
  'generator_1': 'gpt4_1106_preview',
  'dataset': 'helpful_base',
  'output_2': 'No.',
  'generator_2': 'phi-2',
  'annotator': 'weighted_alpaca_eval_gpt4_turbo',
  'preference': 1.25,
  'price_per_example': 0.01,
  'time_per_example': 0.5,
  'raw_completion': {'text': 'm'},
}
PANDALM = {
  'idx': 0,
  'motivation_app': 'Grammarly',
  'cmp_key': 'bloom-7b_llama-7b',
  'instruction': 'Rewrite it.',
  'input': 'It it rains.',
  'response1': 'It rains.',
  'response2': 'Rain.',
  'annotator1': 1,
  'annotator2': 2,
  'annotator3': 0,
}
LLMBAR = {'input': 'Say hi.', 'output_1': 'Hi!', 'output_2': 'No.', 'label': 2}
AUTOJ = {
  'scenario': 'chitchat',
  'label': 2,
  'prompt': 'Say hi.',
  'response 1': 'Hi!',
  'response 2': 'No.',
}
TURNS = (Message('user', 'Hello?'), Message('assistant', 'Yes?'), Message('user', 'Say hi.'))
SYSTEM = {'role': 'system', 'content': 'Be brief.'}
BRIEFLY = (Message('system', 'Be brief.'), Message('user', 'a'))
OPENAI_PART = [{'type': 'input_text', 'text': 'a', 'annotations': None}]


def parts(*turns):
  """Messages whose contents are lists of two equal parts."""
  messages = talk(*turns)
  part = lambda text: {'type': 'text', 'text': text, 'image_url': None}
  return [{**one, 'content': [part(one['content'])] * 2} for one in messages]


READ = [
  ('tldr_comparisons', OPENAI, Example(ASKED, 'Lost a violin.', 'Trains, what now?', 0.0)),
  (
    'tldr_comparisons',
    OPENAI | {'info': NEWS, 'choice': 0},
    Example('Article:\nIt rained.\n\nTL;DR:', 'Lost a violin.', 'Trains, what now?', 1.0),
  ),
  (
    'tldr_posts',
    POST | {'summary': 'violin gone'},
    Example(ASKED, demonstration='violin gone'),
  ),
  (
    'hh',
    {'chosen': transcript('Say hi.', 'Hi!'), 'rejected': transcript('Say hi.', 'No.')},
    Example('Say hi.', 'Hi!', 'No.'),
  ),
  (
    'hh',
    {
      'chosen': transcript('Hello?', 'Yes?', 'Say hi.', 'Hi!'),
      'rejected': transcript('Hello?', 'Yes?', 'Say hi.', 'No.'),
    },
    Example(TURNS, 'Hi!', 'No.'),
  ),
  (
    'hh_transcripts',
    {
      'chosen': transcript('Hello?', 'Yes?', 'Say hi.', 'Hi!'),
      'rejected': transcript('Hello?', 'Yes?', 'Say hi.', 'No.'),
    },
    Example(transcript('Hello?', 'Yes?', 'Say hi.') + '\n\nAssistant:', 'Hi!', 'No.'),
  ),
  ('ultrafeedback', ULTRAFEEDBACK, Example('Say hi.', 'Hi!', 'No.')),
  ('ultrafeedback', ULTRAFEEDBACK | {'score_rejected': 8.5}, Example('Say hi.', 'Hi!', 'No.', 0.5)),
  ('prompts', ULTRAFEEDBACK, Example('Say hi.')),
  ('prompts', {'prompt': [message._asdict() for message in TURNS]}, Example(TURNS)),
  ('comparisons', {'chosen': talk('a', 'b'), 'rejected': talk('a', 'c')}, Example('a', 'b', 'c')),
  (
    'comparisons',
    {'prompt': talk('a'), 'chosen': talk('a', 'b')[1:], 'rejected': talk('a', 'c')[1:]},
    Example('a', 'b', 'c'),
  ),
  (
    'graded',
    {'prompt': 'a', 'left': 'b', 'right': 'c', 'preference': 0.7, 'votes': 10},
    Example('a', 'b', 'c', 0.7, 10),
  ),
  (
    'graded',
    {'prompt': 'a', 'left': 'b', 'right': 'c', 'preference': 0, 'votes': None},
    Example('a', 'b', 'c', 0.0),
  ),
  ('demonstrations', {'prompt': 'a', 'response': 'b'}, Example('a', demonstration='b')),
  ('demonstrations', {'prompt': 'a', 'completion': 'b'}, Example('a', demonstration='b')),
  ('demonstrations', {'messages': talk('a', 'b')}, Example('a', demonstration='b')),
  (
    'demonstrations',
    {'prompt': 'a title', 'messages': talk('Hello?', 'Yes?', 'Say hi.', 'Hi!')},
    Example(TURNS, demonstration='Hi!'),
  ),
  (
    'dialogues',
    {'messages': talk('a', 'b', 'c', 'd', 'e')},
    Example('a', demonstration='b', replies=('c', 'e')),
  ),
  ('dialogues', {'messages': talk('a')}, Example('a')),
  ('dialogues', {'messages': [SYSTEM, *talk('a', 'b')]}, Example(BRIEFLY, demonstration='b')),
  (
    'hh_dialogues',
    {'chosen': transcript('Hello?', 'Yes?', 'Say hi.', 'Hi!'), 'rejected': None},
    Example('Hello?', demonstration='Yes?', replies=('Say hi.',)),
  ),
  (
    'mt_bench',
    {'question_id': 81, 'category': 'writing', 'turns': ['Write.', 'Shorter.']},
    Example('Write.', replies=('Shorter.',)),
  ),
  ('mt_bench', {'prompt': ['Write.'], 'prompt_id': 1}, Example('Write.')),
  ('unpaired', {'prompt': 'a', 'completion': 'b', 'label': True}, Example('a', 'b')),
  ('unpaired', {'prompt': 'a', 'completion': 'b', 'label': 0}, Example('a', 'b', None, 0.0)),
  (
    'unpaired',
    {'prompt': talk('a'), 'completion': talk('a', 'b')[1:], 'label': False},
    Example('a', 'b', None, 0.0),
  ),
  ('unpaired', {'completion': talk('a', 'b'), 'label': True}, Example('a', 'b')),
  (
    'implicit_prompt',
    {'chosen': 'Q: a? Yes', 'rejected': 'Q: a? No'},
    Example('Q: a?', ' Yes', ' No'),
  ),
  ('implicit_prompt', {'chosen': 'Q\nYes.', 'rejected': 'Q\nYet.'}, Example('Q\n', 'Yes.', 'Yet.')),
  (
    'implicit_prompt',
    {'chosen': 'So it is fine', 'rejected': 'So it is'},
    Example('So it', ' is fine', ' is'),
  ),
  (
    'comparisons',
    {'prompt': 'a', 'chosen': [SYSTEM, *talk('a', 'b')], 'rejected': [SYSTEM, *talk('a', 'c')]},
    Example(BRIEFLY, 'b', 'c'),
  ),
  (
    'comparisons',
    {'prompt': talk('a'), 'chosen': [SYSTEM, *talk('a', 'b')], 'rejected': 'c'},
    Example(BRIEFLY, 'b', 'c'),
  ),
  (
    'comparisons',
    {'chosen': [SYSTEM, *talk('a', 'b')], 'rejected': [SYSTEM, *talk('a', 'c')]},
    Example(BRIEFLY, 'b', 'c'),
  ),
  (
    'comparisons',
    {'prompt': parts('a'), 'chosen': parts('a', 'b'), 'rejected': parts('a', 'c')},
    Example('aa', 'bb', 'cc'),
  ),
  ('prompts', {'prompt': [{'role': 'user', 'content': OPENAI_PART}]}, Example('a')),
  ('alpaca_eval', ALPACA, Example('Say hi.', 'Hi!', 'No.', 0.75)),
  ('alpaca_eval', ALPACA | {'preference': 0}, Example('Say hi.', 'Hi!', 'No.', 0.5)),
  ('alpaca_eval', ALPACA | {'preference': 1.5}, Example('Say hi.', 'Hi!', 'No.', 0.5)),
  ('llmbar', LLMBAR, Example('Say hi.', 'Hi!', 'No.', 0.0)),
  ('pandalm', PANDALM, Example('Rewrite it.\n\nIt it rains.', 'It rains.', 'Rain.', 0.5, 3)),
  (
    'pandalm',
    PANDALM | {'input': '', 'annotator3': 1},
    Example('Rewrite it.', 'It rains.', 'Rain.', 2 / 3, 3),
  ),
  ('autoj', AUTOJ, Example('Say hi.', 'Hi!', 'No.', 0.5)),
  ('autoj', AUTOJ | {'label': 1}, Example('Say hi.', 'Hi!', 'No.', 0.0)),
  (
    'embedded',
    {'post': 'a', 'summary': 'b', 'left': 'c', 'right': 'c', 'votes_left': 2, 'votes': 3},
    Example('a', 'c', 'c', 2 / 3, 3, 'b'),
  ),
]
REFUSED = [
  ('tldr_comparisons', OPENAI | {'choice': 2}, "field 'choice' is none of 0, 1: 2"),
  ('tldr_comparisons', OPENAI | {'choice': True}, "field 'choice' is none of 0, 1: True"),
  ('tldr_comparisons', OPENAI | {'summaries': OPENAI['summaries'][:1]}, 'is not a list of two'),
  ('tldr_comparisons', OPENAI | {'summaries': ['a', 'b']}, "'text' of summary 0 is missing"),
  ('tldr_comparisons', OPENAI | {'info': 'x'}, "field 'info' is not a JSON object but str"),
  ('tldr_comparisons', OPENAI | {'info': POST | {'post': ''}}, "field 'post' is empty"),
  ('tldr_posts', POST, "field 'summary' is missing"),
  (
    'hh',
    {'chosen': transcript('a', 'b', 'c', 'd'), 'rejected': transcript('a', 'x', 'c', 'e')},
    "field 'rejected' has other messages than the prompt before its last",
  ),
  (
    'hh',
    {'chosen': transcript('a', 'b'), 'rejected': transcript('a', 'b', 'c', 'd')},
    "field 'rejected' has other messages than the prompt before its last",
  ),
  (
    'hh',
    {'chosen': transcript('a', ''), 'rejected': transcript('a', 'b')},
    "of field 'chosen' is empty",
  ),
  ('hh', {'chosen': 'a', 'rejected': 'b'}, "field 'chosen' does not begin with"),
  (
    'hh',
    {'chosen': transcript('a'), 'rejected': transcript('a')},
    'is not a question and an answer',
  ),
  (
    'hh',
    {'chosen': transcript('a', 'b', 'c'), 'rejected': transcript('a', 'b', 'd')},
    'not user and assis',
  ),
  (
    'hh_transcripts',
    {'chosen': transcript('a', 'b'), 'rejected': transcript('x', 'b')},
    "field 'rejected' has other messages",
  ),
  ('hh_transcripts', {'chosen': 'a', 'rejected': 'b'}, 'is not a question and an answer'),
  ('ultrafeedback', {**ULTRAFEEDBACK, 'score_chosen': None}, 'is not a number but NoneType'),
  ('graded', {'prompt': 'a', 'left': 'b', 'right': 'c'}, "field 'preference' is missing"),
  (
    'graded',
    {'prompt': 'a', 'left': 'b', 'right': 'c', 'preference': 1.01},
    "field 'preference' is not a number in [0, 1]: 1.01",
  ),
  (
    'graded',
    {'prompt': 'a', 'left': 'b', 'right': 'c', 'preference': float('nan')},
    "field 'preference' is not a number in [0, 1]: nan",
  ),
  (
    'graded',
    {'prompt': 'a', 'left': 'b', 'right': 'c', 'preference': True},
    "field 'preference' is not a number but bool",
  ),
  (
    'graded',
    {'prompt': 'a', 'left': 'b', 'right': 'c', 'preference': 1, 'votes': 1.5},
    "field 'votes' is not a whole number",
  ),
  ('demonstrations', {'prompt': 'a'}, "field 'response' is missing; it has ['prompt']"),
  ('prompts', {'text': 'a'}, "field 'prompt' is missing"),
  ('demonstrations', {'messages': talk('a', 'b', 'c')}, 'not user and assistant in turn'),
  ('demonstrations', {'messages': talk('a')}, "field 'prompt' is missing; it has ['messages']"),
  ('demonstrations', {'messages': [SYSTEM, *talk('a', '')]}, "of field 'messages' is empty"),
  ('dialogues', {'messages': talk('a', 'b')[1:]}, 'not user and assistant in turn, from a user'),
  ('dialogues', {'messages': [SYSTEM]}, 'not user and assistant in turn, from a user'),
  ('dialogues', {'messages': []}, "field 'messages' is empty"),
  ('hh_dialogues', {'chosen': 'Hello?'}, "field 'chosen' does not begin with"),
  ('mt_bench', {'turns': 'Write.'}, "field 'turns' is not a list of questions"),
  ('mt_bench', {'turns': ['Write.', '']}, "a question of field 'turns' is empty"),
  ('mt_bench', {'question_id': 81}, "field 'prompt' is missing"),
  ('unpaired', {'prompt': 'a', 'completion': 'b'}, "field 'label' is missing"),
  ('unpaired', {'prompt': 'a', 'completion': 'b', 'label': 'true'}, "neither true nor false: 'tr"),
  ('unpaired', {'prompt': 'a', 'completion': 'b', 'label': 0.5}, 'neither true nor false: 0.5'),
  ('unpaired', {'prompt': 'a', 'completion': 'b', 'label': None}, 'neither true nor false: None'),
  ('unpaired', {'prompt': 'a', 'completion': talk('b', 'c'), 'label': True}, 'has other messages'),
  ('comparisons', {'chosen': 'Q: a', 'rejected': 'Q: b'}, 'config.data.schema=implicit_prompt'),
  ('implicit_prompt', {'chosen': 'Yes', 'rejected': 'Yet'}, 'do not begin with the same words'),
  ('implicit_prompt', {'chosen': ' Yes', 'rejected': 'No'}, 'do not begin with the same words'),
  ('implicit_prompt', {'chosen': 'Q: a', 'rejected': 'Q: a'}, 'are the same'),
  ('implicit_prompt', {'chosen': 'Q: a', 'rejected': 'Q: '}, 'after the common start is empty'),
  (
    'implicit_prompt',
    {'chosen': talk('a', 'b'), 'rejected': talk('a', 'c')},
    'not a string but list',
  ),
  (
    'comparisons',
    {'prompt': 'a', 'chosen': [SYSTEM, *talk('a', 'b')], 'rejected': talk('a', 'c')},
    "fields 'chosen' and 'rejected' have different system messages",
  ),
  (
    'comparisons',
    {'prompt': 'x', 'chosen': [SYSTEM, *talk('a', 'b')], 'rejected': [SYSTEM, *talk('a', 'c')]},
    "field 'chosen' has other messages than the prompt",
  ),
  (
    'comparisons',
    {'chosen': talk('a', 'b', 'More?', 'd'), 'rejected': talk('a', 'c', 'More?', 'e')},
    "field 'rejected' has other messages than the prompt",
  ),
  ('alpaca_eval', ALPACA | {'preference': None}, "field 'preference' is not a number but NoneType"),
  ('alpaca_eval', ALPACA | {'preference': False}, "field 'preference' is not a number but bool"),
  ('alpaca_eval', ALPACA | {'output_2': 'Hi!'}, "'output_1' and 'output_2' are the same"),
  ('llmbar', LLMBAR | {'label': 0}, "field 'label' is none of 1, 2: 0"),
  ('pandalm', {**PANDALM, 'annotator2': '1'}, "field 'annotator2' is none of 1, 2, 0: '1'"),
  ('autoj', AUTOJ | {'response 2': None}, "field 'response 2' is not a string but NoneType"),
]


@pytest.mark.parametrize(('schema', 'row', 'record'), READ)
def test_a_published_row_becomes_an_example(schema, row, record):
  assert schemas.SCHEMAS[schema](row) == record


@pytest.mark.parametrize(('schema', 'row', 'problem'), REFUSED)
def test_an_unusable_row_is_refused_with_its_field(schema, row, problem):
  with pytest.raises(Problem) as refused:
    schemas.SCHEMAS[schema](row)
  assert problem in str(refused.value)


def test_every_schema_is_tested():
  assert {schema for schema, *_ in READ} == set(schemas.SCHEMAS)


def test_alpaca_evals_file_keeps_graded_preferences(shared):
  folder = shared / 'data' / 'alpaca_eval'
  path = folder / 'original_format' / 'vicuna-13b-v1.5.annotations.json.gz'
  records = list(examples.read_examples(str(path), 'alpaca_eval', '', skip_bad=True))
  with gzip.open(path) as file:
    rows = json.load(file)
  expected = {row['instruction']: 2 - row['preference'] for row in rows}
  assert len(records) > 0.99 * len(rows)
  for record in records:
    assert record.preference == pytest.approx(expected[record.prompt], abs=1e-12)


def test_mt_benchs_questions_have_a_second_turn(shared):
  path = shared / 'data' / 'mt_bench' / 'question.jsonl.gz'
  records = list(examples.read_examples(str(path), 'mt_bench', '', skip_bad=False))
  assert len({record.prompt for record in records}) == 80
  assert all(len(record.replies) == 1 for record in records)
  assert records[0].replies[0].startswith('Rewrite your previous response.')


def test_all_of_llmbar_is_read(shared):
  path = shared / 'data' / 'llmbar' / 'Natural.json.gz'
  records = list(examples.read_examples(str(path), 'llmbar', '', skip_bad=False))
  assert len(records) == 100
  assert {record.preference for record in records} == {0.0, 1.0}


def test_pandalm_keeps_each_annotators_vote(shared):
  path = shared / 'data' / 'pandalm' / 'testset-v1.json.gz'
  records = list(examples.read_examples(str(path), 'pandalm', '', skip_bad=True))
  assert len(records) > 900
  assert {record.votes for record in records} == {3}
  assert {round(6 * record.preference) for record in records} == set(range(7))


def test_auto_j_has_ties(shared):
  data = shared / 'data'
  path = f'{data}/autoj_pairs/pairs_a.jsonl.gz,{data}/tldr_pairs/pairs_00-11.jsonl'
  records = list(examples.read_examples(path, 'autoj', '', skip_bad=True))
  counts = Counter(record.preference for record in records)
  assert set(counts) == {0.0, 0.5, 1.0}
  assert 500 < counts.total() <= 512


def test_completions_with_a_label_are_no_demonstrations():
  row = {'prompt': 'a', 'completion': 'b'}
  assert schemas.SCHEMAS['demonstrations'](row).demonstration == 'b'
  assert schemas.SCHEMAS['demonstrations'](row | {'label': None}).demonstration == 'b'
  for label in (True, False):
    with pytest.raises(Problem, match=r'set config\.data\.schema=unpaired'):
      schemas.SCHEMAS['demonstrations'](row | {'label': label})
