"""Reads the section `dialogue` of a config: with whom policies converse, and for how many turns."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nlhf_jax import distributed
from nlhf_jax.algorithms.algorithm import Algorithm, check_conversations
from nlhf_jax.data import tokenizers
from nlhf_jax.data.dataset import Corpus
from nlhf_jax.data.dialogue_texts import Conversation, reply_ids
from nlhf_jax.data.readers import Problem
from nlhf_jax.data.token_store import encode_prompts
from nlhf_jax.errors import Interrupted, UserError, first_line
from nlhf_jax.evaluation.generation import LoadedModel
from nlhf_jax.evaluation.model_user import make_model_user
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.judges.own_function import (
  WRITTEN,
  describe_error,
  find_function,
  source_settings,
)
from nlhf_jax.sampling.dialogue_rollout import Dialogue
from nlhf_jax.sampling.users import (
  FunctionUser,
  user_from_function,
  user_from_recorded,
  user_from_table,
  with_texts,
)
from nlhf_jax.storage import json_lines
from nlhf_jax.storage.texts import clean_text, printable
from nlhf_jax.structs import Params

DATA, SFT = 'data', 'sft'
USERS = f'{WRITTEN}, a table FILE.json, {DATA} or {SFT}'
CHUNK = 1024  # prompts that are encoded at once


class SftUser(NamedTuple):
  """The place of a user that is the SFT policy, which is not trained yet."""

  instruction: str


# --- Lengths ---


def conversing(config: ConfigDict) -> bool:
  """Whether the policies of a config write more than one response."""
  return 'dialogue' in config and config.dialogue.turns > 1


def conversation_length(config: ConfigDict) -> int:
  """The most tokens that a policy and its user write after a prompt."""
  length = config.data.response_length
  if not conversing(config):
    return length
  return Dialogue(None, config.dialogue.turns, config.dialogue.reply_length).row_length(length)


# --- The dialogue of an experiment ---


def make_dialogue(config: ConfigDict, corpus: Corpus, positions: int) -> Dialogue | None:
  """The dialogue of a config; None if its policies write one response.

  Raises:
    UserError: if a setting cannot be used.
  """
  if not conversing(config):
    return None
  section, written = config.dialogue, config.dialogue.user.strip()
  user: FunctionUser | SftUser
  if written == SFT:
    user = SftUser(section.instruction)
    check_sft_user(corpus.tokenizer, section.reply_length)
    check_room(config, corpus.tokenizer, positions)
  elif written == DATA:
    user = user_from_recorded(recorded_replies(corpus))
  elif written.endswith('.json'):
    user = make_table_user(written)
  else:
    what = f"config.dialogue.user='{written}'"
    user = user_from_function(on_first(with_place(find_function(written, what), what)))
  dialogue = Dialogue(user, section.turns, section.reply_length)
  return dialogue if written == SFT else with_texts(dialogue, corpus.tokenizer)


def check_dialogue(config: ConfigDict) -> None:
  """Refuses a user without further turns, turns without a user, and what has no conversations.

  Raises:
    UserError: names the field.
  """
  if 'dialogue' not in config:
    if config.data.source == 'clarify' and config.experiment == 'judges':
      raise UserError(
        "config.data.source='clarify': its comparisons are of conversations, which this experiment "
        'does not read; use --config=clarify.'
      )
    return
  turns, user = config.dialogue.turns, config.dialogue.user.strip()
  if user and turns == 1:
    raise UserError(
      f"config.dialogue.turns=1: a policy of one turn needs no user, and '{user}' would never "
      'reply; raise it, or leave config.dialogue.user empty.'
    )
  if turns > 1 and not user:
    raise UserError(
      f'config.dialogue.turns={turns} needs a user, who replies between the turns: set '
      f'config.dialogue.user to {USERS}.'
    )
  if turns > 1 and config.experiment != 'language':
    raise UserError(
      f"config.dialogue.turns={turns}: the experiment '{config.experiment}' trains no policies; "
      'leave it at 1.'
    )
  if config.data.source == 'clarify' and turns == 1:
    raise UserError(
      "config.data.source='clarify' is a task of conversations; set config.dialogue.turns=2, and "
      'its user, as configs/clarify.py does.'
    )


def check_conversing(config: ConfigDict, row: ConfigDict, field: str, algorithm: Algorithm) -> None:
  """Refuses policies that cannot learn from conversations, if they are to converse.

  Raises:
    UserError: names the field, and the reason.
  """
  if not conversing(config):
    return
  check_conversations(algorithm, f"{field}.algorithm: '{row.algorithm}'")
  if 'votes' in row:
    raise UserError(
      f'{field}.votes are asked on single responses; leave config.dialogue.turns at 1, or train '
      'the policy without votes.'
    )
  if row.get('sampler') == 'server':
    raise UserError(
      f"{field}.sampler='server' samples single responses; leave config.dialogue.turns at 1, or "
      'the sampler built_in.'
    )


def print_trained_judges(config: ConfigDict, stages: Iterable[str]) -> None:
  """Says so if judges of conversations are trained on the single responses of a file."""
  names = ', '.join(stages)
  if names and conversing(config) and 'path' in config.data:
    print(
      f'config.dialogue: judges that learn from comparisons of single responses ({names}) judge '
      'whole conversations.'
    )


def user_settings(config: ConfigDict) -> dict[str, Any]:
  """What determines the conversations of a config, as plain data; empty without any.

  Raises:
    UserError: if the user cannot be read.
  """
  if not conversing(config):
    return {}
  section, written = config.dialogue, config.dialogue.user.strip()
  user: Any = written
  if written == SFT:
    user = {SFT: section.instruction}
  elif written.endswith('.json'):
    make_table_user(written)  # so that its errors name the field
    user = read_table(written)
  elif written != DATA:
    what = f"config.dialogue.user='{written}'"
    user = source_settings(find_function(written, what), what)
  return {'turns': section.turns, 'reply_length': section.reply_length, 'user': user}


def freeze_user(experiment: LanguageExperiment, reference: Params) -> LanguageExperiment:
  """The experiment with its SFT policy as the user, if it converses with that one."""
  dialogue, model = experiment.dialogue, experiment.model
  if dialogue is None or not isinstance(dialogue.user, SftUser):
    return experiment
  tokenizer = experiment.corpus.tokenizer
  loaded = LoadedModel(model.decoder, reference, tokenizer, model.sizes.max_positions)
  length = dialogue.reply_length - template_length(tokenizer)
  user = cut_replies(
    make_model_user(loaded, dialogue.user.instruction, length=length), tokenizer, dialogue
  )
  return experiment._replace(dialogue=with_texts(dialogue._replace(user=user), tokenizer))


# --- Users ---


def template_length(tokenizer: Any) -> int:
  """The number of tokens that the template writes around a reply."""
  return len(reply_ids(tokenizer, [''], [True])[0])


def check_sft_user(tokenizer: Any, reply_length: int) -> None:
  """Refuses the SFT policy as a user if it cannot read a conversation, or has no room to reply.

  Raises:
    UserError: names the setting to change.
  """
  turns = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
  try:
    tokenizers.prompt_ids(tokenizer, [[*turns, turns[0]]])
  except Problem as problem:
    raise UserError(
      f"config.dialogue.user='{SFT}': {problem}; name a model whose chat template accepts one in "
      'config.model.hf, or use another user.'
    ) from None
  around = template_length(tokenizer)
  if reply_length <= around:
    raise UserError(
      f'config.dialogue.reply_length={reply_length} leaves no room for a reply: the chat template '
      f'writes {around} tokens around it; raise it.'
    )


def check_room(config: ConfigDict, tokenizer: Any, positions: int) -> None:
  """Refuses an SFT policy as a user that would lose the beginning of what it reads.

  Raises:
    UserError: if the instruction and a conversation do not fit into the model.
  """
  instruction = [{'role': 'user', 'content': config.dialogue.instruction}]
  (read,) = tokenizers.prompt_ids(tokenizer, [instruction])
  needed = len(read) + config.data.prompt_length + conversation_length(config)
  if needed > positions:
    raise UserError(
      f"config.dialogue.user='{SFT}': its instruction and a conversation have up to {needed} "
      f'tokens, more than the {positions} positions of the model; shorten the instruction, or '
      'lower config.data.prompt_length or config.dialogue.turns.'
    )


def cut_replies(user: FunctionUser, tokenizer: Any, dialogue: Dialogue) -> FunctionUser:
  """The user, whose replies end where `dialogue.reply_length` ends.

  A text of a model may have more tokens than were sampled, such as for half of a character.
  """

  def too_long(texts):
    rows = reply_ids(tokenizer, texts, [True] * len(texts))
    return [len(row) > dialogue.reply_length for row in rows]

  def reply(conversations, seeds):
    texts = list(map(clean_text, user.function(conversations, seeds)))
    while any(long := too_long(texts)):
      texts = [text[:-1] if cut else text for text, cut in zip(texts, long, strict=True)]
    return texts

  return user_from_function(reply)


def on_first(function: Callable) -> Callable:
  """A user's function, which of several processes the first one calls: replies may differ."""

  def reply(conversations: Sequence[Conversation], seeds: Sequence[int]) -> Any:
    def called():
      found = function(conversations, seeds)
      return list(found) if isinstance(found, Iterable) and not isinstance(found, str) else found

    return distributed.value_from_first(called)

  reply.__qualname__ = getattr(function, '__qualname__', repr(function))
  return reply


