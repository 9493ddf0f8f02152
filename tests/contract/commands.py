"""The commands over MQTT: each verb with good and bad input."""

import json

from bench import EMPTY_SCENE, grey_png, photo
from session import b64

IMAGE_BYTES_MAX = 4 << 20  # [commands] image_bytes_max, its default
PAYLOAD_BYTES_MAX = 8 << 20  # docs/wire.md, Limits


def enrolments(session):
    obama, obama2, obama3, biden = (
        b64(photo(it)) for it in ("obama.jpg", "obama2.jpg", "obama3.jpg", "biden.jpg")
    )
    send, grey = session.send, b64(grey_png())
    barack, joe = {"id": "barack", "name": "Barack Obama"}, {"id": "joe", "name": "Joe Biden"}
    enrol = lambda name, subject, images, causes=(), **more: send(
        name, "enrol", {"subject": subject, "images": images, **more}, causes=causes
    )
    enrol("enrol-ok", barack, [obama], ["enrolment"])
    enrol("enrol-second-person", joe, [biden], ["enrolment"])
    enrol("enrol-update-data-url", barack, [f"data:image/jpeg;base64,{obama3}"], ["enrolment"])
    enrol("enrol-replace", joe, [biden, biden], ["enrolment"], replace=True)
    enrol("enrol-duplicate", {"id": "mallory", "name": "Mallory"}, [obama2])
    enrol(
        "enrol-duplicate-allowed",
        {"id": "twin", "name": "Twin"},
        [obama2],
        ["enrolment"],
        allow_duplicate=True,
    )
    send("recognise-look-alikes", "recognise", {"image": obama3})
    send(
        "withdraw-erase",
        "withdraw",
        {"subject_id": "twin", "erase": True},
        causes=["enrolment", "receipt/twin"],
    )
    enrol("enrol-no-face", {"id": "wall", "name": "Wall"}, [grey])
    enrol("enrol-decode-error", {"id": "wall", "name": "Wall"}, [b64(b"this is no picture")])
    enrol("enrol-other-person", joe, [obama2])
    enrol("enrol-two-persons", {"id": "both", "name": "Both"}, [grey, biden, obama])
    enrol("enrol-bad-base64", joe, ["no base64!"])
    enrol("enrol-empty-image", joe, [""])
    enrol("enrol-wrong-data-url", joe, ["data:text/plain;base64,aGVsbG8="])
    enrol("enrol-no-images", joe, [])
    enrol("enrol-too-many-images", joe, [grey] * 11)
    enrol("enrol-image-too-large", joe, ["A" * (IMAGE_BYTES_MAX // 3 * 4 + 64)])
    enrol("enrol-bad-id", {"id": "a b", "name": "A"}, [grey])
    enrol("enrol-long-id", {"id": "a" * 65, "name": "A"}, [grey])
    enrol("enrol-empty-name", {"id": "a", "name": ""}, [grey])
    enrol("enrol-long-name", {"id": "a", "name": "n" * 201}, [grey])
    enrol("enrol-control-in-name", {"id": "a", "name": "a\u0007b"}, [grey])
    enrol("enrol-unknown-nested", {"id": "a", "name": "A", "nickname": "a"}, [grey])
    enrol("enrol-no-name", {"id": "a"}, [grey])
    enrol("enrol-subject-wrong-type", 5, [grey])
    enrol("enrol-images-wrong-type", barack, "text")
    enrol("enrol-flag-wrong-type", barack, [grey], replace="yes")
    send("enrol-no-subject", "enrol", {"images": [grey]})
    send(
        "enrol-null-options",
        "enrol",
        {"subject": barack, "images": [grey], "replace": None, "allow_duplicate": None},
    )


def malformed(session):
    send = session.send
    send("bad-json", "sync", b'{"request_id": "bad-json"')
    send("bad-json-with-id", "sync", b'{"request_id": "bad-json-with-id", "retry_buried": tru}')
    send("not-an-object", "sync", b"[1, 2]")
    send("empty-payload", "sync", b"")
    send("not-utf-8", "sync", b'{"request_id": "\xff\xfe"}')
    send(
        "duplicate-field",
        "sync",
        b'{"request_id": "duplicate-field", "retry_buried": true, "retry_buried": false}',
    )
    send("too-deep", "sync", {"retry_buried": json.loads("[" * 20 + "]" * 20)})
    send("too-many-values", "sync", {"retry_buried": [0] * 1100})
    send("unknown-verb", "dance", {})
    send("unknown-field", "sync", {"retry_burried": True})
    send("no-request-id", "sync", b"{}")
    send("request-id-wrong-type", "sync", {"request_id": 7})
    send("request-id-bad", "sync", {"request_id": "a/b"})
    send("schema-known", "subjects", {"schema": 1})
    send("schema-unknown", "subjects", {"schema": 2})
    send("expired", "subjects", {"expires_at": "2020-01-01T00:00:00Z"})
    send("expires-later", "subjects", {"expires_at": "2999-01-01T00:00:00+02:00"})
    send("expires-without-offset", "subjects", {"expires_at": "2999-01-01T00:00:00"})
    send("expires-wrong-type", "subjects", {"expires_at": 5})
    send(
        "too-large",
        "enrol",
        b'{"request_id": "too-large", "images": ["' + b"A" * PAYLOAD_BYTES_MAX + b'"]}',
    )
    send("to-all-devices", "subjects", {}, target="all")
    send("request-once", "rename", {"subject_id": "joe", "name": "Joe B."}, causes=["enrolment"])
    send(
        "request-twice",
        "rename",
        {"request_id": "request-once", "subject_id": "joe", "name": "Joe C."},
    )
    send("request-id-of-another-verb", "subjects", {"request_id": "request-once"})


def camera(session):
    """Somebody, a stranger and nobody pass."""
    session.send(
        "from-camera-timed-out",
        "enrol_from_camera",
        {"subject": {"id": "nobody", "name": "Nobody"}, "timeout_ms": 1000},
    )
    for name, more in [
        ("no-subject", {}),
        ("samples-0", {"samples": 0}),
        ("samples-11", {"samples": 11}),
        ("timeout-short", {"timeout_ms": 10}),
        ("timeout-wrong-type", {"timeout_ms": "1s"}),
    ]:
        subject = {} if name == "no-subject" else {"subject": {"id": "nobody", "name": "Nobody"}}
        session.send(f"from-camera-{name}", "enrol_from_camera", {**subject, **more})
    session.home.set_scene([("obama2.jpg", 2000, 500)])
    session.expect("attendance", "attack")
    session.home.set_scene(EMPTY_SCENE)
    session.ask("picture", "GET", "/api/picture")
    session.home.set_scene([("astronaut.png", 2000, 500)])
    session.expect("unknown", "attack")
    session.home.set_scene(EMPTY_SCENE)


def venues(session):
    send = session.send
    room = {
        "venue": "room-a",
        "name": "Room A",
        "time_zone": "Europe/Berlin",
        "direction": "in",
        "re_entry_gap_ms": 300000,
        "sessions": [
            {
                "id": "mon-am",
                "weekdays": ["mon", "wed"],
                "start": "08:00",
                "end": "12:00",
                "late_after_ms": 600000,
                "early_ms": 1800000,
            },
            {"id": "exam", "dates": ["2031-12-24"], "start": "22:00", "end": "02:00"},
        ],
    }
    put = lambda case, **more: send(f"venue-put-{case}", "venue_put", {**room, **more})
    put("ok")
    put("again", name="Room A, renamed")
    send("venue-put-plain", "venue_put", {"venue": "room-b"})
    put("of-configuration", venue="main")
    put("bad-id", venue="a b")
    put("bad-zone", time_zone="Mars/Olympus")
    put("bad-direction", direction="up")
    put("gap-too-long", re_entry_gap_ms=86_400_001)
    put("gap-wrong-type", re_entry_gap_ms="5m")
    put("unknown-field", colour="red")
    put("sessions-wrong-type", sessions={})
    one = room["sessions"][0]
    put("session-unknown-field", sessions=[{**one, "room": 1}])
    put("session-no-days", sessions=[{"id": "a", "start": "08:00", "end": "09:00"}])
    put("session-bad-day", sessions=[{**one, "weekdays": ["monday"]}])
    put("session-bad-time", sessions=[{**one, "start": "25:00"}])
    put(
        "session-bad-date",
        sessions=[{"id": "a", "dates": ["2031-02-30"], "start": "08:00", "end": "09:00"}],
    )
    put(
        "sessions-overlap", sessions=[one, {**one, "id": "other", "start": "11:00", "end": "13:00"}]
    )
    put("sessions-same-id", sessions=[one, {**one, "start": "13:00", "end": "14:00"}])
    put("early-too-long", sessions=[{**one, "early_ms": 43_200_001}])
    put("too-many-sessions", sessions=[{**one, "id": f"s{at}"} for at in range(51)])
    send("venue-put-no-venue", "venue_put", {"name": "A"})
    send("venues-all", "venues", {})
    send("venues-page-1", "venues", {"limit": 2})
    send("venues-page-2", "venues", {"limit": 2, "after": "room-a"})
    send("venues-limit-0", "venues", {"limit": 0})
    send("venues-unknown-field", "venues", {"page": 1})
    send("venue-delete-ok", "venue_delete", {"venue": "room-b"})
    send("venue-delete-unknown", "venue_delete", {"venue": "room-b"})
    send("venue-delete-of-configuration", "venue_delete", {"venue": "main"})
    send("venue-delete-no-venue", "venue_delete", {})
    send("venue-delete-wrong-type", "venue_delete", {"venue": 5})


def attendance(session):
    send, obama2, biden = session.send, b64(photo("obama2.jpg")), b64(photo("biden.jpg"))
    attend = lambda name, venue, image, causes=(), **more: send(
        f"attend-{name}", "attend", {"venue": venue, "image": image, **more}, causes=causes
    )
    attend("already-recorded", "main", obama2)
    attend("second-person", "main", biden, ["attendance"])
    attend("other-direction", "main", biden, ["attendance"], direction="out")
    attend("late", "strict", biden, ["attendance"])
    attend("in", "side", biden, ["attendance"])
    attend("out", "side", biden, ["attendance"])
    attend("command-venue", "room-a", obama2, ["attendance"])
    attend("nobody", "main", b64(grey_png()))
    attend("stranger", "main", b64(photo("astronaut.png")))
    attend("unknown-venue", "nowhere", obama2)
    attend("bad-image", "main", "no base64!")
    attend("not-a-picture", "main", b64(b"this is no picture"))
    attend("bad-direction", "main", obama2, direction="alternate")
    attend("unknown-field", "main", obama2, when="now")
    send("attend-no-image", "attend", {"venue": "main"})
    send("attend-venue-wrong-type", "attend", {"venue": ["main"], "image": obama2})
    ask = lambda name, **more: send(f"attendance-{name}", "attendance", {"venue": "main", **more})
    ask("all-rows", all=True)
    ask("plain")
    ask("page-1", limit=1)
    ask("page-2", limit=1, after=9)
    ask("future", **{"from": "2999-01-01T00:00:00Z"})
    ask("past", to="2001-01-01T00:00:00Z")
    ask("backwards", to="2001-01-01T00:00:00Z", **{"from": "2999-01-01T00:00:00Z"})
    ask("other-venue", venue="side")
    ask("unknown-venue", venue="nowhere")
    ask("limit-too-large", limit=501)
    ask("limit-wrong-type", limit="all")
    ask("bad-time", **{"from": "yesterday"})
    ask("unknown-field", page=2)
    send("attendance-no-venue", "attendance", {})
    summary = lambda name, **more: ask(f"summary-{name}", summary=True, **more)
    summary("today")
    summary("strict", venue="strict")
    summary("side", venue="side")
    summary("page-1", limit=1)
    summary("page-2", limit=1, after=1)
    summary("absent", absent=True)
    summary("absent-strict", absent=True, venue="strict")
    summary("period", **{"from": "2025-01-01T00:00:00Z"}, to="2025-01-03T00:00:00Z", absent=True)
    summary("too-long", **{"from": "2025-01-01T00:00:00Z"}, to="2025-12-31T00:00:00Z")
    summary("with-all", all=True)
    ask("absent-without-summary", absent=True)


def people(session):
    send, biden = session.send, b64(photo("biden.jpg"))
    send("recognise-ok", "recognise", {"image": b64(photo("obama3.jpg"))})
    send("recognise-stranger", "recognise", {"image": b64(photo("astronaut.png"))})
    send("recognise-no-face", "recognise", {"image": b64(grey_png())})
    send("recognise-bad-image", "recognise", {"image": "%"})
    send("recognise-no-image", "recognise", {})
    send("recognise-unknown-field", "recognise", {"image": biden, "venue": "main"})
    send("subjects-all", "subjects", {})
    send("subjects-page-1", "subjects", {"limit": 1})
    send("subjects-page-2", "subjects", {"limit": 1, "after": "barack"})
    send("subjects-limit-0", "subjects", {"limit": 0})
    send("subjects-limit-501", "subjects", {"limit": 501})
    send("subjects-after-bad", "subjects", {"after": "a b"})
    send("rename-ok", "rename", {"subject_id": "joe", "name": "Joseph Biden"}, causes=["enrolment"])
    send("rename-same", "rename", {"subject_id": "joe", "name": "Joseph Biden"})
    send("rename-unknown", "rename", {"subject_id": "nobody", "name": "Nobody"})
    send("rename-no-name", "rename", {"subject_id": "joe"})
    send("rename-bad-name", "rename", {"subject_id": "joe", "name": "\n"})
    send("withdraw-unknown", "withdraw", {"subject_id": "nobody"})
    send("withdraw-no-subject", "withdraw", {})
    send("withdraw-wrong-type", "withdraw", {"subject_id": "joe", "erase": "yes"})
    send("withdraw-ok", "withdraw", {"subject_id": "joe"}, causes=["enrolment"])
    send("withdraw-again", "withdraw", {"subject_id": "joe"})
    send("attend-withdrawn", "attend", {"venue": "main", "image": biden})
    send(
        "enrol-again",
        "enrol",
        {"subject": {"id": "joe", "name": "Joe Biden"}, "images": [biden]},
        causes=["enrolment"],
    )
    send(
        "attend-enrolled-again", "attend", {"venue": "side", "image": biden}, causes=["attendance"]
    )
    send(
        "withdraw-erase-attended",
        "withdraw",
        {"subject_id": "joe", "erase": True},
        causes=["enrolment", "receipt/joe"],
    )
    send("attendance-after-erasure", "attendance", {"venue": "main"})
    send("sync-ok", "sync", {})
    send("sync-retry", "sync", {"retry_buried": True})
    send("sync-wrong-type", "sync", {"retry_buried": 1})
