// The preview: boxes and decisions, and the picture itself only on request. Boxes, list and picture are of one frame.

import { by, emptyRow, make, row, say, setDoorZone, statusOf, timeOf, whenOf } from "./dom.js";
import { hasText, text } from "./texts.js";
import { request } from "./wire.js";

const SVG = "http://www.w3.org/2000/svg";
/// A forgotten picture is hidden after this time.
const PICTURE_SHOWN_MS = 120_000;
const PICTURE_EVERY_MS = 1_000;
/// Frames may come ten times a second, but nobody can read a list that changes so often.
const DRAW_EVERY_MS = 250;
const LAST_MAX = 5;
/// Faces of which it is kept that they are recorded already.
const REPEATS_MAX = 50;
const NOBODY = { frame: null, width: 0, height: 0, faces: [] };

let newest = null;
let drawing = null;
let showing = null;
/// While a picture is shown, boxes and list are those that came with it.
let isPictured = false;
/// The latest events, newest first.
let last = [];
/// The repeated visits, by the face's track.
const repeats = new Map();

export function start(onNames) {
  by("picture-on").addEventListener("click", () => (showing ? hidePicture() : showPicture()));
  by("names").addEventListener("change", onNames);
  draw(NOBODY);
  showLast();
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
  newest = seen;
  drawing ??= setTimeout(drawNewest, 0);
}
function drawNewest() {
  drawing = null;
  if (newest === null || isPictured) return;
  draw(newest);
  newest = null;
  drawing = setTimeout(drawNewest, DRAW_EVERY_MS);
}

/// Draws a frame: its boxes, the list of its faces, and its picture if that is shown.
function draw(seen, picture = null) {
  const svg = by("boxes");
  const width = seen.width || 640;
  const height = seen.height || 480;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", seen.faces.length ? text("door.seen", { n: seen.faces.length }) : text("door.nobody"));
  svg.replaceChildren(...seen.faces.map((face) => outline(face, width, height)));
  const rows = seen.faces.map((face) => row({
    what: face.name ?? wordOf(face),
    small: [
      hintOf(face),
      repeats.has(face.track) ? againOf(repeats.get(face.track)) : "",
      face.score === null ? "" : text("score", { score: face.score.toFixed(2), needed: face.threshold?.toFixed(2) ?? "?" }),
      text("samples", { n: face.samples }),
    ].filter(Boolean).join(" · "),
    badge: face.name ? wordOf(face) : null,
    state: stateOf(face),
  }));
  by("faces").replaceChildren(...(rows.length ? rows : [emptyRow(text("door.nobody"))]));
  // The picture is decoded: it appears with its boxes.
  if (picture) by("picture").replaceWith(picture);
  for (const id of picture ? ["boxes", "faces", "picture"] : ["boxes", "faces"]) by(id).dataset.frame = seen.frame ?? "";
}

/// Without frames there is no preview, and only the health message gives the reason.
export function vitals(health) {
  const state = health.camera.state;
  by("stage-says").textContent = state === "streaming" ? "" : text(`camera.${state}`);
  if (state !== "streaming") {
    hidePicture();
    newest = null;
    draw(NOBODY);
  }
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

/// The venues: the time of the door's one, and what the device still needs.
export function venues(all) {
  door = all.find((it) => it.door);
  setDoorZone(door?.time_zone);
  hasSessions = all.some((it) => it.sessions.length > 0);
  // After a gap of the stream the device may have started anew, and its tracks with it.
  repeats.clear();
  showLast();
}
let door = null;
let hasSessions = true;

function showSteps(health) {
  const needed = [
    health.camera.state === "absent" ? "steps.camera" : null,
    health.clock_trusted ? null : "steps.clock",
    health.gallery.subjects === 0 ? "steps.people" : null,
    door?.source === "default" ? "steps.zone" : null,
  ].filter(Boolean);
  by("steps").hidden = needed.length === 0;
  by("steps-list").replaceChildren(...[...needed, ...(hasSessions ? [] : ["steps.sessions"])].map((key) => make("li", {}, text(key))));
}

/// What was recorded before the page was opened.
export function seed(records) {
  if (last.length) return;
  const latest = records.sort((a, b) => (a.occurred_at < b.occurred_at ? -1 : 1)).slice(-LAST_MAX);
  for (const record of latest) event({ kind: "attendance", ...record }, false);
}

/// Shows an event as the latest.
export function event(told, isNew = true) {
  if (wordsOf(told) === null) return;
  const isSame = (it) => told.kind === "repeat" && it.told.kind === "repeat" && it.told.subject.id === told.subject.id;
  last = [{ told, isNew }, ...last.filter((it) => !isSame(it)).map((it) => ({ ...it, isNew: false }))].slice(0, LAST_MAX);
  showLast();
}
/// A visit that is in the record already: nothing is recorded, and this is why.
export function repeat(told) {
  repeats.set(told.track, told);
  if (repeats.size > REPEATS_MAX) repeats.delete(repeats.keys().next().value);
  event({ kind: "repeat", ...told });
}
function showLast() {
  const rows = last.map(({ told, isNew }) => row({
    before: make("time", { datetime: told.occurred_at }, timeOf(told.occurred_at)), what: wordsOf(told), isNew,
  }));
  by("last").replaceChildren(...(rows.length ? rows : [emptyRow(text("nobody"))]));
}
const againOf = ({ recorded_at: at, occurred_at: now }) => (at ? text("event.again", { time: whenOf(at, now) }) : text("event.againUnknown"));

export function wordsOf(told) {
  switch (told.kind) {
    case "attendance":
      return text("event.attendance", {
        name: told.subject?.name ?? text("erased"), direction: text(`direction.${told.direction}`), status: statusOf(told),
      });
    case "repeat":
      return text("event.repeat", { name: told.subject.name, again: againOf(told) });
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
  last = [];
  repeats.clear();
  showLast();
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
      const response = await request(`api/picture?view=true&names=${wantsNames()}`, { accept: "multipart/form-data", signal: mine.signal });
      const answer = await response.formData();
      const url = URL.createObjectURL(answer.get("picture"));
      try {
        const picture = make("img", { id: "picture", alt: "", src: url });
        await picture.decode();
        if (showing !== mine) return;
        isPictured = true;
        draw(JSON.parse(answer.get("view")), picture);
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
  isPictured = false;
  const button = by("picture-on");
  button.textContent = text("door.show");
  button.setAttribute("aria-pressed", "false");
  by("picture").hidden = true;
  by("picture").removeAttribute("src");
}
