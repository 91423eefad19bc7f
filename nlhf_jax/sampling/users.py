"""Users of conversations: Python functions of texts, tables, recorded texts, users of games."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from nlhf_jax.data import dialogue_texts
from nlhf_jax.data.dialogue_texts import Conversation
from nlhf_jax.data.readers import Problem
from nlhf_jax.errors import UserError
from nlhf_jax.sampling.dialogue_rollout import Dialogue, Replies, User
from nlhf_jax.storage.texts import clean_text
from nlhf_jax.structs import Prompts, Responses

NO_USERS = {
  'remote': 'a remote model is no user here; ask it in a function, and give user_from_function',
  'data': 'replies from data answer what the policy did not say; give a function or a table, or '
  'user_from_recorded if they may',
}


class FunctionUser(NamedTuple):
  """A user's function of texts: (conversations, seeds) -> a reply to each, or None to end it."""

  function: Callable[[Sequence[Conversation], Sequence[int]], Sequence[str | None]]

  @property
  def name(self) -> str:
    """The name of the function."""
    return getattr(self.function, '__qualname__', repr(self.function))


def user_from_function(
  function: Callable[[Sequence[Conversation], Sequence[int]], Sequence[str | None]],
) -> FunctionUser:
  """A user that is a function (conversations, seeds) -> replies.

  A conversation is a list of messages {'role', 'content'} that ends with the policy's, whose role
  is `assistant`. The function returns a text for each, or None to end the conversation. Whatever it
  draws must follow from the seed of its conversation alone, which differs from turn to turn and
  from conversation to conversation: then a run that is resumed equals one that was not cut.

  Raises:
    UserError: if it is not a function.
  """
  _check_callable(function)
  return FunctionUser(function)


def _check_callable(user: Any) -> None:
  if not callable(user):
    reason = NO_USERS.get(user, 'a user is a function of (conversations, seeds)')
    raise UserError(f'user={user!r:.80}: {reason}.')


def user_from_table(table: Mapping[str, Mapping[str, float] | None]) -> FunctionUser:
  """A user that replies to the latest text of the policy: text -> reply -> probability.

  None ends the conversation; `...` as a text is the entry of all others. Texts are compared
  without the white space around them.

  Raises:
    UserError: if the probabilities of an entry do not sum to 1; from the user, if the policy wrote
      a text that the table does not have.
  """
  for text, replies in table.items():
    chances = np.array(list((replies or {'': 1.0}).values()), float)
    if not (chances >= 0).all() or abs(chances.sum() - 1) > 1e-6:
      raise UserError(f"the replies to '{text}' must have probabilities that sum to 1.")

  def draw(conversation, seed):
    text = conversation[-1]['content'].strip()
    if text not in table and '...' not in table:
      raise UserError(f"the table of the user has no reply to '{text}'; add it, or an entry '...'.")
    replies = table.get(text, table.get('...'))
    if replies is None:
      return None
    chances = np.array(list(replies.values()), float)
    return list(replies)[
      np.random.default_rng(seed).choice(len(chances), p=chances / chances.sum())
    ]

  return FunctionUser(lambda conversations, seeds: list(map(draw, conversations, seeds)))


def user_from_recorded(recorded: Mapping[str, Sequence[Sequence[str]]]) -> FunctionUser:
  """A user that goes on as recorded, whatever the policy writes: prompt -> lists of messages.

  A list has the user's messages after the prompt, such as the second question of MT-Bench. Where a
  prompt has several, each conversation follows one by chance. It ends where its list does, and
  after the first turn where a prompt has none.

  Raises:
    UserError: from the user, if the tokenizer changes the text of a message.
  """

  def go_on(conversation, seed):
    replied = [message['content'].strip() for message in conversation[2::2]]
    lists = recorded.get(conversation[0]['content'], ())
    if replied and not any(_begins(one, replied) for one in lists):
      raise UserError(
        f"the user's recorded message '{replied[-1]:.80}' is another text once it is tokenised; "
        'choose another model.'
      )
    # Of a list that is over, no further message is left.
    left = [one[len(replied) :] for one in lists if _begins(one, replied)]
    chosen = left[np.random.default_rng(seed).integers(len(left))] if left else ()
    return chosen[0] if chosen else None

  return FunctionUser(lambda conversations, seeds: list(map(go_on, conversations, seeds)))