def with_place(function: Callable, what: str) -> Callable:
  """A user's function, whose errors name it and the first conversation.

  Raises:
    UserError: from the function, if it fails.
  """

  def reply(conversations: Sequence[Conversation], seeds: Sequence[int]) -> Any:
    try:
      return function(conversations, seeds)
    except (UserError, Interrupted):
      raise
    except (Exception, SystemExit) as error:
      first = repr(printable(conversations[0][-1]['content'][-80:]))
      raise UserError(
        f'{what} failed on {len(conversations)} conversations, the first of which ends with '
        f'{first}: {describe_error(error)}.'
      ) from None

  reply.__qualname__ = getattr(function, '__qualname__', repr(function))
  return reply


def make_table_user(path: str) -> FunctionUser:
  """The user of a table in a file.

  Raises:
    UserError: as `read_table`, or if the probabilities of an entry do not sum to 1.
  """
  try:
    return user_from_table(read_table(path))
  except UserError as error:
    raise UserError(f"config.dialogue.user='{path}': {error}") from None


def read_table(path: str) -> dict[str, Any]:
  """The table of a user in a file: text of the policy -> reply -> probability, or null.

  Raises:
    UserError: if the file cannot be read, or holds something else.
  """
  try:
    table = json_lines.read_json(Path(path))
  except (OSError, ValueError) as error:
    raise UserError(f'it cannot be read ({first_line(error)}); correct the file.') from None
  if not isinstance(table, dict) or not table:
    raise UserError(
      'the file must hold an object: what the policy wrote -> reply -> probability, or null to '
      'end the conversation.'
    )
  for text, replies in table.items():
    numbers = isinstance(replies, dict) and all(
      isinstance(chance, int | float) and not isinstance(chance, bool)
      for chance in replies.values()
    )
    if replies is not None and not (numbers and replies):
      raise UserError(f'the entry {text!r:.80} must be an object, reply -> probability, or null.')
  return {
    text: replies and {reply: float(chance) for reply, chance in replies.items()}
    for text, replies in table.items()
  }


