// Every text of the page, in one place for translation: copy the object, keep its keys. `{x}` is filled in; a text with
// `one` and `other` goes by the number `{n}`.

export const LANGUAGE = "en";

const TEXTS = {
  skip: "Skip to the content",
  nav: "Sections",
  cancel: "Cancel",
  name: "Name",
  id: "Id",
  venue: "Venue",
  none: "none",
  nobody: "Nobody yet.",
  erased: "a person who was erased",
  link: { none: "Connecting …", good: "Live", look: "Trying again …" },
  token: {
    title: "Sign in", forget: "Sign out", label: "Token", go: "Sign in",
    why: "This device answers only those who have its token. It is kept until this tab is closed, and goes nowhere else.",
    wrong: "That is not the token of this device.", gone: "The token is no longer accepted.", away: "The device does not answer. Try again.",
  },

  door: {
    nav: "Door", title: "At the door", faces: "Before the camera", last: "Just now", nobody: "Nobody before the camera.",
    show: "Show picture", hide: "Hide picture", names: "Show names",
    note: "The picture is sent to you alone, is not stored, and is hidden again after two minutes.",
    forbidden: "Pictures are switched off at this device ([privacy] snapshot).", noCamera: "There is no picture: the camera gives none.",
    seen: { one: "One face before the camera", other: "{n} faces before the camera" },
  },
  camera: { streaming: "The camera streams", lost: "The camera is lost", absent: "There is no camera" },
  decision: { identified: "recognised", unknown: "unknown", undecided: "looking …", attack: "seems to be a picture" },
  score: "score {score}, needed {needed}",
  samples: { one: "{n} sample", other: "{n} samples" },
  hint: {
    too_small: "too far away: come closer", dark: "too dark: more light on the face", overexposed: "too bright: less light on the face",
    blurred: "blurred: stand still", turned: "turned away: look at the camera",
  },
  event: {
    attendance: "{name}, {direction}, {status}", unknown: "Somebody unknown", attack: "Somebody seems to show a picture",
    lost: "The camera was lost", back: "The camera is back",
  },
  direction: { in: "in", out: "out" },
  status: { present: "present", late: "late", absent: "absent" },

  today: {
    nav: "Today", title: "Who came today", csv: "Save as CSV", absent: "Who is missing", passages: "Passages", persons: "By person",
    session: "session {id}", unsynced: "time not certain", more: { one: "and {n} earlier", other: "and {n} earlier" },
    in: "came {time}", out: "left {time}", lateBy: "late by {time}", present: "there for {time}", saved: "The file is in your downloads.",
    notKnown: "Of session {id} it is not known who was missing: the door was not watching all the time, or it is not over.",
  },

  people: {
    nav: "People", title: "Who is enrolled", enrolled: "People", search: "Search by name or id", before: "Previous", after: "Next",
    page: "{from} to {to} of {n}", first: "Only the first {n} people by id are searched.", nobodyFound: "Nobody is called that.",
    references: { one: "{n} reference", other: "{n} references" }, since: "since {date}", outdated: "enrol again",
    rename: "Rename", add: "Add photographs", withdraw: "Withdraw", renameOf: "Rename {name}", addOf: "Add photographs of {name}", withdrawOf: "Withdraw {name}",
    newName: "New name", renamed: "Renamed.",
    withdrawWhy: "{name} will no longer be recognised at this door. What was recorded stays.",
    erase: "Erase the person from the record as well",
    eraseWhy: "The name is taken out of everything that was recorded and is still to be delivered. This cannot be undone.",
    yesWithdraw: "Withdraw", yesErase: "Withdraw and erase", withdrawn: "{name} was withdrawn.", wasErased: "The person was withdrawn and erased.",
  },
  enrol: {
    title: "Enrol somebody", how: "From", upload: "Photographs", camera: "The door's camera", photos: "Photographs", go: "Enrol",
    idNote: "Letters, digits, dot, hyphen, underscore; a staff number, say. Not made from the name: the id stays when a person is erased.",
    photosNote: "1 to 10, JPEG, PNG or WebP, up to 4 MB each: one face, from the front, well lit. They are looked at and not kept.",
    cameraNote: "The person stands alone before the door's camera and looks into it, for half a minute at most.",
    replace: "Instead of the references there are", anyway: "Enrol all the same", working: "Looking at the photographs …",
    waiting: "Time left", countdown: "Alone before the camera, please. {n} s", done: { one: "{name} is enrolled with {n} reference.", other: "{name} is enrolled with {n} references." },
    ok: "good", okNotKept: "good, but better ones are kept", duplicate: "This face is already enrolled as {name}.",
    alike: "Looks much like {name} (score {score}): they may be taken for one another.",
    noPhotos: "Choose at least one photograph.", tooMany: "At most 10 photographs at once.", tooLarge: "{file} is larger than 4 MB.",
    tooLargeTogether: "Together they are too large: choose fewer, and add the rest afterwards.",
  },
  reason: {
    no_face: "no face found", several_faces: "several faces: only one may be in it", too_small: "the face is too small: a closer photograph",
    blurred: "blurred", dark: "too dark", overexposed: "too bright", turned: "the face is turned away",
    decode_error: "cannot be read as a photograph", other_person: "shows another person than the others",
  },

  venues: {
    nav: "Venues", title: "Venues and sessions", list: "Venues", id: "Id", zone: "Time zone (Europe/Berlin)", direction: "Direction", in: "coming",
    out: "leaving", alternate: "coming and leaving in turn", gap: "Recorded again after (minutes)", addSession: "Add a session", put: "Save",
    clear: "New venue", fresh: "New venue", change: "Change {name}", edit: "Change", delete: "Delete", editOf: "Change {name}", deleteOf: "Delete {name}",
    config: "in config.toml", thisDoor: "this door", noSessions: "no sessions", saved: "Saved and in force.", next: "Saved and in force. Next session: {time}.",
    deleted: "Deleted. Its record stays.", deleteWhy: "No session of {name} will take place any more. What was recorded stays.",
    session: "Session {n}", sessionId: "Session id", weekdays: "Weekdays", dates: "or dates (2026-12-24, …)", start: "Start", end: "End",
    late: "Late after (minutes)", early: "Counts from (minutes before)", remove: "Remove session {n}",
  },
  day: { mon: "Mon", tue: "Tue", wed: "Wed", thu: "Thu", fri: "Fri", sat: "Sat", sun: "Sun" },

  health: {
    nav: "Health", title: "Health", owed: "Owed", device: "Device", sync: "Deliver now", retry: "and what was set aside",
    sink: { mqtt: "MQTT", mongo: "MongoDB" }, nothing: "nothing", rows: { one: "{n} message, for {time}", other: "{n} messages, for {time}" },
    buried: "{n} set aside", complete: "Complete through", notSaid: "cannot be said", synced: { one: "{n} message is still owed; delivery is tried now.", other: "{n} messages are still owed; delivery is tried now." },
    syncedAll: "Nothing is owed.", version: "Version", uptime: "Running for", database: "Database", free: "Free on the disk",
    memory: "Memory", recorded: "Recorded", unknown: "Unknown", attacks: "Photographs held up", frames: "Frames", of: "{n}, {m} with a look",
    gallery: "Gallery", people: { one: "{n} person", other: "{n} people" }, refused: "Commands refused", key: "Key of this device",
  },
  check: {
    title: "Set-up check", state: { good: "in order", look: "look here", bad: "fault", none: "for information" },
    camera: "Camera", cameraGood: "streams", cameraLost: "lost: is it plugged in? It is taken back by itself", cameraAbsent: "none is configured: [camera] source",
    face: "Face and light", faceNone: "stand before the door, and it is measured here", faceGood: "good, {n} pixels between the eyes", faceBad: "{hint} ({n} pixels between the eyes)",
    clock: "Clock", clockGood: "right", clockBad: "not known to be right: no sessions are kept until it is. Network time, or [clock] trust",
    people: "Gallery", peopleNone: "nobody is enrolled yet", peopleOutdated: { one: "{n} person must be enrolled again for this network", other: "{n} people must be enrolled again for this network" },
    broker: "MQTT", delivered: "all delivered", owedLong: "owed for {time}: is the broker reached?", buriedSome: "{n} set aside as undeliverable: \"Deliver now\" with what was set aside",
    mongo: "MongoDB", mongoNone: "not configured", mongoAway: "not reached; tried again by itself", mongoRefused: "refuses us: password or role", mongoOwed: "connected, but owed for {time}",
    sharing: "Site's gallery", sharingNone: "not shared", shared: "what the site has is here", learning: "learning: {n} people to go", sharingAway: "the other doors are not reached", wrongKey: "nothing opens: is it the site's key?",
    disk: "Disk", diskGood: "{free} free", diskLow: "only {free} free", diskFull: "the reserve is used up: make room", diskErrors: "{n} errors when writing",
    heat: "Heat", heatGood: "{n} °C", heatBad: "{n} °C: works slower until it is cooler", heatNone: "not measured",
  },

  error: {
    unknown_subject: "Nobody with this id is enrolled.", unknown_venue: "There is no such venue.", duplicate_subject: "This face is enrolled already.",
    no_usable_image: "None of the photographs can be used.", not_ready: "There is no camera to enrol from, or it is lost.",
    busy: "The device is busy. Try again in a moment.", timed_out: "The time was up, and nothing was changed.", rate_limited: "Too many requests in a minute. Wait a little.",
    storage_full: "The disk of the device is full. Nothing was changed.", too_large: "That is too large.", internal: "A mistake of the device. Its journal has it.",
    unsigned: "This device takes signed commands only.", away: "The device does not answer.", status: "The device answered {status}.",
  },
  unit: { day: "{n} d", hour: "{n} h", minute: "{n} min", second: "{n} s" },
};

const plural = new Intl.PluralRules(LANGUAGE);

/// The text of a key like `people.title`, filled in.
export function text(key, values = {}) {
  let found = key.split(".").reduce((at, part) => at?.[part], TEXTS);
  if (found && typeof found === "object") found = found[plural.select(values.n)] ?? found.other;
  if (typeof found !== "string") return key;
  return found.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/// Whether there is such a text: for codes that a newer device may have.
export function hasText(key) {
  return typeof key.split(".").reduce((at, part) => at?.[part], TEXTS) === "string";
}
