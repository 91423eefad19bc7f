const {results, curves, samples, samples_total: samplesTotal} =
  JSON.parse(document.getElementById('data').textContent);
const policies = results.policies;
const last = policies[policies.length - 1];
const task = results.task || {};
const byId = (id) => document.getElementById(id);

// ---- Elements and numbers

const SVG = byId('seed').namespaceURI;
const DRAWN = new Set(['svg', 'path', 'line', 'text', 'circle', 'g']);

// Everything is built from text nodes: no response is ever parsed as markup.
function el(tag, attributes, ...children) {
  const node = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== ''));
  return node;
}
const code = (name) => el('code', null, name);
const isNumber = (x) => typeof x === 'number' && Number.isFinite(x);
const isRecord = (x) => x !== null && typeof x === 'object' && !Array.isArray(x);
const minus = (text) => text.replace(/-/g, '\u2212');
const words = (key) => key.replace(/_/g, ' ');
const count = (n) => n.toLocaleString('en');
const whole = (p) => isNumber(p) ? `${Math.round(100 * p)}\u00a0%` : 'n/a';
const tenth = (p) => isNumber(p) ? (100 * p).toFixed(1) : 'n/a';
const fixed = (x, digits) => isNumber(x) ? minus(x.toFixed(digits)) : 'n/a';

function brief(x) {
  if (!isNumber(x)) return 'n/a';
  const size = Math.abs(x);
  if (Number.isInteger(x) && size < 1e7) return minus(count(x));
  if (size >= 1e7 || size < 1e-3) return minus(x.toExponential(1).replace('.0', ''));
  return minus(size >= 1000 ? count(Math.round(x)) : String(Number(x.toPrecision(3))));
}
function duration(seconds) {
  if (!isNumber(seconds)) return 'n/a';
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds) % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
function joined(items) {
  return items.flatMap((item, i) => {
    if (i === 0) return [item];
    return [i < items.length - 1 ? ', ' : items.length > 2 ? ', and ' : ' and ', item];
  });
}

// ---- Judges

const TITLES = {
  oracle: 'Oracle', learned: 'Learned judge', reward: 'Reward model',
  gpm: 'General preference model', pairrm: 'PairRM', remote: 'Remote judge',
  held_apart: 'Judge held apart', lengths: 'Longer response',
};
const title = (judge) => TITLES[judge] || judge;
const inSentence = (judge) => judge === 'pairrm' ? TITLES[judge]
  : TITLES[judge] ? `the ${TITLES[judge].toLowerCase()}` : judge;
const ordered = (record) => Object.keys(record || {}).sort(
  (a, b) => (b === 'oracle') - (a === 'oracle') || (b === 'learned') - (a === 'learned'));
const judges = ordered(results.tables);
const level = results.early_stopping ? results.early_stopping.level : 0.05;
const sure = `${Math.round(100 - 100 * level)}\u00a0%`;
const hasOracle = judges.includes('oracle');

// A tournament has a cycle exactly when it has one of length three.
function cycle(matrix) {
  const beats = (i, j) => isNumber(matrix[i][j]) && matrix[i][j] > .5;
  const all = matrix.map((_, i) => i);
  for (const i of all) for (const j of all) for (const k of all) {
    if (beats(i, j) && beats(j, k) && beats(k, i)) return [i, j, k];
  }
  return null;
}
const winner = (matrix) => matrix.findIndex(
  (row, i) => row.every((p, j) => i === j || (isNumber(p) && p > .5)));

function outcome(table, i, j) {
  const value = table.win_rate[i][j];
  const low = table.low && table.low[i][j];
  const high = table.high && table.high[i][j];
  const bounded = isNumber(low) && isNumber(high);
  let kind = value > .5 ? 'beats' : value < .5 ? 'loses' : 'level';
  if (bounded && low <= .5 && high >= .5) kind = 'level';
  return {value, low, high, bounded, kind: isNumber(value) ? kind : 'unknown'};
}

// ---- Heat maps

function cell(tag, p, ...children) {
  const side = !isNumber(p) || p === .5 ? '' : p > .5 ? 'win' : 'lose';
  const far = isNumber(p) ? Math.min(100, Math.abs(p - .5) * 200) : 0;
  return el(tag, {class: `cell ${side}`, style: `--far: ${far.toFixed(1)}%`}, ...children);
}
function heat(names, table, caption, corner) {
  const square = (i, j) => {
    if (i === j) return el('td', {class: 'cell self'}, el('b', null, '50'));
    const {value, low, high, bounded} = outcome(table, i, j);
    return cell('td', value, el('b', null, tenth(value)), bounded &&
      el('small', null, `${tenth(low)}\u2009\u2013\u2009${tenth(high)}`) || null);
  };
  return el('figure', {class: 'heat'},
    el('figcaption', null, caption),
    el('div', {class: 'scroll', role: 'group', 'aria-label': 'Win rates, row against column'},
      el('table', null,
        el('thead', null, el('tr', null, el('td', {class: 'corner'}, corner),
          names.map((name) => el('th', {scope: 'col'}, code(name))))),
        el('tbody', null, names.map((name, i) => el('tr', null,
          el('th', {scope: 'row'}, code(name)), names.map((_, j) => square(i, j))))))));
}
function legend(text) {
  return el('div', {class: 'legend'},
    el('span', {class: 'scale', 'aria-hidden': 'true'},
      [0, .25, .5, .75, 1].map((p) => cell('span', p, String(100 * p)))),
    el('span', null, text));
}

// ---- Sections

function section(id, label, heading, lede, ...children) {
  byId('contents').append(el('li', null, el('a', {href: `#${id}`}, label)));
  byId('main').append(el('section', {id, 'aria-labelledby': `${id}-title`},
    el('h2', {id: `${id}-title`}, heading), lede && el('p', {class: 'lede'}, lede), ...children));
}
