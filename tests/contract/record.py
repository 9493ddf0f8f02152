"""Records one run: four daemons are configured, asked and stopped, always in the same way."""

import datetime
import json
import time

from bench import EMPTY_SCENE, Bench, Home, photo, until
from clients import json_or_text
from command_line import (
    command_line,
    listings,
    record_command_line,
    record_configurations,
    result,
)
from commands import attendance, camera, enrolments, malformed, people, venues
from normalise import Normaliser
from routes import routes
from session import Session
from settings import DAYS, LIMITS, MAIN, MISSING_CAMERA, OPEN, REPLAY, SIGNED

# Sessions last from midnight to midnight; a recording over midnight would differ.
MIDNIGHT_MARGIN_S = 600


def record(program, folder, models=None):
    """Records a run of `program`; what it left behind stays in `folder`."""
    wait_for_safe_hour()
    with Bench(program, folder) as bench:
        bench.models = models
        recording = {"sessions": {}, "metrics_help": {}, "doctor": {}}
        recording["command_line"] = record_command_line(bench)
        recording["configurations"] = record_configurations(bench)
        mqtt_port, (mongo_port, mongo) = bench.start_mosquitto(), bench.start_mongod()
        servers = {"mqtt": mqtt_port, "mongo": mongo_port}
        record_main(bench, recording, servers, mongo)
        recording["sessions"]["signed"] = record_signed(bench, servers, mongo)
        recording["sessions"]["open"] = record_open(bench)
        recording["sessions"]["limits"] = record_limits(bench, mqtt_port)
        return Normaliser(bench.replacements).value(recording)


def wait_for_safe_hour():
    now = datetime.datetime.now(datetime.timezone.utc)
    second = now.hour * 3600 + now.minute * 60 + now.second
    if not MIDNIGHT_MARGIN_S < second < 86400 - MIDNIGHT_MARGIN_S:
        raise SystemExit(
            "the recording does not run within ten minutes of midnight UTC: try again later"
        )


def record_main(bench, recording, servers, mongo):
    """Every command, every route, MongoDB, Home Assistant, the shared gallery, a camera."""
    ports = {**servers, "http": bench.port("http-port"), "days": DAYS}
    home = Home(bench, "main", MAIN.format(**ports, discovery="true"))
    home.run("keys", "site", "site.key")
    session = Session(home, "hq", "door-1", ports["mqtt"], ports["http"], shares_gallery=True)
    # A broker delivers a message as retained only to whom subscribes later.
    session.publish("retained", "subjects", {}, retain=True)
    daemon = session.start()
    session.reply("retained")
    session.expect("security")
    session.send("retained-message-removed", "subjects", b"", retain=True)
    enrolments(session)
    malformed(session)
    camera(session)
    venues(session)
    attendance(session)
    people(session)
    routes(session)
    first, _ = session.metrics("main")
    session.settle()
    session.wait_for_gap("off")
    recorded = {"exit_code": bench.stop(daemon), "before_restart": session.retained()}
    # Once more with a camera that is missing: it is lost, and back after the next start. That start
    # is without Home Assistant: the retained discovery message is deleted.
    home.configure(MAIN.format(**ports, discovery="true").replace(REPLAY, MISSING_CAMERA))
    daemon = session.start()
    session.expect("camera")
    session.send("from-camera-lost", "enrol_from_camera", {"subject": {"id": "x", "name": "X"}})
    session.ask("picture of lost camera", "GET", "/api/picture")
    session.ask("healthz with lost camera", "GET", "/healthz")
    bench.stop(daemon)
    home.configure(MAIN.format(**ports, discovery="false"))
    daemon = session.start()
    session.expect("camera")
    session.send("after-restart", "sync", {})
    session.send("replayed-after-restart", "subjects", {"request_id": "subjects-all"})
    session.settle()
    session.wait_for_gap("camera_lost")
    until("MongoDB has the gap", lambda: has_gap(mongo, "rollcall", "camera_lost"))
    after, recording["metrics_help"] = session.metrics("main")
    recorded |= {
        "metrics": first,
        "series_after_restart": dict.fromkeys(after["series"], "present"),
    }
    recorded |= session.record() | {"mongo": documents(mongo, "rollcall")}
    recorded["beside_daemon"] = command_line(home, running=True)
    recorded["stop_exit_code"] = bench.stop(daemon)
    recorded["after_daemon"] = command_line(home, running=False)
    code, out, _ = home.run("doctor", "--json")
    findings = json_or_text(out)
    recording["doctor"] = {"exit_code": code, "findings": findings}
    session.mqtt.close()
    recording["sessions"]["main"] = recorded
    (home.folder / "listings.json").write_text(json.dumps(listings(home), indent=1))


