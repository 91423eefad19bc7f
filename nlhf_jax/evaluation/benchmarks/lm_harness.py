"""The interface of a policy to EleutherAI's lm-evaluation-harness; `lm_tasks` runs its tasks.

The harness requests log-likelihoods and generations from a model (https://github.com/EleutherAI/
lm-evaluation-harness) and does everything else itself. It is an extra of this package:
`pip install .[harness]`. Text is tokenised as by the harness's Hugging Face backend: special
tokens in the output of a chat template are recognised.

Not supported: several processes. The host searches for stop sequences after every `CHUNK` tokens,
since the compiled sampler does not.
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

from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.generation import LoadedModel, padded_length
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.models.scoring import MAX_LOGITS
from nlhf_jax.progress import progress
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.sampling.token import Filters

CHUNK = 64  # tokens sampled between two searches for stop sequences
MAX_NEW_TOKENS = 256  # unless a task sets another maximum
MIN_PADDED_LENGTH = 16  # tokens
SETTINGS = {'until', 'max_gen_toks', 'do_sample', 'temperature', 'top_k', 'top_p'}


class HarnessModel(TemplateLM):
  """A policy as the model of `lm_eval.simple_evaluate(model=...)`.

  It is a class because the harness requires a subclass of `TemplateLM`.
  """

  def __init__(
    self,
    model: LoadedModel,
    *,
    name: str,
    batch: int = 32,
    seed: int = 0,
    before_batch: Callable[[], None] = lambda: None,
  ):
    """
    Args:
      model: the network. Prompts that are longer than its context lose their first tokens, and
        `cut` counts them.
      name: identifies the tokenizer in the harness's caches.
      batch: maximum number of rows in a batch.
      seed: of sampled generations.
      before_batch: called before each batch; an exception that it raises ends the run.
    """
    super().__init__()
    self.tokenizer, self.batch_size = model.tokenizer, batch
    self.max_length = model.max_positions
    self.cut, self._before_batch = 0, before_batch
    self._decoder, self._params, self._name = model.decoder, model.params, name
    self._key, self._rollouts = jax.random.key(seed), {}
    self._score = jax.jit(_make_score(model.decoder))

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
    if add_special_tokens is None:  # the chat template may already have added them
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

    Continuations that differ only in their last token, such as the letters of multiple choice,
    share one row of a batch.
    """
    groups: dict[tuple, list[int]] = {}
    for number, (_, context, continuation) in enumerate(requests):
      groups.setdefault((tuple(context), tuple(continuation[:-1])), []).append(number)
    rows = sorted(groups, key=lambda row: -len(row[0]) - len(row[1]))
    answers: list = [None] * len(requests)
    with progress(len(requests), 'log-likelihoods', 'request', hidden=disable_tqdm) as bar:
      for chunk in self._chunks(rows):
        self._before_batch()
        numbers = [groups[row] for row in chunk]
        lasts = [[requests[number][2][-1] for number in group] for group in numbers]
        for group, scored in zip(numbers, self._score_rows(chunk, lasts), strict=True):
          for number, answer in zip(group, scored, strict=True):
            answers[number] = answer
            if requests[number][0] is not None:  # not a window of a longer text
              self.cache_hook.add_partial('loglikelihood', requests[number][0], answer)
          bar.update(len(group))
    return answers

  def _chunks(self, rows) -> Iterator[list]:
    """Batches of rows of similar length; their sizes are powers of two, except for the last one."""
    while rows:
      width = self._width(max(len(body) + 1 for _, body in rows[: self.batch_size]))
      size = max(1, min(self.batch_size, MAX_LOGITS // (len(self.tokenizer) * width)))
      size = 1 << (size.bit_length() - 1)
      yield rows[:size]
      rows = rows[size:]

  def _score_rows(self, chunk, lasts) -> list[list[tuple[float, bool]]]:
    """(log-likelihood, greedy) of each candidate last token, for rows (context, continuation)."""
    rows = [
      (self._truncate([*context, *body], self.max_length), min(len(body) + 1, self.max_length))
      for context, body in chunk
    ]
    length = self._width(max(count for _, count in rows))
    width = self._width(max(length, *(len(row) for row, _ in rows)))
    size, candidates = _power(len(rows)), _power(max(map(len, lasts)))
    tokens, choices = np.zeros((size, width), np.int32), np.zeros((size, candidates), np.int32)
    mask, body_mask = np.zeros((size, width), bool), np.zeros((size, length), bool)
    mask[:, -1] = True  # rows that only fill the batch need one token
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

  def _width(self, length, room=None) -> int:
    """The padded length of rows, within the `room` that there is: the context by default."""
    return padded_length(length, MIN_PADDED_LENGTH, room or self.max_length)

  def _truncate(self, row, room) -> list[int]:
    """The last `room` tokens of a row."""
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
    scored = self._loglikelihood_tokens([window for _, window in windows], disable_tqdm)
    for (number, _), (log_prob, _) in zip(windows, scored, strict=True):
      totals[number] += log_prob
    for request, total in zip(requests, totals, strict=True):
      self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
    return totals

  def generate_until(self, requests, disable_tqdm=False) -> list[str]:
    """The text after each context, up to the first of its stop sequences."""
    end = self.tokenizer.decode(self.eot_token_id)
    groups: dict[GenerationSettings, list[int]] = {}
    for number, request in enumerate(requests):
      groups.setdefault(_read_settings(request.args[1], end, self.max_length), []).append(number)
    answers: list = [None] * len(requests)
    with progress(len(requests), 'generations', 'request', hidden=disable_tqdm) as bar:
      for settings, numbers in groups.items():
        room = self.max_length - settings.length
        contexts = {n: self._truncate(self.tok_encode(requests[n].args[0]), room) for n in numbers}
        numbers = sorted(numbers, key=lambda n: -len(contexts[n]))
        for chunk in (
          numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size)
        ):
          self._before_batch()
          texts = self._generate([contexts[n] for n in chunk], settings)
          for number, text in zip(chunk, texts, strict=True):
            answers[number] = text
            self.cache_hook.add_partial('generate_until', requests[number].args, text)
          bar.update(len(chunk))
    return answers

  def _generate(self, rows, settings) -> list[str]:
    sampled: list[list[int]] = [[] for _ in rows]
    active = list(range(len(rows)))
    for done in range(0, settings.length, CHUNK):
      length = min(CHUNK, settings.length - done)
      more = self._sample([rows[i] + sampled[i] for i in active], settings.filters, length)
      for i, new in zip(active, more, strict=True):
        sampled[i] += new
      texts = {i: self.tokenizer.decode(sampled[i]) for i in active}  # with special tokens
      active = [i for i in active if not any(stop in texts[i] for stop in settings.until)]
      if not active:
        break
    texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in sampled]
    return [postprocess_generated_text(text, list(settings.until), None) for text in texts]

  def _sample(self, rows, filters, length) -> list[list[int]]:
    """At most `length` further tokens of each row, including the stop token."""
    if (filters, length) not in self._rollouts:
      self._rollouts[filters, length] = make_rollout(
        self._decoder, [{'policy': 1.0}], length=length, stop=self.eot_token_id, filters=filters
      )
    rollout = self._rollouts[filters, length]
    filled = rows + rows[:1] * (_power(len(rows)) - len(rows))
    width = self._width(max(map(len, rows)), room=self.max_length - length)
    prompts = tokenizers.pad_prompts(self.tokenizer, filled, width)
    self._key, key = jax.random.split(self._key)
    (responses,) = jax.device_get(rollout({'policy': self._params}, prompts, key))
    return [responses.tokens[i, 0][responses.mask[i, 0]].tolist() for i in range(len(rows))]


