// ---- Learning curves

const UNITS = [
  [/(^|_)(kl|entropy|nll|log_prob|log_probs)(_|$)/, 'nats'],
  [/win_rate|accuracy|agreement|share|fraction/, '0 to 1'],
  [/tokens_per_second/, 'tokens/s'],
  [/seconds/, 's'],
  [/length|tokens/, 'tokens'],
];
const unit = (metric) => (UNITS.find(([pattern]) => pattern.test(metric)) || [])[1] || '';
const BOX = {width: 300, height: 138, left: 44, right: 16, top: 10, bottom: 22};

function ticks(low, high, wanted) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * .999);
  const digits = Math.max(0, Math.ceil(-Math.log10(size) - 1e-9));
  const label = (v) => {
    if (v === 0) return '0';
    if (digits > 4) return brief(v);
    if (size >= 1e4) return minus(v.toLocaleString('en', {notation: 'compact'}));
    return minus(v.toLocaleString('en', {minimumFractionDigits: digits,
      maximumFractionDigits: digits}));
  };
  const found = [];
  for (let n = Math.ceil(low / size - 1e-9); n * size <= high + size * 1e-9; n++) {
    const v = Number((n * size).toPrecision(12)) + 0;  // The sum turns -0 into 0.
    found.push([v, label(v)]);
  }
  return found;
}
function panel(curve) {
  const {metric, steps, values} = curve;
  const finite = values.filter(isNumber);
  const name = [el('b', null, term(words(metric))), unit(metric) && ` (${unit(metric)})`];
  const readout = el('span');
  const caption = el('figcaption', null, el('span', null, name), readout);
  if (!finite.length) {
    readout.append('no finite value');
    return {node: el('figure', null, caption), steps, show: () => {}, describe: () => ''};
  }
  let low = finite.reduce((a, b) => Math.min(a, b));
  let high = finite.reduce((a, b) => Math.max(a, b));
  const range = `from ${brief(low)} to ${brief(high)}`;
  const slack = high > low ? .06 * (high - low) : Math.max(.1 * Math.abs(high), 1e-6);
  low -= slack;
  high += slack;
  const start = steps[0];
  const end = steps[steps.length - 1] > start ? steps[steps.length - 1] : start + 1;
  const x = (s) => BOX.left + (s - start) / (end - start) * (BOX.width - BOX.left - BOX.right);
  const y = (v) => BOX.height - BOX.bottom -
    (v - low) / (high - low) * (BOX.height - BOX.top - BOX.bottom);
  let path = '';
  let pen = 'M';  // A missing value interrupts the curve.
  values.forEach((v, i) => {
    if (!isNumber(v)) { pen = 'M'; return; }
    // A stroke of length zero shows, by its round cap, a value between two missing ones.
    path += `${pen}${x(steps[i]).toFixed(1)} ${y(v).toFixed(1)}${pen === 'M' ? 'h0' : ''}`;
    pen = 'L';
  });
  const floor = BOX.height - BOX.bottom;
  const cursor = el('line', {class: 'cursor', y1: BOX.top, y2: floor, visibility: 'hidden'});
  const dot = el('circle', {r: 3.5});
  const even = /win_rate/.test(metric) && low < .5 && high > .5;
  const svg = el('svg', {viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: 'img',
    'aria-label': `${words(metric)} over steps ${start} to ${end}, ${range}`},
  ticks(low, high, 4).map(([v, label]) => [
    el('line', {class: 'grid', x1: BOX.left, x2: BOX.width - BOX.right, y1: y(v), y2: y(v)}),
    el('text', {x: BOX.left - 6, y: y(v) + 3.5, 'text-anchor': 'end'}, label)]),
  ticks(start, end, 5).filter(([s]) => Number.isInteger(s)).map(([s]) =>
    el('text', {x: x(s), y: BOX.height - 6,
      'text-anchor': x(s) < BOX.left + 6 ? 'start' : 'middle'},
      s < 1e5 ? count(s) : s.toLocaleString('en', {notation: 'compact'}))),
  el('text', {x: BOX.left - 6, y: BOX.height - 6, 'text-anchor': 'end'}, 'step'),
  even && el('line', {class: 'even', x1: BOX.left, x2: BOX.width - BOX.right, y1: y(.5),
    y2: y(.5)}) || null,
  el('path', {class: 'curve', d: path}), cursor, dot);

  const nearest = (step) => steps.reduce(
    (best, s, i) => Math.abs(s - step) < Math.abs(steps[best] - step) ? i : best, 0);
  const lastFinite = values.reduce((found, v, i) => isNumber(v) ? i : found, 0);
  const describe = (step) => {
    const i = step === null ? lastFinite : nearest(step);
    return `${words(metric)} ${brief(values[i])}`;
  };
  const show = (step) => {
    const i = step === null ? lastFinite : nearest(step);
    readout.replaceChildren(el('b', null, brief(values[i])), ` at ${count(steps[i])}`);
    cursor.setAttribute('visibility', step === null ? 'hidden' : 'visible');
    cursor.setAttribute('x1', x(steps[i]));
    cursor.setAttribute('x2', x(steps[i]));
    dot.setAttribute('visibility', isNumber(values[i]) ? 'visible' : 'hidden');
    dot.setAttribute('cx', x(steps[i]));
    dot.setAttribute('cy', isNumber(values[i]) ? y(values[i]) : 0);
  };
  const stepAt = (event) => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * BOX.width;
    return start + (at - BOX.left) / (BOX.width - BOX.left - BOX.right) * (end - start);
  };
  show(null);
  return {node: el('figure', null, caption, svg), svg, steps, show, describe, stepAt};
}
// One readout for all curves of a stage, which share their steps.
function stageCurves(stage) {
  const panels = curves.filter((c) => c.stage === stage).map(panel);
  const steps = [...new Set(panels.flatMap((p) => p.steps))].sort((a, b) => a - b);
  const live = el('p', {class: 'screen-reader', 'aria-live': 'polite'});
  let at = null;
  const show = (step) => { at = step; panels.forEach((p) => p.show(step)); };
  for (const p of panels.filter((q) => q.svg)) {
    const follow = (event) => show(p.stepAt(event));
    p.svg.addEventListener('pointerdown', follow);
    p.svg.addEventListener('pointermove', follow);
    p.svg.addEventListener('pointerleave', (event) => {
      if (event.pointerType === 'mouse') show(null);
    });
  }
  const press = (event) => {
    const index = at === null ? steps.length - 1
      : steps.reduce((best, s, i) => Math.abs(s - at) < Math.abs(steps[best] - at) ? i : best, 0);
    const jump = Math.max(1, Math.round(steps.length / 50));
    const to = {ArrowLeft: index - jump, ArrowRight: index + jump, Home: 0,
      End: steps.length - 1}[event.key];
    if (event.key === 'Escape') show(null);
    if (to === undefined) return;
    event.preventDefault();
    show(steps[Math.max(0, Math.min(steps.length - 1, to))]);
    live.textContent = `Step ${at}: ${panels.map((p) => p.describe(at)).join(', ')}`;
  };
  const {steps: total, seconds} = (results.stages || {})[stage] || {};
  const about = [isNumber(total) && `${count(total)} steps`, isNumber(seconds) && duration(seconds)]
    .filter(Boolean).join(', ');
  return el('div', {class: 'stage'},
    el('header', null, el('h3', null, code(stage)), el('span', {class: 'quiet small'}, about)),
    el('div', {class: 'panels', tabindex: 0, role: 'group', onkeydown: press,
      'aria-label': `Learning curves of ${stage}; the left and right arrow keys move the readout`},
    panels.map((p) => p.node)), live);
}
function learningCurves() {
  const stages = [...new Set(curves.map((c) => c.stage))];
  if (!stages.length) return;
  const blocks = Object.fromEntries(stages.map((stage) => [stage, stageCurves(stage)]));
  const buttons = Object.fromEntries([...stages, 'all'].map((choice) => [choice,
    el('button', {type: 'button', onclick: () => pick(choice)}, choice)]));
  const pick = (choice) => {
    for (const stage of stages) blocks[stage].hidden = choice !== 'all' && choice !== stage;
    for (const [name, button] of Object.entries(buttons)) {
      button.setAttribute('aria-pressed', String(name === choice));
    }
  };
  const thinned = curves.some((c) => c.points > c.steps.length);
  section('curves', 'Learning curves', 'Learning curves',
    'Point at a curve, tap it, or use the arrow keys to read all curves of the stage at one ' +
    'step. Otherwise each shows its last value.' + (thinned ?
      ' Long curves show every n-th value, so a single spike may be missing.' : ''),
    stages.length > 1 && el('div', {class: 'choices', role: 'group', 'aria-label': 'Stage'},
      Object.values(buttons)) || null,
    Object.values(blocks));
  pick(stages.includes(last) ? last : stages[stages.length - 1]);
}
