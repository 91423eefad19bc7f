"""The model card of an exported policy: README.md with the metadata of the Hugging Face hub."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from ml_collections import ConfigDict

from nlhf_jax import __version__
from nlhf_jax.data.chat_templates import PLAIN
from nlhf_jax.experiments.language.finished_run import find_entry
from nlhf_jax.experiments.specs import LanguageExperiment

FOLDER = "folder = 'FOLDER'  # this one"
USE = f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

{FOLDER}
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
PROMPT
settings = GenerationConfig.from_pretrained(folder)  # it names the token that ends a response
output = model.generate(**tokens, generation_config=settings, max_new_tokens=LENGTH)
print(tokenizer.decode(output[0][tokens['input_ids'].shape[1] :], skip_special_tokens=True))
```"""
PROMPTS = {
  True: """tokens = tokenizer.apply_chat_template(
  [{'role': 'user', 'content': 'What is a Nash equilibrium?'}],
  add_generation_prompt=True,
  return_tensors='pt',
  return_dict=True,
)""",
  False: "tokens = tokenizer('What is a Nash equilibrium?', return_tensors='pt')",
}


def make_card(
  config: ConfigDict,
  experiment: LanguageExperiment,
  policy: str,
  adapter: bool,
  results: Mapping | None,
) -> str:
  """The text of the card.

  Args:
    config: of the experiment.
    experiment: that trained the policy.
    policy: its name in the tournament.
    adapter: whether the adapter is exported on its own.
    results: of the tournament; None if there was none.
  """
  stage, _ = find_entry(experiment, policy)
  has_template = experiment.corpus.tokenizer.chat_template != PLAIN
  training = config.sft if stage == 'sft' else config.policies[stage]
  base, sources = config.model.hf, config.data.get('path', '').split(',')
  sources = [source.strip() for source in sources if source.strip()]
  metadata = ModelCardData(
    base_model=base if _is_on_hub(base) else None,
    datasets=list(filter(_is_on_hub, sources)) or None,
    library_name='peft' if adapter else 'transformers',
    pipeline_tag='text-generation',
    tags=['nlhf', 'preference-optimization', training.algorithm],
  )
  settings = {
    'base model': _public_name(base) if base else 'a new model',
    'data': ', '.join(map(_public_name, sources)) or config.data.source,
    'algorithm': training.algorithm,
    **training.arguments,
    **({} if stage == 'sft' else _settings_of_policy(training)),
    **{name: training[name] for name in ('steps', 'batch')},
    **{name: training.optimizer[name] for name in ('name', 'learning_rate', 'warmup', 'b1', 'b2')},
    'adapters': f'rank {config.model.lora.rank}' if config.model.lora.rank else 'none',
    'prompt length': config.data.prompt_length,
    'response length': config.data.response_length,
    'SFT steps before': config.sft.steps,
    'seed': config.seed,
  }
  settings['optimizer'] = settings.pop('name')
  rows = [f'| {name} | {_cell(value)} |' for name, value in settings.items()]
  parts = [
    f'---\n{metadata.to_yaml()}\n---',
    f'# {policy}',
    f'A policy that [nlhf_jax](https://arxiv.org/abs/2312.00886) {__version__} trained with '
    f'`{training.algorithm}` on preferences as a game.',
    '## Training',
    '\n'.join(['| setting | value |', '|---|---|', *rows]),
    '## Results',
    *(_tables(policy, results) if results else ['No tournament was run with this policy.']),
    '## Use',
    USE.replace('LENGTH', str(experiment.response_length)).replace('PROMPT', PROMPTS[has_template]),
  ]
  return '\n\n'.join(parts) + '\n'


def _settings_of_policy(row: ConfigDict) -> dict[str, Any]:
  """What only a policy has; the temperature is that at which it was trained, and should be used."""
  kept = {'judge': row.judge, 'feedback': row.feedback}
  return kept | {'temperature of its samples': row.filters.temperature}


def _tables(policy: str, results: Mapping) -> Iterator[str]:
  """The policy's win rates in the tournament, a table for each judge."""
  names = results['policies']
  row = names.index(policy)
  for judge, table in results['tables'].items():
    yield (
      f'Win rate of {policy} under the judge `{judge}` on {results["comparisons"]} held-out '
      'prompts, with 95 % intervals:'
    )
    columns = [table[field][row] for field in ('win_rate', 'low', 'high')]
    cells = [
      '| {} | {} | {} to {} |'.format(name, *map(_number, figures))
      for name, *figures in zip(names, *columns, strict=True)
      if name != policy
    ]
    yield '\n'.join(['| against | wins | interval |', '|---|---|---|', *cells])
  if 'kl_to_reference' in results:
    yield f'KL to `sft`: {_number(results["kl_to_reference"][policy])} nats per response.'


def _is_on_hub(name: str) -> bool:
  """Whether a model or data set is named by its owner and name, and no file here."""
  return name.count('/') == 1 and not name.startswith(('/', '.')) and not Path(name).exists()


def _public_name(name: str) -> str:
  """A name without folders of this machine."""
  return name if _is_on_hub(name) else Path(name).name


def _number(value: float | None) -> str:
  """A figure; those that are not finite are stored as null."""
  return 'unknown' if value is None else f'{value:.3f}'


def _cell(value: Any) -> str:
  """A value within a table."""
  return ' '.join(str(value).split()).replace('|', '\\|')
