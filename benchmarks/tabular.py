"""Times the tabular solvers and other packages, with gaps computed by one function.

python benchmarks/tabular.py [--cases a b c d]

Prints the tables; a run of all cases writes benchmarks/results/tabular.json. The other packages
run in their own environment, .cache/peers, which is created if missing and not part of the project:
pygambit is under the GPL.

Games are random: A = sigmoid(g) - 1/2 with g antisymmetric and standard normal; references are
uniform. The gap is `exploitability` in float64 for all packages, the maximum over the games.
Times are per game or per iteration: median, fastest and slowest of some runs, after a warm-up run;
compilation is timed separately. Construction of a package's game object is not timed. Peers solve
one game after another, and only the first few of a batch. Packages for general zero-sum games find
two policies, although one would be enough.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import environments
import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.games.exact import equilibrium, maximal_lottery
from nlhf_jax.games.game import Game, exploitability, make_game
from nlhf_jax.games.solve import solve
from nlhf_jax.games.solvers import fictitious_play, mmd, nash_md, regret_matching

ROOT = Path(__file__).parents[1]
PEERS = ROOT / '.cache' / 'peers'
RESULTS = ROOT / 'benchmarks' / 'results' / 'tabular.json'
REQUIREMENTS = [
  'open_spiel==2.0.2',
  'nashpy==0.0.43',
  'quantecon==0.11.4',
  'polarix==0.1.2',
  'pygambit==16.7.0',
  'cvxpy==1.9.3',  # these two are for OpenSpiel's linear programs
  'ecos==2.0.14',
]
TOLERANCE = 1e-10  # win probability
LIMIT = 120  # seconds that a peer may take for its runs, and for its imports


class Row(NamedTuple):
  """The measurements of one solver on one case."""

  solver: str
  work: int  # games, or iterations of all games together, in one run
  seconds: list[float]  # of each run; none if not even one was done in time
  gap: float | None = None  # win probability
  iterations: float | None = None  # a game, of those that tell
  compiling: float | None = None  # seconds


class Case(NamedTuple):
  """A table; its first row is what the others are compared with."""

  title: str
  unit: str
  rows: list[Row]
  goal: float = np.inf  # gap that the solvers are to reach


# --- Ours ---


def ours(
  solver: str,
  call: Callable,
  *arguments,
  work: int = 1,
  judge: Callable | None = None,
  count: Callable | None = None,
  runs: int = 20,
) -> Row:
  """Compiles `call` and times it; `judge` and `count` turn its result into gaps and iterations."""
  start = time.perf_counter()
  compiled = jax.jit(call).lower(*arguments).compile()
  compiling = time.perf_counter() - start
  seconds, result = timed(lambda: compiled(*arguments), runs)
  return Row(
    solver,
    work,
    seconds,
    None if judge is None else float(jnp.max(judge(result))),
    None if count is None else float(jnp.mean(count(result))),
    compiling,
  )


def timed(call: Callable, runs: int) -> tuple[list[float], object]:
  """Seconds of each run but the first, and the result of the last."""
  seconds = []
  for _ in range(runs + 1):
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return seconds[1:], result


# --- Peers ---


def script(*arguments, **options) -> subprocess.CompletedProcess:
  """Runs `tabular_peers.py` in the peers' environment."""
  python = environments.make(PEERS, REQUIREMENTS)
  command = [python, ROOT / 'benchmarks' / 'tabular_peers.py', *arguments]
  return subprocess.run(command, capture_output=True, text=True, **options)


def peer(
  name: str, payoffs: np.ndarray, tau: float = 0.0, iterations: int = 100_000, runs: int = 5
) -> Row:
  """Times a peer on games [N, K, K], one after another, and computes the gaps of its policies."""
  with tempfile.TemporaryDirectory() as folder:
    np.savez(
      Path(folder, 'job.npz'),
      payoffs=payoffs,
      tau=tau,
      tolerance=TOLERANCE,
      iterations=iterations,
      runs=runs,
      budget=0.8 * LIMIT,
    )
    try:
      done = script(name, folder, timeout=LIMIT)
    except subprocess.TimeoutExpired:
      pass  # the runs that it finished are in the file
    else:
      if done.returncode:
        sys.exit(f'{name} failed:\n{done.stderr}')
    file = Path(folder, 'runs.jsonl')
    lines = file.read_text().splitlines() if file.exists() else []
  every = [json.loads(line) for line in lines]
  if not every:
    return Row(name, len(payoffs), [])
  counted, last = every[1:] or every, every[-1]
  policies = np.maximum(last['policies'], 0)
  with np.errstate(divide='ignore'):
    log_pi = np.log(policies / policies.sum(-1, keepdims=True))
  return Row(
    name,
    len(payoffs),
    [run['seconds'] for run in counted],
    float(jnp.max(jax.vmap(exploitability)(make_game(payoffs, tau=tau), log_pi))),
    last['iterations'] if last['iterations'] > 1 else None,
    last['compiling'] or None,
  )