def recorded_replies(corpus: Corpus) -> dict[str, list[Sequence[str]]]:
  """Prompt, as policies' prompts are decoded -> the lists of messages that the user wrote then.

  Raises:
    UserError: if the data have none.
  """
  tokenizer, found = corpus.tokenizer, {}
  examples = (example for *_, example in corpus.entries() if not isinstance(example, Problem))
  wanted = (example for example in examples if example.replies)
  while chunk := list(itertools.islice(wanted, CHUNK)):
    rows = encode_prompts(tokenizer, [example.prompt for example in chunk])
    pairs = zip(rows, chunk, strict=True)
    # Prompts that the tokenizer refuses are none of the corpus.
    kept = [(row, example) for row, example in pairs if not isinstance(row, Problem)]
    padded = tokenizers.pad_prompts(
      tokenizer, [row for row, _ in kept], max((len(row) for row, _ in kept), default=0)
    )
    texts = tokenizers.prompt_texts(tokenizer, padded.tokens, padded.mask)
    for text, (_, example) in zip(texts, kept, strict=True):
      found.setdefault(text, {})[example.replies] = None  # each list once, in order
  if not found:
    raise UserError(
      f"config.dialogue.user='{DATA}': no row of the data has a message of the user after its "
      'prompt; set config.data.schema=dialogues, hh_dialogues or mt_bench, or use another user.'
    )
  return {text: list(lists) for text, lists in found.items()}
