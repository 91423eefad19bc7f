"""Nash learning from human feedback: preferences as a game between language models, in JAX.

What is exported here is imported when it is first used, so that `import nlhf_jax` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from nlhf_jax import algorithms, games, judges
  from nlhf_jax.language_model import (
    LanguageModel,
    converse,
    from_pretrained,
    generate,
    load_run,
    user_from_model,
  )
  from nlhf_jax.sampling.dialogue_rollout import Dialogue
  from nlhf_jax.sampling.rollout import make_rollout
  from nlhf_jax.sampling.users import user_from_function, user_from_recorded, user_from_table
  from nlhf_jax.train_step import make_train_step

__version__ = '0.1.0'

__all__ = [
  'Dialogue',
  'LanguageModel',
  '__version__',
  'algorithms',
  'converse',
  'from_pretrained',
  'games',
  'generate',
  'judges',
  'load_run',
  'make_rollout',
  'make_train_step',
  'user_from_function',
  'user_from_model',
  'user_from_recorded',
  'user_from_table',
]

# Exported function or class -> the module that defines it.
_MODULES = {
  'Dialogue': 'nlhf_jax.sampling.dialogue_rollout',
  'LanguageModel': 'nlhf_jax.language_model',
  'converse': 'nlhf_jax.language_model',
  'from_pretrained': 'nlhf_jax.language_model',
  'generate': 'nlhf_jax.language_model',
  'load_run': 'nlhf_jax.language_model',
  'make_rollout': 'nlhf_jax.sampling.rollout',
  'make_train_step': 'nlhf_jax.train_step',
  'user_from_function': 'nlhf_jax.sampling.users',
  'user_from_model': 'nlhf_jax.language_model',
  'user_from_recorded': 'nlhf_jax.sampling.users',
  'user_from_table': 'nlhf_jax.sampling.users',
}


def __getattr__(name: str) -> Any:
  if name in _MODULES:
    return getattr(importlib.import_module(_MODULES[name]), name)
  if name in __all__:
    return importlib.import_module(f'{__name__}.{name}')
  raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
