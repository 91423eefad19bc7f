// ---- Policies, benchmarks, exploiters and judges

// The mean win rate of each policy against its KL to the reference.
function frontier() {
  const kl = results.kl_to_reference || {};
  const ranked = judges.length ? (results.ranking || {})[judges[0]] || [] : [];
  const points = ranked.filter((r) => isNumber(kl[r.policy]) && isNumber(r.borda))
    .map((r) => ({name: r.policy, x: kl[r.policy], y: r.borda, error: r.borda_error || 0}));
  if (points.length < 3) return;
  const box = {width: 640, height: 320, left: 48, right: 20, top: 14, bottom: 40};
  const right = Math.max(...points.map((p) => p.x), 1e-6);
  const low = Math.min(...points.map((p) => p.y - 2 * p.error));
  const high = Math.max(...points.map((p) => p.y + 2 * p.error));
  const x = (v) => box.left + v / right * (box.width - box.left - box.right);
  const y = (v) => box.height - box.bottom -
    (v - low) / (high - low || 1) * (box.height - box.top - box.bottom);
  // Labels move down until they are clear of those before them.
  const labels = points.map((p) => ({left: x(p.x) < box.width / 2, y: y(p.y) + 3.5, point: p}))
    .sort((a, b) => a.y - b.y);
  labels.forEach((label, i) => {
    for (const other of labels.slice(0, i)) {
      if (other.left === label.left && label.y - other.y < 13) label.y = other.y + 13;
    }
  });
  section('frontier', 'Frontier', 'KL against win rate',
    `The KL of each policy to the reference, and its mean win rate against the others under ` +
    `${inSentence(judges[0])}, \u00b1 two standard errors. At the same win rate, a smaller KL is ` +
    'better.',
    el('div', {class: 'scroll', style: 'margin-top: 1.5rem'},
      el('svg', {class: 'frontier', viewBox: `0 0 ${box.width} ${box.height}`, role: 'img',
        'aria-label': points.map((p) => `${p.name}: KL ${brief(p.x)} nats, win rate ` +
          `${tenth(p.y)} %`).join('; ')},
      ticks(low, high, 5).map(([v]) => [
        el('line', {class: 'grid', x1: box.left, x2: box.width - box.right, y1: y(v), y2: y(v)}),
        el('text', {x: box.left - 6, y: y(v) + 3.5, 'text-anchor': 'end'}, tenth(v))]),
      ticks(0, right, 5).map(([v, label]) => el('text',
        {x: x(v), y: box.height - box.bottom + 16, 'text-anchor': 'middle'}, label)),
      el('text', {x: box.left, y: box.height - 6}, 'KL to the reference, nats per response'),
      points.map((p) => el('g', null,
        el('line', {class: 'spread', x1: x(p.x), x2: x(p.x), y1: y(p.y - 2 * p.error),
          y2: y(p.y + 2 * p.error)}),
        el('circle', {cx: x(p.x), cy: y(p.y), r: 3.5, 'data-tip': `${p.name}: KL ${brief(p.x)} ` +
          `nats, win rate ${tenth(p.y)} %`}))),
      labels.map(({left, y: at, point: p}) => el('text', {x: x(p.x) + (left ? 7 : -7), y: at,
        'text-anchor': left ? 'start' : 'end'}, p.name)))));
}

function benchmarks() {
  const found = results.benchmarks || [];
  if (!found.length) return;
  const side = (x) => typeof x === 'string' ? null : 'number';
  const value = (x) => isNumber(x) ? Number.isInteger(x) ? count(x) : fixed(x, 2)
    : x === null ? 'n/a' : x;
  section('benchmarks', 'Benchmarks', 'Benchmarks', '', found.map((table) =>
    el('div', {class: 'stack'}, el('div', null, el('h3', null, table.title),
      el('p', {class: 'quiet small'}, table.note),
      el('div', {class: 'scroll', role: 'group', 'aria-label': table.title},
        el('table', {class: 'list wide'},
          el('thead', null, el('tr', null, el('th', {scope: 'col'}, ''),
            table.columns.map((name, i) => el('th', {scope: 'col',
              class: table.rows.length ? side(table.rows[0][i + 1]) : null}, term(words(name)))))),
          el('tbody', null, table.rows.map(([name, ...cells]) => el('tr', null,
            el('th', {scope: 'row'}, code(name)),
            cells.map((x) => el('td', {class: side(x)}, value(x))))))))))));
}