class GenerationSettings(NamedTuple):
  """Generation settings of a task: sampling filters, stop sequences, maximum length in tokens."""

  filters: Filters
  until: tuple[str, ...]
  length: int


def _read_settings(settings: Mapping, end: str, max_positions: int) -> GenerationSettings:
  wanted = normalize_gen_kwargs(settings, MAX_NEW_TOKENS)
  if set(wanted) - SETTINGS:
    raise UserError(
      f'the task sets {sorted(set(wanted) - SETTINGS)} for its generations; supported are '
      f'{sorted(SETTINGS)}.'
    )
  filters = Filters(top_k=1)
  if wanted['do_sample'] and wanted.get('temperature', 0) > 0:
    filters = Filters(*(wanted.get(name, of) for name, of in Filters()._asdict().items()))
  length = wanted['max_gen_toks']
  if length >= max_positions:
    raise UserError(
      f'the task generates {length} tokens, and {max_positions} fit with its question; set a '
      'smaller max_gen_toks.'
    )
  until = [stop for stop in handle_stop_sequences(list(wanted['until']), eos=end) if stop]
  return GenerationSettings(filters, tuple(until), length)


def _power(count: int) -> int:
  """The next power of two, so that few programs are compiled."""
  return 1 << (count - 1).bit_length()


def _make_score(decoder: Decoder):
  """Scores continuations: (params, tokens [N, W], mask [N, W], body [N, T], last [N, C]).

  Each of the last T tokens of a row predicts the next one. `body` marks those that predict a token
  of the continuation, and the last token of the row predicts each of the C candidates.

  Returns:
    log-probability of the body [N], whether it is greedy [N], log-probabilities of the candidates
    [N, C], and the most likely token after the row [N].
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
