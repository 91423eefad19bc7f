"""Tokenizers of pretrained models encode exactly what their chat templates write."""

import gzip
import itertools
import json

import huggingface_hub.constants
import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer

from nlhf_jax.data import tokenizers
from nlhf_jax.data.readers import Problem
from nlhf_jax.errors import UserError
from nlhf_jax.storage import hub
from tests.data.chats import CHATML, FAMILIES, LLAMA, SAMPLE, byte_level, chatml, llama, save

TEXTS = [
  'What is Paris?',
  'a',
  'It is 漢字 \U0001f389, said Grüße.',
  'two  spaces,\nlines\n\nand\ttabs',
  '[x] <y> it',
]
USER = lambda content: {'role': 'user', 'content': content}
ASSISTANT = lambda content: {'role': 'assistant', 'content': content}


@pytest.fixture(scope='module', params=FAMILIES)
def family(request, tmp_path_factory):
  """(name, the tokenizer loaded by transformers, the tokenizer loaded by us, its stop token)."""
  make, stop = FAMILIES[request.param]
  folder = save(tmp_path_factory.mktemp(request.param), *make())
  published = AutoTokenizer.from_pretrained(folder, local_files_only=True)
  return request.param, published, tokenizers.load(folder), stop


def published_ids(published, messages, **settings):
  """The tokens of a conversation by transformers."""
  text = published.apply_chat_template(messages, tokenize=False, **settings)
  return published(text, add_special_tokens=False)['input_ids']


def conversations(text, other):
  yield [USER(text)]
  yield [USER(other), ASSISTANT(text), USER(text)]


def test_stop_token_follows_answers_in_the_template(family):
  _, published, tokenizer, stop = family
  assert tokenizer.eos_token == stop
  assert tokenizer.eos_token_id == published.convert_tokens_to_ids(stop)
  assert tokenizer.sep_token_id == tokenizer.eos_token_id
  assert tokenizer.pad_token_id == published.eos_token_id
  assert len(tokenizer) == len(published)


def test_prompt_tokens_equal_the_rendered_template(family):
  _, published, tokenizer, _ = family
  prompts = [turns for pair in itertools.pairwise(TEXTS) for turns in conversations(*pair)]
  expected = [published_ids(published, turns, add_generation_prompt=True) for turns in prompts]
  assert tokenizers.prompt_ids(tokenizer, prompts) == expected
  questions = [published_ids(published, [USER(text)], add_generation_prompt=True) for text in TEXTS]
  assert tokenizers.prompt_ids(tokenizer, TEXTS) == questions


def test_prompt_and_response_tokens_equal_the_rendered_template(family):
  _, published, tokenizer, _ = family
  for text, answer in itertools.product(TEXTS, TEXTS):
    for turns in conversations(text, 'a'):
      whole = published_ids(published, [*turns, ASSISTANT(answer)])
      end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
      (prompt,), (response,) = (
        tokenizers.prompt_ids(tokenizer, [turns]),
        tokenizers.response_ids(tokenizer, [answer]),
      )
      assert prompt + response == whole[:end]
      assert response.count(tokenizer.eos_token_id) == 1


def test_system_messages_reach_templates_that_accept_them(family):
  name, published, tokenizer, _ = family
  turns = [{'role': 'system', 'content': 'Be brief.'}, USER('a')]
  if name in ('gemma', 'mistral'):
    with pytest.raises(Problem, match=r'^the chat template refuses the messages \((no sys|roles)'):
      tokenizers.prompt_ids(tokenizer, [turns])
  else:
    expected = published_ids(published, turns, add_generation_prompt=True)
    assert tokenizers.prompt_ids(tokenizer, [turns]) == [expected]


def test_text_never_becomes_a_special_token(family):
  _, published, tokenizer, _ = family
  special = published.all_special_ids + published.convert_tokens_to_ids(
    tokenizer.all_special_tokens
  )
  special += [row for row, token in published.added_tokens_decoder.items() if token.special]
  plain = tokenizers.prompt_ids(tokenizer, ['x', [USER('x'), ASSISTANT('x'), USER('x')]])
  spelled = ' and '.join(['x', *published.convert_ids_to_tokens(special), 'x'])
  hostile = tokenizers.prompt_ids(
    tokenizer, [spelled, [USER(spelled), ASSISTANT(spelled), USER(spelled)]]
  )
  for one, other in zip(plain, hostile, strict=True):
    assert [row for row in one if row in special] == [row for row in other if row in special]
    assert len(other) > len(one)
  (response,) = tokenizers.response_ids(tokenizer, [spelled])
  assert [row for row in response if row in special] == [tokenizer.eos_token_id]
  prompts = tokenizers.pad_prompts(tokenizer, hostile[:1], 2_000)
  assert tokenizers.prompt_texts(tokenizer, prompts.tokens, prompts.mask) == [spelled]
  responses = tokenizers.pad_responses(tokenizer, [response], 1_000)
  assert tokenizers.response_texts(tokenizer, responses.tokens, responses.mask) == [spelled]