def _begins(texts: Sequence[str], replied: Sequence[str]) -> bool:
  """Whether the first of the texts are these, but for white space around them."""
  return [text.strip() for text in texts[: len(replied)]] == list(replied)


def with_texts(dialogue: Dialogue, tokenizer: Any) -> Dialogue:
  """The dialogue, with a user of texts as one of token arrays.

  Raises:
    UserError: as `user_from_texts`, or if the user is no function.
  """
  if isinstance(dialogue.user, FunctionUser):
    return dialogue._replace(user=user_from_texts(dialogue.user, tokenizer))
  _check_callable(dialogue.user)
  return dialogue


def user_from_texts(user: FunctionUser, tokenizer: Any) -> User:
  """The user of token arrays that a function of texts makes, in the format of the tokenizer.

  Raises:
    UserError: if the tokenizer's chat template cannot write a conversation; from the user, if the
      function does not return a text or None for each conversation.
  """
  try:
    dialogue_texts.reply_ids(tokenizer, ['a'], [False])
  except Problem as problem:
    raise UserError(f'a conversation of several turns: {problem}; choose another model.') from None

  def reply(prompts: Prompts, responses: Responses, key: Array) -> Replies:
    conversations = dialogue_texts.messages(tokenizer, prompts, responses)
    seeds = np.asarray(jax.random.bits(key, (len(conversations),))).tolist()
    returned = user.function(conversations, seeds)
    many = isinstance(returned, Iterable) and not isinstance(returned, str)
    texts = list(returned) if many else []
    wrong = [text for text in texts if not isinstance(text, str | None)]
    if wrong or len(texts) != len(conversations):
      found = f'{len(texts)} replies' if many and not wrong else f'{[*wrong, returned][0]!r:.80}'
      raise UserError(
        f"the user '{user.name}' must return a text or None for each of {len(conversations)} "
        f'conversations, not {found}.'
      )
    cut = dialogue_texts.was_cut(tokenizer, responses)
    rows = dialogue_texts.reply_ids(tokenizer, [clean_text(text or '') for text in texts], cut)
    over = np.array([text is None for text in texts])
    lengths = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    shape = responses.tokens.shape[:2]
    return Replies(*(leaf.reshape(*shape, *leaf.shape[1:]) for leaf in (tokens, lengths, over)))

  return reply


def user_from_game(
  tables: Sequence[np.ndarray], actions: Int[np.ndarray, 'A'], words: Int[np.ndarray, 'U']
) -> User:
  """The user of a `games.dialogues.DialogueGame` whose actions and replies are single tokens.

  Args:
    tables: p(u|x, y) of each turn, [S, K, U]; with U = 1 the user says nothing.
    actions: the token of each of the K actions.
    words: the token of each reply.
  """

  def reply(prompts: Prompts, responses: Responses, key: Array) -> Replies:
    del prompts
    tokens, latest = responses.tokens, int(responses.turn.max())
    state, column = np.zeros(tokens.shape[:2], int), 0
    for number, table in enumerate(tables[:latest], start=1):
      _, count, choices = table.shape
      action = np.argmax(tokens[..., column, None] == actions, axis=-1)
      if number == latest:
        break
      word = np.argmax(tokens[..., column + 1, None] == words, axis=-1) if choices > 1 else 0
      state, column = (state * count + action) * choices + word, column + 1 + (choices > 1)
    uniform = np.asarray(jax.random.uniform(key, state.shape))[..., None]
    drawn = np.sum(np.cumsum(table[state, action], axis=-1)[..., :-1] <= uniform, axis=-1)
    lengths = np.full(state.shape, int(choices > 1))
    return Replies(np.asarray(words)[drawn][..., None], lengths, np.zeros(state.shape, bool))

  return reply