def dynamic(name: str, payoff: np.ndarray, iterations: int) -> Row:
  """Times a set number of a peer's iterations."""
  row = peer(name, payoff[None], 0.1, iterations)
  return row._replace(work=iterations, gap=None, iterations=None)


# --- Cases ---


def payoffs(actions: int, games: int, seed: int) -> np.ndarray:
  """Random logistic preferences, [games, actions, actions], bitwise antisymmetric."""
  scores = np.random.default_rng(seed).normal(size=(games, actions, actions))
  table = 1 / (1 + np.exp(-(scores - scores.swapaxes(1, 2)) / np.sqrt(2))) - 1 / 2
  return (table - table.swapaxes(1, 2)) / 2


def case_a() -> list[Case]:
  """One large regularised game."""
  cases = []
  table = payoffs(100, 1, seed=0)
  for tau in (0.1, 0.02):
    game = make_game(table[0], tau=tau)
    exact = partial(equilibrium, tolerance=TOLERANCE)
    rows = [
      ours(
        'equilibrium',
        exact,
        game,
        judge=lambda e, game=game: exploitability(game, e.log_pi),
        count=lambda e: e.steps,
      )
    ]
    rows += [
      peer(name, table, tau)
      for name in ('scipy_root', 'gambit_logit', 'polarix_lle', 'open_spiel_mmd')
    ]
    title = f'(a) a 100x100 game, tau = {tau}, to a gap of {TOLERANCE}'
    cases.append(Case(title, 'game', rows, TOLERANCE))
  return cases


def case_b() -> list[Case]:
  """Many small regularised games at once."""
  cases = []
  tables = payoffs(10, 4096, seed=1)
  for tau in (0.1, 0.02):
    games = make_game(tables, tau=tau)
    exact = jax.vmap(partial(equilibrium, tolerance=TOLERANCE))
    rows = [
      ours(
        'equilibrium',
        exact,
        games,
        work=len(tables),
        judge=lambda e, games=games: jax.vmap(exploitability)(games, e.log_pi),
        count=lambda e: e.steps,
      )
    ]
    # Seconds a game are to be compared; the slow ones get fewer games.
    rows += [
      peer(name, tables[:part], tau)
      for name, part in (
        ('scipy_root', 64),
        ('gambit_logit', 64),
        ('polarix_lle', 4),
        ('open_spiel_mmd', 4),
      )
    ]
    title = f'(b) {len(tables):,} 10x10 games, tau = {tau}, to a gap of {TOLERANCE}'
    cases.append(Case(title, 'game', rows, TOLERANCE))
  return cases


def case_c() -> list[Case]:
  """Equilibria of unregularised games."""
  cases = []
  for actions in (25, 300):
    table = payoffs(actions, 1, seed=2)
    free = make_game(table[0])
    seconds, pi = timed(lambda table=table: maximal_lottery(table[0]), 9)
    with np.errstate(divide='ignore'):
      gap = float(exploitability(free, jnp.log(pi)))
    # The alternative: a negligible tau.
    regularised = make_game(table[0], tau=1e-5 * abs(table).max())
    near = ours(
      'equilibrium, tau = 1e-5 max|A|',
      equilibrium,
      regularised,
      judge=lambda e, free=free: exploitability(free, e.log_pi),
      count=lambda e: e.steps,
      runs=9,
    )
    rows = [Row('maximal_lottery', 1, seconds, gap), near]
    rows += [
      peer(name, table) for name in ('quantecon_minmax', 'nashpy_lp', 'gambit_lp', 'open_spiel_lp')
    ]
    cases.append(Case(f'(c) a {actions}x{actions} unregularised game', 'game', rows))
  return cases


