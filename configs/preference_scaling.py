"""Compares preference models of several sizes: training accuracy and held-out accuracy.

python -m nlhf_jax.main --config=configs/preference_scaling.py
"""

from ml_collections import ConfigDict

from nlhf_jax.configs import preferences


def get_config(source='synthetic'):
  config = preferences.get_config(source)
  config.judges = 'learned'
  # At three times this rate the largest model hardly learns.
  config.preference_model.optimizer.learning_rate = 7e-4
  config.sizes = ConfigDict(
    dict(
      small=dict(width=16, layers=1, heads=2, key_heads=1, head_size=8, hidden=32),
      medium=dict(width=32, layers=2, heads=4, key_heads=2, head_size=8, hidden=64),
      large=dict(width=64, layers=2, heads=4, key_heads=2, head_size=16, hidden=128),
      huge=dict(width=128, layers=4, heads=8, key_heads=4, head_size=16, hidden=256),
    ),
    sort_keys=False,
  )
  return config
