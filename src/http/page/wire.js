// The device's HTTP interface: the token, requests, commands and the stream of events.

import { hasText, text } from "./texts.js";

const KEPT_AS = "rollcall-token";
/// The largest body of a command, as the device allows it ([limits]).
export const LIMITS = { photographs: 10, photographBytes: 4 * 2 ** 20, bodyBytes: 8 * 2 ** 20 };
/// The device sends something every five seconds. Silence for this long is a lost connection.
const SILENCE_MS = 20_000;
/// The largest event of the stream.
const MESSAGE_CHARS_MAX = 4 * 2 ** 20;

export const token = {
  get: () => sessionStorage.getItem(KEPT_AS),
  set: (value) => sessionStorage.setItem(KEPT_AS, value),
  forget: () => sessionStorage.removeItem(KEPT_AS),
};

/// The device rejected a request; `message` is for people.
export class Refused extends Error {
  constructor(message, status, answer = null) {
    super(message);
    this.status = status;
    this.answer = answer;
    this.code = answer?.error?.code;
  }
}

let onUnauthorised = () => {};
export function whenUnauthorised(act) { onUnauthorised = act; }

/// Sends a request with the token and returns a successful Response.
export async function request(path, { accept = "application/json", body, signal, lastId: after } = {}) {
  const headers = { Accept: accept };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (after) headers["Last-Event-ID"] = after;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(text("error.away"), 0);
  }
  // With whose token: a reader's page shows nothing that a reader may not do.
  const access = response.headers.get("rollcall-access");
  if (access) document.documentElement.dataset.access = access;
  if (response.ok) return response;
  if (response.status === 401) onUnauthorised();
  const answer = await response.json().catch(() => null);
  const code = `error.${answer?.error?.code}`;
  // A rejected command has a code and a message, an error of the server only a text.
  const plain = hasText(code) ? text(code) : answer?.error?.message ?? (typeof answer?.error === "string" ? answer.error : null);
  throw new Refused(plain ?? text("error.status", { status: response.status }), response.status, answer);
}

export const get = async (path, options) => (await request(path, options)).json();

/// Sends a command and returns its reply.
export async function command(verb, fields = {}, options = {}) {
  const answer = await (await request(`api/command/${verb}`, { ...options, body: JSON.stringify(fields) })).json();
  if (answer.ok === false) throw new Refused(answer.error?.message ?? "", 200, answer);
  return answer;
}

/// Loads every page of a list, at most `most` entries.
export async function pages(verb, fields, list, most) {
  const all = [];
  let after = null;
  do {
    const answer = await command(verb, { ...fields, limit: 500, ...(after === null ? {} : { after }) });
    all.push(...answer[list]);
    after = answer.next_after ?? null;
  } while (after !== null && all.length < most);
  return { all, complete: after === null };
}

/// Loads the record page by page, at most `most` entries of `list`, and with them the first page. The device stores nothing for
/// it, as it would for the command.
export async function recordPages(fields, list, most) {
  const all = [];
  let first = null;
  let answer = null;
  do {
    const further = answer ? { after: answer.next_after, ...(answer.from ? { from: answer.from, to: answer.to } : {}) } : {};
    answer = await get(`api/attendance?${new URLSearchParams({ ...fields, limit: 500, ...further })}`);
    first ??= answer;
    all.push(...answer[list]);
  } while (answer.next_after !== null && all.length < most);
  return { all, first };
}

let handlers = {};
let wanted = "";
let running = null;
/// The last event received, so that none is missed after a reconnect; and whether some may be missing.
let lastId = null;
let missed = true;

/// Follows the event stream until `unfollow`: `event`, `health` and `view` receive the messages, `link` the state of the
/// connection, and `opened` is called at the start and after each gap.
export function follow(given) {
  handlers = given;
  missed = true;
  restart();
}
export function unfollow() {
  running?.abort();
  running = null;
}
/// The preview is requested only while somebody watches.
export function want({ view, names }) {
  const query = view ? `?view=true${names ? "&names=true" : ""}` : "";
  if (query === wanted) return;
  wanted = query;
  if (running) restart();
}
function restart() {
  unfollow();
  running = new AbortController();
  listen(running);
}

async function listen(mine) {
  let pause = 500;
  while (!mine.signal.aborted) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    mine.signal.addEventListener("abort", stop);
    let watchdog = setTimeout(stop, SILENCE_MS);
    try {
      const response = await request(`api/events${wanted}`, { accept: "text/event-stream", signal: attempt.signal, lastId });
      handlers.link("good");
      if (missed) handlers.opened();
      missed = false;
      pause = 500;
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        clearTimeout(watchdog);
        watchdog = setTimeout(stop, SILENCE_MS);
        rest = take(rest + value.replace(/\r/g, ""));
        if (rest.length > MESSAGE_CHARS_MAX) break;
      }
    } catch (error) {
      if (mine.signal.aborted || error.status === 401) return;
    } finally {
      clearTimeout(watchdog);
      mine.signal.removeEventListener("abort", stop);
      stop();
    }
    if (mine.signal.aborted) return;
    missed = true;
    handlers.link("look");
    await new Promise((go) => setTimeout(go, pause));
    pause = Math.min(pause * 2, 10_000);
  }
}

/// Passes on every complete message and returns the rest.
function take(heard) {
  const messages = heard.split("\n\n");
  const rest = messages.pop();
  for (const message of messages) {
    let kind = "message";
    const data = [];
    for (const line of message.split("\n")) {
      const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
      if (field === "id") lastId = value;
      if (field === "event") kind = value;
      if (field === "data") data.push(value);
    }
    if (data.length && handlers[kind]) handlers[kind](JSON.parse(data.join("\n")));
  }
  return rest;
}