def case_d() -> list[Case]:
  """Iterations per second of learning dynamics; ours have one policy, in self-play."""
  solvers = {
    'nash_md': nash_md(1.0),
    'mmd': mmd(1.0),
    'regret_matching': regret_matching(),
    'fictitious_play': fictitious_play(),
  }
  cases = []
  for actions, count, slow in ((10, 50_000, 200), (100, 10_000, 10)):
    table = payoffs(actions, 1, seed=3)[0]
    game = make_game(table, tau=0.1)
    rows = [
      ours(name, partial(run, solver, count), game, work=count, runs=9)
      for name, solver in solvers.items()
    ]
    rows += [
      dynamic('open_spiel_rm', table, 20_000),
      dynamic('open_spiel_prd', table, 20_000),
      dynamic('nashpy_fp', table, 20_000),
      dynamic('open_spiel_mmd_steps', table, slow),
    ]
    cases.append(Case(f'(d) dynamics of a {actions}x{actions} game', 'iteration', rows))
  games, count = make_game(payoffs(10, 1024, seed=4), tau=0.1), 2000
  rows = [
    ours(name, jax.vmap(partial(run, solver, count)), games, work=1024 * count, runs=9)
    for name, solver in solvers.items()
  ]
  # The peers do one game after another, so what they take for one is what they take for many.
  rows += [row for row in cases[0].rows if row.solver not in solvers]
  cases.append(Case('(d) dynamics of 1,024 10x10 games', 'iteration of a game', rows))
  return cases


def run(solver, count: int, game: Game):
  """The last and the average policy after `count` updates."""
  path = solve(solver, game, np.array([count]))
  return path.last, path.average


CASES = {'a': case_a, 'b': case_b, 'c': case_c, 'd': case_d}


# --- Results ---


def describe(case: Case) -> dict:
  """The case as plain values for the file; times are seconds per unit."""
  reference = statistics.median(case.rows[0].seconds) / case.rows[0].work

  def entry(row):
    if not row.seconds:
      return {'solver': row.solver, 'note': f'not finished in {LIMIT} s'}
    median = statistics.median(row.seconds) / row.work
    return {
      'solver': row.solver,
      'seconds': median,
      'fastest': min(row.seconds) / row.work,
      'slowest': max(row.seconds) / row.work,
      'units_a_second': 1 / median,
      'ratio': median / reference,
      'gap': row.gap,
      # Whoever stops at the goal itself may round it otherwise.
      'reached': row.gap is None or row.gap <= 1.01 * case.goal,
      'iterations': row.iterations,
      'compiling': row.compiling,
      'runs': len(row.seconds),
      'units_a_run': row.work,
    }

  return {'case': case.title, 'unit': case.unit, 'rows': [entry(row) for row in case.rows]}


def show(case: dict) -> str:
  """The case as a printed table."""
  head = ('median', 'fastest', 'slowest', 'a second', 'gap', 'steps', 'compiling', 'ratio')
  lines = [f'\n{case["case"]}; each {case["unit"]}:', ' ' * 31 + ''.join(f'{h:>10}' for h in head)]
  for row in case['rows']:
    if 'note' in row:
      lines.append(f'{row["solver"]:<31}{row["note"]:>30}')
      continue
    cells = [human(row[key]) for key in ('seconds', 'fastest', 'slowest')]
    cells.append(f'{row["units_a_second"]:,.3g}')
    cells.append('' if row['gap'] is None else f'{row["gap"]:.1e}')
    cells.append('' if row['iterations'] is None else f'{row["iterations"]:,.1f}')
    cells.append('' if row['compiling'] is None else human(row['compiling']))
    cells.append(('' if row['reached'] else '> ') + f'{row["ratio"]:,.3g}')
    lines.append(f'{row["solver"]:<31}' + ''.join(f'{cell:>10}' for cell in cells))
  return '\n'.join(lines)


def human(seconds: float) -> str:
  """Seconds to three digits, in a suitable unit."""
  for unit, size in (('s', 1), ('ms', 1e-3), ('us', 1e-6)):
    if seconds >= size:
      return f'{seconds / size:.3g} {unit}'
  return f'{seconds / 1e-9:.3g} ns'


def main(letters: list[str]) -> None:
  """Measures and prints the requested cases; writes the file if they are all cases."""
  jax.config.update('jax_enable_compilation_cache', False)  # or compiling would seem free
  versions = json.loads(script('versions', check=True).stdout)
  found = {'machine': environments.machine() | {'peers': versions}, 'cases': []}
  print(json.dumps(found['machine'], indent=2), flush=True)
  with jax.enable_x64(True):
    for letter in letters:
      for case in CASES[letter]():
        found['cases'].append(describe(case))
        print(show(found['cases'][-1]), flush=True)
  if set(letters) == set(CASES):
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + '\n')
    print(f'\nWrote {RESULTS.relative_to(ROOT)}')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES))
  main(parser.parse_args().cases)
