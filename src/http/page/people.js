// The enrolled people: list, enrolment, renaming, withdrawal and erasure.

import { ask, by, byName, dateOf, dayBounds, emptyRow, lastDateOf, make, plain, ready, row, say, settled } from "./dom.js";
import { hasText, text } from "./texts.js";
import { LIMITS, command, pages } from "./wire.js";
import { hintOf } from "./door.js";

/// The number of people loaded for the search, and shown at a time.
const LOADED_MAX = 5_000;
const PAGE = 25;
const SETTLE_MS = 500;
/// As the device counts them.
const CONSENT_ENDING_MS = 30 * 86_400_000;
const CAMERA_SECONDS = 30;
/// The reply may take a little longer than the time that the person has.
const ANSWER_MS = (CAMERA_SECONDS + 15) * 1000;

/// Fewer bytes are sent as they are; more pixels than the device keeps are reduced to more than any face needs.
const SURELY_SMALL_BYTES = 2 ** 20;
const KEPT_PIXELS_MAX = 12_600_000;
const SENT_PIXELS_MAX = 6_000_000;
const SENT_PIXELS_MIN = 10_000;

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
  // What was said of the last person is not said of the next one.
  by("enrol").addEventListener("input", forgetResult);
  emptyForm();
}

/// Returns a random id: an id made from the name would remain when the person is erased.
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
    subjects = all.sort((a, b) => byName(a.name, b.name));
    isComplete = complete;
    show();
  } catch (error) {
    say("people-says", error.message, "bad");
  }
  ready("people");
}

export const loadSoon = settled(load, SETTLE_MS);

