// What a reader could not read on the page: an object with lists of texts.
(() => {
  for (const box of document.querySelectorAll('details')) box.open = true;
  for (const bar of document.querySelectorAll('nav')) bar.style.position = 'static';
  window.scrollTo(0, 0);
  for (const running of document.getAnimations()) running.finish();  // Colours fade in.

  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a),
    b * a + B * (1 - a), 1];
  const background = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      layers.push(rgba(getComputedStyle(at).backgroundColor));
    }
    return layers.reduceRight((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map(
      (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * x + .7152 * y + .0722 * z;
  };
  const contrast = (one, other) => {
    const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (high + .05) / (low + .05);
  };

  // The part of a box that no ancestor clips; null if nothing is left.
  const clipped = (rect, element) => {
    let {left, top, right, bottom} = rect;
    for (let at = element; at && at !== document.body; at = at.parentElement) {
      if (getComputedStyle(at).overflowX === 'visible' || at.tagName.toLowerCase() === 'svg') continue;
      const box = at.getBoundingClientRect();
      left = Math.max(left, box.left);
      right = Math.min(right, box.right);
      top = Math.max(top, box.top);
      bottom = Math.min(bottom, box.bottom);
    }
    return right - left > 1 && bottom - top > 1 ? {left, top, right, bottom} : null;
  };

  const found = {overlaps: [], faint: [], small: []};
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const text = node.textContent.trim();
    const element = node.parentElement;
    if (!text || element.closest('script, style, noscript, option, .screen-reader, #tip')) continue;
    const style = getComputedStyle(element);
    if (!element.checkVisibility({checkVisibilityCSS: true, checkOpacity: true})) continue;
    if (element.closest('[disabled]')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const group = element.closest('svg text') || node;
    let seen = false;
    for (const rect of range.getClientRects()) {
      const box = clipped(rect, element);
      if (!box) continue;
      seen = true;
      const slack = .2 * (box.bottom - box.top);  // The line is higher than its letters.
      boxes.push({...box, top: box.top + slack, bottom: box.bottom - slack, text, group});
    }
    if (!seen) continue;
    const drawn = element.closest('svg') && !element.closest('foreignObject');
    const back = background(drawn ? element.closest('svg').parentElement : element);
    const ground = element.closest('.node')
      ? rgba(getComputedStyle(element.closest('.node').querySelector('circle')).fill) : back;
    const ink = over(rgba(drawn ? style.fill : style.color), ground);
    const ratio = contrast(ink, ground);
    if (ratio < 4.5) found.faint.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
    const matrix = drawn ? element.getScreenCTM() : null;
    const scale = matrix ? Math.hypot(matrix.a, matrix.b) : 1;
    const size = parseFloat(style.fontSize) * scale;
    if (size < 7.5) found.small.push(`${text.slice(0, 40)}: ${size.toFixed(1)} px`);
  }
  boxes.sort((a, b) => a.top - b.top);
  boxes.forEach((one, i) => {
    for (let j = i + 1; j < boxes.length && boxes[j].top < one.bottom; j++) {
      const other = boxes[j];
      if (one.group === other.group) continue;
      const wide = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const high = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
      if (wide > 1 && high > 1) {
        found.overlaps.push(`'${one.text.slice(0, 40)}' and '${other.text.slice(0, 40)}'`);
      }
    }
  });
  found.scroll = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.texts = boxes.length;
  return found;
})()
