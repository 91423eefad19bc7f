// ---- Prompts and responses

function marked(text, query) {
  if (!query) return [text];
  const parts = [];
  const lower = text.toLowerCase();
  // A few letters change length in lower case, which would shift the marks; such texts have none.
  if (lower.length !== text.length) return [text];
  let from = 0;
  for (let at = lower.indexOf(query); at >= 0; at = lower.indexOf(query, from)) {
    parts.push(text.slice(from, at), el('mark', null, text.slice(at, at + query.length)));
    from = at + query.length;
  }
  return [...parts, text.slice(from)];
}

// The words of two texts, in order: [word, whether the other text lacks it here]. Texts of more than
// LONGEST words are not compared, which would take too long.
const LONGEST = 600;
function wordDifferences(text, other) {
  const split = (s) => s.match(/\s+|[^\s]+/g) || [];
  const [a, b] = [split(text), split(other)];
  if (a.length > LONGEST || b.length > LONGEST) return null;
  const common = Array.from({length: a.length + 1}, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      common[i][j] = a[i] === b[j] ? common[i + 1][j + 1] + 1
        : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  const found = [];
  let [i, j] = [0, 0];
  while (i < a.length) {
    if (j < b.length && a[i] === b[j]) { found.push([a[i], false]); i++; j++; }
    else if (j < b.length && common[i][j + 1] >= common[i + 1][j]) j++;
    else { found.push([a[i], a[i].trim() !== '']); i++; }
  }
  return found;
}
function compared(text, base) {
  const found = wordDifferences(text, base);
  if (!found) return [text, el('span', {class: 'tag'}, ' (too long to mark differences)')];
  return found.map(([word, differs]) => differs ? el('ins', null, word) : word);
}
const shown = (x) => isNumber(x) ? brief(x) : x === null ? 'n/a' : String(x);

// A conversation turn by turn, each compared with the same turn of another one, if there is one.
function dialogue(policy, turns, query, base) {
  return el('ol', {class: 'dialogue', 'aria-label': `Conversation of ${policy}`},
    turns.map((text, n) => el('li', {class: n % 2 ? 'reply' : null},
      el('p', {class: 'tag'}, n % 2 ? 'User' : policy),
      el('p', {class: 'text'}, text === '' ? el('span', {class: 'quiet'}, 'Empty turn')
        : base ? compared(text, String(base[n] || '')) : marked(text, query)))));
}

function card(sample, i, query, base) {
  const policy = policies[i];
  const response = (sample.responses || {})[policy];
  const verdicts = sample.preferences || {};
  const named = ordered(verdicts);
  const liked = named.filter((judge) => winner(verdicts[judge]) === i);
  const turns = (sample.dialogues || {})[policy];
  const extras = Object.entries(sample).filter(([key, x]) =>
    !['prompt', 'responses', 'preferences', 'dialogues'].includes(key) && isRecord(x) &&
    policy in x && !isRecord(x[policy]));
  const others = policies.map((_, j) => j).filter((j) => j !== i);
  return el('article', {class: `card${liked.includes(named[0]) ? ' preferred' : ''}`,
    'aria-label': `Response of ${policy}`},
  el('header', null, el('h3', null, code(policy)), liked.length > 0 && policies.length > 1 &&
    el('span', {class: 'preferred-by'},
      `Preferred by ${liked.map(inSentence).join(' and ')}`) || null),
  turns && turns.length > 1 ? dialogue(policy, turns, query,
    base !== null && base !== policy ? (sample.dialogues || {})[base] || [] : null)
    : el('p', {class: 'text'}, response ? base !== null && base !== policy
      ? compared(String(response), String((sample.responses || {})[base] || ''))
      : marked(String(response), query)
      : el('span', {class: 'quiet'}, response === '' ? 'Empty response' : 'No response')),
  extras.map(([key, x]) => el('p', {class: 'tag'}, `${words(key)}: ${shown(x[policy])}`)),
  named.length > 0 && others.length > 0 && el('table', null,
    el('thead', null, el('tr', null, el('th', {scope: 'col'}, 'Beats, %'),
      named.map((judge) => el('th', {scope: 'col'}, title(judge).split(' ')[0])))),
    el('tbody', null, others.map((j) => el('tr', null,
      el('th', {scope: 'row'}, code(policies[j])),
      named.map((judge) => cell('td', verdicts[judge][i][j],
        isNumber(verdicts[judge][i][j]) ? Math.round(100 * verdicts[judge][i][j]) : 'n/a'))))))
    || null);
}
function browser() {
  if (!samples.length) return;
  const me = policies.length - 1;
  const votes = (sample, judge) => (sample.preferences || {})[judge];
  const present = ordered(samples[0].preferences);
  const filters = [['All prompts', () => true]];
  if (present.length > 1) {
    filters.push(['The judges prefer different responses', (s) => votes(s, present[0]) &&
      votes(s, present[1]) && winner(votes(s, present[0])) !== winner(votes(s, present[1]))]);
  }
  if (present.length) {
    policies.slice(0, -1).forEach((name, j) => filters.push(
      [`${last} loses to ${name} under ${inSentence(present[0])}`,
        (s) => votes(s, present[0]) && isNumber(votes(s, present[0])[me][j]) &&
          votes(s, present[0])[me][j] < .5]));
  }
  const texts = samples.map((s) =>
    [s.prompt, ...Object.values(s.responses || {})].join('\n').toLowerCase());
  const search = el('input', {type: 'search', placeholder: 'Search prompts and responses',
    'aria-label': 'Search prompts and responses', oninput: () => filter()});
  const select = el('select', {'aria-label': 'Which prompts', onchange: () => filter()},
    filters.map(([label], i) => el('option', {value: i}, label)));
  const against = el('select', {'aria-label': 'Mark differences', onchange: () => draw()},
    el('option', {value: ''}, 'Mark no differences'), policies.map((name) =>
      el('option', {value: name}, `Mark differences from ${name}`)));
  const previous = el('button', {type: 'button', onclick: () => move(-1)}, 'Previous');
  const next = el('button', {type: 'button', onclick: () => move(1)}, 'Next');
  const position = el('output', {'aria-live': 'polite'});
  const view = el('div');
  let found = [];
  let at = 0;

  const draw = () => {
    const query = search.value.trim().toLowerCase();
    position.textContent = found.length ? `${count(at + 1)} of ${count(found.length)}` : 'none';
    previous.disabled = at === 0;
    next.disabled = at >= found.length - 1;
    if (!found.length) {
      view.replaceChildren(el('p', {class: 'prompt quiet'}, 'No prompt matches.'));
      return;
    }
    const sample = samples[found[at]];
    const about = Object.entries(sample).filter(([key, x]) =>
      !['prompt', 'responses'].includes(key) && (x === null || typeof x !== 'object'));
    const cyclic = ordered(sample.preferences).filter((j) => cycle(sample.preferences[j]));
    view.replaceChildren(
      el('div', {class: 'prompt'}, el('p', {class: 'tag'}, `Prompt ${found[at] + 1}`),
        el('p', {class: 'text'}, marked(String(sample.prompt), query)),
        about.map(([key, x]) => el('p', {class: 'tag'}, `${words(key)}: ${shown(x)}`)),
        cyclic.length > 0 && el('p', {class: 'tag'},
          `The preferences of ${cyclic.map(inSentence).join(' and ')} are cyclic here.`) || null),
      el('div', {class: 'cards'}, policies.map((_, i) => card(sample, i, query, against.value || null))));
    reachable();
  };
  const filter = () => {
    const query = search.value.trim().toLowerCase();
    const keep = filters[Number(select.value)][1];
    found = samples.map((_, i) => i).filter((i) => texts[i].includes(query) && keep(samples[i]));
    at = 0;
    draw();
  };
  const move = (by) => {
    at = Math.max(0, Math.min(found.length - 1, at + by));
    draw();
  };
  const press = (event) => {
    if (['INPUT', 'SELECT'].includes(event.target.tagName)) return;
    const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!by) return;
    event.preventDefault();
    move(by);
  };
  const extent = samplesTotal > samples.length
    ? `The first ${count(samples.length)} of ${count(samplesTotal)} prompts`
    : `${count(samples.length)} prompt${samples.length === 1 ? '' : 's'}`;
  section('responses', 'Responses', 'Prompts and responses',
    samples[0].dialogues
      ? `${extent}, one conversation per policy, each with its own replies of the user. A judge ` +
        'prefers a conversation if it beats those of all other policies.'
      : `${extent}, one response per policy. A judge prefers a response if it beats the responses ` +
        'of all other policies.',
    el('div', {onkeydown: press},
      el('div', {class: 'tools'}, search, filters.length > 1 && select || null,
        policies.length > 1 && against || null,
        el('div', {class: 'steps'}, previous, position, next)),
      view));
  select.value = '0';
  against.value = '';
  filter();
}

// ---- The task: one prompt, and one response of each style

function taskExample() {
  if (!example) return;
  section('task', 'Task', 'The task',
    'One prompt of the task, and one response of each style. Policies learn which response to give.',
    el('div', {class: 'prompt'}, el('p', {class: 'tag'}, 'Prompt'),
      el('p', {class: 'text'}, example.prompt)),
    el('div', {class: 'cards'}, Object.entries(example.responses).map(([style, text]) =>
      el('article', {class: 'card'}, el('header', null, el('h3', null, code(style))),
        el('p', {class: 'text'}, text)))));
}
