"""The requests over HTTP: each route with good and bad input, and with good and bad credentials."""

import json

from bench import grey_png, photo
from session import JSON, b64, multipart


def routes(session):
    access(session)
    legacy_routes(session)
    command_route(session)
    queries(session)
    streams(session)


def access(session):
    ask = session.ask
    for path in (
        "/healthz",
        "/openapi.json",
        "/",
        "/page/page.css",
        "/page/page.js",
        "/page/icon.svg",
    ):
        ask(f"without token {path}", "GET", path, token=False)
    for path in (
        "/api/health",
        "/api/attendance",
        "/api/events",
        "/api/picture",
        "/metrics",
        "/nowhere",
    ):
        ask(f"without token {path}", "GET", path, token=False)
        ask(
            f"wrong token {path}",
            "GET",
            path,
            [("authorization", "Bearer wrong-token-0123456789")],
            token=False,
        )
    for path in ("/recognize_faces", "/get-attendance", "/add_face", "/api/command/sync"):
        ask(f"without token {path}", "POST", path, body={}, token=False)
    ask("basic authorization", "GET", "/api/health", [("authorization", "Basic YTpi")], token=False)
    ask("wrong origin", "GET", "/api/health", [("origin", "https://elsewhere.example.net")])
    ask(
        "wrong origin, open path",
        "GET",
        "/healthz",
        [("origin", "https://elsewhere.example.net")],
        token=False,
    )
    ask("allowed origin", "GET", "/healthz", [("origin", "https://office.example.net")])
    wanted = [
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization"),
    ]
    for name, origin in [
        ("allowed", "https://office.example.net"),
        ("wrong", "https://elsewhere.example.net"),
    ]:
        ask(
            f"preflight of {name} origin",
            "OPTIONS",
            "/api/command/sync",
            [("origin", origin), *wanted],
            token=False,
        )
    ask("other host with token", "GET", "/healthz", [("host", "device.example.net")])
    ask("unknown route", "GET", "/nowhere")
    ask("unknown page file", "GET", "/page/nothing.js")
    ask("healthz by HEAD", "HEAD", "/healthz", token=False)
    for method, path in [
        ("GET", "/recognize_faces"),
        ("GET", "/api/command/sync"),
        ("POST", "/api/health"),
        ("DELETE", "/api/attendance"),
        ("POST", "/metrics"),
        ("POST", "/healthz"),
    ]:
        ask(f"wrong method {method} {path}", method, path)
    ask("head too large", "GET", "/healthz", [("x-filler", "a" * 20000)])
    ask("body too large", "POST", "/recognize_faces", [*JSON, ("content-length", str(64 << 20))])


def legacy_routes(session):
    ask, obama2 = session.ask, b64(photo("obama2.jpg"))
    recognise = lambda name, body, headers=(): ask(
        f"recognize_faces {name}", "POST", "/recognize_faces", headers, body
    )
    recognise("ok", {"image": obama2})
    recognise("data URL", {"image": f"data:image/jpeg;base64,{obama2}"})
    recognise("stranger", {"image": b64(photo("astronaut.png"))})
    recognise("no face", {"image": b64(grey_png())})
    recognise("unknown field", {"image": obama2, "extra": 1})
    recognise("no image", {})
    recognise("wrong type", {"image": 5})
    recognise("bad base64", {"image": "%"})
    recognise("not a picture", {"image": b64(b"this is no picture")})
    recognise("not JSON", b"{", JSON)
    recognise("no body", b"", JSON)
    recognise("wrong content type", b"{}", [("content-type", "text/plain")])
    recognise("no content type", b"{}")
    attend = lambda name, body: ask(f"get-attendance {name}", "POST", "/get-attendance", (), body)
    attend("ok", {"venue_id": "main", "image": obama2})
    attend("nobody", {"venue_id": "main", "image": b64(grey_png())})
    attend("unknown venue", {"venue_id": "nowhere", "image": obama2})
    attend("no venue", {"image": obama2})
    attend("no image", {"venue_id": "main"})
    attend("bad image", {"venue_id": "main", "image": "%"})

    def add(name, *parts, causes=()):
        headers, body = multipart(parts)
        ask(f"add_face {name}", "POST", "/add_face", headers, body, causes=causes)

    image = ("image", "photo.jpg", photo("astronaut.png"))
    add("ok", image, ("name", None, "Zoë Müller-李".encode()), causes=["enrolment"])
    add("known name", image, ("name", None, "Zoë Müller-李".encode()), causes=["enrolment"])
    add("other name", ("image", "photo.jpg", photo("obama2.jpg")), ("name", None, b"Somebody Else"))
    add("no name", image)
    add("no image", ("name", None, b"Somebody Else"))
    add("empty name", image, ("name", None, b""))
    add("no face", ("image", "a.png", grey_png()), ("name", None, b"Wall"))
    add("not a picture", ("image", "a.png", b"no picture"), ("name", None, b"Wall"))
    ask("add_face JSON", "POST", "/add_face", (), {"name": "A"})
    ask(
        "add_face no boundary", "POST", "/add_face", [("content-type", "multipart/form-data")], b"a"
    )


