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

// Only boxes that scroll can be reached with the tab key.
function reachable() {
  for (const box of document.querySelectorAll('.scroll, .text')) {
    const scrolls = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight + 1;
    if (scrolls) box.setAttribute('tabindex', '0');
    else box.removeAttribute('tabindex');
  }
}
