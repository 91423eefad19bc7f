"""Trains a preference model, a reward model and a GPM on the same comparisons, and compares them.

python -m nlhf_jax.main --config=configs/preferences.py
python -m nlhf_jax.main --config=configs/preferences.py:file --config.data.path=FILE
python -m nlhf_jax.main --config=configs/preferences.py --config.judges=learned,lengths,pairrm
"""

from ml_collections import ConfigDict

from nlhf_jax.configs import base


def get_config(source='synthetic'):
  config = base.get_config(source)
  config.experiment = 'judges'
  del config.dialogue, config.refinement  # no policy is trained
  config.judges = 'learned,reward,gpm'
  config.sizes = ConfigDict(
    {'as set': {}}
  )  # name -> changes of config.model; all judges are trained in each
  # Comparisons for testing only; fields as in config.data.
  config.tests = dict(path='', schema='comparisons', split='', skip_bad=False)
  return config
