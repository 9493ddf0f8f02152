// Who is enrolled: the list, enrolment by photographs or from the door's camera, a new name, withdrawal, erasure.

import { ask, by, dateOf, emptyRow, make, row, say, settled } from "./dom.js";
import { hasText, text } from "./texts.js";
import { LIMITS, command, pages } from "./wire.js";
import { hintOf } from "./door.js";

/// What is loaded for the search, and what is shown at a time.
const LOADED_MAX = 5_000;
const PAGE = 25;
const SETTLE_MS = 500;
const CAMERA_SECONDS = 30;
/// The answer may take a little longer than the time that the person has.
const ANSWER_MS = (CAMERA_SECONDS + 15) * 1000;

let subjects = [];
let isComplete = true;
let first = 0;
let onCamera = () => {};
let countdown = null;

export function start(whenCameraIsUsed) {
  onCamera = whenCameraIsUsed;
  by("search").addEventListener("input", () => { first = 0; show(); });
  by("page-before").addEventListener("click", () => { first = Math.max(0, first - PAGE); show(); });
  by("page-after").addEventListener("click", () => { first += PAGE; show(); });
  for (const radio of document.getElementsByName("how")) radio.addEventListener("change", chooseHow);
  by("enrol").addEventListener("submit", (event) => { event.preventDefault(); enrol(false); });
  by("enrol-anyway").addEventListener("click", () => enrol(true));
  by("enrol-id").value = freshId();
  chooseHow();
}

