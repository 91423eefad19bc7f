"""PairRM here and in PyTorch: parity, and the time for all pairs of five responses.

python benchmarks/pairrm.py --alpaca-eval DIR --size large

Parity: the largest difference of hidden states between this encoder and that of `transformers`, for
every kind of relative position, and of logits on the texts that are timed. Time: from texts to the
logits of all 20 ordered pairs of five models' responses to each of some instructions of AlpacaEval,
in float32, on two threads, with equal batches; random weights of the size of a DeBERTa-v3, and
words as tokens, which are about as many as the published ones. PyTorch runs the encoder of
`transformers` with the published head on pairs in their given order, padded to the longest of a
batch as in the published code; and again sorted by length, as they are here, so that only the
kernels differ. Rounds alternate; under other load, compare processor seconds. Writes
benchmarks/results/pairrm.json.
"""

import argparse
import gzip
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import safetensors.torch
import tokenizers
import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from alpaca_comparisons import CHEATS  # noqa: E402

from nlhf_jax.judges import pairrm_scoring  # noqa: E402
from nlhf_jax.models import pairrm_encoder as networks  # noqa: E402
from nlhf_jax.reporting import formatting  # noqa: E402
from nlhf_jax.storage import json_lines  # noqa: E402
from tests.judges import published  # noqa: E402
from tests.models import test_deberta  # noqa: E402

SIZES = {  # layers, width, heads, hidden units
  'xsmall': (12, 384, 6, 1536),
  'small': (6, 768, 12, 3072),
  'base': (12, 768, 12, 3072),
  'large': (24, 1024, 16, 4096),
}
RESPONSES = 5
THREADS = 2


def parity() -> dict[str, float]:
  """Case -> largest difference of hidden states."""
  found = {}
  for case, changes in test_deberta.CASES.items():
    with tempfile.TemporaryDirectory() as folder:
      model = test_deberta.saved(folder, **changes)
      encoder, params = test_deberta.load(Path(folder), model.config)
      tokens, mask = test_deberta.rows(45)
      gap = test_deberta.ours(encoder, params, tokens, mask) - test_deberta.theirs(
        model, tokens, mask
      )
      found[case] = float(np.abs(gap[mask]).max())
  return found


def texts(folder: Path, prompts: int, most: int) -> tuple[list[str], list[list[str]]]:
  """The first instructions whose responses all have at most `most` words, and the responses."""

  def lines(path):
    with gzip.open(path, 'rt', encoding='utf-8') as file:
      return list(map(json.loads, file))

  questions = lines(folder / 'baseline_gpt4_1106_preview.jsonl.gz')
  models = [
    path
    for path in sorted(folder.glob('models/*.jsonl.gz'))
    if path.name.removesuffix('.jsonl.gz') not in CHEATS
  ][:RESPONSES]
  outputs = [{row['index']: row['output'] for row in lines(path)} for path in models]
  chosen = [
    row
    for row in range(len(questions))
    if all(row in of_model and len(of_model[row].split()) <= most for of_model in outputs)
  ][:prompts]
  instructions = [questions[row]['instruction'] for row in chosen]
  return instructions, [[of_model[row] for of_model in outputs] for row in chosen]


def make_tokenizer(corpus: Sequence[str]) -> tokenizers.Tokenizer:
  """A tokenizer of words and punctuation, with the special tokens of PairRM."""
  special = ['[PAD]', '[CLS]', '[SEP]', '[UNK]']
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token='[UNK]'))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
  tokenizer.train_from_iterator(corpus, trainer)
  tokenizer.add_tokens(published.PREFIXES)
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 1), ('[SEP]', 2)]
  )
  return tokenizer


def make_torch(
  ranker: torch.nn.Module, tokenizer: tokenizers.Tokenizer, batch: int, by_length: bool
) -> Callable:
  """The score of texts in PyTorch, in batches sorted by length or in the given order."""
  prefixes = [tokenizer.token_to_id(prefix) for prefix in published.PREFIXES]

  def score(*columns):
    rows = [published.packed(tokenizer, *triple) for triple in zip(*columns, strict=True)]
    lengths = [len(row) for row in rows]
    order = np.argsort(lengths, kind='stable') if by_length else np.arange(len(rows))
    logits = np.zeros(len(rows), np.float32)
    for start in range(0, len(rows), batch):
      chosen = order[start : start + batch]
      longest = max(lengths[row] for row in chosen)
      tokens = torch.tensor([rows[row] + [0] * (longest - lengths[row]) for row in chosen])
      mask = torch.arange(longest) < torch.tensor([lengths[row] for row in chosen])[:, None]
      with torch.inference_mode():
        logits[chosen] = ranker(tokens, mask.long(), prefixes).numpy()
    return logits

  return score


