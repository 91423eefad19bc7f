"""Evaluates policies under any judges, in a tournament and on published benchmarks.

python -m nlhf_jax.main --config=configs/evaluate.py --config.judges=pairrm \
  --config.entries=mine=DIR,theirs=model_outputs.json
python -m nlhf_jax.main --config=configs/evaluate.py:synthetic \
  --config.entries=runs/nash_md/samples.jsonl
"""

from ml_collections import ConfigDict

from nlhf_jax.configs import base


def get_config(source='file'):
  config = base.get_config(source)  # the data that learned judges are trained on
  config.experiment = 'evaluate'
  del config.dialogue, config.refinement  # no policy is trained
  if source == 'file':
    config.judges = ''  # some of learned, reward, gpm, lengths, pairrm, remote; empty: none
  # The policies: WHAT or NAME=WHAT, separated by commas. WHAT is a model's folder or hub name,
  # FOLDER:POLICY of a run, or a file of responses.
  config.entries = ''
  # Prompts of the tournament. Without a path they are AlpacaEval's instructions, if its reference
  # is given, or else the prompts of the first file of responses.
  config.prompts = ConfigDict(dict(path='', schema='prompts', split='', skip_bad=False))
  config.tournament.update(
    batch=64,
    length=512,  # maximum number of tokens in a response
    early_stopping=0.0,  # probability of a wrong order at which to stop early; 0 never stops early
  )
  # Outputs of the reference policy; `difficulty` and `anchors` add length-controlled win rates.
  config.alpaca_eval = ConfigDict(dict(reference='', difficulty='', anchors=''))
  # FastChat's files; the judge is the language model of the section `remote`.
  config.mt_bench = ConfigDict(
    dict(
      questions='',
      references='',  # the judge's own answers to mathematics, reasoning and coding questions
      judge_prompts='',
      mode='single',  # or pair
      # The last verdict after the judge's thinking counts. fastchat: the first match in the whole
      # text, as FastChat reads it, for figures that are compared with published ones.
      reading='last',
    )
  )
  # Arena-Hard's files; the judge is the language model of the section `remote`.
  config.arena_hard = ConfigDict(
    dict(
      questions='',
      baselines='',  # answers of the baseline: FILE, or CATEGORY=FILE,CATEGORY=FILE
      judge_prompts='',  # like FastChat's; named as the category, or default
      judgments='',  # published model_judgment files or folders, whose figures are shown, too
    )
  )
  # The lm-evaluation-harness: tasks, groups such as openllm, or YAML files, separated by commas.
  config.harness = ConfigDict(
    dict(
      tasks='',
      limit=0,  # questions per task, 0 for all
      trust_tasks=False,  # True to run code that YAML files bring: functions, classes, metrics
    )
  )
  # Agreement of the judges with human labels: files of LLMBar, PandaLM and Auto-J, separated by
  # commas. It needs no entries, and no judges for published verdicts: LLMBar's `result.json`, or
  # PandaLM's test set and beside it `gpt-3.5-turbo-testset-v1.json`.
  config.agreement = ConfigDict(dict(llmbar='', pandalm='', autoj=''))
  return config
