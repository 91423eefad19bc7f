// ---- Stages and external judges

function stageTable() {
  const stages = Object.entries(results.stages || {});
  if (!stages.length) return;
  const extra = [...new Set(stages.flatMap(([, s]) => Object.keys(s)))]
    .filter((key) => !['steps', 'seconds'].includes(key));
  const total = stages.map(([, s]) => s.seconds).filter(isNumber).reduce((a, b) => a + b, 0);
  const pace = ({steps, seconds}) => isNumber(seconds) && steps > 0
    ? `${brief(1000 * seconds / steps)} ms` : '\u2013';
  const heading = (label) => el('th', {scope: 'col', class: 'number'}, label);
  const value = (x) => el('td', {class: 'number'}, x);
  section('stages', 'Stages', 'Stages', '',
    foldable('Table of the stages', 9, el('div', {class: 'scroll', role: 'group',
      'aria-label': 'Stages'},
      el('table', {class: 'list'},
        el('thead', null, el('tr', null, el('th', {scope: 'col'}, 'Stage'),
          ['Steps', 'Time', 'Time per step', ...extra.map(words)].map(heading))),
        el('tbody', null, stages.map(([name, s]) => el('tr', null,
          el('th', {scope: 'row'}, code(name)),
          value(isNumber(s.steps) ? count(s.steps) : '\u2013'),
          value(isNumber(s.seconds) ? duration(s.seconds) : '\u2013'), value(pace(s)),
          extra.map((key) => value(shown(key in s ? s[key] : '\u2013')))))),
        el('tfoot', null, el('tr', null, el('th', {scope: 'row'}, 'Total'), el('td'),
          value(duration(total)), el('td'), extra.map(() => el('td'))))))));
}

function externalJudgeTable() {
  const found = Object.entries(results.external_judges || {});
  if (!found.length) return;
  const counted = [...new Set(found.flatMap(([, row]) => Object.keys(row.counts)))];
  const dropped = results.dropped_prompts;
  section('external-judges', 'External judges', 'External judges',
    'Requests to external judges in all runs of this folder. Costs are in the currency of the ' +
    'configured prices. Unusable answers are counted, and enter no other figure.' +
    (dropped > 0 ? ` Because of them, ${count(dropped)} prompts were dropped from the tournament.`
      : ''),
    foldable('Table of the judges', 9, el('div', {class: 'scroll', role: 'group',
      'aria-label': 'External judges'},
      el('table', {class: 'list'},
        el('thead', null, el('tr', null, el('th', {scope: 'col'}, 'Judge'),
          found.map(([name]) => el('th', {scope: 'col', class: 'number'}, title(name))))),
        el('tbody', null,
          el('tr', null, el('th', {scope: 'row'}, 'model'),
            found.map(([, row]) => el('td', {class: 'number'}, code(row.about)))),
          counted.map((what) => el('tr', null, el('th', {scope: 'row'}, words(what)),
            found.map(([, row]) => el('td', {class: 'number'},
              what in row.counts ? brief(row.counts[what]) : '\u2013')))),
          found.some(([, row]) => row.last_failure)
            ? el('tr', null, el('th', {scope: 'row'}, 'last unusable answer'),
              found.map(([, row]) => el('td', null, row.last_failure || '\u2013'))) : null)))));
}
