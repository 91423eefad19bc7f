"""A preference model, a reward model and an embedding model on the same comparisons, side by side.

python -m nlhf_jax.main --config=configs/preferences.py
python -m nlhf_jax.main --config=configs/preferences.py:file --config.data.path=FILE
python -m nlhf_jax.main --config=configs/preferences.py --config.judges=learned,pairrm
"""

from ml_collections import ConfigDict

from nlhf_jax.configs import base


def get_config(source='synthetic'):
  config = base.get_config(source)
  config.experiment = 'judges'
  config.judges = 'learned,reward,embedding'
  config.sizes = ConfigDict({'as set': {}})  # changes of config.model, one set of judges for each
  # Comparisons to test on that nothing is learned from, as those of config.data.
  config.tests = dict(path='', form='comparisons', split='', skip_bad=False)
  return config
