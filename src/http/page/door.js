// The preview: boxes and decisions, and the picture itself only on request.

import { by, emptyRow, make, row, say, timeOf } from "./dom.js";
import { hasText, text } from "./texts.js";
import { request } from "./wire.js";

const SVG = "http://www.w3.org/2000/svg";
/// A forgotten picture is hidden after this time.
const PICTURE_SHOWN_MS = 120_000;
const PICTURE_EVERY_MS = 1_000;
const LIST_EVERY_MS = 500;
const LAST_MAX = 5;

let listed = -Infinity;
let showing = null;
/// The time zone of the door's venue.
let zone;

export function start(onNames) {
  by("picture-on").addEventListener("click", () => (showing ? hidePicture() : showPicture()));
  by("names").addEventListener("change", onNames);
  by("faces").replaceChildren(emptyRow(text("door.nobody")));
  by("last").replaceChildren(emptyRow(text("nobody")));
}
export const wantsNames = () => by("names").checked;

/// The state of a face. Good: recognised; look: unknown; bad: presentation attack; none: undecided.
function stateOf(face) {
  if (face.presentation === "attack") return "bad";
  return { identified: "good", unknown: "look" }[face.decision] ?? "none";
}
function wordOf(face) {
  if (face.presentation === "attack") return text("decision.attack");
  return hasText(`decision.${face.decision}`) ? text(`decision.${face.decision}`) : face.decision;
}
export const hintOf = (face) => (hasText(`hint.${face.flaw}`) ? text(`hint.${face.flaw}`) : "");

export function view(seen) {
  const svg = by("boxes");
  const width = seen.width || 640;
  const height = seen.height || 480;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...seen.faces.map((face) => outline(face, width, height)));
  // Boxes may change ten times a second, but nobody can read a list that does.
  const now = performance.now();
  if (now - listed < LIST_EVERY_MS) return;
  listed = now;
  svg.setAttribute("aria-label", seen.faces.length ? text("door.seen", { n: seen.faces.length }) : text("door.nobody"));
  const rows = seen.faces.map((face) => row({
    what: face.name ?? wordOf(face),
    small: [
      hintOf(face),
      face.score === null ? "" : text("score", { score: face.score.toFixed(2), needed: face.threshold?.toFixed(2) ?? "?" }),
      text("samples", { n: face.samples }),
    ].filter(Boolean).join(" · "),
    badge: face.name ? wordOf(face) : null,
    state: stateOf(face),
  }));
  by("faces").replaceChildren(...(rows.length ? rows : [emptyRow(text("door.nobody"))]));
}

/// Without frames there is no preview, and only the health message gives the reason.
export function vitals(health) {
  const state = health.camera.state;
  by("stage-says").textContent = state === "streaming" ? "" : text(`camera.${state}`);
  if (state !== "streaming") by("boxes").replaceChildren();
  showSteps(health);
}

function outline(face, width, height) {
  const [left, top, right, bottom] = face.box;
  const group = document.createElementNS(SVG, "g");
  group.dataset.state = stateOf(face);
  const rect = document.createElementNS(SVG, "rect");
  for (const [name, value] of Object.entries({ x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top), rx: width / 80 })) {
    rect.setAttribute(name, value);
  }
  const size = width / 26;
  const label = document.createElementNS(SVG, "text");
  label.textContent = face.name ?? wordOf(face);
  label.setAttribute("font-size", size);
  label.setAttribute("x", Math.max(0, left));
  label.setAttribute("y", top > size * 1.4 ? top - size * 0.4 : Math.min(height - 4, bottom + size * 1.1));
  group.append(rect, label);
  return group;
}

/// The venue's time, and what the device still needs.
export function venues(all) {
  const door = all.find((it) => it.door);
  zone = door?.time_zone;
  hasSessions = all.some((it) => it.sessions.length > 0);
}
let hasSessions = true;

function showSteps(health) {
  const missing = [
    health.camera.state === "absent" ? "steps.camera" : null,
    health.clock_trusted ? null : "steps.clock",
    health.gallery.subjects === 0 ? "steps.people" : null,
    hasSessions ? null : "steps.sessions",
  ].filter(Boolean);
  by("steps").hidden = health.gallery.subjects > 0 && health.camera.state !== "absent" && health.clock_trusted;
  by("steps-list").replaceChildren(...missing.map((key) => make("li", {}, text(key))));
}

/// What was recorded before the page was opened.
export function seed(records) {
  if (!by("last").querySelector(".none")) return;
  const latest = records.sort((a, b) => (a.occurred_at < b.occurred_at ? -1 : 1)).slice(-LAST_MAX);
  for (const record of latest) event({ kind: "attendance", ...record }, false);
}

/// The latest events, newest first.
export function event(told, isNew = true) {
  const what = wordsOf(told);
  if (!what) return;
  const list = by("last");
  list.querySelector(".none")?.remove();
  list.prepend(row({ before: make("time", { datetime: told.occurred_at }, timeOf(told.occurred_at, zone)), what, isNew }));
  while (list.children.length > LAST_MAX) list.lastElementChild.remove();
}
export function wordsOf(told) {
  switch (told.kind) {
    case "attendance":
      return text("event.attendance", {
        name: told.subject?.name ?? text("erased"), direction: text(`direction.${told.direction}`), status: text(`status.${told.status}`),
      });
    case "camera":
      return text(`event.${told.state}`);
    case "unknown":
    case "attack":
      return text(`event.${told.kind}`);
    default:
      return null;
  }
}
/// Clears the events after an erasure, so that no name stays on the screen.
export function forget() {
  by("last").replaceChildren(emptyRow(text("nobody")));
}

async function showPicture() {
  const mine = new AbortController();
  showing = mine;
  const button = by("picture-on");
  button.textContent = text("door.hide");
  button.setAttribute("aria-pressed", "true");
  say("picture-says");
  const until = performance.now() + PICTURE_SHOWN_MS;
  try {
    while (showing === mine && performance.now() < until) {
      const response = await request("api/picture", { accept: "image/jpeg", signal: mine.signal });
      const url = URL.createObjectURL(await response.blob());
      try {
        const picture = by("picture");
        picture.src = url;
        await picture.decode();
        picture.hidden = showing !== mine;
      } finally {
        URL.revokeObjectURL(url);
      }
      await new Promise((go) => setTimeout(go, PICTURE_EVERY_MS));
    }
  } catch (error) {
    if (showing === mine) say("picture-says", { 403: text("door.forbidden"), 503: text("door.noCamera") }[error.status] ?? error.message, "look");
  }
  if (showing === mine) hidePicture();
}
export function hidePicture() {
  showing?.abort();
  showing = null;
  const button = by("picture-on");
  button.textContent = text("door.show");
  button.setAttribute("aria-pressed", "false");
  by("picture").hidden = true;
  by("picture").removeAttribute("src");
}
