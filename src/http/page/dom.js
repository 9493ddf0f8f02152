// Small things every section needs: elements, times, the dialog. What comes from data becomes text, never markup.

import { LANGUAGE, text } from "./texts.js";

export const by = (id) => document.getElementById(id);

/// An element with attributes (`onclick` and the like are functions, `state` is data-state) and children: elements or text.
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "state") made.dataset.state = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/// A row of a list: a mark or time before it, what it is with a smaller line below, a badge and buttons after it.
export function row({ before, what, small, badge, state, buttons = [], isNew = false }) {
  return make("li", { class: isNew ? "new" : null },
    before ?? null,
    make("span", { class: "what" }, what, small ? make("small", {}, small) : null),
    badge ? make("span", { class: "badge", state }, badge) : null,
    ...buttons);
}

export const emptyRow = (what) => make("li", { class: "none" }, what);

/// What a section has to say (a line or several): good, look or bad.
export function say(id, what = "", state = "") {
  const place = by(id);
  place.dataset.state = state;
  const lines = [what].flat();
  place.replaceChildren(...(lines.length === 1 ? lines : lines.map((line) => make("p", {}, line))));
}

const formats = new Map();
function format(moment, zone, options) {
  const key = JSON.stringify([zone, options]);
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat(LANGUAGE === "en" ? "en-GB" : LANGUAGE, { timeZone: zone, ...options }));
  const date = new Date(moment);
  return Number.isNaN(date.getTime()) ? "?" : formats.get(key).format(date);
}
export const timeOf = (moment, zone) => format(moment, zone, { hour: "2-digit", minute: "2-digit" });
export const dateOf = (moment, zone) => format(moment, zone, { dateStyle: "medium" });
export const dayOf = (moment, zone) => new Intl.DateTimeFormat("en-CA", { timeZone: zone }).format(new Date(moment));
export const momentOf = (moment, zone) => format(moment, zone, { dateStyle: "medium", timeStyle: "short" });

/// A length of time in its two largest units.
export function lengthOf(ms) {
  let rest = Math.max(0, Math.round(ms / 1000));
  const parts = [];
  for (const [unit, seconds] of [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]]) {
    const n = Math.floor(rest / seconds);
    rest -= n * seconds;
    if (n > 0) parts.push(text(`unit.${unit}`, { n }));
  }
  return parts.slice(0, 2).join(" ") || text("unit.second", { n: 0 });
}

export function bytesOf(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; bytes >= 1000 && at < units.length - 1; at += 1) bytes /= 1000;
  return `${bytes.toFixed(bytes < 10 && at > 0 ? 1 : 0)} ${units[at]}`;
}

/// Asks in the dialog; true when the answer is yes. `yes` may change while it is open: it is given to `body`'s maker.
export function ask({ title, body, yes, danger = false }) {
  const dialog = by("dialog");
  const button = by("dialog-yes");
  by("dialog-title").textContent = title;
  by("dialog-body").replaceChildren(...body);
  button.textContent = yes;
  button.className = danger ? "danger" : "";
  return new Promise((resolve) => {
    // Not by the event `close`: it comes later, and would answer a question that was asked meanwhile.
    const settle = (answer) => () => { dialog.close(); resolve(answer); };
    button.onclick = settle(true);
    by("dialog-no").onclick = settle(false);
    dialog.oncancel = () => resolve(false);
    dialog.showModal();
  });
}

/// For what may be told many times at once, and is looked up once a moment later.
export function settled(act, ms) {
  let waiting = null;
  return () => { waiting ??= setTimeout(() => { waiting = null; act(); }, ms); };
}

/// Tells those who do not see the screen.
export function announce(what) {
  by("arrivals").textContent = what;
}
