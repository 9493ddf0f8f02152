// What every section needs: elements, times, the dialog. Data becomes text, never markup.

import { LANGUAGE, text } from "./texts.js";

export const by = (id) => document.getElementById(id);

/// Returns an element with attributes (`onclick` and the like are functions, `state` is data-state) and children: elements or text.
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

/// Returns a row of a list: a mark or time, the content with a smaller line below, a badge and its actions.
export function row({ before, what, small, badge, state, buttons = [], isNew = false }) {
  return make("li", { class: isNew ? "new" : null },
    before ?? null,
    make("span", { class: "what" }, what, small ? make("small", {}, small) : null),
    badge ? make("span", { class: "badge", state }, badge) : null,
    buttons.some(Boolean) ? make("span", { class: "do" }, ...buttons) : null);
}

export const emptyRow = (what) => make("li", { class: "none" }, what);

/// Shows the message of a section (one line or several): good, look or bad.
export function say(id, what = "", state = "") {
  const place = by(id);
  place.dataset.state = state;
  const lines = [what].flat();
  place.replaceChildren(...(lines.length === 1 ? lines : lines.map((line) => make("p", {}, line))));
}

/// A section's cards are shown once filled, so that nothing moves.
export const ready = (section) => document.querySelector(`#section-${section} [data-wait]`)?.removeAttribute("data-wait");

/// The zone of the door's venue, for times without a venue of their own.
let doorZone;
export function setDoorZone(zone) { doorZone = zone; }

const formats = new Map();
function formatOf(zone, language, options) {
  const key = JSON.stringify([zone, language, options]);
  if (!formats.has(key)) {
    let made;
    try {
      made = new Intl.DateTimeFormat(language, { timeZone: zone, ...options });
    } catch {
      // A zone that this browser does not know yet.
      made = new Intl.DateTimeFormat(language, options);
    }
    formats.set(key, made);
  }
  return formats.get(key);
}
function format(moment, zone = doorZone, options = {}) {
  const date = new Date(moment);
  return Number.isNaN(date.getTime()) ? "?" : formatOf(zone, LANGUAGE === "en" ? "en-GB" : LANGUAGE, options).format(date);
}
export const timeOf = (moment, zone) => format(moment, zone, { hour: "2-digit", minute: "2-digit" });
export const dateOf = (moment, zone) => format(moment, zone, { dateStyle: "medium" });
export const dayOf = (moment, zone = doorZone) => formatOf(zone, "en-CA", {}).format(new Date(moment));
/// A time, with its date where that is another than that of `beside`.
export const whenOf = (moment, beside, zone) => (dayOf(moment, zone) === dayOf(beside, zone) ? timeOf(moment, zone) : momentOf(moment, zone));
/// The last moment of what ends at `end`: of a day it is that day, not the next.
export const lastDateOf = (end) => dateOf(Date.parse(end) - 1);

/// The id of a session is its start in UTC and the name of its rule.
export const startOf = (session) => Date.parse(session.split("/")[0]);
export const ruleOf = (session) => session.split("/").pop();
export const sessionOf = (session, zone) => `${ruleOf(session)} ${timeOf(startOf(session), zone)}`;
/// The status of a record in words; lateness in minutes.
export function statusOf({ status, session, occurred_at: at }) {
  const late = status === "late" && session ? Math.ceil((Date.parse(at) - startOf(session)) / 60_000) : 0;
  return late > 0 ? lateBy(late) : text(`status.${status}`);
}
export const lateBy = (n) => text("today.lateBy", { time: text("unit.minute", { n }) });

/// The bounds of a local day (YYYY-MM-DD) in a zone, as RFC 3339: where the clocks change, by the offset at each end.
export function dayBounds(day, zone = doorZone) {
  const midnight = (at) => {
    let moment = Date.parse(`${at}T00:00:00Z`);
    for (let round = 0; round < 2; round += 1) moment = Date.parse(`${at}T00:00:00Z`) - offsetOf(moment, zone);
    // Where midnight is skipped, the day begins at the first moment that there is.
    const before = Date.parse(`${at}T00:00:00Z`) - (moment + offsetOf(moment, zone));
    return new Date(moment + Math.max(0, before)).toISOString();
  };
  const next = new Date(Date.parse(`${day}T12:00:00Z`) + 86_400_000).toISOString().slice(0, 10);
  return { from: midnight(day), to: midnight(next) };
}
function offsetOf(moment, zone) {
  const parts = Object.fromEntries(formatOf(zone, "en-US", {
    hourCycle: "h23", year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
  }).formatToParts(new Date(moment)).map((part) => [part.type, part.value]));
  return Date.UTC(parts.year, parts.month - 1, parts.day, parts.hour, parts.minute, parts.second) - Math.floor(moment / 1000) * 1000;
}

const collator = new Intl.Collator(undefined, { sensitivity: "base", numeric: true });
export const byName = (a, b) => collator.compare(a, b);
const plains = new Map();
const PLAINS_MAX = 20_000;
/// A name as it is searched: without case and marks.
export function plain(name) {
  if (plains.size > PLAINS_MAX) plains.clear();
  if (!plains.has(name)) plains.set(name, name.normalize("NFD").replace(/\p{Diacritic}/gu, "").toLowerCase());
  return plains.get(name);
}

export const momentOf = (moment, zone) => format(moment, zone, { dateStyle: "medium", timeStyle: "short" });

/// Returns a duration in its two largest units.
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

/// Asks in the dialog and returns whether the user confirms. `yes` may change while it is open.
export function ask({ title, body, yes, danger = false }) {
  const dialog = by("dialog");
  const button = by("dialog-yes");
  by("dialog-title").textContent = title;
  by("dialog-body").replaceChildren(...body);
  button.textContent = yes;
  button.className = danger ? "danger" : "";
  return new Promise((resolve) => {
    // Not the event `close`: it comes later, and would answer the next question.
    const settle = (answer) => () => { dialog.close(); resolve(answer); };
    button.onclick = settle(true);
    by("dialog-no").onclick = settle(false);
    dialog.oncancel = () => resolve(false);
    dialog.showModal();
  });
}

/// Debounces: many calls at once lead to one run a moment later.
export function settled(act, ms) {
  let waiting = null;
  return () => { waiting ??= setTimeout(() => { waiting = null; act(); }, ms); };
}

/// Announces a text to screen readers.
export function announce(what) {
  by("arrivals").textContent = what;
}
