"""What the fields of a config must be, by their names."""

import json
import math

from ml_collections import ConfigDict

from nlhf_jax.errors import UserError


def _is_request(text: str) -> bool:
  """Whether it is a JSON object, of fields that no other setting has."""
  try:
    said = json.loads(text)
  except (ValueError, RecursionError):
    return False
  return isinstance(said, dict) and not {'model', 'messages', 'stream'} & set(said)


_AT_LEAST_ONE = (
  'batch evaluate_every posts prompt_length response_length prompts width layers heads '
  'key_heads head_size hidden updates every inner memory actions raters soldiers fields fingers '
  'count reset queue rounds candidates keep accumulate fsdp '
  'tensor planes concurrency responses batches'
)
_AT_LEAST_ZERO = (
  'retries per_minute tau decay prior tolerance gamma alpha delta weight forward reverse rank data '
  'prompt response'
)
_ABOVE_ZERO = 'timeout learning_rate clip temperature eta scale a b c desirable undesirable ridge'
_RULES = {
  **dict.fromkeys(_AT_LEAST_ONE.split(), (lambda value: value >= 1, 'at least 1')),
  **dict.fromkeys(('b1', 'b2'), (lambda value: 0 <= value < 1, 'in [0, 1)')),
  **dict.fromkeys(
    ('rate', 'cyclic', 'ratio', 'log_z', 'tolerated'), (lambda value: 0 <= value <= 1, 'in [0, 1]')
  ),
  **dict.fromkeys(('warmup', 'top_k'), (lambda value: value >= 0, 'at least 0')),
  **dict.fromkeys(
    _AT_LEAST_ZERO.split(), (lambda value: 0 <= value < math.inf, 'at least 0, and finite')
  ),
  **dict.fromkeys(_ABOVE_ZERO.split(), (lambda value: 0 < value < math.inf, 'above 0, and finite')),
  'beta': (lambda value: 0 <= value < math.inf, 'at least 0, and finite'),
  **dict.fromkeys(('epsilon', 'lead'), (lambda value: 0 <= value < 0.5, 'in [0, 1/2)')),
  **dict.fromkeys(('samples', 'seeds'), (lambda value: value >= 2, 'at least 2')),
  **dict.fromkeys(('top_p', 'damping'), (lambda value: 0 < value <= 1, 'in (0, 1]')),
  'e': (lambda value: abs(value) <= 1 / 3, 'in [-1/3, 1/3]'),
  'seed': (lambda value: 0 <= value < 2**32, 'in [0, 2^32)'),
  'vocabulary': (lambda value: value >= 259, 'at least 259: all bytes and the special tokens'),
  'request': (
    _is_request,
    'a JSON object of fields of the request, as {"max_tokens": 1}; model, messages and stream are '
    'none of them',
  ),
  'held_out': (
    lambda value: value >= 1 if isinstance(value, int) else 0 < value < 1,
    'at least 1 if it is a number of posts, and in (0, 1) if it is a share',
  ),
}


def check(section: ConfigDict, prefix: str = 'config') -> None:
  """Refuses numbers that cannot work before any work is done.

  Raises:
    UserError: that names the field, its value and what the value must be.
  """
  for name, value in section.items():
    if isinstance(value, ConfigDict):
      check(value, f'{prefix}.{name}')
    elif name in _RULES:
      holds, words = _RULES[name]
      if not holds(value):
        raise UserError(f'{prefix}.{name}={value} must be {words}.')