function show() {
  const sought = plain(by("search").value.trim());
  const found = subjects.filter((it) => plain(it.name).includes(sought) || it.id.toLowerCase().includes(sought));
  if (first >= found.length) first = Math.max(0, Math.floor((found.length - 1) / PAGE) * PAGE);
  const rows = found.slice(first, first + PAGE).map((it) => row({
    what: it.name,
    small: [it.id, text(it.references === 1 ? "people.onePhoto" : "people.references", { n: it.references }), text("people.since", { date: dateOf(it.enrolled_at) }), ...consentOf(it)].join(" · "),
    badge: !it.recognisable ? text("people.outdated") : it.partial ? text("people.partial") : endingOf(it),
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

/// What a person agreed to, if it is recorded.
function consentOf({ consent }) {
  if (!consent) return [];
  const { text_version: version, valid_until: until } = consent;
  return [until ? text("people.consentUntil", { version, date: lastDateOf(until) }) : text("people.consent", { version })];
}
function endingOf({ consent }) {
  const until = consent?.valid_until;
  return until && new Date(until) - Date.now() < CONSENT_ENDING_MS ? text("people.consentEnding", { date: lastDateOf(until) }) : null;
}

function forgetResult() {
  by("photo-results").replaceChildren();
  say("enrol-says");
  by("enrol-anyway").hidden = true;
}

/// Empties the form for the next person.
function emptyForm() {
  by("enrol").reset();
  by("enrol-id").value = freshId();
  chooseHow();
}

function fill(subject) {
  emptyForm();
  forgetResult();
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

/// Returns the consent of the form, given now; it holds to the end of the chosen day at the door.
function statedConsent() {
  const [version, until, recorder] = ["consent-version", "consent-until", "recorded-by"].map((id) => by(id).value.trim());
  if (!version) return null;
  if (!recorder) throw new Error(text("enrol.consentBy"));
  const end = until ? dayBounds(until).to : null;
  return { given_at: new Date().toISOString(), text_version: version, valid_until: end, recorded_by: recorder };
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
    fields.consent = statedConsent();
    const answer = isByCamera() ? await fromCamera(fields) : await byPhotographs(fields, files = [...by("photos").files]);
    showImages(answer.images, files);
    const alike = answer.look_alikes.map((it) => text("enrol.alike", { name: nameOf(it.subject_id), score: it.score.toFixed(2) }));
    if (answer.weak) alike.unshift(text("enrol.weak"));
    const missing = answer.missing_views?.map(viewOf);
    if (missing) alike.unshift(text("enrol.missing", { views: missing.join(", ") }));
    say("enrol-says", [text("enrol.done", { name: fields.subject.name, n: answer.references }), ...alike], "good");
    emptyForm();
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
  say("enrol-says", text("enrol.working"));
  // In base64 four characters stand for three bytes; the rest of the command is small.
  const room = (LIMITS.bodyBytes - 2048) * 3 / 4;
  const sizeOf = (all) => all.reduce((sum, file) => sum + file.size + 8, 0);
  let fitting = await fit(files, LIMITS.photographBytes);
  if (sizeOf(fitting) > room) fitting = await fit(files, Math.floor(room / files.length) - 8);
  if (sizeOf(fitting) > room) throw new Error(text("enrol.tooLargeTogether"));
  const images = [];
  for (const file of fitting) images.push(await base64Of(file));
  return command("enrol", { ...fields, images });
}

/// Each file, or a smaller picture of it, one by one: decoded photographs are large.
async function fit(files, bytesMax) {
  const fitting = [];
  for (const file of files) fitting.push(await fitOne(file, bytesMax));
  return fitting;
}

/// Returns a file that the device accepts, or a smaller JPEG of it, turned upright by its EXIF orientation. What the
/// browser cannot decode is sent as it is if it is small: the device names it.
async function fitOne(file, bytesMax) {
  if (file.size <= Math.min(bytesMax, SURELY_SMALL_BYTES)) return file;
  const picture = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null);
  if (picture === null && file.size <= bytesMax) return file;
  if (picture === null) throw new Error(text("enrol.tooLarge", { file: file.name }));
  try {
    const pixels = picture.width * picture.height;
    if (file.size <= bytesMax && pixels <= KEPT_PIXELS_MAX) return file;
    for (let most = Math.min(pixels, SENT_PIXELS_MAX); most > SENT_PIXELS_MIN; most /= 2) {
      const smaller = await encode(picture, Math.sqrt(most / pixels));
      if (smaller !== null && smaller.size <= bytesMax) return smaller;
    }
    throw new Error(text("enrol.tooLarge", { file: file.name }));
  } finally {
    picture.close();
  }
}

function encode(picture, scale) {
  const canvas = make("canvas", { width: Math.max(1, Math.round(picture.width * scale)), height: Math.max(1, Math.round(picture.height * scale)) });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
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
    // Screen readers announce it: every ten seconds is enough.
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
    return await command("enrol_from_camera", { ...fields, samples: 4, timeout_ms: CAMERA_SECONDS * 1000 }, { signal: AbortSignal.timeout(ANSWER_MS) });
  } finally {
    clearInterval(countdown);
    countdown = null;
    by("countdown").hidden = true;
    onCamera(false);
  }
}

const viewOf = (view) => text(`view.${view}`);

/// Shows a person who is enrolled from the camera what to do.
export function view(seen) {
  if (countdown === null) return;
  const hint = seen.faces.map(hintOf).find(Boolean) ?? (seen.wanted_view ? viewOf(seen.wanted_view) : "");
  if (by("enrol-says").textContent !== hint) say("enrol-says", hint, "look");
}

function showImages(images, files) {
  by("photo-results").replaceChildren(...images.map((it, at) => row({
    before: make("span", { class: "mark", state: it.accepted ? "good" : "bad", "aria-hidden": "true" }, it.accepted ? "✓" : "✕"),
    what: files[at]?.name ?? text("enrol.camera"),
    small: it.accepted ? text(it.kept ? "enrol.ok" : "enrol.okNotKept") : (hasText(`reason.${it.reason}`) ? text(`reason.${it.reason}`) : it.reason),
  })));
}
