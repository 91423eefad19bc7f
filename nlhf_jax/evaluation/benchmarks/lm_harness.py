"""Policies for EleutherAI's lm-evaluation-harness; `lm_tasks` has its tasks, and what they cost.

The harness asks a model for log-likelihoods and for generations (https://github.com/EleutherAI/
lm-evaluation-harness); everything else of a task is its own. It is an extra of this package:
`pip install nlhf-jax[harness]`. Text is tokenised as the harness's Hugging Face backend does, so
that special tokens which a chat template writes are read as such.

Left out: several processes, and stop sequences within the compiled sampler; generation comes back
every `PIECE` tokens to look for them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
  handle_stop_sequences,
  normalize_gen_kwargs,
  postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.models.scoring import MAX_LOGITS
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.sampling.token import Filters
from nlhf_jax.structs import Params

PIECE = 64  # tokens that are sampled before looking for stop sequences
LENGTH = 256  # most tokens of a generation, unless a task says otherwise
SHORTEST = 16  # tokens that rows are padded to at least
KNOWN = {'until', 'max_gen_toks', 'do_sample', 'temperature', 'top_k', 'top_p'}


class Policy(TemplateLM):
  """A policy as the harness wants one; give it to `lm_eval.simple_evaluate(model=...)`.

  A class because the harness knows models by their class.
  """

  def __init__(
    self,
    decoder: Decoder,
    params: Params,
    tokenizer,
    *,
    longest: int,
    name: str,
    batch: int = 32,
    seed: int = 0,
    between: Callable[[], None] = lambda: None,
  ):
    """
    Args:
      decoder: the network.
      params: its parameters.
      tokenizer: of `tokenizers.train` or `load`.
      longest: tokens that the network reads at most; what is before them is cut, and `cut` counts
        how often.
      name: that tells its tokenizer from others in the harness's caches.
      batch: most rows that are read at once.
      seed: of sampled generations.
      between: is called before each batch; what it raises ends the work.
    """
    super().__init__()
    self.tokenizer, self.batch_size, self.max_length = tokenizer, batch, longest
    self.cut, self._between = 0, between
    self._decoder, self._params, self._name = decoder, params, name
    self._key, self._rollouts = jax.random.key(seed), {}
    self._score = jax.jit(_make_score(decoder))

  @property
  def eot_token_id(self) -> int:
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self) -> int:
    start = self.tokenizer.bos_token_id
    return self.eot_token_id if start is None else start

  @property
  def tokenizer_name(self) -> str:
    return self._name.replace('/', '__')

  def tok_encode(self, string, add_special_tokens=None, **kwargs) -> list[int]:
    if add_special_tokens is None:  # a chat template may have begun the text with them
      add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
    return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

  def apply_chat_template(self, chat_history, add_generation_prompt=True) -> str:
    return self.tokenizer.apply_chat_template(
      chat_history,
      tokenize=False,
      add_generation_prompt=add_generation_prompt,
      continue_final_message=not add_generation_prompt,
    )

  def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
    """(log-likelihood of the continuation in nats, whether it is greedy) of each request.

    Continuations that differ in their last token alone, as the letters of multiple choice, are read
    together.
    """
    groups: dict[tuple, list[int]] = {}
    for number, (_, context, continuation) in enumerate(requests):
      groups.setdefault((tuple(context), tuple(continuation[:-1])), []).append(number)
    rows = sorted(groups, key=lambda row: -len(row[0]) - len(row[1]))
    answers: list = [None] * len(requests)
    with tqdm(total=len(requests), desc='log-likelihoods', disable=disable_tqdm) as bar:
      for chunk in self._chunks(rows):
        self._between()
        numbers = [groups[row] for row in chunk]
        lasts = [[requests[number][2][-1] for number in together] for together in numbers]
        for together, said in zip(numbers, self._read(chunk, lasts), strict=True):
          for number, answer in zip(together, said, strict=True):
            answers[number] = answer
            if requests[number][0] is not None:  # a text; parts of one are of no use in a cache
              self.cache_hook.add_partial('loglikelihood', requests[number][0], answer)
          bar.update(len(together))
    return answers

  def _chunks(self, rows) -> Iterator[list]:
    """As many rows of about one length as fit, a power of two of them unless they are the last."""
    while rows:
      most = _padded(max(len(body) + 1 for _, body in rows[: self.batch_size]))
      size = max(1, min(self.batch_size, MAX_LOGITS // (len(self.tokenizer) * most)))
      size = 1 << (size.bit_length() - 1)
      yield rows[:size]
      rows = rows[size:]

  def _read(self, chunk, lasts) -> list[list[tuple[float, bool]]]:
    """What becomes of each row (context, all of the continuation but its last token)."""
    rows = [
      (self._last([*context, *body], self.max_length), min(len(body) + 1, self.max_length))
      for context, body in chunk
    ]
    length = _padded(max(count for _, count in rows))
    width = max(length, _padded(max(len(row) for row, _ in rows)))
    size, candidates = _padded(len(rows), 1), _padded(max(map(len, lasts)), 1)
    tokens, choices = np.zeros((size, width), np.int32), np.zeros((size, candidates), np.int32)
    mask, body_mask = np.zeros((size, width), bool), np.zeros((size, length), bool)
    mask[:, -1] = True  # of rows that fill the batch
    for i, ((row, count), last) in enumerate(zip(rows, lasts, strict=True)):
      tokens[i, width - len(row) :], mask[i, width - len(row) :] = row, True
      body_mask[i, length - count : -1] = True
      choices[i, : len(last)] = last
    body, body_greedy, of_last, greedy = jax.device_get(
      self._score(self._params, tokens, mask, body_mask, choices)
    )
    return [
      [
        (float(body[i] + of_last[i, j]), bool(body_greedy[i] and greedy[i] == token))
        for j, token in enumerate(last)
      ]
      for i, last in enumerate(lasts)
    ]

  def _last(self, row, room) -> list[int]:
    """The last tokens of a row, as many as there is room for."""
    self.cut += len(row) > room
    return row[-room:]

  def loglikelihood_rolling(self, requests, disable_tqdm=False) -> list[float]:
    windows = []
    for number, request in enumerate(requests):
      for window in get_rolling_token_windows(
        token_list=self.tok_encode(request.args[0]),
        prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length,
        context_len=1,
      ):
        windows.append((number, (None, *make_disjoint_window(window))))
    totals = [0.0] * len(requests)
    said = self._loglikelihood_tokens([window for _, window in windows], disable_tqdm)
    for (number, _), (log_prob, _) in zip(windows, said, strict=True):
      totals[number] += log_prob
    for request, total in zip(requests, totals, strict=True):
      self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
    return totals

  def generate_until(self, requests, disable_tqdm=False) -> list[str]:
    """The text after each context, up to the first of its stop sequences."""
    end = self.tokenizer.decode(self.eot_token_id)
    groups: dict[Wanted, list[int]] = {}
    for number, request in enumerate(requests):
      groups.setdefault(_wanted(request.args[1], end, self.max_length), []).append(number)
    answers: list = [None] * len(requests)
    with tqdm(total=len(requests), desc='generations', disable=disable_tqdm) as bar:
      for wanted, numbers in groups.items():
        room = self.max_length - wanted.length
        contexts = {n: self._last(self.tok_encode(requests[n].args[0]), room) for n in numbers}
        numbers = sorted(numbers, key=lambda n: -len(contexts[n]))
        for chunk in (
          numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size)
        ):
          self._between()
          texts = self._generate([contexts[n] for n in chunk], wanted)
          for number, text in zip(chunk, texts, strict=True):
            answers[number] = text
            self.cache_hook.add_partial('generate_until', requests[number].args, text)
          bar.update(len(chunk))
    return answers

  def _generate(self, rows, wanted) -> list[str]:
    said: list[list[int]] = [[] for _ in rows]
    going = list(range(len(rows)))
    for done in range(0, wanted.length, PIECE):
      length = min(PIECE, wanted.length - done)
      more = self._go_on([rows[i] + said[i] for i in going], wanted.filters, length)
      for i, new in zip(going, more, strict=True):
        said[i] += new
      texts = {i: self.tokenizer.decode(said[i]) for i in going}  # with special tokens
      going = [i for i in going if not any(stop in texts[i] for stop in wanted.until)]
      if not going:
        break
    texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in said]
    return [postprocess_generated_text(text, list(wanted.until), None) for text in texts]

  def _go_on(self, rows, filters, length) -> list[list[int]]:
    """The next tokens of each row, at most so many, the stop token included."""
    if (filters, length) not in self._rollouts:
      self._rollouts[filters, length] = make_rollout(
        self._decoder, [{'policy': 1.0}], length=length, stop=self.eot_token_id, filters=filters
      )
    rollout = self._rollouts[filters, length]
    filled = rows + rows[:1] * (_padded(len(rows), 1) - len(rows))
    prompts = tokenizers.pad_prompts(self.tokenizer, filled, _padded(max(map(len, rows))))
    self._key, key = jax.random.split(self._key)
    (responses,) = jax.device_get(rollout({'policy': self._params}, prompts, key))
    return [responses.tokens[i, 0][responses.mask[i, 0]].tolist() for i in range(len(rows))]


class Wanted(NamedTuple):
  """How a task wants its generations: what is done to logits, what ends one, most tokens."""

  filters: Filters
  until: tuple[str, ...]
  length: int


def _wanted(settings: Mapping, end: str, longest: int) -> Wanted:
  wanted = normalize_gen_kwargs(settings, LENGTH)
  if set(wanted) - KNOWN:
    raise UserError(
      f'the task asks for {sorted(set(wanted) - KNOWN)} in its generations; known are '
      f'{sorted(KNOWN)}.'
    )
  filters = Filters(top_k=1)
  if wanted['do_sample'] and wanted.get('temperature', 0) > 0:
    filters = Filters(*(wanted.get(name, of) for name, of in Filters()._asdict().items()))
  length = wanted['max_gen_toks']
  if length >= longest:
    raise UserError(
      f'the task asks for {length} tokens, and {longest} fit with its question; ask for less by '
      'max_gen_toks.'
    )
  until = [stop for stop in handle_stop_sequences(list(wanted['until']), eos=end) if stop]
  return Wanted(filters, tuple(until), length)


def _padded(length: int, least: int = SHORTEST) -> int:
  """The next power of two, so that there are few programs."""
  return max(least, 1 << (length - 1).bit_length())


def _make_score(decoder: Decoder):
  """Scores of what continues rows: (params, tokens [N, W], mask [N, W], body [N, T], last [N, C]).

  Each of the last T tokens of a row predicts the next one; `body` marks those that predict a token
  of the row which counts, and the last one of all predicts each of the C candidates.

  Returns:
    log-probability of the body [N], whether it is greedy [N], log-probabilities of the candidates
    [N, C], and the likeliest token after the row [N].
  """

  def score(params, tokens, mask, body, last):
    hidden, _ = decoder.prefill(params, tokens, mask)
    log_p = jax.nn.log_softmax(decoder.logits(params, hidden[:, -body.shape[1] :]))
    following = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))[:, -body.shape[1] :]
    chosen = jnp.take_along_axis(log_p, following[..., None], axis=-1)[..., 0]
    likeliest = jnp.argmax(log_p, axis=-1)
    return (
      jnp.sum(jnp.where(body, chosen, 0), axis=1),
      jnp.all((likeliest == following) | ~body, axis=1),
      jnp.take_along_axis(log_p[:, -1], last, axis=-1),
      likeliest[:, -1],
    )

  return score