def make_scores(tokenizer: tokenizers.Tokenizer, size: str, batch: int) -> dict[str, Callable]:
  """Every implementation, with the same random weights of this size."""
  layers, width, heads, hidden = SIZES[size]
  torch.manual_seed(0)
  config = transformers.DebertaV2Config(
    vocab_size=tokenizer.get_vocab_size(),
    hidden_size=width,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    intermediate_size=hidden,
    **published.V3,
  )
  in_torch = published.Ranker(config, 1).eval()
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'config.json').write_text(json.dumps(config.to_dict() | {'n_tasks': 1}))
    safetensors.torch.save_file(in_torch.state_dict(), folder / 'model.safetensors')
    ranker, params, lengths = networks.load_ranker(folder)
    vocabulary = pairrm_scoring.read_vocabulary(folder, config.vocab_size)
  return {
    'nlhf_jax': pairrm_scoring.make_score(ranker, params, lengths, vocabulary, batch),
    'torch': make_torch(in_torch, tokenizer, batch, by_length=False),
    'torch, sorted': make_torch(in_torch, tokenizer, batch, by_length=True),
  }


def measure(
  scores: dict[str, Callable], columns: Sequence[Sequence[str]], rounds: int
) -> dict[str, dict]:
  """Logits, seconds, and ratios of seconds to ours; the first call of each compiles."""
  logits = {name: score(*columns) for name, score in scores.items()}
  seconds, processor = ({name: [] for name in scores} for _ in range(2))
  load = []
  for _ in range(rounds):
    load.append(os.getloadavg()[0])
    for name, score in scores.items():
      start, used = time.perf_counter(), time.process_time()
      score(*columns)
      seconds[name].append(time.perf_counter() - start)
      processor[name].append(time.process_time() - used)
  return {
    'load_before_rounds': load,
    'logits': {
      'largest': float(np.abs(logits['torch']).max()),
      'gap': float(np.abs(logits['nlhf_jax'] - logits['torch']).max()),
    },
    'seconds': {name: spread(values) for name, values in seconds.items()},
    'processor_seconds': {name: spread(values) for name, values in processor.items()},
    'torch_over_nlhf_jax': {
      name: {
        'seconds': spread(np.array(seconds[name]) / seconds['nlhf_jax']),
        'processor_seconds': spread(np.array(processor[name]) / processor['nlhf_jax']),
      }
      for name in scores
      if name != 'nlhf_jax'
    },
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--alpaca-eval', type=Path, required=True, help='folder of the judgements')
  parser.add_argument('--size', choices=SIZES, default='large', help='of DeBERTa-v3')
  parser.add_argument('--prompts', type=int, default=1, help='number of instructions')
  parser.add_argument('--words', type=int, default=200, help='maximal words of a response')
  parser.add_argument('--batch', type=int, default=4, help='pairs in a batch')
  parser.add_argument('--rounds', type=int, default=5, help='of each implementation')
  given = parser.parse_args()
  torch.set_num_threads(THREADS)
  prompts, responses = texts(given.alpaca_eval, given.prompts, given.words)
  tokenizer = make_tokenizer([*prompts, *(text for row in responses for text in row)])
  triples = [
    (prompt, one, other)
    for prompt, of_prompt in zip(prompts, responses, strict=True)
    for one, other in itertools.permutations(of_prompt, 2)
  ]
  scores = make_scores(tokenizer, given.size, given.batch)
  measured = measure(scores, list(zip(*triples, strict=True)), given.rounds)
  tokens = [len(published.packed(tokenizer, *triple)) for triple in triples]
  results = {
    'versions': {module.__name__: module.__version__ for module in (jax, transformers, torch)},
    'setting': {
      **{name: value for name, value in vars(given).items() if name != 'alpaca_eval'},
      'threads': THREADS,
      'pairs': len(triples),
      'tokens': spread(tokens) | {'all': sum(tokens)},
      'load_before_rounds': measured.pop('load_before_rounds'),
    },
    'hidden_states': parity(),
    **measured,
  }
  json_lines.write_json(ROOT / 'benchmarks' / 'results' / 'pairrm.json', results)
  announce(results)


def spread(values: Sequence[float]) -> dict[str, float]:
  """Median, minimum and maximum."""
  return {'median': statistics.median(values), 'least': min(values), 'most': max(values)}


def announce(results: dict) -> None:
  """Prints the tables."""
  title = ', '.join(f'{name} {version}' for name, version in results['versions'].items())
  cells = [[f'{gap:.1e}'] for gap in results['hidden_states'].values()]
  print(
    formatting.format_text(
      f'{title}; gap to transformers', [*results['hidden_states']], [''], cells
    )
  )
  cells = [
    [f'{row[of]:.2f}' for of in ('median', 'least', 'most')]
    + [f'{results["processor_seconds"][name]["median"]:.2f}']
    + [
      f'{ratios[clock]["median"]:.2f}' if ratios else ''
      for clock in ('seconds', 'processor_seconds')
    ]
    for name, row in results['seconds'].items()
    for ratios in [results['torch_over_nlhf_jax'].get(name)]
  ]
  columns = ['seconds', 'least', 'most', 'of processors', 'over nlhf_jax', 'of processors']
  print(f'\n{results["setting"]}\nlogits: {results["logits"]}')
  print(formatting.format_text('all pairs', [*results['seconds']], columns, cells))


if __name__ == '__main__':
  main()
