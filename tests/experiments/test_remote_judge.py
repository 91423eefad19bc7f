"""A remote language model judges a whole run: training, tournament, interruption and usage."""

import importlib
import json
import os
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax.errors import Interrupted
from nlhf_jax.experiments.language import run as language
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.storage import json_lines
from nlhf_jax.training import interrupts
from tests.judges import faults

pytest.importorskip('openai', reason='the remote judge needs the extra remote')

ROOT = Path(__file__).parents[2]
PROMPTS = 8
REQUEST = {'max_tokens': 1, 'logprobs': None, 'top_logprobs': None}


def shown(content):
  """The prompt, the left text and the right text of a question."""
  _, *parts = (text.partition(' - ')[2] for text in content.split('\n\n')[:4])
  return parts


def verdict(prompt, left, right):
  """Prefers the longer response; NaN for some pairs."""
  left, right = left.rstrip(), right.rstrip()  # as in a question
  if left == right:
    return 0.5
  if zlib.crc32(f'{prompt}|{left}|{right}'.encode()) % 17 == 0:
    return np.nan
  return float(len(left) > len(right))


def answer(content, before):
  """The verdict as text; some questions fail the first time."""
  if before == 0 and zlib.crc32(content.encode()) % 7 == 0:
    return faults.Reply({'error': {'message': 'busy'}}, 500, {'Retry-After-Ms': '1'})
  chance = verdict(*shown(content))
  text = 'Who knows' if np.isnan(chance) else '1' if chance else '2'
  return faults.Reply(faults.completion(text, tokens=(100, 2)))


def in_page(path):
  """The results that a report contains."""
  start = '<script type="application/json" id="data">'
  return json.loads(path.read_text().split(start)[1].split('</script')[0])['results']


@pytest.mark.slow
def test_interrupted_run_with_a_remote_judge_resumes(toy, tmp_path, monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(ROOT))
  config = toy(importlib.import_module('nlhf_jax.configs.nash_md').get_config())
  del config.policies.self_play
  config.policies.nash_md.judge = config.judges = 'remote'
  received = []

  def behave(content, before):
    received.append(content)
    if len(received) == 12:  # in the middle of training
      os.kill(os.getpid(), signal.SIGTERM)
    return answer(content, before)

  with faults.serve(behave) as served:
    config.remote.update(url=served.url, model='m', key='', concurrency=2)
    config.remote.request = json.dumps(REQUEST)
    config.remote.prices.update(prompt=3.0, response=15.0)

    def run():
      return language.run(make_experiment(config, 'nash_md', tmp_path / 'stages'), tmp_path)

    with interrupts.deferred(), pytest.raises(Interrupted):
      run()
    first = json_lines.read_sealed(tmp_path / 'remote.json')['counts']
    assert 0 < first['requests'] <= 12 + 2
    results = run()
    output = capsys.readouterr().out
    assert output.count(f'The remote judge is m at {served.url}') == 1
    assert "unreadable, the answer 'Who knows'" in output
    usage = json_lines.read_sealed(tmp_path / 'remote.json')
    seen = len(served.seen)
    run()  # finds all stages done
    assert len(served.seen) == seen
    assert json_lines.read_sealed(tmp_path / 'remote.json') == usage

  # The requests and the cost of both runs together.
  counts = usage['counts']
  assert usage['about'] == f'm at {served.url}'
  assert counts['requests'] == seen
  contents = [request.content for request in served.seen]
  verdicts = {content: verdict(*shown(content)) for content in contents}
  # Verdicts are requested once; the other answers are not stored.
  assert counts['asked'] - counts['unusable'] == np.isfinite(list(verdicts.values())).sum()
  assert len(verdicts) <= counts['asked'] < seen
  assert (counts['prompt_tokens'], counts['response_tokens']) == (
    100 * counts['asked'],
    2 * counts['asked'],
  )
  assert counts['cost'] == pytest.approx((300 + 30) * counts['asked'] / 1e6)
  unreadable = np.isnan(list(verdicts.values())).sum()
  assert usage['last_failure'] == "unreadable, the answer 'Who knows'"
  assert counts['unusable'] == counts['unreadable'] >= unreadable > 0
  for request in served.seen:
    assert request.body.keys() == {'model', 'messages', 'temperature', 'max_tokens'}
    assert request.body['max_tokens'] == 1

  # The tournament has the prompts on which the judge has all verdicts.
  lines = json_lines.read(tmp_path / 'samples.jsonl')
  assert 0 < len(lines) == results['comparisons'] < PROMPTS
  for line in lines:
    left, right = line['responses']['sft'], line['responses']['nash_md']
    forward, backward = verdict(line['prompt'], left, right), verdict(line['prompt'], right, left)
    assert line['preferences']['remote'][0][1] == (forward + 1 - backward) / 2
  logged = [row for row in json_lines.read(tmp_path / 'metrics.jsonl') if row['stage'] == 'nash_md']
  assert 'win_rate_against_reference_by_remote' in logged[-1]
  page = in_page(tmp_path / 'report.html')
  assert page['external_judges'] == {'remote': usage}
  assert page['dropped_prompts'] == PROMPTS - len(lines)
