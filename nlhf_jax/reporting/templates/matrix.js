// ---- Win rates: the matrix, and the graph of who beats whom

const NUMBERED = 16;  // the most rows whose cells show their value, not only when pointed at
const LINKED = 12;  // the most entries of a graph

function outcome(table, i, j) {
  const value = table.win_rate[i][j];
  const low = table.low && table.low[i][j];
  const high = table.high && table.high[i][j];
  const bounded = isNumber(low) && isNumber(high);
  let kind = value > .5 ? 'beats' : value < .5 ? 'loses' : 'level';
  if (bounded && low <= .5 && high >= .5) kind = 'level';
  return {value, low, high, bounded, kind: isNumber(value) ? kind : 'unknown'};
}
function describeCell(names, table, i, j) {
  const {value, low, high, bounded} = outcome(table, i, j);
  if (!isNumber(value)) return `${names[i]} against ${names[j]}: not known`;
  const holm = table.holm_p && table.holm_p[i][j];
  return `${names[i]} beats ${names[j]}: ${tenth(value)}\u00a0%` +
    (bounded ? `, interval ${tenth(low)} to ${tenth(high)}\u00a0%` : '') +
    (isNumber(holm) ? `, p ${holm < 1e-4 ? 'below 0.0001' : brief(holm)} by Holm` : '');
}
function cell(tag, p, ...children) {
  const side = !isNumber(p) || p === .5 ? '' : p > .5 ? 'win' : 'lose';
  const far = isNumber(p) ? Math.min(100, Math.abs(p - .5) * 200) : 0;
  return el(tag, {class: `cell ${side}`, style: `--far: ${far.toFixed(1)}%`}, ...children);
}
// `order` holds the indices of the rows from the top; without it they stay as they are.
function heat(names, table, caption, corner, order) {
  const rows = order || names.map((_, i) => i);
  const numbered = names.length <= NUMBERED;
  const square = (i, j) => {
    if (i === j) return el('td', {class: 'cell self'}, el('b', null, numbered ? '50' : ''));
    const {value, low, high, bounded} = outcome(table, i, j);
    const node = numbered ? cell('td', value, el('b', null, tenth(value)), bounded &&
      el('small', null, `${tenth(low)}\u2009\u2013\u2009${tenth(high)}`) || null)
      : cell('td', value);
    node.setAttribute('data-tip', describeCell(names, table, i, j));
    return node;
  };
  return el('figure', {class: numbered ? 'heat' : 'heat dense'},
    el('figcaption', null, caption),
    el('div', {class: 'scroll', role: 'group', 'aria-label': 'Win rates, row against column'},
      el('table', null,
        el('thead', null, el('tr', null, el('td', {class: 'corner'}, corner),
          rows.map((j) => el('th', {scope: 'col'}, code(names[j]))))),
        el('tbody', null, rows.map((i) => el('tr', null,
          el('th', {scope: 'row'}, code(names[i])), rows.map((j) => square(i, j))))))));
}
function legend(text) {
  return el('div', {class: 'legend'},
    el('span', {class: 'scale', 'aria-hidden': 'true'},
      [0, .25, .5, .75, 1].map((p) => cell('span', p, String(100 * p)))),
    el('span', null, text));
}

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

