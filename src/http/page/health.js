// The health of the device: the set-up check, what is pending since when, and its counters.

import { by, bytesOf, lengthOf, make, momentOf, ready, row, say } from "./dom.js";
import { text } from "./texts.js";
import { hintOf } from "./door.js";
import { command } from "./wire.js";

/// A delivery pending for longer than this is a warning, as is less free space than this.
const OWED_LONG_S = 120;
const FREE_LOW_BYTES = 500e6;

let health = null;
let face = null;

export function start() {
  by("sync").addEventListener("click", sync);
}

export function take(told) {
  health = told;
  showChecks();
  showOwed();
  showDevice();
  ready("health");
}

/// Light and distance are judged by the last face before the camera.
export function view(seen) {
  const judged = seen.faces.find((it) => it.samples > 0 || it.flaw !== null);
  if (!judged) return;
  const [[ax, ay], [bx, by_]] = judged.landmarks;
  face = { flaw: hintOf(judged), eyes: Math.round(Math.hypot(ax - bx, ay - by_)) };
  if (health) showChecks();
}

const owedTo = (sink) => health.outbox.find((it) => it.sink === sink);
const lasting = (owed) => lengthOf((owed.oldest_age_s ?? 0) * 1000);
const isLong = (owed) => owed.rows > 0 && (owed.oldest_age_s ?? 0) > OWED_LONG_S;

/// Returns the state and the sentence of each check.
function checks() {
  const { camera, gallery, store } = health;
  return [
    ["camera", { streaming: ["good", "check.cameraGood"], lost: ["bad", "check.cameraLost"] }[camera.state] ?? ["none", "check.cameraAbsent"]],
    ["face", camera.state !== "streaming" ? null : faceCheck()],
    ["clock", health.clock_trusted ? ["good", "check.clockGood"] : ["bad", "check.clockBad"]],
    ["people", galleryCheck(gallery)],
    ["broker", brokerCheck()],
    ["mongo", mongoCheck()],
    ["sharing", sharingCheck(gallery.sharing)],
    ["disk", diskCheck(store)],
    ["heat", heatCheck()],
  ].filter(([, found]) => found !== null);
}
function faceCheck() {
  if (!face) return ["none", "check.faceNone"];
  return face.flaw ? ["look", "check.faceBad", { hint: face.flaw, n: face.eyes }] : ["good", "check.faceGood", { n: face.eyes }];
}
function galleryCheck(gallery) {
  if (gallery.subjects === 0) return ["look", "check.peopleNone"];
  if (gallery.outdated > 0) return ["look", "check.peopleOutdated", { n: gallery.outdated }];
  if (gallery.partial > 0) return ["good", "check.peoplePartial", { n: gallery.partial }];
  return ["good", "health.people", { n: gallery.subjects }];
}
function sinkCheck(owed) {
  if (!owed) return null;
  if (owed.buried > 0) return ["bad", "check.buriedSome", { n: owed.buried }];
  return isLong(owed) ? ["look", "check.owedLong", { time: lasting(owed) }] : ["good", "check.delivered"];
}
function brokerCheck() {
  if (health.mqtt?.state !== "refused") return sinkCheck(owedTo("mqtt"));
  return health.mqtt.refused_topic ? ["bad", "check.brokerRefuses", { topic: health.mqtt.refused_topic }] : ["bad", "check.brokerAway"];
}
function mongoCheck() {
  if (!health.mongo) return ["none", "check.mongoNone"];
  if (health.mongo.state === "refused") return ["bad", "check.mongoRefused"];
  if (health.mongo.state !== "connected") return ["look", "check.mongoAway"];
  const owed = owedTo("mongo");
  return owed && isLong(owed) && owed.buried === 0 ? ["look", "check.mongoOwed", { time: lasting(owed) }] : sinkCheck(owed);
}
function sharingCheck(sharing) {
  if (!sharing) return ["none", "check.sharingNone"];
  return {
    shared: ["good", "check.shared"], learning: ["look", "check.learning", { n: sharing.behind }],
    away: ["look", "check.sharingAway"], wrong_key: ["bad", "check.wrongKey"],
    blocked: ["bad", "check.sharingBlocked", { n: sharing.pending }],
  }[sharing.state] ?? ["none", "check.sharingNone"];
}
function diskCheck(store) {
  const free = bytesOf(store.free_bytes ?? 0);
  if (store.reserve_held === false) return ["bad", "check.diskFull"];
  if (store.errors > 0) return ["bad", "check.diskErrors", { n: store.errors }];
  return store.free_bytes < FREE_LOW_BYTES ? ["look", "check.diskLow", { free }] : ["good", "check.diskGood", { free }];
}
function heatCheck() {
  const celsius = health.cpu_celsius;
  if (celsius === null || celsius === undefined) return ["none", "check.heatNone"];
  const n = Math.round(celsius);
  return health.recognition.pace_step > 0 ? ["look", "check.heatBad", { n }] : ["good", "check.heatGood", { n }];
}

