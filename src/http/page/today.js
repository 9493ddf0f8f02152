// The attendance of a day at a venue: each record as it happens, and a summary for each person.

import { by, byName, dayBounds, dayOf, emptyRow, lengthOf, make, plain, row, say, settled, timeOf } from "./dom.js";
import { text } from "./texts.js";
import { command, pages, request } from "./wire.js";

const PASSAGES_MAX = 10_000;
const SHOWN_MAX = 200;
const SETTLE_MS = 1_500;

let venues = [];
let venue = null;
let period = { from: null, to: null, zone: undefined };
let passages = new Map();
let persons = [];
/// A day other than today, while one is chosen.
let chosen = null;
let onPassages = () => {};
/// Counts the loads, so that of two at once the later one is shown.
let loads = 0;

export function start(whenPassagesAreKnown) {
  onPassages = whenPassagesAreKnown;
  by("today-venue").addEventListener("change", () => { venue = by("today-venue").value; chosen = null; load(); });
  by("absent").addEventListener("change", load);
  by("today-day").addEventListener("change", () => {
    const day = by("today-day").value;
    chosen = day && day !== dayOf(Date.now(), period.zone) ? day : null;
    load();
  });
  by("today-search").addEventListener("input", show);
  for (const ending of Object.keys(FORMATS)) by(ending).addEventListener("click", () => save(ending));
}

/// Loads the venues; the venue of this door comes first.
export function takeVenues(given) {
  venues = given;
  if (!venues.some((it) => it.venue === venue)) venue = (venues.find((it) => it.door) ?? venues[0])?.venue ?? null;
  by("today-venue").replaceChildren(...venues.map((it) => make("option", { value: it.venue, selected: it.venue === venue }, it.name)));
}

export async function load() {
  if (!venue) return;
  const mine = ++loads;
  const of = venues.find((it) => it.venue === venue);
  by("absent-field").hidden = !of?.sessions?.length;
  const absent = Boolean(of?.sessions?.length) && by("absent").checked;
  const bounds = chosen && of?.time_zone ? dayBounds(chosen, of.time_zone) : {};
  try {
    const rows = [];
    let answer;
    do {
      answer = await command("attendance", { venue, summary: true, absent, limit: 500, ...bounds, ...(answer ? { after: answer.next_after, from: answer.from, to: answer.to } : {}) });
      rows.push(...answer.rows);
      if (rows.length === answer.rows.length) period = { from: answer.from, to: answer.to, zone: answer.time_zone, notKnown: answer.not_known ?? [] };
    } while (answer.next_after !== null && rows.length < PASSAGES_MAX);
    const { all } = await pages("attendance", { venue, from: period.from, to: period.to }, "attendance", PASSAGES_MAX);
    if (mine !== loads) return;
    passages = new Map(all.map((it) => [it.event_id, it]));
    persons = rows;
    by("today-day").max = dayOf(Date.now(), period.zone);
    by("today-day").value = dayOf(period.from, period.zone);
    show();
    if (chosen === null) onPassages([...passages.values()]);
    say("today-says");
  } catch (error) {
    if (mine === loads) say("today-says", error.message, "bad");
  }
}

/// Follows the record: an attendance is shown at once, the summary a moment later, once for many.
export function event(told) {
  if (told.kind === "attendance" && told.venue === venue && told.superseded_by === undefined && isToday(told)) {
    passages.set(told.event_id, told);
    showPassages(told.event_id);
  }
  const changes = ["attendance", "correction"].includes(told.kind) || (told.kind === "enrolment" && told.action !== "enrolled");
  // A past day does not change by what happens now.
  if (changes && (chosen === null || told.kind !== "attendance")) loadSoon();
}
const loadSoon = settled(load, SETTLE_MS);
const isToday = (told) => !period.to || (Date.parse(told.occurred_at) >= Date.parse(period.from) && Date.parse(told.occurred_at) < Date.parse(period.to));

/// The day, shown with the venue's time; the id of a session ends in its own.
const sessionOf = (id) => id.split("/").pop();
const isSought = (subject) => {
  const sought = plain(by("today-search").value.trim());
  return sought === "" || plain(personOf(subject)).includes(sought) || (subject?.id ?? "").toLowerCase().includes(sought);
};