def has_gap(mongo, database, reason):
    devices = mongo.collections(database).get("devices", {"documents": []})["documents"]
    return any(gap["reason"] == reason for it in devices for gap in it.get("gaps", []))


def documents(mongo, database):
    found = mongo.collections(database)
    for device in found["devices"]["documents"]:
        device["seq"] = {"$long": "<number>"}  # the newest event at the moment of writing
    return found


def record_signed(bench, servers, mongo):
    """Signed commands only, no camera, and a gallery that is shared through MongoDB."""
    mqtt_port, http_port = servers["mqtt"], bench.port("http-port-2")
    home = Home(bench, "signed", "[recognition]\n")
    home.run("keys", "site", "site.key")
    keys = {name: home.run("keys", "signer", f"{name}.key") for name in ("office", "other")}
    public = keys["office"][1].decode().split()
    key = next(it for it in public if it.startswith("ed25519:"))
    home.configure(SIGNED.format(**servers, http=http_port, key=key))
    session = Session(home, "hq", "door-2", mqtt_port, http_port)
    daemon = session.start()

    def sign(verb, body, key="office", aud="hq/door-2", *more):
        code, out, error = home.run(
            "sign",
            "--key",
            f"{key}.key",
            "--aud",
            aud,
            *more,
            verb,
            "-",
            stdin=json.dumps(body).encode(),
        )
        assert code == 0, error
        return out.strip()

    def send(name, verb, token, causes=(), reply=True):
        session.requests[name] = {"topic": f"{session.base}/command/{verb}", "request": "<signed>"}
        session.sent_at = session.mqtt.count()
        session.mqtt.publish(f"{session.base}/command/{verb}", token)
        if reply:
            session.reply(name)
        session.expect(*causes)

    enrol = {"request_id": "signed-enrol", "subject": {"id": "barack", "name": "Barack Obama"}}
    (home.folder / "obama.jpg").write_bytes(photo("obama.jpg"))
    once = sign("enrol", enrol, "office", "hq/door-2", "--image", "obama.jpg")
    send("signed-enrol", "enrol", once, causes=["enrolment"])
    send(
        "signed-subjects",
        "subjects",
        sign("subjects", {"request_id": "signed-subjects"}, "office", "hq/all"),
    )
    send("replayed", "enrol", once, causes=["security"], reply=False)
    session.send("unsigned", "subjects", {}, causes=["security"])
    send(
        "bad-signature",
        "subjects",
        sign("subjects", {"request_id": "bad-signature"}, "other"),
        causes=["security"],
    )
    send(
        "wrong-audience",
        "subjects",
        sign("subjects", {"request_id": "wrong-audience"}, "office", "hq/door-9"),
        causes=["security"],
    )
    send(
        "signed-not-ready",
        "enrol_from_camera",
        sign(
            "enrol_from_camera",
            {"request_id": "signed-not-ready", "subject": {"id": "x", "name": "X"}},
        ),
    )
    send(
        "signed-unknown-subject",
        "withdraw",
        sign("withdraw", {"request_id": "signed-unknown-subject", "subject_id": "x"}),
    )
    session.ask("picture without camera", "GET", "/api/picture")
    session.ask("health", "GET", "/api/health")
    session.ask("healthz", "GET", "/healthz")
    session.ask(
        "command needs no signature over HTTP", "POST", "/api/command/subjects", (), {"limit": 5}
    )
    session.settle()
    until("the gallery is in MongoDB", lambda: len(gallery_of(mongo)) > 1)
    until("MongoDB has the gap", lambda: has_gap(mongo, "signed", "off"))
    session.wait_for_gap("off")
    recorded = {"mongo": documents(mongo, "signed"), "exit_code": bench.stop(daemon)}
    recorded |= {"keys": {name: result(it) for name, it in keys.items()}}
    recorded |= session.record()
    session.mqtt.close()
    return recorded