function exploiters() {
  const found = results.exploitability;
  if (!isRecord(found)) return;
  const names = Object.keys(found);
  const pairs = Object.entries(found[names[0]]).flatMap(
    ([by, seen]) => Object.keys(seen).map((judge) => [by, judge]));
  section('exploiters', 'Exploiters', 'Exploiters',
    'An exploiter is initialised with the policy and trained to beat it under a judge. Its win ' +
    'rate is a lower bound on the exploitability of the policy. Under the judge that the policy ' +
    'was trained on, it measures the error of the algorithm; under the oracle, also that of the judge.',
    el('div', {class: 'scroll heat', role: 'group', 'aria-label': 'Exploiters'},
      el('table', null,
        el('thead', null, el('tr', null, el('td', {class: 'corner'}, 'Wins against'),
          pairs.map(([by, judge]) => el('th', {scope: 'col'}, `trained by ${by}`, el('br'),
            `measured by ${judge}`)))),
        el('tbody', null, names.map((name) => el('tr', null,
          el('th', {scope: 'row'}, code(name)),
          pairs.map(([by, judge]) => {
            const {win_rate: p, low, high} = found[name][by][judge];
            return cell('td', p, el('b', null, tenth(p)),
              el('small', null, `${tenth(low)}\u2009\u2013\u2009${tenth(high)}`));
          })))))));
}

// The win rate of refined responses against the first one, by judge and round.
function refinements() {
  const found = results.refinement;
  if (!isRecord(found)) return;
  const names = Object.keys(found);
  const columns = ordered(found[names[0]]).flatMap(
    (judge) => found[names[0]][judge].map((_, round) => [judge, round]));
  section('refinement', 'Refinement', 'Refinement at inference',
    'Each policy was asked to improve its own response, again and again. How often the response of ' +
    'a round beats the first one, with 95\u00a0% intervals. On a cycle of preferences one round ' +
    'wins and the next may lose: more rounds are not always better.',
    el('div', {class: 'scroll heat', role: 'group', 'aria-label': 'Refinement'},
      el('table', null,
        el('thead', null, el('tr', null, el('td', {class: 'corner'}, 'Beats its first response'),
          columns.map(([judge, round]) => el('th', {scope: 'col'}, `round ${round + 1}`, el('br'),
            title(judge))))),
        el('tbody', null, names.map((name) => el('tr', null,
          el('th', {scope: 'row'}, code(name)),
          columns.map(([judge, round]) => {
            const {win_rate: p, low, high} = found[name][judge][round];
            return cell('td', p, el('b', null, tenth(p)),
              el('small', null, `${tenth(low)}\u2009\u2013\u2009${tenth(high)}`));
          })))))));
}

// The mean and the worst win rate over the prompts of a prompter, and which prompts it chose.
function worstPrompts() {
  const found = results.worst_prompts;
  if (!isRecord(found)) return;
  const names = Object.keys(found.win_rates);
  const judges = ordered(found.win_rates[names[0]]);
  section('worst-prompts', 'Worst prompt', 'Win rates on the worst prompt',
    `How often each policy beats ${policies[0]} on the prompts that a prompter chooses from: in ` +
    'the mean, with 95\u00a0% intervals, and on the prompt where it wins least often. That prompt ' +
    'is found with one half of the responses and measured with the other.',
    el('div', {class: 'scroll heat', role: 'group', 'aria-label': 'Win rates on the worst prompt'},
      el('table', null,
        el('thead', null, el('tr', null, el('td', {class: 'corner'}, `Beats ${policies[0]}`),
          judges.flatMap((judge) => ['mean', 'worst prompt'].map((part) =>
            el('th', {scope: 'col'}, part, el('br'), title(judge)))))),
        el('tbody', null, names.map((name) => el('tr', null,
          el('th', {scope: 'row'}, code(name)),
          judges.flatMap((judge) => {
            const {mean, low, high, worst, prompt} = found.win_rates[name][judge];
            return [
              cell('td', mean, el('b', null, tenth(mean)),
                el('small', null, `${tenth(low)}\u2009\u2013\u2009${tenth(high)}`)),
              cell('td', worst, el('b', {title: prompt}, tenth(worst)))];
          })))))),
    Object.entries(found.chosen).map(([name, chosen]) => el('details', null,
      el('summary', null, 'Prompts that the prompter of ', code(name), ' chooses most often; it is ',
        `${fixed(chosen.kl, 3)} nats from the data`),
      el('ol', null, chosen.prompts.map((row) => el('li', null,
        `${fixed(row.probability / row.data, 1)} times as often as in the data: ${row.prompt}`))))));
}

