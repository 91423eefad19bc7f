"""Conversations of several turns as tokens and as texts, in the format of a chat template.

The policy's turns stay as it wrote them, stop token included, since its caches hold them so. What
the template writes around a user's reply is found by rendering it with random words.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nlhf_jax.data import tokenizers
from nlhf_jax.data.chat_templates import find_reply, make_codec
from nlhf_jax.structs import Prompts, Responses

Conversation = Sequence[Mapping[str, str]]  # messages {'role', 'content'}


def reply_ids(tokenizer: Any, texts: Sequence[str], cut: Sequence[bool]) -> list[list[int]]:
  """Token ids of each user's reply after a turn of the policy, up to where its next turn begins.

  Args:
    tokenizer: of `tokenizers`.
    texts: the replies.
    cut: whether the turn before was cut at its limit, so that the stop token is written here.

  Raises:
    Problem: if the template cannot write a conversation.
  """
  codec, (before, after) = make_codec(tokenizer), find_reply(tokenizer)
  tail = codec.insert_names(codec.turn.tail)
  before, after = codec.insert_names(before), codec.insert_names(after)
  (start,), rows = codec.encode([tail]), codec.encode([tail + before + t + after for t in texts])
  alone = lambda text: codec.encode([before + text + after])[0]
  return [
    row if was_cut else row[len(start) :] if row[: len(start)] == start else alone(text)
    for row, was_cut, text in zip(rows, cut, texts, strict=True)
  ]


def conversation_ids(tokenizer: Any, turns: Sequence[Sequence[str]]) -> list[list[int]]:
  """Token ids of conversations after their prompts, as they are sampled.

  Args:
    tokenizer: of `tokenizers`.
    turns: of each conversation: the policy's, the user's, the policy's and so on.
  """
  own = iter(tokenizers.response_ids(tokenizer, [text for one in turns for text in one[::2]]))
  replies = [text for one in turns for text in one[1::2]]
  others = iter(reply_ids(tokenizer, replies, [False] * len(replies)) if replies else [])
  return [
    [token for place in range(len(one)) for token in next(others if place % 2 else own)]
    for one in turns
  ]


def was_cut(tokenizer: Any, responses: Responses) -> list[bool]:
  """Whether the latest turn of each of the B K conversations was cut at its limit."""
  tokens, turn = np.asarray(responses.tokens), np.asarray(responses.turn)
  latest = (turn > 0) & (turn == turn.max(axis=-1, keepdims=True))
  ended = np.any(latest & (tokens == tokenizer.eos_token_id), axis=-1)
  return (~ended).ravel().tolist()


def turn_texts(tokenizer: Any, responses: Responses) -> list[list[str]]:
  """The texts of each conversation in turn: the policy's, the user's, the policy's and so on.

  Axes are flattened: there are B K conversations. Arrays are NumPy's, here and below.
  """
  tokens, mask, turn = (
    np.reshape(leaf, (-1, np.shape(leaf)[-1]))
    for leaf in (responses.tokens, responses.mask, responses.turn)
  )
  since = np.maximum.accumulate(turn, axis=-1)  # the user's tokens belong to the turn before
  numbers = np.arange(1, turn.max() + 1)[:, None, None]
  every = np.broadcast_to(tokens, (len(numbers), *tokens.shape))
  own = _texts(every, turn == numbers, lambda *rows: tokenizers.response_texts(tokenizer, *rows))
  reply = mask & (turn == 0) & (since == numbers)
  replies = _texts(every, reply, lambda *rows: _reply_texts(tokenizer, *rows))
  counts = turn.max(axis=-1)
  return [
    [text for h in range(count) for text in (own[h][row], replies[h][row])][: 2 * count - 1]
    for row, count in enumerate(counts)
  ]


def messages(tokenizer: Any, prompts: Prompts, responses: Responses) -> list[list[dict[str, str]]]:
  """Each conversation as messages {'role', 'content'}, the prompt first.

  A prompt that is a conversation itself is one message, as `tokenizers.prompt_texts` writes it.
  """
  asked = tokenizers.prompt_texts(tokenizer, np.asarray(prompts.tokens), np.asarray(prompts.mask))
  count = responses.tokens.shape[1]
  roles = 'user', 'assistant'
  return [
    [
      {'role': roles[n % 2], 'content': text}
      for n, text in enumerate([asked[row // count], *texts])
    ]
    for row, texts in enumerate(turn_texts(tokenizer, responses))
  ]


def response_texts(tokenizer: Any, responses: Responses) -> list[str]:
  """The text of each of the B K responses; of a conversation its transcript."""
  if responses.turn is None:
    return tokenizers.response_texts(tokenizer, responses.tokens, responses.mask)
  return transcripts(tokenizer, responses)


def transcripts(tokenizer: Any, responses: Responses) -> list[str]:
  """Each conversation after its prompt as one text, for judges that read texts."""
  lead = '\n\nUser: ', '\n\nAssistant: '
  return [
    texts[0] + ''.join(lead[n % 2] + text for n, text in enumerate(texts[1:]))
    for texts in turn_texts(tokenizer, responses)
  ]


def _texts(tokens, mask, decode) -> list[list[str]]:
  """Texts [H, n] of the masked tokens [H, n, T]."""
  texts = decode(tokens, mask)
  count = tokens.shape[1]
  return [texts[start : start + count] for start in range(0, len(texts), count)]


def _reply_texts(tokenizer, tokens, mask) -> list[str]:
  word = secrets.token_hex(8)  # a random word, which occurs in no text
  samples = reply_ids(tokenizer, [word, word], [True, False])
  rows = tokenizers.masked_rows(tokens, mask)
  cut, ended, *written = tokenizers.decode_rows(tokenizer, [*samples, *rows])
  (tail, _, after), before = cut.partition(word), ended.partition(word)[0]
  texts = [text.removesuffix(after) for text in written]
  return [
    text.removeprefix(tail) if text.startswith(tail) else text.removeprefix(before)
    for text in texts
  ]