def gallery_of(mongo):
    return mongo.collections("signed").get("gallery", {"documents": []})["documents"]


def record_open(bench):
    """The embedded broker, HTTP without a token, and people who are enrolled from the camera."""
    mqtt_port, http_port = bench.port("broker-port"), bench.port("http-port-3")
    home = Home(bench, "open", OPEN.format(mqtt=mqtt_port, http=http_port))
    daemon = home.start()
    session = Session(home, "hq", "door.3_b", mqtt_port, http_port, began_late=True)
    session.wait_online()
    subject = {"id": "joe", "name": "Joe Biden"}
    session.publish(
        "from-camera-ok",
        "enrol_from_camera",
        {"subject": subject, "samples": 1, "timeout_ms": 60000},
    )
    began = session.mqtt.count()
    session.send("from-camera-busy", "enrol_from_camera", {"subject": {"id": "x", "name": "X"}})
    session.home.set_scene([("biden.jpg", 3000, 200)])
    session.reply("from-camera-ok", after=began)
    session.expect("enrolment")
    session.expect("attendance")
    session.home.set_scene(EMPTY_SCENE)
    ask = session.ask
    ask("health without token", "GET", "/api/health", token=False)
    ask("healthz of other host", "GET", "/healthz", [("host", "device.example.net")], token=False)
    ask(
        "health of other host",
        "GET",
        "/api/health",
        [("host", "device.example.net:80")],
        token=False,
    )
    ask("health of localhost", "GET", "/api/health", [("host", "localhost:1")], token=False)
    ask(
        "own origin",
        "GET",
        "/api/health",
        [("origin", f"http://127.0.0.1:{http_port}")],
        token=False,
    )
    ask(
        "wrong origin",
        "GET",
        "/api/health",
        [("origin", "https://elsewhere.example.net")],
        token=False,
    )
    ask("picture forbidden", "GET", "/api/picture", token=False)
    ask("attendance", "GET", "/api/attendance", token=False)
    ask("page", "GET", "/", token=False)
    session.settle()
    session.wait_for_gap("off")
    recorded = session.record() | {"exit_code": bench.stop(daemon)}
    return recorded


def record_limits(bench, mqtt_port):
    """Three commands and three requests in a minute, and no more."""
    http_port = bench.port("http-port-4")
    home = Home(bench, "limits", LIMITS.format(mqtt=mqtt_port, http=http_port))
    session = Session(home, "hq", "door-4", mqtt_port, http_port)
    daemon = session.start()
    for at in range(4):
        session.send(f"limited-{at}", "subjects", {})
    for at in range(4):
        session.ask(f"limited {at}", "GET", "/api/attendance")
    session.ask("healthz is not limited", "GET", "/healthz", token=False)
    session.wait_for_commands(4)
    session.wait_for_gap("off")
    recorded = {"exit_code": bench.stop(daemon)} | session.record()
    session.mqtt.close()
    return recorded


def timed(program, folder, models=None):
    began = time.monotonic()
    recording = record(program, folder, models)
    return recording, time.monotonic() - began