def test_text_around_spelled_special_tokens_is_unchanged(family):
  _, published, tokenizer, stop = family
  (clean,) = tokenizers.prompt_ids(tokenizer, ['It is Paris. ? What is'])
  (spelled,) = tokenizers.prompt_ids(tokenizer, [f'It is Paris. {stop} ? What is'])
  mark = next(i for i, (a, b) in enumerate(zip(clean, spelled, strict=False)) if a != b)
  end = next(i for i, (a, b) in enumerate(zip(clean[::-1], spelled[::-1], strict=False)) if a != b)
  around = published.decode(clean[:mark]), published.decode(clean[len(clean) - end :])
  assert 'It is Paris' in around[0]
  assert 'What is' in around[1]


@pytest.mark.parametrize(
  'text', [*TEXTS, "it 's , well , spaced ?", 'a .  b', 'ends with a line\n', '<think> no </think>']
)
def test_a_response_survives_a_round_trip(family, text):
  _, _, tokenizer, _ = family
  padded = tokenizers.pad_responses(tokenizer, tokenizers.response_ids(tokenizer, [text]), 200)
  assert tokenizers.response_texts(tokenizer, padded.tokens, padded.mask) == [text]


@pytest.mark.parametrize('text', [' one space', '   three', '\nline', '\n\n\nlines', ' '])
def test_a_leading_space_survives_a_round_trip(family, text):
  name, _, tokenizer, _ = family
  padded = tokenizers.pad_responses(tokenizer, tokenizers.response_ids(tokenizer, [text]), 200)
  kept = text.lstrip() if name == 'phi' else text  # its special tokens absorb the space after them
  assert tokenizers.response_texts(tokenizer, padded.tokens, padded.mask) == [kept]


def test_cut_or_sampled_special_tokens_decode_to_text(family):
  _, _, tokenizer, _ = family
  (ids,) = tokenizers.response_ids(tokenizer, ['It is Paris.'])
  # Models have room for more tokens than their tokenizers use.
  strange = [*ids[:-1], *tokenizer.all_special_ids, *range(len(tokenizer), len(tokenizer) + 20)]
  padded = tokenizers.pad_responses(tokenizer, [ids[:-1], strange, []], 200)
  texts = tokenizers.response_texts(tokenizer, padded.tokens, padded.mask)
  assert [text.rstrip() for text in texts] == ['It is Paris.', 'It is Paris.', '']


def test_stop_tokens_inside_a_prompt_are_kept(family):
  _, _, tokenizer, _ = family
  turns = [USER('What?'), ASSISTANT('It is Paris.'), USER('Is it?')]
  short, long = tokenizers.prompt_ids(tokenizer, ['What?', turns])
  assert tokenizer.eos_token_id in long
  prompts = tokenizers.pad_prompts(tokenizer, [short, long], len(long) + 3)
  assert prompts.mask.sum(axis=1).tolist() == [len(short), len(long)]
  assert prompts.tokens[1][prompts.mask[1]].tolist() == long
  question, conversation = tokenizers.prompt_texts(tokenizer, *prompts)
  assert question == 'What?'
  assert conversation.startswith('What?')
  assert 'It is Paris.' in conversation
  assert conversation.endswith('Is it?')


def test_a_saved_tokenizer_gives_the_same_ids(family, tmp_path):
  _, _, tokenizer, stop = family
  tokenizer.save_pretrained(tmp_path)
  again = tokenizers.load(str(tmp_path))
  assert again.eos_token == stop
  assert tokenizers.prompt_ids(again, TEXTS) == tokenizers.prompt_ids(tokenizer, TEXTS)
  assert tokenizers.response_ids(again, TEXTS) == tokenizers.response_ids(tokenizer, TEXTS)


# Without a chat template.


@pytest.fixture(scope='module', params=['llama', 'chatml', 'gemma', 'mistral'])
def base(request, tmp_path_factory):
  """(the tokenizer loaded by transformers, and by us) of a model without turns."""
  model, settings = FAMILIES[request.param][0]()
  folder = save(tmp_path_factory.mktemp('base'), model, settings | {'chat_template': None})
  return AutoTokenizer.from_pretrained(folder, local_files_only=True), tokenizers.load(folder)


