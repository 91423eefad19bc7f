"""A chat template that does not end is stopped."""

import time

import pytest

from nlhf_jax.data import chat_templates, tokenizers
from nlhf_jax.data.readers import Problem
from nlhf_jax.errors import UserError
from tests.data.chats import CHATML, chatml, save


@pytest.mark.parametrize(
  'endless',
  [
    '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
    '{% for i in range(99999) %}{{ i }}' * 2 + '{% endfor %}' * 2,
    '{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}',
  ],
)
def test_a_template_that_does_not_end_is_refused(endless, tmp_path, monkeypatch):
  monkeypatch.setattr(chat_templates, 'TIME_LIMIT', 0.2)
  folder = save(tmp_path, *chatml(endless + CHATML))
  with pytest.raises(UserError, match=r'chat template takes too long: over 0\.2 s; correct .chat_'):
    tokenizers.load(folder)


def test_a_prompt_that_keeps_its_template_busy_is_refused(tmp_path, monkeypatch):
  loops = '{% for i in range(99999) %}' * 2 + '{% endfor %}' * 2
  busy = "{% if messages[0].content == 'busy' %}" + loops + '{% endif %}'
  tokenizer = tokenizers.load(save(tmp_path, *chatml(busy + CHATML)))
  monkeypatch.setattr(chat_templates, 'TIME_LIMIT', 0.2)
  monkeypatch.setattr(chat_templates, 'EACH', 0.1)
  assert tokenizers.prompt_ids(tokenizer, ['a'])
  with pytest.raises(Problem, match='the chat template takes too long'):
    tokenizers.prompt_ids(tokenizer, ['a', 'busy'])


def test_a_template_within_its_time_is_not_stopped_later(tmp_path, monkeypatch):
  tokenizer = tokenizers.load(save(tmp_path, *chatml()))
  monkeypatch.setattr(chat_templates, 'TIME_LIMIT', 0.2)
  assert tokenizers.prompt_ids(tokenizer, ['a'])
  end = time.monotonic() + 0.5
  while time.monotonic() < end:  # Python code, in which an exception would be raised
    pass
