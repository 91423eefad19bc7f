"""Policies that respond to conversations in text, as benchmarks need them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from nlhf_jax.data import tokenizers
from nlhf_jax.data.batches import map_chunks
from nlhf_jax.data.readers import Problem
from nlhf_jax.errors import UserError
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.sampling import rollout
from nlhf_jax.sampling.refill import chunk_sampler
from nlhf_jax.sampling.token import UNFILTERED, Filters
from nlhf_jax.structs import Params

GREEDY_BELOW = 1e-4  # temperature below which decoding is greedy
MIN_PADDED_LENGTH = 32  # tokens

Message = Mapping[str, str]  # {'role', 'content'}
# (conversations, temperature, seed) -> the next message of each conversation
Respond = Callable[[Sequence[Sequence[Message]], float, int], Sequence[str]]


class LoadedModel(NamedTuple):
  """A network with its parameters and tokenizer; it reads at most `max_positions` tokens."""

  decoder: Decoder
  params: Params
  tokenizer: Any
  max_positions: int


def filters_at(temperature: float, filters: Filters = UNFILTERED) -> Filters:
  """The filters at a temperature; below `GREEDY_BELOW` only the most likely token is left."""
  greedy = temperature < GREEDY_BELOW
  return Filters(top_k=1) if greedy else filters._replace(temperature=temperature)


def make_respond(
  model: LoadedModel, *, length: int, batch: int = 64, filters: Filters = UNFILTERED
) -> Respond:
  """A function that samples the next message of conversations: (conversations, temperature, seed).

  A conversation is a list of messages `{'role', 'content'}`, the last one from the user. If it is
  too long for the network, it loses its first tokens; the number of such conversations is printed.

  Args:
    model: the policy.
    length: maximum number of tokens in a response.
    batch: conversations per batch.
    filters: of sampling; the temperature is the function's argument.

  Raises:
    UserError: if a response leaves no room for a conversation; from the function, if the
      tokenizer's chat template cannot render a conversation.
  """
  tokenizer, room = model.tokenizer, model.max_positions - length
  if room < 1:
    raise UserError(
      f'a response of {length} tokens leaves no room for its prompt in the {model.max_positions} '
      'positions of the policy; shorten the responses.'
    )

  @functools.cache  # so that each temperature is compiled once
  def rollout_at(temperature):
    chosen = filters_at(temperature, filters)
    return rollout.make_rollout(
      model.decoder, [{'policy': 1.0}], length=length, stop=tokenizer.eos_token_id, filters=chosen
    )

  def respond(conversations, temperature, seed):
    # A tokenizer without a chat template can still encode a single question.
    texts = [turns[0]['content'] if len(turns) == 1 else turns for turns in conversations]
    rows = truncate_rows(encode_conversations(tokenizer, texts), room)
    width = padded_length(max(map(len, rows)), MIN_PADDED_LENGTH, room)
    prompts = tokenizers.pad_prompts(tokenizer, rows, width)
    sampled, key = {'policy': model.params}, jax.random.key(seed)
    sample, size = chunk_sampler(rollout_at(temperature), sampled, key, len(rows), batch)
    try:
      (responses,) = map_chunks(sample, prompts, size)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      raise UserError(
        f'out of memory for {min(batch, len(rows))} conversations of up to {width} tokens and '
        f'responses of {length} tokens at once ({quote_end(conversations[0])}); reduce the batch, '
        'or shorten the responses.'
      ) from None
    return tokenizers.response_texts(tokenizer, responses.tokens, responses.mask)

  return respond


def truncate_rows(rows: list[list[int]], room: int) -> list[list[int]]:
  """The last `room` tokens of each row; prints how many rows are longer."""
  truncated = sum(len(row) > room for row in rows)
  if truncated:
    print(
      f'{truncated} of {len(rows)} conversations are longer than the {room} tokens that fit beside '
      'a response; their first tokens are removed.'
    )
  return [row[-room:] for row in rows]


def padded_length(length: int, least: int, most: int) -> int:
  """The next power of two, so that few programs are compiled, but at least and at most these."""
  return min(max(least, 1 << (length - 1).bit_length()), most)


def encode_conversations(tokenizer, texts: Sequence[str | Sequence[Message]]) -> list[list[int]]:
  """Token ids of each conversation, or single question.

  Raises:
    UserError: if the tokenizer's chat template cannot render one; the message quotes it.
  """
  try:
    return tokenizers.prompt_ids(tokenizer, texts)
  except Problem as problem:
    if len(texts) > 1:
      for text in texts:
        encode_conversations(tokenizer, [text])
    raise UserError(
      f'{problem} ({quote_end(texts[0])}); choose a policy whose tokenizer has one, or remove the '
      'conversation.'
    ) from None


def quote_end(conversation: str | Sequence[Message]) -> str:
  """The end of a conversation, for an error message."""
  last = conversation if isinstance(conversation, str) else conversation[-1]['content']
  return f'the one that ends with {last[-60:]!r}'