def command_route(session):
    command = lambda name, verb, body, headers=(), **more: session.ask(
        f"command {name}", "POST", f"/api/command/{verb}", headers, body, **more
    )
    obama2 = b64(photo("obama2.jpg"))
    command("sync", "sync", {"request_id": "http-sync"})
    command("without request_id", "subjects", {"limit": 1})
    command("subjects", "subjects", {"request_id": "http-subjects"})
    command("repeated", "subjects", {"request_id": "http-subjects"})
    command("venues", "venues", {"request_id": "http-venues"})
    command(
        "venue_put",
        "venue_put",
        {"request_id": "http-put", "venue": "room-c", "direction": "alternate"},
    )
    command("venue_delete", "venue_delete", {"request_id": "http-delete", "venue": "room-c"})
    command(
        "venue_delete unknown", "venue_delete", {"request_id": "http-delete-2", "venue": "room-c"}
    )
    command("attendance", "attendance", {"request_id": "http-attendance", "venue": "main"})
    command(
        "summary", "attendance", {"request_id": "http-summary", "venue": "main", "summary": True}
    )
    command("recognise", "recognise", {"request_id": "http-recognise", "image": obama2})
    command(
        "attend",
        "attend",
        {"request_id": "http-attend", "venue": "side", "image": obama2},
        causes=["attendance"],
    )
    command(
        "attend unknown venue",
        "attend",
        {"request_id": "http-attend-2", "venue": "x", "image": obama2},
    )
    command(
        "enrol duplicate",
        "enrol",
        {
            "request_id": "http-enrol",
            "subject": {"id": "mallory", "name": "Mallory"},
            "images": [obama2],
        },
    )
    command(
        "enrol no face",
        "enrol",
        {
            "request_id": "http-enrol-2",
            "subject": {"id": "wall", "name": "Wall"},
            "images": [b64(grey_png())],
        },
    )
    command(
        "enrol ok",
        "enrol",
        {
            "request_id": "http-enrol-3",
            "subject": {"id": "joe", "name": "Joe Biden"},
            "images": [b64(photo("biden.jpg"))],
        },
        causes=["enrolment"],
    )
    command(
        "rename",
        "rename",
        {"request_id": "http-rename", "subject_id": "joe", "name": "Joseph"},
        causes=["enrolment"],
    )
    command(
        "rename unknown", "rename", {"request_id": "http-rename-2", "subject_id": "x", "name": "Y"}
    )
    command("withdraw unknown", "withdraw", {"request_id": "http-withdraw", "subject_id": "x"})
    command(
        "from camera timed out",
        "enrol_from_camera",
        {"request_id": "http-camera", "subject": {"id": "x", "name": "X"}, "timeout_ms": 1000},
    )
    command("unknown verb", "dance", {"request_id": "http-dance"})
    command("unknown field", "sync", {"request_id": "http-unknown", "extra": 1})
    command("wrong type", "subjects", {"request_id": "http-type", "limit": "1"})
    command(
        "expired", "subjects", {"request_id": "http-expired", "expires_at": "2020-01-01T00:00:00Z"}
    )
    command("bad request_id", "subjects", {"request_id": "a/b"})
    command(
        "too deep", "sync", {"request_id": "http-deep", "extra": json.loads("[" * 20 + "]" * 20)}
    )
    command("not JSON", "sync", b"{", JSON)
    command("not an object", "sync", b"[]", JSON)
    command("empty body", "sync", b"", JSON)
    command("wrong content type", "sync", b"{}", [("content-type", "text/plain")])


def queries(session):
    get = lambda query, headers=(): session.ask(
        f"attendance {query}{' csv' if headers else ''}", "GET", f"/api/attendance{query}", headers
    )
    csv = [("accept", "text/csv")]
    for query in (
        "",
        "?venue=main",
        "?venue=side",
        "?venue=nowhere",
        "?limit=1",
        "?limit=1&after=9",
        "?all=true",
        "?limit=0",
        "?limit=501",
        "?limit=x",
        "?from=2999-01-01T00:00:00Z",
        "?to=2001-01-01T00:00:00Z",
        "?from=yesterday",
        "?all=maybe",
        "?unknown=1",
        "?venue=a%20b",
    ):
        get(query)
    get("", csv)
    get("?venue=side&all=true", csv)
    get("?venue=nowhere", csv)
    session.ask("health", "GET", "/api/health")
    session.ask("metrics", "GET", "/metrics")
    session.ask("healthz with token", "GET", "/healthz")


def streams(session):
    attend = {"venue": "side", "image": b64(photo("obama2.jpg"))}
    has_event = lambda events: any(it.get("event") == "event" for it in events)
    session.listen(
        "events live",
        "/api/events",
        has_event,
        trigger=lambda: session.send("attend-for-stream", "attend", attend, causes=["attendance"]),
    )
    session.listen(
        "events missed",
        "/api/events",
        lambda events: sum(it.get("event") == "event" for it in events) >= 3,
        headers=[("last-event-id", str(last_seq(session) - 3))],
    )
    has_view = lambda events: any(it.get("event") == "view" for it in events)
    session.listen("events with view", "/api/events?view=true&names=true", has_view)
    session.ask("events bad query", "GET", "/api/events?view=perhaps")


def last_seq(session):
    return max(json.loads(it[3])["seq"] for it in list(session.mqtt.messages) if "/event/" in it[0])
