// The attendance of a day at a venue: each record as it happens, and a summary for each person and session.
//
// A school has thousands of records in a day. The record is loaded once and then follows the events; the summary is loaded
// again after them, less often where that takes long. Lists show a part, in a fixed height: a new row moves nothing else.

import {
  by, byName, dayBounds, dayOf, emptyRow, lateBy, lengthOf, make, plain, ready, row, ruleOf, say, sessionOf, settled, startOf, statusOf, timeOf,
} from "./dom.js";
import { text } from "./texts.js";
import { recordPages, request } from "./wire.js";

const ROWS_MAX = 20_000;
/// Rows shown at first, and added at the end of a list.
const STEP = 200;
/// So near to its end a list goes on, in pixels.
const NEAR_PX = 400;
const SETTLE_MS = 1_500;
const SETTLE_MAX_MS = 30_000;
const SHOW_EVERY_MS = 250;
/// The summary is loaded for no more than a sixth of the time.
const LOAD_SHARE = 5;
const DAY_MIN = 24 * 60;

let venues = [];
let venue = null;
let period = { from: null, to: null, notKnown: [] };
let passages = new Map();
let persons = [];
/// A day other than today, and a session, while one is chosen.
let chosen = null;
let session = "";
/// How many rows each list shows.
const shown = { passages: STEP, persons: STEP };
let newest = null;
let onPassages = () => {};
/// Counts the loads, so that of two at once the later one is shown; and how long the last one took.
let loads = 0;
let took = 0;
let running = 0;
let waiting = null;
/// Whether the records are loaded again too.
let isWhole = false;

export function start(whenPassagesAreKnown) {
  onPassages = whenPassagesAreKnown;
  by("today-venue").addEventListener("change", () => { venue = by("today-venue").value; chosen = null; session = ""; load(); });
  by("absent").addEventListener("change", load);
  by("today-day").addEventListener("change", () => {
    const day = by("today-day").value;
    chosen = day && day !== dayOf(Date.now(), zone()) ? day : null;
    load();
  });
  by("today-session").addEventListener("change", () => { session = by("today-session").value; fromTheTop(); });
  by("today-search").addEventListener("input", fromTheTop);
  for (const id of Object.keys(shown)) {
    by(id).addEventListener("scroll", () => {
      const list = by(id);
      const more = list.querySelector(".more");
      // Whoever has gone to its button by keyboard is not carried away.
      if (more && !more.contains(document.activeElement) && list.scrollTop + list.clientHeight > list.scrollHeight - NEAR_PX) showMore(id);
    }, { passive: true });
  }
  for (const ending of Object.keys(FORMATS)) by(ending).addEventListener("click", () => save(ending));
}

const current = () => venues.find((it) => it.venue === venue);
const zone = () => period.zone ?? current()?.time_zone;

/// Loads the venues; the venue of this door comes first.
export function takeVenues(given) {
  venues = given;
  if (!current()) venue = (venues.find((it) => it.door) ?? venues[0])?.venue ?? null;
  by("today-venue").replaceChildren(...venues.map((it) => make("option", { value: it.venue, selected: it.venue === venue }, it.name)));
}

export async function load() {
  if (!venue) return;
  const mine = ++loads;
  const earlier = new Set(passages.keys());
  await timed(mine, async () => {
    const { all: rows, first } = await summary();
    const { all: records } = await recordPages({ venue, from: first.from, to: first.to }, "attendance", ROWS_MAX);
    if (mine !== loads) return;
    takeSummary(rows, first);
    // What was recorded meanwhile may be in no page.
    const meanwhile = [...passages.values()].filter((it) => !earlier.has(it.event_id) && it.venue === venue && isToday(it));
    passages = new Map([...records, ...meanwhile].map((it) => [it.event_id, it]));
    by("today-day").max = dayOf(Date.now(), zone());
    by("today-day").value = dayOf(period.from, zone());
    fromTheTop();
    if (chosen === null && current()?.door) onPassages(records);
    say("today-says");
  });
  ready("today");
}

/// Loads the summary again; the whole day too when another one has begun.
async function refresh() {
  const mine = ++loads;
  let isOther = false;
  await timed(mine, async () => {
    const { all: rows, first } = await summary();
    if (mine !== loads) return;
    isOther = first.from !== period.from;
    if (isOther) return;
    takeSummary(rows, first);
    show();
  });
  if (isOther) await load();
}

