// Venues and their sessions: the list, and one form for a venue.

import { ask, by, emptyRow, make, momentOf, ready, row, say } from "./dom.js";
import { LANGUAGE, text } from "./texts.js";
import { command, pages } from "./wire.js";

const DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const SESSIONS_MAX = 50;
const VENUES_MAX = 1_000;
const MINUTE_MS = 60_000;

let made = 0;
let onVenues = () => {};

export function start(whenVenuesAreKnown) {
  onVenues = whenVenuesAreKnown;
  const zones = Intl.supportedValuesOf?.("timeZone") ?? [];
  by("zones").replaceChildren(...["UTC", ...zones].map((value) => make("option", { value })));
  by("session-add").addEventListener("click", () => addSession({}).querySelector("input").focus());
  by("venue-new").addEventListener("click", () => { fill(null); by("venue-id").focus(); });
  by("venue-form").addEventListener("submit", (event) => { event.preventDefault(); put(); });
  fill(null);
}

export async function load() {
  try {
    const { all } = await pages("venues", {}, "venues", VENUES_MAX);
    const rows = all.map((it) => row({
      what: it.name,
      small: [it.venue, it.time_zone, text(`venues.${it.direction}`), it.sessions.map(shortly).join(", ") || text("venues.noSessions")].join(" · "),
      badge: [it.door ? text("venues.thisDoor") : "", it.source === "config" ? text("venues.config") : ""].filter(Boolean).join(", "),
      buttons: it.source === "config" ? [] : [
        make("button", { type: "button", class: "quiet", "aria-label": text("venues.editOf", { name: it.name }), onclick: () => { fill(it); by("venue-title").focus(); } }, text("venues.edit")),
        it.source === "command" ? make("button", { type: "button", class: "quiet", "aria-label": text("venues.deleteOf", { name: it.name }), onclick: () => remove(it) }, text("venues.delete")) : null,
      ],
    }));
    by("venue-rows").replaceChildren(...(rows.length ? rows : [emptyRow(text("none"))]));
    onVenues(all);
  } catch (error) {
    say("venues-says", error.message, "bad");
  }
  ready("venues");
}
const shortly = (session) => `${(session.weekdays?.length ? session.weekdays.map((day) => text(`day.${day}`)) : session.dates ?? []).join(" ")} ${session.start}–${session.end}`;

/// Fills the form with a venue, or empties it for a new one.
function fill(venue) {
  by("venue-title").textContent = venue ? text("venues.change", { name: venue.name }) : text("venues.fresh");
  by("venue-id").value = venue?.venue ?? "";
  by("venue-name").value = venue?.name ?? "";
  by("zone").value = venue?.time_zone ?? Intl.DateTimeFormat(LANGUAGE).resolvedOptions().timeZone ?? "UTC";
  by("direction").value = venue?.direction ?? "in";
  by("gap").value = (venue?.re_entry_gap_ms ?? 5 * MINUTE_MS) / MINUTE_MS;
  by("sessions").replaceChildren();
  for (const session of venue?.sessions ?? []) addSession(session);
  say("venue-says");
}

function addSession(session) {
  made += 1;
  const n = made;
  const field = (name, key, attributes) => {
    const id = `s${n}-${name}`;
    return make("div", { class: attributes.wide ? "wide" : null },
      make("label", { for: id }, text(key)),
      make("input", { id, "data-field": name, autocomplete: "off", ...attributes, wide: null }));
  };
  const minutes = (ms) => (ms === null || ms === undefined ? null : ms / MINUTE_MS);
  const days = DAYS.map((day) => make("label", { class: "check" },
    make("input", { type: "checkbox", "data-day": day, checked: session.weekdays?.includes(day) }), make("span", {}, text(`day.${day}`))));
  const set = make("fieldset", {},
    make("legend", {}, text("venues.session", { n: by("sessions").children.length + 1 })),
    make("div", { class: "session" },
      field("id", "venues.sessionId", { wide: true, maxlength: 64, pattern: "[A-Za-z0-9._\\-]{1,64}", spellcheck: "false", autocapitalize: "none", required: true, value: session.id ?? `s-${n}` }),
      make("div", { class: "wide days", role: "group", "aria-label": text("venues.weekdays") }, ...days),
      field("dates", "venues.dates", { wide: true, value: session.dates?.join(", ") }),
      field("start", "venues.start", { type: "time", required: true, value: session.start ?? "08:00" }),
      field("end", "venues.end", { type: "time", required: true, value: session.end ?? "12:00" }),
      field("late", "venues.late", { type: "number", min: 0, step: "any", inputmode: "decimal", value: minutes(session.late_after_ms) }),
      field("early", "venues.early", { type: "number", min: 0, max: 720, step: "any", inputmode: "decimal", value: minutes(session.early_ms) ?? 30 })),
    make("div", { class: "actions" }, make("button", { type: "button", class: "quiet", onclick: () => { set.remove(); number(); by("session-add").focus(); } }, text("venues.remove", { n: "" }))));
  by("sessions").append(set);
  number();
  return set;
}

/// Numbers the sessions in their order.
function number() {
  const sets = [...by("sessions").children];
  sets.forEach((set, at) => {
    set.querySelector("legend").textContent = text("venues.session", { n: at + 1 });
    set.querySelector("button").textContent = text("venues.remove", { n: at + 1 });
  });
  by("session-add").disabled = sets.length >= SESSIONS_MAX;
}

function sessionOf(set) {
  const value = (name) => set.querySelector(`[data-field=${name}]`).value.trim();
  const ms = (name) => (value(name) === "" ? null : Math.round(Number(value(name)) * MINUTE_MS));
  const weekdays = [...set.querySelectorAll("[data-day]:checked")].map((box) => box.dataset.day);
  const dates = value("dates").split(/[\s,;]+/).filter(Boolean);
  return {
    id: value("id"), start: value("start").slice(0, 5), end: value("end").slice(0, 5), late_after_ms: ms("late"), early_ms: ms("early"),
    ...(weekdays.length ? { weekdays } : {}), ...(dates.length ? { dates } : {}),
  };
}

async function put() {
  const venue = {
    venue: by("venue-id").value.trim(), time_zone: by("zone").value.trim(), direction: by("direction").value,
    re_entry_gap_ms: Math.round(Number(by("gap").value) * MINUTE_MS), sessions: [...by("sessions").children].map(sessionOf),
    ...(by("venue-name").value.trim() ? { name: by("venue-name").value.trim() } : {}),
  };
  try {
    const answer = await command("venue_put", venue);
    const next = answer.next_session;
    say("venue-says", next ? text("venues.next", { time: momentOf(next.starts_at, venue.time_zone) }) : text("venues.saved"), "good");
    await load();
  } catch (error) {
    say("venue-says", error.answer?.error?.message ?? error.message, "bad");
  }
}

async function remove(venue) {
  const body = [make("p", {}, text("venues.deleteWhy", { name: venue.name }))];
  if (!(await ask({ title: text("venues.deleteOf", { name: venue.name }), body, yes: text("venues.delete"), danger: true }))) return;
  try {
    await command("venue_delete", { venue: venue.venue });
    say("venues-says", text("venues.deleted"), "good");
    await load();
  } catch (error) {
    say("venues-says", error.message, "bad");
  }
  by("venue-list").focus();
}