// Under every judge, or group of raters, the win rate against the first policy.
function byJudge() {
  const found = Object.entries(results.by_judge || {});
  if (!found.length) return;
  const names = ordered(found[0][1].judges);
  const show = (row, judge) => {
    const rate = row.judges[judge];
    const text = [fixed(rate.win_rate, 3),
      el('span', {class: 'unit'}, `${fixed(rate.low, 3)} to ${fixed(rate.high, 3)}`)];
    return el('td', {class: 'number'}, judge === row.worst ? el('strong', null, text) : text);
  };
  section('by-judge', 'By judge', 'Win rates by judge',
    `How often each policy beats ${policies[0]} under each judge or group of raters, with ${sure} ` +
    'intervals; in bold, the judge under which it wins least often.',
    el('div', {class: 'scroll', role: 'group', 'aria-label': 'Win rates by judge'},
      el('table', {class: 'list'},
        el('thead', null, el('tr', null, el('th', {scope: 'col'}, 'Policy'),
          names.map((judge) => el('th', {scope: 'col', class: 'number'}, title(judge))))),
        el('tbody', null, found.map(([policy, row]) => el('tr', null,
          el('th', {scope: 'row'}, code(policy)), names.map((judge) => show(row, judge))))))));
}

function tint(style, i, n) {
  if (style === 'none') return 'var(--line)';
  const share = n < 2 ? 100 : 100 - 60 * i / (n - 1);
  return `color-mix(in oklab, var(--accent) ${share.toFixed(0)}%, var(--ground))`;
}
function policyTable() {
  const has = (record) => isRecord(record) && Object.keys(record).length > 0;
  const shares = task.shares || {};
  const styles = [...new Set([...(task.styles || []), ...Object.values(shares).flatMap(
    (s) => Object.keys(s))])].filter((s) => s !== 'none');
  const tints = Object.fromEntries(styles.map((s, i) => [s, tint(s, i, styles.length)]));
  tints.none = tint('none');
  const swatch = (style) => el('span', {class: 'swatch', style: `--tint: ${tints[style]}`});
  const bar = (share) => {
    const parts = [...styles, 'none'].filter((s) => isNumber(share[s]) && share[s] > 0);
    const percent = (s) => Math.round(100 * share[s]);
    return [
      el('div', {class: 'bar', 'aria-hidden': 'true'},
        parts.map((s) => el('span', {style: `--share: ${share[s]}; --tint: ${tints[s]}`}))),
      el('div', {class: 'parts'},
        parts.map((s) => el('span', null, swatch(s), `${s} ${percent(s) || '<1'}\u00a0%`))),
    ];
  };
  const number = (record, digits) => (p) => fixed(record[p], digits);
  const judge = judges[0];
  const equal = has(results.equal_length) ? 'Win rates at equal length are fitted to those of ' +
    `${inSentence(judge)}.` : '';
  const evenly = Object.fromEntries(Object.entries((results.equal_length || {})[judge] || {})
    .map(([p, row]) => [p, row.win_rate]));
  const columns = [
    [results.kl_to_reference, 'KL to reference', 'nats per response',
      number(results.kl_to_reference || {}, 2)],
    [results.best_of, 'Best of n', 'KL in nats, and at most', (p) => {
      const best = results.best_of[p];
      return best ? [isNumber(best.kl) ? fixed(best.kl, 2) : 'n/a', ' \u2264 ',
        fixed(best.kl_bound, 2), el('br'), `selected by ${best.judge}`] : '';
    }],
    [results.length, 'Length', 'tokens per response', number(results.length || {}, 1)],
    [results.turns, 'Turns', 'per conversation', number(results.turns || {}, 2)],
    ...Object.entries(results.measures || {}).map(([name, record]) =>
      [record, name[0].toUpperCase() + name.slice(1), '', number(record, 3)]),
    [results.unfinished, 'Unfinished', 'share cut',
      number(results.unfinished || {}, 2)],
    [evenly, `At equal length`, `beats ${policies[0]}`,
      number(evenly, 3)],
    [results.characters, 'Length', 'characters per response',
      number(results.characters || {}, 0)],
    [task.quality, 'Quality', '\u22121 to 1', number(task.quality || {}, 2)],
    [task.counter, 'Best counter-style', 'its win rate', (p) => {
      const counter = (task.counter || {})[p];
      return counter ? [counter.style, el('br'), whole(counter.win_rate)] : 'n/a';
    }],
    [task.shares, 'Styles', 'share of responses', (p) => shares[p] ? bar(shares[p]) : 'n/a'],
  ].filter(([record]) => has(record));
  if (!columns.length) return;
  const side = (label) => label === 'Styles' ? null : 'number';
  section('policies', 'Policies', 'Policies', has(task.counter) ?
    'The best counter-style is the style with the highest win rate against the policy under the ' +
    'oracle: the higher its win rate, the more exploitable the policy. ' + equal : equal,
  el('div', {class: 'scroll', role: 'group', 'aria-label': 'Policies',
    style: 'margin-top: 1.5rem'},
  el('table', {class: has(task.shares) ? 'list wide' : 'list'},
    el('thead', null, el('tr', null, el('th', {scope: 'col'}, 'Policy'),
      columns.map(([, label, unit]) => el('th', {scope: 'col', class: side(label)}, term(label),
        el('span', {class: 'unit'}, unit))))),
    el('tbody', null, policies.map((p) => el('tr', null, el('th', {scope: 'row'}, code(p)),
      columns.map(([, label, , show]) => el('td', {class: side(label)}, show(p)))))))));
}