// An arrow leads from the winner to the loser. It is part of a cycle if the loser beats the winner
// by way of others. Entries are numbered, so that no name covers another.
function graph(names, table, order) {
  const rows = (order || names.map((_, i) => i)).slice(0, LINKED);
  if (rows.length < 3) return null;
  const beats = rows.map((i) => rows.map((j) => i !== j && table.win_rate[i][j] > .5));
  const reach = beats.map((row) => [...row]);
  rows.forEach((_, k) => rows.forEach((_, i) => rows.forEach((_, j) => {
    reach[i][j] = reach[i][j] || (reach[i][k] && reach[k][j]);
  })));
  const size = 320;
  const centre = size / 2;
  const place = rows.map((_, n) => {
    const angle = 2 * Math.PI * n / rows.length - Math.PI / 2;
    return [centre + 125 * Math.cos(angle), centre + 125 * Math.sin(angle)];
  });
  const high = Math.max(...place.map(([, y]) => y)) + 20;
  const links = [];
  let cyclic = 0;
  rows.forEach((i, a) => rows.forEach((j, b) => {
    if (!beats[a][b]) return;
    const inCycle = reach[b][a];
    cyclic += inCycle;
    const [dx, dy] = [place[b][0] - place[a][0], place[b][1] - place[a][1]];
    const far = Math.hypot(dx, dy);
    const [ux, uy] = [dx / far, dy / far];
    const from = [place[a][0] + 18 * ux, place[a][1] + 18 * uy];
    const to = [place[b][0] - 18 * ux, place[b][1] - 18 * uy];
    const base = [to[0] - 9 * ux, to[1] - 9 * uy];
    const side = [-4.5 * uy, 4.5 * ux];
    const at = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;
    const level = outcome(table, i, j).kind === 'level';
    links.push(el('g', {class: `link${inCycle ? ' cyclic' : ''}${level ? ' unsure' : ''}`,
      'data-tip': describeCell(names, table, i, j) + (inCycle ? '; part of a cycle' : '') +
        (level ? '; not significant' : '')},
    el('path', {class: 'hit', d: `M${at(...from)}L${at(...to)}`}),
    el('path', {class: 'shaft', d: `M${at(...from)}L${at(...base)}`}),
    el('path', {class: 'point', d: `M${at(...to)}L${at(base[0] + side[0], base[1] + side[1])}L${
      at(base[0] - side[0], base[1] - side[1])}Z`})));
  }));
  const nodes = rows.map((i, n) => el('g', {class: 'node', 'data-tip': names[i]},
    el('circle', {cx: place[n][0], cy: place[n][1], r: 13}),
    el('text', {x: place[n][0], y: place[n][1] + 4, 'text-anchor': 'middle'}, String(n + 1))));
  const more = names.length > rows.length ? ` The first ${rows.length} of ${names.length}.` : '';
  const about = cyclic ? `${cyclic} of ${links.length} arrows belong to cycles.`
    : 'There is no cycle.';
  const bounded = rows.some((i) => rows.some((j) => outcome(table, i, j).bounded));
  return el('figure', {class: 'graph'},
    el('figcaption', null, el('h4', null, 'Who beats whom'), el('p', {class: 'quiet small'},
      `An arrow leads from the winner to the loser; arrows of cycles are drawn in the colour of ` +
      `losses${bounded ? ', and broken arrows are not significant' : ''}. ${about}${more}`)),
    el('svg', {viewBox: `0 0 ${size} ${high.toFixed(0)}`, role: 'img', 'aria-label': `Who beats whom. ${
      links.map((link) => link.getAttribute('data-tip')).join('. ')}`}, links, nodes),
    el('ol', {class: 'names'}, rows.map((i) => el('li', null, code(names[i])))));
}
function drawMatrices() {
  for (const place of document.querySelectorAll('[data-matrix]')) {
    const data = JSON.parse(place.getAttribute('data-matrix'));
    place.append(el('div', {class: data.names.length > 6 ? 'stack' : 'pair'},
      heat(data.names, data, '', 'Row beats column'), data.graph === false ? '' : graph(data.names, data)));
    if (data.names.length > NUMBERED) place.append(legend('Win rate of the row, in percent.'));
  }
}
function filterSamples() {
  for (const field of document.querySelectorAll('[data-filters]')) {
    const name = field.getAttribute('data-filters');
    const rows = [...byId(name).children];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    field.addEventListener('input', () => {
      const query = field.value.trim().toLowerCase();
      rows.forEach((row, i) => { row.hidden = !texts[i].includes(query); });
      document.querySelector(`[data-count=${name}]`).textContent =
        `${rows.filter((row) => !row.hidden).length} of ${rows.length} prompts`;
    });
  }
}