function show() {
  showPassages();
  showPersons();
}
const personOf = (subject) => subject?.name ?? text("erased");

function showPassages(newest) {
  const all = [...passages.values()].filter((it) => isSought(it.subject)).sort((a, b) => (a.occurred_at < b.occurred_at ? 1 : -1));
  const rows = all.slice(0, SHOWN_MAX).map((it) => row({
    before: make("time", { datetime: it.occurred_at }, timeOf(it.occurred_at, period.zone)),
    what: personOf(it.subject),
    small: [text(`direction.${it.direction}`), it.session ? text("today.session", { id: sessionOf(it.session) }) : "", it.clock === "unsynced" ? text("today.unsynced") : ""].filter(Boolean).join(" · "),
    badge: text(`status.${it.status}`),
    state: it.status === "late" ? "look" : "good",
    isNew: it.event_id === newest,
  }));
  if (all.length > SHOWN_MAX) rows.push(emptyRow(text("today.more", { n: all.length - SHOWN_MAX })));
  by("passages").replaceChildren(...(rows.length ? rows : [emptyRow(text("nobody"))]));
  by("passage-count").textContent = all.length || "";
}

/// Those who are missing first, then the others, each by name.
function showPersons() {
  const at = (moment) => timeOf(moment, period.zone);
  const place = (it) => (it.status === "absent" ? 0 : 1);
  const rows = persons.filter((it) => isSought(it.subject))
    .sort((a, b) => place(a) - place(b) || byName(personOf(a.subject), personOf(b.subject)) || ((a.session ?? "") < (b.session ?? "") ? -1 : 1));
  const shown = rows.slice(0, SHOWN_MAX).map((it) => row({
    what: personOf(it.subject),
    small: [
      it.session ? text("today.session", { id: sessionOf(it.session) }) : "",
      it.first_in ? text("today.in", { time: at(it.first_in) }) : "",
      it.last_out ? text("today.out", { time: at(it.last_out) }) : "",
      it.late_ms > 0 ? text("today.lateBy", { time: text("unit.minute", { n: Math.ceil(it.late_ms / 60_000) }) }) : "",
      it.present_ms === null ? "" : text("today.present", { time: lengthOf(it.present_ms) }),
    ].filter(Boolean).join(" · "),
    badge: text(`status.${it.status}`),
    state: { present: "good", late: "look", absent: "bad" }[it.status],
  }));
  if (rows.length > SHOWN_MAX) shown.push(emptyRow(text("today.more", { n: rows.length - SHOWN_MAX })));
  by("persons").replaceChildren(...(shown.length ? shown : [emptyRow(text(persons.length ? "today.nobodyFound" : "nobody"))]));
  by("person-count").textContent = rows.length || "";
  by("not-known").replaceChildren(...period.notKnown.map((it) => make("p", { class: "note" }, whyNotKnown(it))));
}

function whyNotKnown(it) {
  const state = Date.parse(it.starts_at) > Date.now() ? "today.ahead" : "today.running";
  const isOver = !it.ends_at || Date.parse(it.ends_at) <= Date.now();
  return text(isOver ? "today.notKnown" : "today.notOver", { id: sessionOf(it.session), state: text(state) });
}

/// By the ending of the file: the media type, and what the query has besides.
const FORMATS = {
  csv: { accept: "text/csv", query: () => ({ bom: true }) },
  xlsx: {
    accept: "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    query: () => ({ absent: !by("absent-field").hidden && by("absent").checked }),
  },
};

async function save(ending) {
  try {
    const { accept, query } = FORMATS[ending];
    const wanted = new URLSearchParams({ venue, from: period.from, to: period.to, ...query() });
    const url = URL.createObjectURL(await (await request(`api/attendance?${wanted}`, { accept })).blob());
    make("a", { href: url, download: `attendance-${venue}-${dayOf(period.from, period.zone)}.${ending}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    say("today-says", text("today.saved"), "good");
  } catch (error) {
    say("today-says", error.message, "bad");
  }
}
