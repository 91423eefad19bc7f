"""A page of every kind, written from small results without a run."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from nlhf_jax.evaluation import tournament
from nlhf_jax.experiments.tabular.run import social_choice
from nlhf_jax.reporting import (
  comparison_page,
  game_page,
  game_plots,
  judge_page,
  sample_complexity_page,
  tournament_page,
)
from nlhf_jax.tasks.token_game import page as token_game_page

NASTY = '</script><script>alert("1")</script><b>x</b>'
POLICIES = ('sft', 'nash_md', 'self_play', 'a_policy_with_a_rather_long_name')
STEPS = [5, 10, 15, 20]


@cache
def tournament_lines(policies: tuple[str, ...] = POLICIES, prompts: int = 12) -> list[dict]:
  """Records of a tournament under two judges, one of which prefers the first three in a circle."""
  random = np.random.default_rng(0)
  count, lines = len(policies), []
  circle = np.array([[0.5, 0.8, 0.3, 0.7], [0.2, 0.5, 0.8, 0.7], [0.7, 0.2, 0.5, 0.7], [0.3] * 4])
  np.fill_diagonal(circle, 0.5)
  for number in range(prompts):
    noise = random.uniform(-0.1, 0.1, (4, 4))
    oracle = np.clip(circle + noise - noise.T, 0, 1)
    texts = {name: f'A response of {name} to question {number}: yes and no.' for name in policies}
    rates = {'oracle': oracle, 'learned': (oracle + 0.5) / 2}
    lines.append(
      {
        'prompt': f'Question {number}: what now?',
        'responses': texts,
        'log_ratio': {name: 0.4 * place for place, name in enumerate(policies)},
        'preferences': {name: rate[:count, :count].tolist() for name, rate in rates.items()},
      }
    )
  return lines


def curves(stages: tuple[str, ...] = ('sft', 'nash_md')) -> list[dict]:
  """Rows of `metrics.jsonl`."""
  return [
    {'stage': stage, 'step': step, 'loss': 1 / step, 'kl_to_reference': step / 10}
    | {'win_rate_against_reference_by_learned': 0.5 + step / 100, 'compiled_programs': 7}
    for stage in stages
    for step in STEPS
  ]


@cache
def summarised(policies: tuple[str, ...] = POLICIES) -> dict:
  return tournament.summarise(tournament_lines(policies))


def trained_beside(policies: tuple[str, ...]) -> dict:
  """What is measured of policies with a follower or a prompter."""
  rates = {'win_rate': 0.6, 'low': 0.5, 'high': 0.7}
  worst = {'mean': 0.6, 'low': 0.55, 'high': 0.65, 'worst': 0.41, 'prompt': NASTY}
  judges = ('oracle', 'learned')
  chosen = {'prompt': f'{NASTY} What now?', 'probability': 0.3, 'data': 0.1}
  return {
    'refinement': {name: {judge: [rates, rates] for judge in judges} for name in policies},
    'worst_prompts': {
      'win_rates': {name: dict.fromkeys(judges, worst) for name in policies[1:]},
      'chosen': {policies[1]: {'kl': 0.02, 'prompts': [chosen] * 3}},
    },
  }


def write_language(path: Path, policies: tuple[str, ...] = POLICIES) -> None:
  lines = tournament_lines(policies)
  results = summarised(policies) | trained_beside(policies)
  facts = {'name': 'language', 'stages': {'sft': {'steps': 20, 'seconds': 1.5}}, **results}
  example = ('A post about boats.', {'report': 'Boats are fast.', 'list': 'Boats, fast.'})
  tournament_page.write(path, facts, curves(), lines, example)
  write_run(path.parent, 'language', results, lines)


def write_run(folder: Path, kind: str, results: dict, lines: list[dict]) -> None:
  """The files of a finished run."""
  (folder / 'config.json').write_text(json.dumps({'experiment': kind, 'seed': 3}))
  (folder / 'results.json').write_text(json.dumps(results))
  (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, curves())))
  (folder / 'samples.jsonl').write_text('\n'.join(map(json.dumps, lines)))


def write_evaluate(path: Path) -> dict:
  lines = tournament_lines()
  table = {'title': 'MT-Bench', 'note': 'Of 10.', 'columns': ['average'], 'rows': [['one', 7.5]]}
  counts = {'about': 'm at a server', 'counts': {'requests': 12}}
  facts = {'benchmarks': [table], 'external_judges': {'remote': counts}}
  results = {'name': 'evaluate', **summarised(), **facts}
  stages = {'responses': {'seconds': 2.5}, 'tournament': {'seconds': 0.5}}
  tournament_page.write(path, {**results, 'stages': stages}, [], lines)
  return results


def write_judges(path: Path) -> dict:
  row = {'accuracy': 0.7, 'accuracy_interval': [0.6, 0.8], 'log_loss': 0.6, 'brier': 0.2}
  row |= dict.fromkeys(('calibration_error', 'consistency', 'first_place', 'longer'), 0.25)
  row |= {'longer_votes': 0.5, 'comparisons': 100, 'unusable': 2}
  row['calibration'] = [{'probability': p, 'votes': p - 0.1, 'count': 50} for p in (0.6, 0.8)]
  curve = {name: [0.5, 0.6, 0.65, 0.7] for name in ('accuracy', 'log_loss', 'train_accuracy')}
  judges = {
    name: {'network': name, 'parameters': size, 'seconds': 2.0, 'curve': curve | {'at': STEPS}}
    for name, size in (('preference model', 1000), (f'reward model {NASTY}', 2000))
  }
  cycles = {'three_cycles': 0.1, 'cyclic_energy': 0.2, 'condorcet': 0.9}
  results = {
    'name': 'judges',
    'comparisons': 200,
    'sets': {'held out': {name: row for name in (*judges, 'always the longer')}},
    'judges': judges,
    'transitivity': dict.fromkeys(judges, cycles),
    'external_judges': {},
  }
  example = ('A post.', {'report': 'One.', 'list': 'Two.'})
  judge_page.write(path, results, judge_page.draw(results), example)
  return results


def write_tabular(path: Path, names: tuple[str, ...] = ('rock', NASTY, 'scissors')) -> dict:
  payoff = np.array([[0, -0.3, 0.4], [0.3, 0, -0.2], [-0.4, 0.2, 0]])
  third = [[1 / 3] * 3]
  columns = ('gap', 'average_gap', 'distance', 'gap_tau', 'average_gap_tau', 'kl')
  solver = {name: [0.1, 0.01, 1e-3, 1e-4] for name in columns}
  solver |= {'updates': 20, 'seconds': 0.5, 'compile_seconds': 1.5, 'at': STEPS}
  rlhf = {'rlhf': third, 'nash_beats_rlhf': [0.6], 'rlhf_exploitability': [0.2]}
  results = {
    'name': 'tabular',
    'game': 'three',
    'notes': [f'A note on {names[1]}.'],
    'actions': list(names),
    'tau': 0.1,
    'reference': third,
    'payoff': [payoff.tolist()],
    'maximal_lottery': [[0.2, 0.5, 0.3]],
    'maximal_lottery_is_unique': [True],
    'groups': [[list(names)]],
    'choice': [social_choice(names, payoff)],
    'solvers': {'nash_md': solver, 'newton': solver},
    'rlhf': {'uniform': rlhf | {'nash_exploitability': [0.1]}},
  }
  gap = {name: (np.array(STEPS), np.array(solver['gap'])) for name in results['solvers']}
  path_to = np.linspace([0.6, 0.3, 0.1], [1 / 3] * 3, 10)
  figures = {
    'preferences': game_plots.payoff_heatmap(payoff, names, 'Win rate'),
    'policies': game_plots.policy_bars({'Nash': third[0], 'other': third[0]}, names, 'Policies'),
    'simplex': game_plots.simplex({'nash_md': path_to}, names, {'Nash': third[0]}, 'Iterates'),
    'gap_tau': game_plots.convergence(gap, 'To the equilibrium', 'duality gap'),
  }
  game_page.write(path, results, figures)
  return results


def write_sample_complexity(path: Path) -> dict:
  row = {'at': [100, 1000], 'mean': [0.1, 0.01], 'half': [0.01, 0.001], 'slopes': [-1.0]}
  left = {'version space': {'at': [100, 1000], 'left': [1e-3, 1e-4]}}
  panel = {'plug in': row, 'bonus': row}
  results = {
    'name': 'sample_complexity',
    'payoff': 'probability',
    'seeds': 2,
    'worlds': dict.fromkeys(('rates', 'offline', 'online', 'rewards'), 'any_world'),
    'rates': {'curves': {'one': row}, 'seconds': 1.0},
    'rewards': {'curves': {'one': row}, 'seconds': 1.0},
    'offline': {'panels': {'first': panel}, 'unsolved': {'first': left}, 'seconds': 1.0},
    'online': {'panels': {'first': panel}, 'unsolved': {}, 'seconds': 1.0},
  }
  gaps = {name: (one['at'], one['mean']) for name, one in panel.items()}
  figures = {
    name: game_plots.convergence(gaps, name, 'gap', 'votes', 1e-4)
    for name in ('rates', 'offline_1', 'online_1', 'rewards')
  }
  sample_complexity_page.write(path, results, figures)
  return results


def write_token_game(path: Path) -> dict:
  styles = {'a': [0.4], 'b': [0.3], 'c': [0.3]}
  gaps = [0.2, 0.1, 0.05, 0.02, 0.005]
  course = {name: gaps for name in ('gap', 'worst_gap', 'kl', 'kl_to_reference')} | {
    'win_rate_against_reference': [0.5, 0.55, 0.6, 0.6, 0.6]
  }
  tabular = {'solver': 'mmd', 'at': [0, 1, 2, 3, 4], 'gap': gaps, 'updates': 4}
  method = {'at': [0, *STEPS], **course, 'solved': 20, 'judged': [0, 50, 100, 150, 200]}
  method |= {'seconds': [0.0, 1.0, 2.0, 3.0, 4.0], 'styles': styles, 'tabular': tabular}
  policy = {'gap': 0.2, 'kl_to_reference': 1.0, 'styles': styles}
  results = {
    'name': 'token_game',
    'tau': 0.05,
    'target': 0.01,
    'prompts': ['∅'],
    'shown': 0,
    'responses': ['a', 'ab', 'b', 'ca'],
    **dict.fromkeys(('reference', 'reply', 'equilibrium'), policy),
    'methods': {'nash_md_pg': method, 'online_ipo': method},
    'learners': {'online_ipo': {'judged': [0, 50, 100], 'gap': [0.2, 0.1, 0.05]}},
  }
  scores = np.array([[0, 0.2, 0.1, -0.2], [0, 0, 0.3, -0.1], [0, 0, 0, 0.2], [0] * 4])
  payoff = scores - scores.T
  token_game_page.write(path, results, token_game_page.draw(results, payoff), payoff)
  return results


def write_comparison(path: Path) -> None:
  runs = [path.parent / name for name in ('one', 'other')]
  for run, policies in zip(runs, (POLICIES, POLICIES[:2]), strict=True):
    run.mkdir()
    write_language(run / 'report.html', policies)
  comparison_page.write(path, *map(comparison_page.read_run, runs))


# Kind -> what writes the page and, of those of a single run, returns its results.
PAGES: dict[str, Callable[[Path], dict | None]] = {
  'language': write_language,
  'evaluate': write_evaluate,
  'judges': write_judges,
  'tabular': write_tabular,
  'token_game': write_token_game,
  'sample_complexity': write_sample_complexity,
  'comparison': write_comparison,
}
