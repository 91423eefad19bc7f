// ---- The first sentences, win rates and rankings

function reading() {
  if (!judges.length && !samples.length && (results.benchmarks || []).length) {
    return ['These are results of benchmarks; no tournament was run.'];
  }
  if (policies.length < 2) return ['Only one policy was evaluated, so there is no comparison.'];
  const judge = judges[0];
  if (!judge) return ['No judge compared the policies.'];
  // The sentences below describe the policy that was trained last; an evaluation has none.
  if (policies.length > 6 || (results.order_consistency && policies.length > 2)) return meta(judge);
  const me = policies.length - 1;
  const against = (of) => policies.slice(0, -1).map(
    (name, j) => ({name, ...outcome(results.tables[of], me, j)}));
  const text = [];
  let first = true;
  for (const [kind, verb, at] of [['beats', 'beats', 'in'], ['loses', 'loses to', 'at'],
    ['level', 'does not differ significantly from', 'at']]) {
    const found = against(judge).filter((o) => o.kind === kind);
    if (!found.length) continue;
    text.push(first ? [`Under ${inSentence(judge)}, `, code(last), ' '] : 'It ', verb, ' ');
    text.push(joined(found.map((o) => {
      const range = `${Math.round(100 * o.low)} to ${Math.round(100 * o.high)}`;
      const noun = !first ? '' : at === 'in' ? ' of comparisons' : ' of comparisons won';
      const interval = !o.bounded ? '' : first ? ` (${sure} interval ${range})` : ` (${range})`;
      first = false;
      return [code(o.name), ` ${at} ${whole(o.value)}${noun}${interval}`];
    })), '. ');
  }
  if (hasOracle && judges.includes('learned')) {
    text.push('The learned judge gives ',
      joined(against('learned').map((o) => [`${whole(o.value)} against `, code(o.name)])), '. ');
  }
  if (!hasOracle && judge !== 'held_apart') {
    text.push('There is no oracle for these data. Under the judge that a policy was trained on, ' +
      'these numbers show how well it was optimised, not that its responses are better. ');
  }
  const kl = (results.kl_to_reference || {})[last];
  if (isNumber(kl)) {
    text.push('The KL of ', code(last), ` to the reference is ${brief(kl)} nats per response. `);
  }
  const counter = (task.counter || {})[last];
  if (counter && isNumber(counter.win_rate)) {
    text.push(`The best counter-style, ${counter.style}, wins ${whole(counter.win_rate)} of ` +
      'comparisons against it under the oracle.');
  }
  return text;
}

// With many policies, the equilibrium of the table summarises it better than single pairs.
function meta(judge) {
  const ranked = (results.ranking || {})[judge] || [];
  const chosen = ranked.filter((r) => r.lottery > .005);
  const parts = chosen.map((r) => [code(r.policy), ` (${whole(r.lottery)})`]);
  const worst = ranked[ranked.length - 1];
  if (!chosen.length) return [`${policies.length} policies were compared.`];
  return [`Under ${inSentence(judge)}, no mixture of the ${policies.length} policies beats `,
    chosen.length > 1 ? 'the mixture of ' : '', joined(parts), '. Last is ', code(worst.policy),
    `, which wins ${whole(worst.win_rate)} of comparisons against it.`,
    isAmbiguous(judge) ? ` ${NOT_UNIQUE}` : ''];
}

// Of several maximal lotteries, the shares are those of the one with the largest entropy.
const NOT_UNIQUE =
  'The maximal lottery is not unique; of those that exist, it is the one of the largest entropy.';
function isAmbiguous(judge) {
  return (results.lottery_is_unique || {})[judge] === false;
}

function head() {
  const name = results.name || last || 'Evaluation';
  document.title = `${name} \u00b7 evaluation report`;
  byId('name').append(name);
  byId('reading').append(...reading().flat(Infinity));
  const facts = [['Policies', count(policies.length)]];
  if (isNumber(results.comparisons)) facts.push(['Comparisons', count(results.comparisons)]);
  for (const [stage, judge] of Object.entries(results.judges || {})) {
    if (!isNumber(judge.accuracy)) continue;
    const name = stage[0].toUpperCase() + stage.slice(1).replaceAll('_', ' ');
    facts.push([`${name}, accuracy`, `${tenth(judge.accuracy)}\u00a0%`]);
  }
  const times = Object.values(results.stages || {}).map((s) => s.seconds).filter(isNumber);
  if (times.length) facts.push(['Time', duration(times.reduce((a, b) => a + b, 0))]);
  byId('facts').append(...facts.map(
    ([key, value]) => el('div', null, el('dt', null, term(key)), el('dd', null, value))));
}

