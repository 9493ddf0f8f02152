// Who came today at a venue: each passage as it happens, and what it comes to for each person.

import { by, dayOf, emptyRow, lengthOf, make, row, say, settled, timeOf } from "./dom.js";
import { text } from "./texts.js";
import { command, pages, request } from "./wire.js";

const PASSAGES_MAX = 10_000;
const SHOWN_MAX = 200;
const SETTLE_MS = 1_500;

let venues = [];
let venue = null;
let period = { from: null, to: null, zone: undefined };
let passages = new Map();
/// Counts the loads: of two that run at once, the later one's answer is shown.
let loads = 0;

export function start() {
  by("today-venue").addEventListener("change", () => { venue = by("today-venue").value; load(); });
  by("absent").addEventListener("change", load);
  by("csv").addEventListener("click", save);
}

/// The venues, of which the door's own is shown first.
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
  try {
    const rows = [];
    let answer;
    do {
      answer = await command("attendance", { venue, summary: true, absent, limit: 500, ...(answer ? { after: answer.next_after, from: answer.from, to: answer.to } : {}) });
      rows.push(...answer.rows);
      if (rows.length === answer.rows.length) period = { from: answer.from, to: answer.to, zone: answer.time_zone, notKnown: answer.not_known ?? [] };
    } while (answer.next_after !== null && rows.length < PASSAGES_MAX);
    const { all } = await pages("attendance", { venue, from: period.from, to: period.to }, "attendance", PASSAGES_MAX);
    if (mine !== loads) return;
    passages = new Map(all.map((it) => [it.event_id, it]));
    showPassages();
    showPersons(rows);
    say("today-says");
  } catch (error) {
    if (mine === loads) say("today-says", error.message, "bad");
  }
}

/// Whatever changes the record: a passage stands there at once, the sums a moment later, and for many at once only once.
export function event(told) {
  if (told.kind === "attendance" && told.venue === venue && told.superseded_by === undefined && isToday(told)) {
    passages.set(told.event_id, told);
    showPassages(told.event_id);
  }
  const changes = ["attendance", "correction"].includes(told.kind) || (told.kind === "enrolment" && told.action !== "enrolled");
  if (changes) loadSoon();
}
const loadSoon = settled(load, SETTLE_MS);
const isToday = (told) => !period.to || (Date.parse(told.occurred_at) >= Date.parse(period.from) && Date.parse(told.occurred_at) < Date.parse(period.to));

const sessionOf = (id) => id.split("/").pop();
const personOf = (subject) => subject?.name ?? text("erased");

function showPassages(newest) {
  const all = [...passages.values()].sort((a, b) => (a.occurred_at < b.occurred_at ? 1 : -1));
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

function showPersons(rows) {
  const at = (moment) => timeOf(moment, period.zone);
  const shown = rows.slice(0, SHOWN_MAX).map((it) => row({
    what: personOf(it.subject),
    small: [
      it.session ? text("today.session", { id: sessionOf(it.session) }) : "",
      it.first_in ? text("today.in", { time: at(it.first_in) }) : "",
      it.last_out ? text("today.out", { time: at(it.last_out) }) : "",
      it.late_ms > 0 ? text("today.lateBy", { time: lengthOf(it.late_ms) }) : "",
      it.present_ms === null ? "" : text("today.present", { time: lengthOf(it.present_ms) }),
    ].filter(Boolean).join(" · "),
    badge: text(`status.${it.status}`),
    state: { present: "good", late: "look", absent: "bad" }[it.status],
  }));
  if (rows.length > SHOWN_MAX) shown.push(emptyRow(text("today.more", { n: rows.length - SHOWN_MAX })));
  by("persons").replaceChildren(...(shown.length ? shown : [emptyRow(text("nobody"))]));
  by("person-count").textContent = rows.length || "";
  by("not-known").replaceChildren(...period.notKnown.map((it) => make("p", { class: "note" }, text("today.notKnown", { id: sessionOf(it.session) }))));
}

async function save() {
  try {
    const query = new URLSearchParams({ venue, from: period.from, to: period.to });
    const table = await (await request(`api/attendance?${query}`, { accept: "text/csv" })).blob();
    const url = URL.createObjectURL(table);
    make("a", { href: url, download: `attendance-${venue}-${dayOf(period.from, period.zone)}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    say("today-says", text("today.saved"), "good");
  } catch (error) {
    say("today-says", error.message, "bad");
  }
}
