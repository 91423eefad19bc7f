"""The embedded task as a dataset for TensorFlow Datasets, with its graded preferences.

    from nlhf_jax.tasks.summaries.tfds_posts import PreferredPosts
    PreferredPosts(data_dir='DIR', file_format='array_record').download_and_prepare()

writes `DIR/preferred_posts/1.0.0`. Train on it with `config.data.path` naming that folder and
`config.data.schema=embedded`. TensorFlow is not needed. No other module imports this one.
"""

import itertools

import numpy as np
import tensorflow_datasets as tfds

from nlhf_jax.tasks.summaries import generator

SEEDS = {'train': 0, 'test': 1}
SIZES = {'train': 32_768, 'test': 1_024}


class PreferredPosts(tfds.core.GeneratorBasedBuilder):
  """Posts with a demonstration, two summaries, and how many of three votes prefer the left one."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'All of it.'}  # noqa: RUF012 - required by TensorFlow Datasets

  def _info(self) -> tfds.core.DatasetInfo:
    texts = {name: tfds.features.Text() for name in ('post', 'summary', 'left', 'right')}
    votes = {'votes_left': np.int32, 'votes': np.int32}  # a share would be stored as float32
    return self.dataset_info_from_configs(
      description='An embedded task with a known, intransitive preference.',
      features=tfds.features.FeaturesDict(texts | votes),
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in SEEDS}

  def _generate_examples(self, split):
    for number, record in enumerate(
      itertools.islice(generator.examples(SEEDS[split]), SIZES[split])
    ):
      yield (
        number,
        {
          'post': record.prompt,
          'summary': record.demonstration,
          'left': record.left,
          'right': record.right,
          'votes_left': round(record.preference * record.votes),
          'votes': record.votes,
        },
      )
