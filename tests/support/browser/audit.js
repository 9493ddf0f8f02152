// Defines `audit()`: what is wrong with what the page shows now, each fault as a sentence.
function audit() {
  const faults = [];
  const shown = (it) => it.checkVisibility({ visibilityProperty: true }) && it.getClientRects().length > 0;
  const name = (it) => `${it.tagName.toLowerCase()}${it.id ? `#${it.id}` : ""} ${JSON.stringify((it.textContent ?? "").trim().slice(0, 30))}`;
  const area = document.querySelector("dialog[open]") ?? document.body;
  const all = [...area.querySelectorAll("*")].filter(shown);

  // Every control has a name.
  for (const it of all.filter((it) => it.matches("input, select, textarea, button, a, progress"))) {
    const labelled = (it.getAttribute("aria-label") ?? [...(it.labels ?? [])].map((label) => label.textContent).join("")).trim();
    if (!(labelled || (it.matches("button, a") && it.textContent.trim()))) faults.push(`${name(it)} has no label`);
  }
  for (const it of all.filter((it) => it.matches("[aria-describedby], [aria-labelledby]"))) {
    for (const id of `${it.getAttribute("aria-describedby") ?? ""} ${it.getAttribute("aria-labelledby") ?? ""}`.split(" ").filter(Boolean)) {
      if (!document.getElementById(id)) faults.push(`${name(it)} refers to ${id}, which is not there`);
    }
  }
  for (const it of all.filter((it) => it.matches("img:not([alt]), svg:not([aria-label])"))) faults.push(`${name(it)} says nothing in words`);
  const ids = [...document.querySelectorAll("[id]")].map((it) => it.id);
  for (const id of new Set(ids.filter((id, at) => ids.indexOf(id) !== at))) faults.push(`the id ${id} is there twice`);
  if (document.querySelectorAll("h1").length && all.filter((it) => it.matches("h1")).length !== 1 && area === document.body) faults.push("there is not one heading");

  // Every text was found and filled in.
  for (const it of all) {
    for (const node of it.childNodes) {
      const text = node.nodeType === Node.TEXT_NODE ? node.textContent.trim() : "";
      if (/\{\w+\}|undefined|NaN|\[object/.test(text) || (/^[a-z]+(\.[a-zA-Z_]+)+$/.test(text) && !/\.(jpg|png)$/.test(text))) faults.push(`${name(it)} is no text`);
    }
  }

  // A finger hits it: the control, or the label that belongs to it.
  for (const it of all.filter((it) => it.matches("input, select, button, nav a"))) {
    const boxes = [it, ...(it.labels ?? [])].map((part) => part.getBoundingClientRect());
    if (!boxes.some((box) => box.height >= 43.5)) faults.push(`${name(it)} is only ${Math.round(boxes[0].height)} px high`);
  }

  // It fits into the width.
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) faults.push(`wider than the screen: ${root.scrollWidth} of ${root.clientWidth} px`);

  // Texts differ from what is behind them.
  const color = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (front, back) => ({
    r: front.r * front.a + back.r * (1 - front.a), g: front.g * front.a + back.g * (1 - front.a), b: front.b * front.a + back.b * (1 - front.a), a: 1,
  });
  const ground = (it) => {
    const layers = [];
    for (let at = it; at; at = at.parentElement) layers.push(color(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), { r: 255, g: 255, b: 255, a: 1 });
  };
  const luminance = ({ r, g, b }) => {
    const part = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ratio = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  let measured = 0;
  for (const it of all) {
    const hasText = [...it.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim()) || it.matches("input, select");
    if (!hasText || it.closest("svg") || it.closest(".away") || it.getAnimations().length) continue;
    const behind = ground(it);
    const found = ratio(over(color(getComputedStyle(it).color), behind), behind);
    measured += 1;
    if (found < 4.5) faults.push(`${name(it)} has a contrast of ${found.toFixed(2)}`);
    // The edge of a field is what shows that it is one.
    if (it.matches("input:not([type=checkbox], [type=radio]), select")) {
      const edge = ratio(color(getComputedStyle(it).borderTopColor), behind);
      if (edge < 3) faults.push(`${name(it)} has an edge with a contrast of ${edge.toFixed(2)}`);
    }
  }
  if (measured === 0) faults.push("nothing to read was found");
  return faults;
}
