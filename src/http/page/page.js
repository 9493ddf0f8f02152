// The page as a whole: signing in, the sections, and the distribution of the event stream.

import { announce, by, ready, say } from "./dom.js";
import * as door from "./door.js";
import * as health from "./health.js";
import * as people from "./people.js";
import { LANGUAGE, text } from "./texts.js";
import * as today from "./today.js";
import * as venues from "./venues.js";
import { follow, get, token, unfollow, want, whenUnauthorised } from "./wire.js";

const SECTIONS = ["door", "today", "people", "venues", "health"];

let isIn = false;
let enrolsFromCamera = false;
let deviceName = "rollcall";
let hasVenues = false;
let newestVitals = null;

const current = () => (SECTIONS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "door");

function fillTexts() {
  document.documentElement.lang = LANGUAGE;
  for (const place of document.querySelectorAll("[data-text]")) place.textContent = text(place.dataset.text);
  for (const place of document.querySelectorAll("[data-label]")) place.setAttribute("aria-label", text(place.dataset.label));
  by("host").textContent = location.host;
}

const headingOf = (name) => document.querySelector(`#section-${name} h1`);
const titleOf = () => `${headingOf(isIn ? current() : "sign-in").textContent} – ${deviceName}`;

/// Shows the section of the address; `moved` where the user navigated there.
function show(moved) {
  const name = isIn ? current() : "sign-in";
  // Sections and addresses have different ids, or the browser would scroll to them.
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== `section-${name}`;
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  by("nav").hidden = !isIn;
  by("forget").hidden = !(isIn && token.get());
  const heading = headingOf(name);
  document.title = titleOf();
  if (name !== "door") door.hidePicture();
  if (name === "today") today.load();
  wantWhatIsSeen();
  if (!moved) return;
  window.scrollTo(0, 0);
  heading.focus({ preventScroll: true });
}

function wantWhatIsSeen() {
  const name = current();
  want({ view: isIn && (["door", "health"].includes(name) || enrolsFromCamera), names: name === "door" && door.wantsNames() });
}

function signOut(why) {
  isIn = false;
  token.forget();
  unfollow();
  link("");
  say("token-says", why ? text(why) : "", "bad");
  by("token").value = "";
  show(false);
  by("token").focus();
}

function link(state) {
  const badge = by("link");
  badge.dataset.state = state;
  badge.textContent = state ? text(`link.${state}`) : "";
  // A device that does not answer has nothing to wait for.
  if (state === "look") for (const section of SECTIONS) ready(section);
}

async function signIn(given) {
  token.set(given);
  try {
    await get("api/health");
  } catch (error) {
    token.forget();
    say("token-says", text(error.status === 401 ? "token.wrong" : "token.away"), "bad");
    by("token").focus();
    return;
  }
  say("token-says");
  enter();
}

function enter() {
  isIn = true;
  // With the device's name, so that it does not move when that comes.
  by("host").textContent = "";
  show(true);
  listen();
}

function listen() {
  link("none");
  follow({ link, opened, event, repeat, view, health: vitals });
}

/// Loads everything at the start and after each gap of the stream. The venues first: they have the time zone.
async function opened() {
  await venues.load();
  hasVenues = true;
  if (newestVitals) vitals(newestVitals);
  people.load();
}

function repeat(told) {
  door.repeat(told);
  announce(door.wordsOf({ kind: "repeat", ...told }));
}

function event(told) {
  door.event(told);
  today.event(told);
  if (told.kind === "attendance" || told.kind === "attack" || told.kind === "camera") announce(door.wordsOf(told));
  if (told.kind !== "enrolment") return;
  if (told.action === "erased") door.forget();
  people.loadSoon();
}

function vitals(told) {
  newestVitals = told;
  if (told.device) deviceName = `${told.site} / ${told.device}`;
  by("device-name").textContent = deviceName;
  by("host").textContent = location.host;
  document.title = titleOf();
  health.take(told);
  door.vitals(told);
  if (hasVenues) ready("door");
}

function view(seen) {
  if (current() === "door") door.view(seen);
  if (current() === "health") health.view(seen);
  if (enrolsFromCamera) people.view(seen);
}

async function begin() {
  fillTexts();
  door.start(wantWhatIsSeen);
  today.start(door.seed);
  people.start((uses) => { enrolsFromCamera = uses; wantWhatIsSeen(); });
  venues.start((all) => { door.venues(all); today.takeVenues(all); today.load(); });
  health.start();
  by("sign-in-form").addEventListener("submit", (submitted) => { submitted.preventDefault(); signIn(by("token").value.trim()); });
  by("forget").addEventListener("click", () => { signOut(); location.reload(); });
  document.querySelector(".skip").addEventListener("click", (clicked) => { clicked.preventDefault(); by("main").focus(); });
  window.addEventListener("hashchange", () => show(true));
  // A hidden page requests nothing.
  document.addEventListener("visibilitychange", () => {
    if (!isIn) return;
    if (document.hidden) { door.hidePicture(); unfollow(); } else listen();
  });
  whenUnauthorised(() => { if (isIn) signOut("token.gone"); });
  const needsToken = document.documentElement.dataset.token === "needed";
  if (!needsToken || token.get()) enter();
  else show(true);
}

begin();
