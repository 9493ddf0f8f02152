#!/usr/bin/env python3
"""Checks the chain of events of one device (docs/wire.md, "The chain of events"), without rollcall.

    mosquitto_sub -t 'rollcall/hq/door-1/event/#' >> events.jsonl
    python3 verify.py events.jsonl

Prints the last event and its hash, which the device signs in its checkpoints, or the first event
that is not as it was recorded. Needs nothing but Python 3.
"""
import base64, hashlib, json, math, struct, sys

CORRECTABLE = {"clock", "occurred_at", "session", "status", "superseded_by"}
APART = {"chain", "consent", "device", "expires_at", "historical", "seq", "site", "subject"}


def text(raw):
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def encode(value):
    if value is None:
        kind, content = b"n", b""
    elif isinstance(value, bool):
        kind, content = b"b", b"1" if value else b"0"
    elif isinstance(value, int):
        kind, content = b"d", str(value * 1_000_000).encode()
    elif isinstance(value, float):
        single = struct.unpack("f", struct.pack("f", value))[0] * 1e6
        kind, content = b"d", str(int(single + math.copysign(0.5, single))).encode()
    elif isinstance(value, str):
        kind, content = b"s", value.encode()
    elif isinstance(value, list):
        kind, content = b"l", b"".join(map(encode, value))
    else:
        members = [(key, value[key]) for key in sorted(value) if value[key] is not None]
        kind, content = b"o", b"".join(encode(key) + encode(it) for key, it in members)
    return kind + len(content).to_bytes(4, "big") + content


def sha256(value, salt=b""):
    return text(hashlib.sha256(salt + encode(value)).digest())


def commitments(event, salt):
    subject = event.get("subject") or {}
    named = {"id": subject.get("id"), "name": subject.get("name"), "consent": event.get("consent")}
    salt = base64.urlsafe_b64decode(salt + "==")
    return {key: sha256([key, it], salt) for key, it in named.items() if it is not None}


def content(event):
    chain = event["chain"]
    apart = APART | CORRECTABLE if "was" in chain else APART
    fields = {key: it for key, it in event.items() if key not in apart} | chain.get("was", {})
    return sha256(fields | {"commit": chain.get("commit")})


def fault(event, before):
    """What is wrong with an event that should follow another; None if nothing is."""
    chain = event.get("chain")
    if chain is None:
        return "it has no link"
    place = {key: chain.get(key) for key in ("prev", "record", "start")}
    if sha256(place | {"content": content(event), "seq": event["seq"]}) != chain["hash"]:
        return "its content is not what was recorded"
    named = event.get("subject") or event.get("consent")
    if named and commitments(event, chain.get("salt", "")) != chain.get("commit"):
        return "its person is not who was recorded"
    if before is None or chain.get("start") == "break":
        return None
    if event["seq"] != before["seq"] + 1 or chain.get("prev") != before["chain"]["hash"]:
        return f"it does not follow event {before['seq']}"
    return None


def main():
    events, seen, before = [], set(), None
    for line in open(sys.argv[1], encoding="utf-8"):
        event = json.loads(line)
        if "event_id" in event and event["event_id"] not in seen:  # the broker may deliver twice
            seen.add(event["event_id"])
            events.append(event)
    for event in events:
        wrong = fault(event, before)
        if wrong:
            sys.exit(f"event {event['seq']} ({event['event_id']}): {wrong}")
        before = event
    if before:
        print(f"{len(events)} events, {events[0]['seq']} to {before['seq']}: {before['chain']['hash']}")


if __name__ == "__main__":
    main()