async function timed(mine, act) {
  const began = performance.now();
  running += 1;
  try {
    await act();
  } catch (error) {
    if (mine === loads) say("today-says", error.message, "bad");
  }
  running -= 1;
  took = performance.now() - began;
}

function summary() {
  const hasSessions = Boolean(current()?.sessions?.length);
  by("absent").disabled = !hasSessions;
  const bounds = chosen ? dayBounds(chosen, current()?.time_zone) : {};
  return recordPages({ venue, summary: true, absent: hasSessions && by("absent").checked, ...bounds }, "rows", ROWS_MAX);
}
/// Those who are missing come first, then the others, each by name.
function takeSummary(rows, { from, to, time_zone, not_known }) {
  period = { from, to, zone: time_zone, notKnown: not_known ?? [] };
  const place = (it) => (it.status === "absent" ? 0 : 1);
  persons = rows.sort((a, b) => place(a) - place(b) || byName(personOf(a.subject), personOf(b.subject)) || ((a.session ?? "") < (b.session ?? "") ? -1 : 1));
}

/// Follows the record: an attendance is shown at once, the summary a moment later, once for many.
export function event(told) {
  const isRecord = told.kind === "attendance";
  if (isRecord && told.venue === venue && told.superseded_by === undefined && isToday(told)) {
    passages.set(told.event_id, told);
    newest = told.event_id;
    // Who reads further down goes on reading the same.
    if (by("passages").scrollTop > 0) shown.passages += 1;
    showSoon();
  }
  const changes = ["attendance", "correction"].includes(told.kind) || (told.kind === "enrolment" && told.action !== "enrolled");
  // A past day does not change, and an unseen one is loaded when it is seen.
  if (!changes || (isRecord && (chosen !== null || by("section-today").hidden))) return;
  isWhole ||= !isRecord;
  waiting ??= setTimeout(follow, Math.min(SETTLE_MAX_MS, Math.max(SETTLE_MS, LOAD_SHARE * took)));
}
/// Loads again, after a load that is running, which would else never end where people keep coming.
function follow() {
  waiting = running > 0 ? setTimeout(follow, SETTLE_MS) : null;
  if (waiting !== null) return;
  const act = isWhole ? load : refresh;
  isWhole = false;
  act();
}
const isToday = (told) => !period.to || (Date.parse(told.occurred_at) >= Date.parse(period.from) && Date.parse(told.occurred_at) < Date.parse(period.to));

const personOf = (subject) => subject?.name ?? text("erased");
function filtered(all) {
  const sought = plain(by("today-search").value.trim());
  const isSought = ({ subject }) => sought === "" || plain(personOf(subject)).includes(sought) || (subject?.id ?? "").toLowerCase().includes(sought);
  return all.filter((it) => (session === "" || it.session === session) && isSought(it));
}

function fromTheTop() {
  for (const id of Object.keys(shown)) {
    shown[id] = STEP;
    by(id).scrollTop = 0;
  }
  show();
}
function show() {
  showSessions();
  showPassages();
  showPersons();
}
const showSoon = settled(() => { showSessions(); showPassages(); }, SHOW_EVERY_MS);

/// The sessions of the day that are known: those with records, and those of which absence is not known.
function showSessions() {
  const ids = [...new Set([...persons, ...passages.values(), ...period.notKnown].map((it) => it.session).filter(Boolean))].sort();
  if (!ids.includes(session)) session = "";
  const list = by("today-session");
  const labels = ids.map((id) => [sessionOf(id, zone()), stateOf(id)].filter(Boolean).join(" · "));
  // Not while nothing changes: it may be open.
  if (list.value === session && list.dataset.labels === labels.join()) return;
  list.dataset.labels = labels.join();
  list.replaceChildren(
    make("option", { value: "" }, text("today.allSessions")),
    ...ids.map((id, at) => make("option", { value: id, selected: id === session }, labels[at])),
  );
}
/// Whether a session has not begun or is running; nothing when it is over.
function stateOf(id) {
  const minutes = (Date.now() - startOf(id)) / 60_000;
  if (minutes < 0) return text("today.ahead");
  const rule = current()?.sessions.find((it) => it.id === ruleOf(id));
  const of = (time) => Number(time.slice(0, 2)) * 60 + Number(time.slice(3, 5));
  return rule && minutes < ((of(rule.end) - of(rule.start) + DAY_MIN) % DAY_MIN || DAY_MIN) ? text("today.running") : "";
}

