"""Any policies against one another under any judges, and the files of published benchmarks.

python -m nlhf_jax.main --config=configs/evaluate.py --config.judges=pairrm \
  --config.players=mine=DIR,theirs=model_outputs.json
python -m nlhf_jax.main --config=configs/evaluate.py:synthetic \
  --config.players=runs/nash_md/samples.jsonl
"""

from ml_collections import ConfigDict

from nlhf_jax.configs import base


def get_config(source='file'):
  config = base.get_config(source)  # what judges that are trained learn from
  config.experiment = 'evaluate'
  if source == 'file':
    config.judges = (
      ''  # some of learned, reward, embedding, pairrm, remote; none is trained unasked
    )
  # WHAT or NAME=WHAT, separated by commas: a model's folder or hub name, FOLDER:PLAYER of a run, or
  # a file of responses.
  config.players = ''
  # What is responded to; without a path AlpacaEval's instructions, if its reference is given, else
  # the prompts of the first file of responses; none, if MT-Bench or the harness is all there is.
  config.prompts = ConfigDict(dict(path='', form='prompts', split='', skip_bad=False))
  config.tournament.update(
    batch=64,
    length=512,  # most tokens of a response
    settle=0.0,  # chance of a wrong order at which to stop early; 0 to judge all prompts
  )
  # Outputs of the reference; with both of the others win rates are controlled for length, too.
  config.alpaca_eval = ConfigDict(dict(reference='', difficulty='', anchors=''))
  # FastChat's files of that name; the judge is that of the section `remote`.
  config.mt_bench = ConfigDict(
    dict(
      questions='',
      references='',  # its own answers, by which it judges mathematics, reasoning and coding
      judge_prompts='',
      mode='single',  # or pair
    )
  )
  # Tasks of the lm-evaluation-harness, groups of them, as openllm, or files.
  config.harness = ConfigDict(dict(tasks='', limit=0))  # questions of a task, 0 for all
  return config