def test_without_a_template_questions_are_encoded_plainly(base):
  published, tokenizer = base
  assert tokenizers.prompt_ids(tokenizer, TEXTS) == published(TEXTS)['input_ids']
  assert tokenizer.eos_token == published.eos_token
  closed = [
    [*row, published.eos_token_id]
    for row in published(TEXTS, add_special_tokens=False)['input_ids']
  ]
  assert tokenizers.response_ids(tokenizer, TEXTS) == closed
  padded = tokenizers.pad_responses(tokenizer, closed, 200)
  assert tokenizers.response_texts(tokenizer, padded.tokens, padded.mask) == TEXTS
  prompts = tokenizers.pad_prompts(tokenizer, tokenizers.prompt_ids(tokenizer, TEXTS), 200)
  assert tokenizers.prompt_texts(tokenizer, *prompts) == TEXTS


def test_without_a_template_spelled_special_tokens_are_text(base):
  published, tokenizer = base
  text = f'a {published.eos_token} b {published.bos_token} c'
  (prompt,), (response,) = (
    tokenizers.prompt_ids(tokenizer, [text]),
    tokenizers.response_ids(tokenizer, [text]),
  )
  assert prompt.count(published.eos_token_id) == 0
  assert prompt.count(published.bos_token_id) <= 1
  assert response.count(published.eos_token_id) == 1


def test_an_automatic_end_token_does_not_end_prompts(tmp_path):
  model, settings = llama()
  bos, eos = ((name, model.token_to_id(name)) for name in ('<|bos|>', '<|eos|>'))
  model.post_processor = processors.TemplateProcessing(
    single='<|bos|> $A <|eos|>', special_tokens=[bos, eos]
  )
  tokenizer = tokenizers.load(save(tmp_path, model, settings | {'chat_template': None}))
  ((first, *_, last),) = tokenizers.prompt_ids(tokenizer, ['What is'])
  assert first == bos[1]
  assert last != eos[1]


def test_a_conversation_needs_a_chat_template(base):
  trained = tokenizers.train(SAMPLE, 300)
  for tokenizer in (base[1], trained):
    with pytest.raises(Problem, match='there is no chat template for a conversation'):
      tokenizers.prompt_ids(tokenizer, [[USER('a')]])


def test_the_start_token_is_added_once(tmp_path):
  model, settings = llama()
  template = LLAMA.removeprefix('{{ bos_token }}')
  tokenizer = tokenizers.load(save(tmp_path, model, settings | {'chat_template': template}))
  (row,) = tokenizers.prompt_ids(tokenizer, ['a'])
  assert row[0] == tokenizer.bos_token_id
  assert row.count(tokenizer.bos_token_id) == 1


def test_templates_write_a_fixed_date(tmp_path):
  model, settings = chatml("{{ strftime_now('%d %b %Y') }}" + CHATML)
  tokenizer = tokenizers.load(save(tmp_path, model, settings))
  prompts = tokenizers.pad_prompts(tokenizer, tokenizers.prompt_ids(tokenizer, ['a']), 99)
  (text,) = tokenizers.response_texts(tokenizer, *prompts)
  assert text.startswith('26 Jul 2024')


def test_a_template_keeps_its_end_of_sequence_token(tmp_path):
  template = CHATML + "{{ '' if add_generation_prompt else eos_token }}"
  template = '{{ eos_token }}' + template
  model, settings = chatml(template)
  tokenizer = tokenizers.load(save(tmp_path, model, settings))
  (row,) = tokenizers.prompt_ids(tokenizer, ['a'])
  assert row[0] == tokenizer.convert_tokens_to_ids('<|endoftext|>') != tokenizer.eos_token_id


def test_answers_without_a_stop_token_get_one(tmp_path):
  template = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}"
  model, settings = chatml(template + '{% endfor %}')
  tokenizer = tokenizers.load(save(tmp_path, model, settings))
  assert tokenizer.eos_token == '<|endoftext|>'
  ids = tokenizers.response_ids(tokenizer, ['a'])
  assert tokenizer.decode(ids[0]) == 'assistant: a<|endoftext|>'
  padded = tokenizers.pad_responses(tokenizer, ids, 20)
  assert tokenizers.response_texts(tokenizer, padded.tokens, padded.mask) == ['a']


