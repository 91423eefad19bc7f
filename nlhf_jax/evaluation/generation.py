"""A policy that is spoken to in text: what benchmarks with conversations need of it."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax

from nlhf_jax.data import tokenizers
from nlhf_jax.data.batches import map_chunks
from nlhf_jax.data.readers import Problem
from nlhf_jax.errors import UserError
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.sampling import rollout
from nlhf_jax.sampling.token import UNFILTERED, Filters
from nlhf_jax.structs import Params

GREEDY = 1e-4  # temperatures below it ask for the likeliest tokens
SHORTEST = 32  # tokens that no prompt is padded to less than


def make_respond(
  decoder: Decoder,
  params: Params,
  tokenizer,
  *,
  length: int,
  longest: int,
  batch: int = 64,
  filters: Filters = UNFILTERED,
) -> Callable[[Sequence[Sequence[Mapping[str, str]]], float, int], list[str]]:
  """A function that gives the next message of conversations: (conversations, temperature, seed).

  A conversation is messages `{'role', 'content'}`, the last one of a user.

  Args:
    decoder: the network.
    params: its parameters.
    tokenizer: of `tokenizers.train` or `load`.
    length: most tokens in a response.
    longest: tokens that the network has positions for.
    batch: conversations that are read at once.
    filters: of samples, but for their temperature.

  Raises:
    UserError: by the function, if the tokenizer's chat template cannot write a conversation, or one
      and its response are too long for the network.
  """

  @functools.cache  # so that programs are kept
  def rollout_at(temperature):
    drawn = Filters(top_k=1) if temperature < GREEDY else filters._replace(temperature=temperature)
    return rollout.make_rollout(
      decoder, [{'policy': 1.0}], length=length, stop=tokenizer.eos_token_id, filters=drawn
    )

  def respond(conversations, temperature, seed):
    # One question alone is what tokenizers without a chat template know.
    asked = [turns[0]['content'] if len(turns) == 1 else turns for turns in conversations]
    rows = written(tokenizer, asked)
    most = max(map(len, rows))
    if most + length > longest:
      of = next(one for one, row in zip(conversations, rows, strict=True) if len(row) == most)
      raise UserError(
        f'a conversation of {most} tokens and a response of {length} are more than the {longest} '
        f'that the policy has positions for ({told(of)}); ask for shorter responses, or leave it '
        'out.'
      )
    width = max(SHORTEST, 1 << (most - 1).bit_length())
    prompts = tokenizers.pad_prompts(tokenizer, rows, width)
    rollout, key = rollout_at(temperature), jax.random.key(seed)

    def of_chunk(chunk, number):
      return rollout({'policy': params}, chunk, jax.random.fold_in(key, number))[0]

    try:
      responses = map_chunks(of_chunk, prompts, batch)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      raise UserError(
        f'there is no memory for {min(batch, len(rows))} conversations of up to {width} tokens and '
        f'responses of {length} at once ({told(conversations[0])}); take a smaller batch, or '
        'shorter responses.'
      ) from None
    return tokenizers.texts(tokenizer, responses.tokens, responses.mask)

  return respond


def written(tokenizer, asked: Sequence[str | Sequence[Mapping[str, str]]]) -> list[list[int]]:
  """Token ids of each conversation, or question.

  Raises:
    UserError: if the tokenizer's chat template cannot write one; it is named.
  """
  try:
    return tokenizers.prompt_ids(tokenizer, asked)
  except Problem as problem:
    if len(asked) > 1:
      for one in asked:
        written(tokenizer, [one])
    raise UserError(
      f'{problem} ({told(asked[0])}); choose a policy whose tokenizer has one that can, or leave '
      'it out.'
    ) from None


def told(conversation: str | Sequence[Mapping[str, str]]) -> str:
  """How a conversation ends, for a sentence."""
  last = conversation if isinstance(conversation, str) else conversation[-1]['content']
  return f'the one that ends with {last[-60:]!r}'