/// Fills a list with the rows that it shows.
function fill(id, all, rowOf, none) {
  const list = by(id);
  const [top, height] = [list.scrollTop, list.scrollHeight];
  const hasFocus = list.querySelector(".more")?.contains(document.activeElement);
  const rows = all.slice(0, shown[id]).map(rowOf);
  const left = all.length - rows.length;
  if (left > 0) rows.push(make("li", { class: "more" }, make("button", { type: "button", class: "quiet", onclick: () => { showMore(id); by(id).focus(); } }, text("today.more", { n: left }))));
  list.replaceChildren(...(rows.length ? rows : [emptyRow(text(none))]));
  if (hasFocus) list.querySelector(".more button")?.focus({ preventScroll: true });
  return { top, grown: list.scrollHeight - height };
}
function showMore(id) {
  shown[id] += STEP;
  const top = by(id).scrollTop;
  ({ passages: showPassages, persons: showPersons })[id]();
  by(id).scrollTop = top;
}

function showPassages() {
  const all = filtered([...passages.values()]).sort((a, b) => (a.occurred_at < b.occurred_at ? 1 : -1));
  const arrived = newest;
  newest = null;
  const { top, grown } = fill("passages", all, (it) => row({
    before: make("time", { datetime: it.occurred_at }, timeOf(it.occurred_at, zone())),
    what: personOf(it.subject),
    small: [text(`direction.${it.direction}`), it.session ? sessionOf(it.session, zone()) : "", it.clock === "unsynced" ? text("today.unsynced") : ""].filter(Boolean).join(" · "),
    badge: statusOf(it),
    state: it.status === "late" ? "look" : "good",
    isNew: it.event_id === arrived,
  }), passages.size ? "today.nobodyFound" : "nobody");
  if (top > 0 && arrived !== null) by("passages").scrollTop = top + grown;
  by("passage-count").textContent = all.length || "";
}

function showPersons() {
  const at = (moment) => timeOf(moment, zone());
  const rows = filtered(persons);
  const { top } = fill("persons", rows, (it) => row({
    what: personOf(it.subject),
    small: [
      it.session ? sessionOf(it.session, zone()) : "",
      it.first_in ? text("today.in", { time: at(it.first_in) }) : "",
      it.last_out ? text("today.out", { time: at(it.last_out) }) : "",
      it.present_ms === null ? "" : text("today.present", { time: lengthOf(it.present_ms) }),
    ].filter(Boolean).join(" · "),
    badge: it.late_ms > 0 ? lateBy(Math.ceil(it.late_ms / 60_000)) : text(`status.${it.status}`),
    state: { present: "good", late: "look", absent: "bad" }[it.status],
  }), persons.length ? "today.nobodyFound" : "nobody");
  by("persons").scrollTop = top;
  by("person-count").textContent = rows.length || "";
  const notKnown = period.notKnown.filter((it) => session === "" || it.session === session);
  by("not-known").replaceChildren(...notKnown.map((it) => make("p", { class: "note" }, whyNotKnown(it))));
}

function whyNotKnown(it) {
  const state = Date.parse(it.starts_at) > Date.now() ? "today.ahead" : "today.running";
  const isOver = !it.ends_at || Date.parse(it.ends_at) <= Date.now();
  return text(isOver ? "today.notKnown" : "today.notOver", { id: sessionOf(it.session, zone()), state: text(state) });
}

/// By the ending of the file: the media type, and what the query has besides.
const FORMATS = {
  csv: { accept: "text/csv", query: () => ({ bom: true }) },
  xlsx: {
    accept: "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    query: () => ({ absent: !by("absent").disabled && by("absent").checked }),
  },
};

async function save(ending) {
  try {
    const { accept, query } = FORMATS[ending];
    const wanted = new URLSearchParams({ venue, from: period.from, to: period.to, ...query() });
    const url = URL.createObjectURL(await (await request(`api/attendance?${wanted}`, { accept })).blob());
    make("a", { href: url, download: `attendance-${venue}-${dayOf(period.from, zone())}.${ending}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    say("today-says", text("today.saved"), "good");
  } catch (error) {
    say("today-says", error.message, "bad");
  }
}