def test_newline_tokens_do_not_stop_a_response(tmp_path):
  model, settings = chatml(CHATML.replace('<|im_end|>', '\n<|im_end|>'))
  model.add_tokens(['\n', '\n\n'])
  tokenizer = tokenizers.load(save(tmp_path, model, settings))
  ids = tokenizers.response_ids(tokenizer, ['a'])
  assert tokenizer.decode(ids[0]) == 'a\n<|im_end|>'
  padded = tokenizers.pad_responses(tokenizer, ids, 9)
  assert tokenizers.response_texts(tokenizer, padded.tokens, padded.mask) == ['a']


def test_a_generation_prompt_with_extra_text_is_kept(tmp_path):
  thinks = CHATML.replace(
    "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>' }}"
  )
  tokenizer = tokenizers.load(save(tmp_path, *chatml(thinks)))
  (prompt,) = tokenizers.prompt_ids(tokenizer, ['a'])
  assert tokenizer.decode(prompt).endswith('assistant\n<think>')
  texts = ['a', 'b </think> c', '<think>b</think>c', '<think>']
  responses = tokenizers.response_ids(tokenizer, texts)
  assert [tokenizer.decode(response) for response in responses] == [
    '\n</think>\n\na<|im_end|>',
    'b </think> c<|im_end|>',
    'b</think>c<|im_end|>',
    '\n</think>\n\n<think><|im_end|>',
  ]
  padded = tokenizers.pad_responses(tokenizer, responses, 30)
  decoded = tokenizers.response_texts(tokenizer, padded.tokens, padded.mask)
  assert decoded == ['a', 'b </think> c', 'b</think>c', '<think>']


def test_a_stop_token_need_not_be_marked_special(tmp_path):
  model = byte_level(['<|endoftext|>'])
  model.add_tokens(['<|im_start|>', '<|im_end|>'])
  settings = {'eos_token': '<|endoftext|>', 'chat_template': CHATML}
  tokenizer = tokenizers.load(save(tmp_path, model, settings))
  ids = tokenizers.response_ids(tokenizer, ['a <|im_end|> b'])
  assert ids[0].count(tokenizer.eos_token_id) == 1
  padded = tokenizers.pad_responses(tokenizer, ids, 30)
  assert tokenizers.response_texts(tokenizer, padded.tokens, padded.mask) == ['a <|im_end|> b']


def test_decoding_does_not_clean_up(tmp_path):
  model, settings = chatml()
  settings['clean_up_tokenization_spaces'] = True
  tokenizer = tokenizers.load(save(tmp_path, model, settings))
  padded = tokenizers.pad_responses(tokenizer, tokenizers.response_ids(tokenizer, ["it 's ."]), 30)
  assert tokenizers.response_texts(tokenizer, padded.tokens, padded.mask) == ["it 's ."]


def test_saved_truncation_and_padding_are_ignored(tmp_path):
  model, settings = chatml()
  model.enable_truncation(4)
  model.enable_padding(length=4)
  tokenizer = tokenizers.load(save(tmp_path, model, settings))
  short, long = tokenizers.response_ids(tokenizer, ['a', 'b' * 20])
  assert len(short) == 2
  assert len(long) > 4


# Loading.


def test_tokenizer_needs_only_an_eos_token(tmp_path):
  model, _ = chatml()
  model.save(str(tmp_path / 'tokenizer.json'))
  with pytest.raises(UserError, match=r"^config.model.hf='.* no end-of-sequence .*'eos_token'"):
    tokenizers.load(str(tmp_path))
  for file in ('special_tokens_map.json', 'tokenizer_config.json'):
    (tmp_path / file).write_text(json.dumps({'eos_token': '<|endoftext|>'}))
    assert tokenizers.load(str(tmp_path)).eos_token == '<|endoftext|>'
    (tmp_path / file).unlink()


def test_the_default_of_several_templates_is_used(tmp_path):
  model, settings = chatml()
  named = [{'name': name, 'template': CHATML} for name in ('default', 'tools')]
  tokenizer = tokenizers.load(save(tmp_path, model, settings | {'chat_template': named}))
  assert tokenizer.eos_token == '<|im_end|>'
  save(tmp_path, model, settings | {'chat_template': named[1:]})
  with pytest.raises(UserError, match=r"\['tools'\] none is called 'default'"):
    tokenizers.load(str(tmp_path))


