#!/usr/bin/env python3
"""The examples of docs/examples, each run against the daemon and mosquitto.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install paho-mqtt
    npm install --prefix /tmp/nr node-red
    /tmp/v/bin/python tests/outside/examples.py --node-red /tmp/nr/node_modules/.bin/node-red

Needs `make setup`, a built daemon, mosquitto and mosquitto-clients. Without --node-red that one is left out, and said so. The
example for Home Assistant is run by home_assistant.py; rollcall.sh is in the suite, too (tests/daemon/home_assistant.rs).
"""

import argparse
import datetime
import http.server
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request

from common import BASE, PERSON, PHOTOS, ROOT, Bench, check, free_port, say, until

EXAMPLES = ROOT / "docs/examples"


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--program", default=ROOT / "target/debug/rollcall", type=pathlib.Path)
    options.add_argument("--node-red", help="the command that starts Node-RED")
    options = options.parse_args()
    with Bench(options.program) as bench:
        bench.configure()
        bench.daemon()
        until("the daemon is online", lambda: bench.retained(f"{BASE}/status") == "online", 60)
        shell(bench)
        python(bench)
        opener(bench)
        if options.node_red:
            node_red(bench, options.node_red)
        else:
            say("Node-RED: left out (--node-red)")
    say("everything holds")


def shell(bench):
    say("rollcall.sh")
    environment = os.environ | {"MQTT_PORT": str(bench.mqtt)}

    def ask(*args):
        done = subprocess.run([EXAMPLES / "rollcall.sh", *args], env=environment, capture_output=True, check=False)
        return done.returncode, json.loads(done.stdout)

    watching = bench.start("events", [EXAMPLES / "rollcall.sh", "events"], env=environment)
    name = 'Joe "Ö" \\ Biden'
    code, answer = ask("enrol", "joe", name, PHOTOS / "biden.jpg")
    check("enrolled", (code, answer["ok"], answer["references"]) == (0, True, 1))
    until("the event is seen", lambda: "event/enrolment" in bench.log("events") and "Joe" in bench.log("events"))
    code, answer = ask("enrol", "joe2", "Joe", PHOTOS / "biden.jpg")
    check("a duplicate is refused", (code, answer["error"]["code"]) == (1, "duplicate_subject"))
    code, answer = ask("today")
    check("who came today is told", code == 0 and isinstance(answer["rows"], list))
    code, answer = ask("withdraw", "joe")
    check("taken out again", code == 0 and answer["erased"])
    bench.stop(watching)


def python(bench):
    say("arrivals.py")
    person = bench.folder / "people/zoe"
    person.mkdir(parents=True)
    (person / "name.txt").write_text(PERSON + "\n", encoding="utf-8")
    for photograph in ("obama.jpg", "obama3.jpg", "astronaut.png"):
        shutil.copy(PHOTOS / photograph, person)
    bench.start("arrivals", [sys.executable, EXAMPLES / "arrivals.py", "--port", str(bench.mqtt), "--enrol", person.parent])
    until("somebody was enrolled", lambda: "enrolled zoe" in bench.log("arrivals"))
    until("and arrives", lambda: f"{PERSON}: in, present" in bench.log("arrivals"))
    say("    " + bench.log("arrivals").strip().replace("\n", "\n    "))


def opener(bench):
    say("door_opener.py")
    command = [sys.executable, EXAMPLES / "door_opener.py", "--allow", "zoe", "--port", str(bench.mqtt)]
    bench.start("opener", command)
    until("the door is opened", lambda: "OPEN" in bench.log("opener"))

    spec = importlib.util.spec_from_file_location("door_opener", EXAMPLES / "door_opener.py")
    door = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(door)
    now = datetime.datetime(2026, 11, 23, 8, 0, tzinfo=datetime.timezone.utc)
    right = {"kind": "attendance", "event_id": "e-1", "historical": False, "clock": "synced",
             "expires_at": "2026-11-23T08:00:01.000Z", "subject": {"id": "zoe", "name": "Zoë"}}
    refusal = lambda retained=False, seen=(), **change: door.refusal(right | change, retained, {"zoe"}, seen, now)
    check("who is allowed in comes in", refusal() is None)
    for what, why in [("a late one", refusal(historical=True)), ("one that does not say", refusal(historical=None)),
                      ("an expired one", refusal(expires_at="2026-11-23T08:00:00.000Z")),
                      ("one without an end", refusal(expires_at=None)), ("a retained one", refusal(retained=True)),
                      ("one seen before", refusal(seen={"e-1"})), ("another person", refusal(subject={"id": "joe"})),
                      ("an erased person", refusal(subject=None)), ("another kind", refusal(kind="unknown")),
                      ("a door that does not know the time", refusal(clock="unsynced"))]:
        check(f"{what} stays out ({why})", why is not None)
    for message in ("nonsense", "[]", '{"kind":"attendance"}'):
        bench.publish(f"{BASE}/event/attendance", message)
    until("and nonsense too", lambda: bench.log("opener").count("shut: no ") == 3)


def node_red(bench, command):
    say("Node-RED")
    received = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    port, folder = free_port(), bench.folder / "node-red"
    folder.mkdir()
    shutil.copy(EXAMPLES / "node-red.json", folder / "flow.json")
    (folder / "settings.js").write_text(f'module.exports = {{uiHost: "127.0.0.1", uiPort: {port}, telemetry: {{enabled: false}}}};\n')
    environment = os.environ | {"MQTT_HOST": "127.0.0.1", "MQTT_PORT": str(bench.mqtt),
                                "ARRIVALS_URL": f"http://127.0.0.1:{receiver.server_port}/arrival"}
    bench.start("node-red", [command, "-u", folder, "-s", folder / "settings.js", "flow.json"], env=environment)
    until("the arrival is posted", lambda: received, 120)
    say(f"    {json.dumps(received[0], ensure_ascii=False)}")
    check("it is somebody who was enrolled", received[0]["person"] == PERSON)

    def page(accept):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/arrivals", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    check("it is on the list", json.loads(page("application/json"))[0]["person"] == PERSON)
    check("and on the page", f"<td>{PERSON}</td>" in page("text/html"))
    check("and in the log", "debug:arrival" in bench.log("node-red"))
    # The broker is handed, one after the other, what must not count and then what must.
    event = {"event_id": "n-1", "site": "hq", "device": "door-1", "venue": "main", "direction": "in", "status": "present",
             "occurred_at": "2026-11-23T08:00:00.000Z", "expires_at": "2999-01-01T00:00:00.000Z", "historical": True,
             "subject": {"id": "x", "name": "<b>late</b>"}}
    told = lambda change: bench.publish(f"{BASE}/event/attendance", json.dumps(event | change))
    told({})
    told({"historical": False, "expires_at": "2026-11-22T00:00:00.000Z"})
    told({"historical": False})
    told({"historical": False})
    told({"historical": False, "event_id": "n-2", "subject": {"id": "y", "name": "last"}})
    until("the last has come", lambda: any(it["person"] == "last" for it in received))
    check("once, and nothing late", sum(it["person"] == "<b>late</b>" for it in received) == 1)
    check("and a name is only text", "&#60;b&#62;late" in page("text/html"))
    receiver.shutdown()


if __name__ == "__main__":
    sys.exit(main())