const MARKS = { good: "✓", look: "!", bad: "✕", none: "–" };

function showChecks() {
  by("checks").replaceChildren(...checks().map(([name, [state, key, values]]) => row({
    before: make("span", { class: "mark", state, role: "img", "aria-label": text(`check.state.${state}`) }, MARKS[state]),
    what: text(`check.${name}`),
    small: text(key, values),
  })));
}

const pair = (what, value) => [make("dt", {}, what), make("dd", {}, String(value))];

function showOwed() {
  const watermark = health.watermark?.complete_through;
  by("owed").replaceChildren(
    ...health.outbox.flatMap((owed) => pair(text(`health.sink.${owed.sink}`), [
      owed.rows > 0 ? text("health.rows", { n: owed.rows, time: lasting(owed) }) : text("health.nothing"),
      owed.buried > 0 ? text("health.buried", { n: owed.buried }) : "",
    ].filter(Boolean).join(", "))),
    ...pair(text("health.complete"), watermark ? momentOf(watermark) : text("health.notSaid")),
  );
}

function showDevice() {
  const { recognition, camera, gallery, store } = health;
  const refused = Object.entries(health.commands_refused ?? {}).map(([code, n]) => `${code} ${n}`).join(", ");
  by("device").replaceChildren(
    ...pair(text("health.version"), health.version),
    ...pair(text("health.uptime"), lengthOf(health.uptime_s * 1000)),
    ...pair(text("health.frames"), text("health.of", { n: camera.frames_captured, m: camera.frames_detected })),
    ...pair(text("health.recorded"), health.recorded),
    ...pair(text("health.unknown"), recognition.unknown),
    ...pair(text("health.attacks"), recognition.attacks),
    ...pair(text("health.gallery"), `${text("health.people", { n: gallery.subjects })}, ${text("people.references", { n: gallery.references })}`),
    ...pair(text("health.database"), bytesOf(store.database_bytes ?? 0)),
    ...pair(text("health.free"), bytesOf(store.free_bytes ?? 0)),
    ...pair(text("health.memory"), bytesOf(health.rss_bytes ?? 0)),
    ...pair(text("health.refused"), refused || text("none")),
    ...(health.device_key ? pair(text("health.key"), health.device_key) : []),
  );
}

async function sync() {
  try {
    const answer = await command("sync", { retry_buried: by("retry-buried").checked });
    const n = answer.owed.reduce((sum, it) => sum + it.rows, 0);
    const buried = answer.buried.map((it) => `${text(`health.sink.${it.sink}`)} ${it.seq ?? ""}: ${it.reason}`);
    say("sync-says", [n > 0 ? text("health.synced", { n }) : text("health.syncedAll"), ...buried], n > 0 || buried.length ? "look" : "good");
  } catch (error) {
    say("sync-says", error.message, "bad");
  }
}