function judgeSection() {
  const matrices = task.judge_matrix || {};
  const styles = task.styles || [];
  const numbers = Object.entries(results.judge || {}).filter(([, x]) => isNumber(x) || x === null);
  if (!numbers.length && !Object.keys(matrices).length) return;
  const verdict = (matrix) => {
    const ring = cycle(matrix);
    if (ring) {
      const weakest = Math.min(...ring.map((i, n) => matrix[i][ring[(n + 1) % 3]]));
      const links = ring.map((i, n) => `${styles[i]} beats ${styles[ring[(n + 1) % 3]]}`);
      return ['Cyclic: ', joined(links), `; the closest of these at ${whole(weakest)}. `,
        'No style is best against all others.'];
    }
    const best = winner(matrix);
    return best < 0 ? 'Not cyclic, and no style beats every other.'
      : `Not cyclic: ${styles[best]} beats every other style.`;
  };
  section('judge', 'Judge', 'Judge',
    results.judge && 'accuracy' in results.judge ?
      'Accuracy is the share of held-out labels that the learned judge predicts correctly.' : '',
    numbers.length > 0 && el('dl', {class: 'facts'}, numbers.map(([key, x]) => el('div', null,
      el('dt', null, term(words(key))),
      el('dd', null, key === 'accuracy' ? `${tenth(x)}\u00a0%` : brief(x))))) || null,
    Object.keys(matrices).length > 0 && [
      el('h3', {style: 'margin-top: 2rem'}, 'Preference between perfect summaries of each style'),
      ordered(matrices).map((judge) => el('div', {class: 'judged'}, el('h4', null, title(judge)),
        el('p', {class: 'quiet small'}, verdict(matrices[judge])),
        el('div', {class: 'pair'},
          heat(styles, {win_rate: matrices[judge]}, '', 'Row beats column'),
          graph(styles, {win_rate: matrices[judge]})))),
    ] || null);
}
