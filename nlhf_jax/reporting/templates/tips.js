// ---- Tips: one box that explains what is pointed at, tapped or focused

const tip = el('div', {id: 'tip', role: 'tooltip', hidden: true});
document.body.append(tip);
function showTip(event) {
  const target = event.target.closest ? event.target.closest('[data-tip]') : null;
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.getAttribute('data-tip');
  const at = target.getBoundingClientRect();
  const wide = tip.offsetWidth;
  const high = tip.offsetHeight;
  const room = document.documentElement.clientWidth - wide - 8;
  const middle = event.clientX && at.width > 200 ? event.clientX : at.left + at.width / 2;
  const above = at.top - high - 8;
  tip.style.left = `${Math.max(8, Math.min(room, middle - wide / 2))}px`;
  tip.style.top = `${above > 4 ? above : at.bottom + 8}px`;
}
for (const type of ['pointerover', 'focusin', 'click']) document.addEventListener(type, showTip);
document.addEventListener('focusout', () => { tip.hidden = true; });
document.addEventListener('scroll', () => { tip.hidden = true; }, true);
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') tip.hidden = true;
});

// A name with its explanation, if the glossary has one.
function term(name) {
  const meaning = glossary[name.toLowerCase()];
  return meaning ? el('span', {class: 'term', tabindex: 0, 'data-tip': meaning}, name) : name;
}