@pytest.mark.parametrize(
  ('files', 'problem'),
  [
    ({}, 'holds no tokenizer; put'),
    ({'config.json': '{"model_type": "gpt2"}'}, 'holds no tokenizer; put'),
    ({'vocab.json': '{}'}, 'holds no tokenizer; put'),
    ({'tokenizer.json': '{"a":'}, r'cannot be read \(Expecting value'),
    ({'tokenizer.json': '{}'}, 'cannot be read'),
    ({'tokenizer_config.json': '{"a":'}, r'cannot be read \(Expecting value'),
    ({'tokenizer_config.json': b'\xff'}, 'cannot be read'),
    ({'tokenizer_config.json': '[]'}, 'cannot be read'),
    (
      {'tokenizer_config.json': '{"auto_map": {"AutoTokenizer": ["theirs.Theirs", null]}}'},
      r"code of its own \('auto_map'.* which is not run here",
    ),
    (
      {'chat_template.jinja': '{% for message in %}'},
      r'the chat template refuses the messages \(.*; correct',
    ),
    ({'chat_template.jinja': 'Hi.'}, 'its chat template leaves messages out'),
    ({'chat_template.jinja': '{{ messages[9].content }}'}, 'refuses the messages'),
    ({'chat_template.jinja': "{{ ''.__class__.__mro__ }}"}, 'refuses the messages'),
  ],
)
def test_unusable_tokenizer_files_are_refused(tmp_path, files, problem):
  if files.keys() & {'tokenizer_config.json', 'chat_template.jinja'}:
    save(tmp_path, byte_level(['<|endoftext|>']), {'eos_token': '<|endoftext|>'})
    (tmp_path / 'theirs.py').write_text('raise SystemExit')
  for name, content in files.items():
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(UserError, match=problem) as refused:
    tokenizers.load(str(tmp_path))
  assert str(refused.value).startswith(f"config.model.hf='{tmp_path}'")
  assert len(str(refused.value).splitlines()) == 1


def test_tokenizer_reading_special_tokens_in_text_is_refused(tmp_path):
  pieces = [('<unk>', 0.0), ('</s>', 0.0), *((letter, -2.0) for letter in 'abc<>/s▁')]
  model = Tokenizer(models.Unigram(pieces, unk_id=0))
  model.add_special_tokens(['<unk>', '</s>'])
  folder = save(tmp_path, model, {'eos_token': '</s>', 'unk_token': '<unk>'})
  with pytest.raises(UserError, match="takes the text '</s>' for the special token"):
    tokenizers.load(folder)


@pytest.mark.parametrize('name', ['nobody/nothing-at-all', 'a/mistyped/folder'])
def test_an_unknown_hub_name_says_how_to_download(name, monkeypatch):
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  with pytest.raises(UserError) as refused:
    tokenizers.load(name)
  sentence = str(refused.value)
  assert sentence.startswith(f"config.model.hf='{name}' is no folder")
  assert f'`hf download {name} --local-dir DIR`, and give DIR.' in sentence
  assert len(sentence.splitlines()) == 1


def test_a_hub_name_is_downloaded_to_a_folder(tmp_path, monkeypatch):
  save(tmp_path, *chatml())
  downloads = []

  def download(name, allow_patterns):
    downloads.append((name, allow_patterns))
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  assert tokenizers.load('somebody/something').eos_token == '<|im_end|>'
  assert downloads == [('somebody/something', list(hub.WANTED))]


@pytest.fixture(scope='module')
def gpt2(shared, tmp_path_factory):
  """The tokenizer of GPT-2, loaded from a folder in its published layout."""
  folder, source = tmp_path_factory.mktemp('gpt2'), shared / 'data' / 'gpt2_bpe'
  for name, packed in (('vocab.json', 'encoder.json.gz'), ('merges.txt', 'vocab.bpe.gz')):
    (folder / name).write_bytes(gzip.decompress((source / packed).read_bytes()))
  (folder / 'tokenizer_config.json').write_text('{"tokenizer_class": "GPT2Tokenizer"}')
  return tokenizers.load(str(folder))


def test_gpt2_gives_the_published_ids(gpt2, shared):
  pairs = json.loads((shared / 'data' / 'gpt2_bpe' / 'published_tests.json').read_text())
  texts, ids = map(list, zip(*pairs, strict=True))
  assert len(gpt2) == 50257
  assert gpt2.eos_token_id == gpt2.pad_token_id == gpt2.sep_token_id == 50256
  assert tokenizers.prompt_ids(gpt2, texts) == ids
  assert tokenizers.response_ids(gpt2, texts) == [[*row, 50256] for row in ids]
  padded = tokenizers.pad_responses(gpt2, tokenizers.response_ids(gpt2, texts), 9)
  assert tokenizers.response_texts(gpt2, padded.tokens, padded.mask) == texts
  assert np.all(padded.tokens[~padded.mask] == 50256)
  assert 50256 not in tokenizers.prompt_ids(gpt2, ['a<|endoftext|>b'])[0]