function winRates() {
  const about = {
    oracle: 'The true preference.',
    learned: 'The preference model, trained on the comparisons.',
    reward: 'The reward model, trained on the comparisons; probabilities by Bradley\u2013Terry.',
    embedding: 'The general preference model, trained on the comparisons.',
    gpm: 'The general preference model, trained on the comparisons.',
    lengths: 'Prefers the longer response.',
    pairrm: 'The published PairRM.',
    remote: 'A language model behind an endpoint.',
  };
  section('win-rates', 'Win rates', 'Win rates',
    'How often the response of the row\u2019s policy beats that of the column\u2019s policy, in ' +
    (judges.some((j) => results.tables[j].low) ? `percent, with ${sure} intervals below. `
      : 'percent. ') + 'Policies are sorted by their share of the maximal lottery.',
    !hasOracle && judges.length > 0 && el('p', {class: 'note'},
      'There is no oracle for these data. A policy can win under the judge that it was trained ' +
      'on by exploiting errors of that judge.') || null,
    judges.map((judge) => el('div', {class: 'judged'}, el('h3', null, title(judge)),
      el('p', {class: 'quiet small'}, about[judge], about[judge] ? ' ' : '',
        significantPairs(results.tables[judge].pairs), bothOrders(judge)),
      el('div', {class: policies.length > 6 ? 'stack' : 'pair'},
        heat(policies, results.tables[judge], '', 'Row beats column', byLottery(judge)),
        graph(policies, results.tables[judge], byLottery(judge))))),
    legend('Win rate of the row, in percent. 50 is even; the diagonal is 50 by definition.'),
    stoppingNote());
}
function significantPairs(pairs) {
  if (!pairs || pairs.count < 2 || !('significant' in pairs)) return '';
  return `Of ${count(pairs.count)} pairs, ${count(pairs.significant)} differ significantly ` +
    `at 5\u00a0% each, and ${count(pairs.significant_holm)} after Holm\u2019s correction. `;
}
function bothOrders(judge) {
  const {consistency, first_place: first} = (results.order_consistency || {})[judge] || {};
  if (!isNumber(consistency)) return '';
  return `Its verdict is the same in both orders for ${whole(consistency)} of pairs; being ` +
    `shown first adds ${minus(first.toFixed(3))} to the win probability.`;
}
function stoppingNote() {
  const found = results.early_stopping;
  if (!found) return null;
  return el('p', {class: 'note'}, found.all ?
    `The order of all pairs was decided after ${count(results.comparisons)} of ` +
    `${count(found.prompts)} prompts; the probability that any is wrong is at most ` +
    `${brief(found.level)}. `
    : `After ${count(results.comparisons)} prompts the order of some pairs is undecided. `,
  'The intervals are confidence sequences: they hold for all pairs together, and remain valid ' +
  'although the results were checked after every batch.');
}

function rankings() {
  const found = judges.filter((judge) => ((results.ranking || {})[judge] || []).length > 2);
  if (!found.length) return;
  const hasScores = found.some((judge) => results.ranking[judge].some((r) => isNumber(r.borda)));
  section('ranking', 'Ranking', 'Ranking by maximal lottery',
    'The maximal lottery is the Nash equilibrium of the table of win rates: no policy wins more ' +
    'than half of the comparisons against it. Policies with no share in it are ordered by their ' +
    'win rate against it.' +
    (hasScores ? ' Borda\u2019s count is the mean win rate against the other policies; ' +
      'Bradley\u2013Terry strengths are the scores that fit the table best.' : ''),
    el('div', {class: hasScores ? 'stack' : 'pair'}, found.map((judge) => el('div', null,
      el('h3', null, title(judge)),
      isAmbiguous(judge) ? el('p', {class: 'quiet small'}, NOT_UNIQUE) : null,
      foldable('Table of the ranking', results.ranking[judge].length,
      el('div', {class: 'scroll', role: 'group', 'aria-label': 'Ranking'},
      el('table', {class: 'list'},
        el('thead', null, el('tr', null, el('th', {scope: 'col'}, 'Policy'),
          el('th', {scope: 'col', class: 'number'}, term('Share'),
            el('span', {class: 'unit'}, 'percent, 95\u00a0%')),
          el('th', {scope: 'col', class: 'number'}, 'Win rate',
            el('span', {class: 'unit'}, 'against the lottery')),
          hasScores && [
            el('th', {scope: 'col', class: 'number'}, term('Borda'),
              el('span', {class: 'unit'}, 'win rate \u00b1 standard error')),
            el('th', {scope: 'col', class: 'number'}, term('Bradley\u2013Terry'),
              el('span', {class: 'unit'}, 'log-odds \u00b1 standard error'))] || null)),
        el('tbody', null, results.ranking[judge].map((r) => el('tr', null,
          el('th', {scope: 'row'}, code(r.policy)),
          el('td', {class: 'number'}, r.high > .0005 ?
            `${tenth(r.lottery)} (${whole(r.low)} to ${whole(r.high)})` : '\u2013'),
          el('td', {class: 'number'}, tenth(r.win_rate)),
          hasScores && [
            el('td', {class: 'number'}, `${tenth(r.borda)} \u00b1 ${tenth(r.borda_error)}`),
            el('td', {class: 'number'}, `${fixed(r.bradley_terry, 2)} \u00b1 ` +
              fixed(r.bradley_terry_error, 2))] || null)))))),
      cycles(judge)))));
}
function cycles(judge) {
  const found = (results.cycles || {})[judge];
  if (!found) return null;
  if (!found.count) return el('p', {class: 'quiet small'}, 'There is no cycle.');
  const shown = found.first.slice(0, 5);
  return [
    el('p', {class: 'quiet small'}, `${count(found.count)} cycle${found.count > 1 ? 's' : ''} of ` +
      `three${found.count > shown.length ? `, the clearest of which are` : ''}:`),
    el('ul', {class: 'cycles'}, shown.map((c) => el('li', null,
      [...c.policies, c.policies[0]].map((name, i) => [i ? ' beats ' : '', code(name)]),
      `, the weakest link at ${tenth(c.weakest)}\u00a0%`,
      c.significant ? '' : '; not significant'))),
  ];
}
