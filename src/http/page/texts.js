// Every text of the page, in one place for translation: copy the object and keep its keys. `{x}` is replaced by a value; of
// `one` and `other` the number `{n}` selects one.

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
  link: { none: "Connecting …", good: "Live", look: "Reconnecting …" },
  token: {
    title: "Sign in", forget: "Sign out", label: "Token", go: "Sign in",
    why: "Only people who have the token of this device can use this page. The token is kept until this tab is closed, and sent nowhere else.",
    where: "The person who set the device up has it. On the device: sudo cat /etc/rollcall/secrets/http_token, or the file that [http] token_file names.",
    wrong: "This is not the token of this device.", gone: "The token is no longer accepted.", away: "The device does not answer. Try again.",
  },

  door: {
    nav: "Door", title: "At the door", faces: "Before the camera", last: "Just now", nobody: "Nobody before the camera.",
    show: "Show picture", hide: "Hide picture", names: "Show names",
    note: "The picture is sent to you alone, is not stored, and is hidden again after two minutes.",
    forbidden: "Pictures are switched off at this device ([privacy] snapshot).", noCamera: "There is no picture: the camera delivers none.",
    seen: { one: "One face before the camera", other: "{n} faces before the camera" },
  },
  steps: {
    title: "First steps", camera: "Connect a camera, and set [camera] source (rollcall cameras lists them).", people: "Enrol somebody: People.",
    sessions: "Add sessions, if lateness and absence are to be known: Venues.", clock: "Let the clock be synchronised: until then no session is recorded.",
    zone: "Set the time zone of this door: Venues. Until then times are in UTC.",
  },
  camera: { streaming: "The camera is streaming", lost: "The camera is lost", absent: "There is no camera" },
  decision: { identified: "recognised", unknown: "unknown", undecided: "not decided yet", attack: "picture shown to the camera" },
  score: "score {score}, needed {needed}",
  samples: { one: "{n} sample", other: "{n} samples" },
  hint: {
    too_small: "too far away: come closer", dark: "too dark: more light on the face", overexposed: "too bright: less light on the face",
    blurred: "blurred: stand still", turned: "turned away: look at the camera",
  },
  event: {
    attendance: "{name}, {direction}, {status}", repeat: "{name}: {again}", again: "already recorded at {time}", againUnknown: "already recorded",
    unknown: "Somebody unknown", attack: "A picture was shown to the camera",
    lost: "The camera was lost", back: "The camera is back",
  },
  direction: { in: "in", out: "out" },
  status: { present: "present", late: "late", absent: "absent" },

  today: {
    nav: "Today", title: "Who came", day: "Day", search: "Search", nobodyFound: "Nobody has this name.", csv: "Save as CSV", xlsx: "Save as spreadsheet", absent: "Who is missing", passages: "Attendance", persons: "By person",
    sessions: "Session", allSessions: "All sessions", unsynced: "clock not synchronised", more: "Show {n} more",
    running: "is running", ahead: "has not begun",
    in: "came {time}", out: "left {time}", lateBy: "late by {time}", present: "there for {time}", saved: "The file is in your downloads.",
    notKnown: "Session {id}: absence is not known, because the door was not watching all the time.", notOver: "Session {id} {state}: who is absent is known when it is over.",
  },

  people: {
    nav: "People", title: "Who is enrolled", enrolled: "People", search: "Search by name or id", before: "Previous", after: "Next",
    page: "{from} to {to} of {n}", first: "Only the first {n} people by id are searched.", nobodyFound: "Nobody has this name or id.",
    consent: "consent {version}", consentUntil: "consent {version} until {date}", consentEnding: "consent ends {date}",
    onePhoto: "one photo: less sure",
    references: "references (face samples): {n}", since: "since {date}", outdated: "enrol again", partial: "photo needed",
    rename: "Rename", add: "Add photographs", withdraw: "Remove", renameOf: "Rename {name}", addOf: "Add photographs of {name}", withdrawOf: "Remove {name}",
    newName: "New name", renamed: "Renamed.",
    withdrawWhy: "{name} will no longer be recognised at this door (withdrawn). What was recorded stays.",
    erase: "Erase all personal data as well",
    eraseWhy: "The name is removed from everything that is recorded or pending. This cannot be undone.",
    yesWithdraw: "Remove", yesErase: "Remove and erase", withdrawn: "{name} was removed.", wasErased: "The person was removed and erased.",
  },
  enrol: {
    title: "Enrol somebody", how: "From", upload: "Photographs", camera: "The door's camera", photos: "Photographs", go: "Enrol",
    idNote: "Letters, digits, dot, hyphen, underscore; for example a staff number. Do not use the name: the id stays when a person is erased.",
    photosNote: "1 to 10, JPEG, PNG or WebP, of any size: one face, from the front, well lit. They are checked and not stored.",
    cameraNote: "The person stands alone before the door's camera, for half a minute at most, and shows several views of the face.",
    consent: "Consent", consentVersion: "Version of the text", consentUntil: "Holds until (empty: until it is withdrawn)", recordedBy: "Recorded by",
    consentNote: "Given today by the person, to this version of the text. After its last day the person is removed.", consentBy: "Who recorded the consent?",
    replace: "Replace the existing references", anyway: "Enrol anyway", working: "Checking the photographs …",
    waiting: "Time left", countdown: "Alone before the camera, please. {n} s", done: { one: "{name} is enrolled with {n} reference.", other: "{name} is enrolled with {n} references." },
    ok: "accepted", okNotKept: "accepted, but better ones are kept", duplicate: "This face is already enrolled as {name}.",
    weak: "The face is hardly seen: add a clearer photo.", missing: "Not seen: {views}.",
    alike: "Looks very like {name} (score {score}): the device may confuse them.",
    noPhotos: "Choose at least one photograph.", tooMany: "At most 10 photographs at once.", tooLarge: "{file} is too large, and this browser cannot make it smaller: save it anew as JPEG.",
    tooLargeTogether: "Together they are too large: choose fewer, and add the rest afterwards.",
  },
  view: { straight: "look straight ahead", left: "turn a little left", right: "turn a little right", nearer: "come nearer" },
  reason: {
    no_face: "no face found", several_faces: "several faces: only one is allowed", too_small: "the face is too small: take a closer photograph",
    blurred: "blurred", dark: "too dark", overexposed: "too bright", turned: "the face is turned away",
    decode_error: "cannot be read as a photograph", other_person: "shows another person than the other photographs",
  },

  venues: {
    nav: "Venues", title: "Venues and sessions", list: "Venues", id: "Id", zone: "Time zone (Europe/Berlin)", direction: "Direction", in: "coming",
    out: "leaving", alternate: "coming and leaving alternately", gap: "Recorded again after (minutes)", addSession: "Add a session", put: "Save",
    clear: "New venue", fresh: "New venue", change: "Change {name}", edit: "Change", delete: "Delete", editOf: "Change {name}", deleteOf: "Delete {name}",
    config: "in config.toml", thisDoor: "this door", noSessions: "no sessions", saved: "Saved and active.", next: "Saved and active. Next session: {time}.",
    deleted: "Deleted. What was recorded stays.", deleteWhy: "{name} will have no more sessions. What was recorded stays.",
    session: "Session {n}", sessionId: "Session id", weekdays: "Weekdays", dates: "or dates (2026-12-24, …)", start: "Start", end: "End",
    late: "Late after (minutes)", early: "Counts from (minutes before)", remove: "Remove session {n}",
  },
  day: { mon: "Mon", tue: "Tue", wed: "Wed", thu: "Thu", fri: "Fri", sat: "Sat", sun: "Sun" },

  health: {
    nav: "Health", title: "Health", owed: "Pending", device: "Device", sync: "Deliver now", retry: "and retry what failed",
    sink: { mqtt: "MQTT", mongo: "MongoDB" }, nothing: "nothing", rows: { one: "{n} message pending for {time}", other: "{n} messages pending for {time}" },
    buried: "{n} failed", complete: "Everything delivered up to", notSaid: "not known", synced: { one: "{n} message is pending; delivery is being tried.", other: "{n} messages are pending; delivery is being tried." },
    syncedAll: "Nothing is pending.", version: "Version", uptime: "Running for", database: "Database", free: "Free on the disk",
    memory: "Memory", recorded: "Recorded", unknown: "Unknown", attacks: "Pictures shown to the camera", frames: "Frames", of: "{n}, {m} with a detection",
    gallery: "Gallery", people: { one: "{n} person", other: "{n} people" }, refused: "Commands rejected", key: "Key of this device",
  },
  check: {
    title: "Set-up check", state: { good: "in order", look: "warning", bad: "fault", none: "for information" },
    camera: "Camera", cameraGood: "streaming", cameraLost: "lost: is it plugged in? The device reconnects by itself", cameraAbsent: "none is configured: [camera] source",
    face: "Face and light", faceNone: "stand before the camera to measure it", faceGood: "good, {n} pixels between the eyes", faceBad: "{hint} ({n} pixels between the eyes)",
    clock: "Clock", clockGood: "synchronised", clockBad: "not synchronised: sessions are not recorded until it is. Check network time, or [clock] trust",
    people: "Gallery", peopleNone: "nobody is enrolled yet", peopleOutdated: { one: "{n} person must be enrolled again for this model", other: "{n} people must be enrolled again for this model" },
    peoplePartial: "{n} recognised less surely: send photos again",
    broker: "MQTT", brokerRefuses: "the broker accepts our connection and refuses our messages: check its access rules ({topic})", brokerAway: "the broker refuses the connection: check user, password and access rules", delivered: "all delivered", owedLong: "pending for {time}: can the broker be reached?", buriedSome: "{n} messages failed: fix the cause, then \"Deliver now\" with \"retry what failed\"",
    mongo: "MongoDB", mongoNone: "not configured", mongoAway: "not reachable; the device retries by itself", mongoRefused: "access denied: check password and role", mongoOwed: "connected, but messages are pending for {time}",
    sharing: "Site's gallery", sharingNone: "not shared", shared: "up to date", learning: "updating: {n} people to go", sharingAway: "the other doors cannot be reached", wrongKey: "nothing opens: is it the site's key?",
    sharingBlocked: "somebody without the site's key writes to it; {n} people pending",
    disk: "Disk", diskGood: "{free} free", diskLow: "only {free} free", diskFull: "full, the reserve is in use: free some space", diskErrors: "{n} errors when writing",
    heat: "Heat", heatGood: "{n} °C", heatBad: "{n} °C: slowed down until it is cooler", heatNone: "not measured",
  },

  error: {
    unknown_subject: "Nobody with this id is enrolled.", unknown_venue: "There is no such venue.", duplicate_subject: "This face is enrolled already.",
    consent_required: "This device enrols nobody without a consent: fill it in.",
    no_usable_image: "None of the photographs can be used.", not_ready: "There is no camera to enrol from, or it is lost.",
    busy: "The device is busy. Try again in a moment.", timed_out: "It took too long, and nothing was changed.", rate_limited: "Too many requests in a minute. Wait a little.",
    storage_full: "The disk of the device is full. Nothing was changed.", too_large: "That is too large.", internal: "An error of the device; its journal has the details.",
    unsigned: "This device accepts signed commands only.", away: "The device does not answer.", status: "The device answered {status}.",
  },
  unit: { day: "{n} d", hour: "{n} h", minute: "{n} min", second: "{n} s" },
};

const plural = new Intl.PluralRules(LANGUAGE);

/// Returns the text of a key like `people.title`, with its values.
export function text(key, values = {}) {
  let found = key.split(".").reduce((at, part) => at?.[part], TEXTS);
  if (found && typeof found === "object") found = found[plural.select(values.n)] ?? found.other;
  if (typeof found !== "string") return key;
  return found.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/// Returns whether a text exists: a newer device may send new codes.
export function hasText(key) {
  return typeof key.split(".").reduce((at, part) => at?.[part], TEXTS) === "string";
}
