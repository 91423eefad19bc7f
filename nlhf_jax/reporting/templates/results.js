// ---- The data of the page

const {results, curves, samples, samples_total: samplesTotal, example} =
  JSON.parse(document.getElementById('data').textContent);
const policies = results.policies;
const last = policies[policies.length - 1];
const task = results.task || {};

// ---- Judges

const TITLES = {
  oracle: 'Oracle', learned: 'Learned judge', reward: 'Reward model',
  gpm: 'General preference model', pairrm: 'PairRM', remote: 'Remote judge',
  held_apart: 'Judge held apart', lengths: 'Longer response',
};
const title = (judge) => TITLES[judge] || judge;
const inSentence = (judge) => judge === 'pairrm' ? TITLES[judge]
  : TITLES[judge] ? `the ${TITLES[judge].toLowerCase()}` : judge;
// First the judges that no policy learned from: sentences speak of the first one.
const FIRST = ['oracle', 'held_apart', 'learned'];
const position = (judge) => FIRST.includes(judge) ? FIRST.indexOf(judge) : FIRST.length;
const ordered = (record) => Object.keys(record || {}).sort((a, b) => position(a) - position(b));
const judges = ordered(results.tables);
const level = results.early_stopping ? results.early_stopping.level : 0.05;
const sure = `${Math.round(100 - 100 * level)}\u00a0%`;
const hasOracle = judges.includes('oracle');

// The indices of the policies by their share of the maximal lottery under a judge.
function byLottery(judge) {
  const ranked = ((results.ranking || {})[judge] || []).map((r) => policies.indexOf(r.policy));
  const rest = policies.map((_, i) => i).filter((i) => !ranked.includes(i));
  return [...ranked.filter((i) => i >= 0), ...rest];
}

// ---- Sections

function section(id, label, heading, lede, ...children) {
  byId('made-link').before(el('li', null, el('a', {href: `#${id}`}, label)));
  byId('main').append(el('section', {id, 'aria-labelledby': `${id}-title`},
    el('h2', {id: `${id}-title`}, heading), lede && el('p', {class: 'lede'}, lede), ...children));
}
// A table that can be folded; long ones start folded.
function foldable(summary, rows, ...children) {
  return el('details', {class: 'table', open: rows <= 8}, el('summary', null, summary), children);
}