/// An id from chance: one that is made from a name would stay when the person is erased.
function freshId() {
  return `p-${[...crypto.getRandomValues(new Uint8Array(4))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

const isByCamera = () => document.querySelector("[name=how]:checked").value === "camera";
function chooseHow() {
  by("how-upload").hidden = isByCamera();
  by("how-camera").hidden = !isByCamera();
}

export async function load() {
  try {
    const { all, complete } = await pages("subjects", {}, "subjects", LOADED_MAX);
    subjects = all;
    isComplete = complete;
    show();
  } catch (error) {
    say("people-says", error.message, "bad");
  }
}

export const loadSoon = settled(load, SETTLE_MS);

const plain = (name) => name.normalize("NFD").replace(/\p{Diacritic}/gu, "").toLowerCase();

function show() {
  const sought = plain(by("search").value.trim());
  const found = subjects.filter((it) => plain(it.name).includes(sought) || it.id.toLowerCase().includes(sought));
  if (first >= found.length) first = Math.max(0, Math.floor((found.length - 1) / PAGE) * PAGE);
  const rows = found.slice(first, first + PAGE).map((it) => row({
    what: it.name,
    small: [it.id, text("people.references", { n: it.references }), text("people.since", { date: dateOf(it.enrolled_at) })].join(" · "),
    badge: it.recognisable ? null : text("people.outdated"),
    state: "look",
    buttons: [
      action("people.add", it, () => fill(it)),
      action("people.rename", it, () => rename(it)),
      action("people.withdraw", it, () => withdraw(it)),
    ],
  }));
  by("subjects").replaceChildren(...(rows.length ? rows : [emptyRow(text(sought ? "people.nobodyFound" : "nobody"))]));
  by("people-count").textContent = `${subjects.length}${isComplete ? "" : "+"}`;
  by("pages").hidden = found.length <= PAGE;
  by("page-before").disabled = first === 0;
  by("page-after").disabled = first + PAGE >= found.length;
  by("page-at").textContent = text("people.page", { from: first + 1, to: Math.min(first + PAGE, found.length), n: found.length });
  if (!isComplete) say("people-says", text("people.first", { n: subjects.length }));
}
const action = (key, it, act) => make("button", { type: "button", class: "quiet", "aria-label": text(`${key}Of`, { name: it.name }), onclick: act }, text(key));

function fill(subject) {
  by("enrol-name").value = subject.name;
  by("enrol-id").value = subject.id;
  by("photos").focus();
}

async function rename(subject) {
  const field = make("input", { id: "new-name", maxlength: 200, value: subject.name, autocomplete: "off" });
  const body = [make("label", { for: "new-name" }, text("people.newName")), field];
  if (!(await ask({ title: text("people.renameOf", { name: subject.name }), body, yes: text("people.rename") }))) return;
  await change(() => command("rename", { subject_id: subject.id, name: field.value }), text("people.renamed"));
}

async function withdraw(subject) {
  const erase = make("input", { type: "checkbox", id: "erase" });
  const warning = make("p", { class: "says", state: "bad", hidden: true }, text("people.eraseWhy"));
  erase.addEventListener("change", () => {
    warning.hidden = !erase.checked;
    by("dialog-yes").textContent = text(erase.checked ? "people.yesErase" : "people.yesWithdraw");
  });
  const body = [
    make("p", {}, text("people.withdrawWhy", { name: subject.name })),
    make("label", { class: "check", for: "erase" }, erase, make("span", {}, text("people.erase"))),
    warning,
  ];
  if (!(await ask({ title: text("people.withdrawOf", { name: subject.name }), body, yes: text("people.yesWithdraw"), danger: true }))) return;
  const done = erase.checked ? text("people.wasErased") : text("people.withdrawn", { name: subject.name });
  await change(() => command("withdraw", { subject_id: subject.id, erase: erase.checked }), done);
}

async function change(act, done) {
  try {
    await act();
    say("people-says", done, "good");
    await load();
  } catch (error) {
    say("people-says", error.message, "bad");
  }
  by("people-list").focus();
}

async function enrol(anyway) {
  const fields = {
    subject: { id: by("enrol-id").value.trim(), name: by("enrol-name").value.trim() },
    replace: by("replace").checked,
    allow_duplicate: anyway,
  };
  by("enrol-anyway").hidden = true;
  by("photo-results").replaceChildren();
  by("enrol-go").disabled = true;
  let files = [];
  try {
    const answer = isByCamera() ? await fromCamera(fields) : await byPhotographs(fields, files = [...by("photos").files]);
    showImages(answer.images, files);
    const alike = answer.look_alikes.map((it) => text("enrol.alike", { name: nameOf(it.subject_id), score: it.score.toFixed(2) }));
    say("enrol-says", [text("enrol.done", { name: fields.subject.name, n: answer.references }), ...alike], "good");
    by("enrol").reset();
    by("enrol-id").value = freshId();
    chooseHow();
    await load();
  } catch (error) {
    const duplicate = error.code === "duplicate_subject" && error.answer?.duplicate_of;
    say("enrol-says", duplicate ? text("enrol.duplicate", { name: nameOf(duplicate) }) : error.message, "bad");
    by("enrol-anyway").hidden = !duplicate;
    showImages(error.answer?.images ?? [], files);
  } finally {
    by("enrol-go").disabled = false;
    by("enrol-go").focus();
  }
}
const nameOf = (id) => subjects.find((it) => it.id === id)?.name ?? id;

async function byPhotographs(fields, files) {
  if (files.length === 0) throw new Error(text("enrol.noPhotos"));
  if (files.length > LIMITS.photographs) throw new Error(text("enrol.tooMany"));
  const tooLarge = files.find((file) => file.size > LIMITS.photographBytes);
  if (tooLarge) throw new Error(text("enrol.tooLarge", { file: tooLarge.name }));
  // In base64 four characters stand for three bytes; the rest of the command is small.
  if (files.reduce((sum, file) => sum + file.size * 4 / 3 + 8, 2048) > LIMITS.bodyBytes) throw new Error(text("enrol.tooLargeTogether"));
  say("enrol-says", text("enrol.working"));
  const images = [];
  for (const file of files) images.push(await base64Of(file));
  return command("enrol", { ...fields, images });
}

async function base64Of(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let binary = "";
  for (let at = 0; at < bytes.length; at += 0x8000) binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(binary);
}

async function fromCamera(fields) {
  say("enrol-says");
  const ends = performance.now() + CAMERA_SECONDS * 1000;
  const bar = by("countdown-bar");
  bar.max = CAMERA_SECONDS;
  let told = null;
  const tick = () => {
    const left = Math.max(0, Math.ceil((ends - performance.now()) / 1000));
    bar.value = left;
    // Read aloud: each ten seconds are enough.
    if (told === null || (left % 10 === 0 && told !== left)) {
      told = left;
      by("countdown-says").textContent = text("enrol.countdown", { n: left });
    }
  };
  by("countdown").hidden = false;
  tick();
  countdown = setInterval(tick, 250);
  onCamera(true);
  try {
    return await command("enrol_from_camera", { ...fields, timeout_ms: CAMERA_SECONDS * 1000 }, { signal: AbortSignal.timeout(ANSWER_MS) });
  } finally {
    clearInterval(countdown);
    countdown = null;
    by("countdown").hidden = true;
    onCamera(false);
  }
}

/// What the camera sees while somebody is enrolled from it: what they should do.
export function view(seen) {
  if (countdown === null) return;
  const hint = seen.faces.map(hintOf).find(Boolean) ?? "";
  if (by("enrol-says").textContent !== hint) say("enrol-says", hint, "look");
}

function showImages(images, files) {
  by("photo-results").replaceChildren(...images.map((it, at) => row({
    before: make("span", { class: "mark", state: it.accepted ? "good" : "bad", "aria-hidden": "true" }, it.accepted ? "✓" : "✕"),
    what: files[at]?.name ?? text("enrol.camera"),
    small: it.accepted ? text(it.kept ? "enrol.ok" : "enrol.okNotKept") : (hasText(`reason.${it.reason}`) ? text(`reason.${it.reason}`) : it.reason),
  })));
}
