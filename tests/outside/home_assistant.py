#!/usr/bin/env python3
"""Home Assistant itself, with the daemon and mosquitto: what it makes of our discovery message.

Not in the suite: Home Assistant is large and wants a Python of its own. Version 2026.2 takes 3.13:

    python3.13 -m venv /tmp/ha && /tmp/ha/bin/pip install homeassistant
    tests/outside/home_assistant.py --hass /tmp/ha/bin/hass

Its first start installs a few packages more. Needs `make setup`, a built daemon, mosquitto and mosquitto-clients. Everything
lives in one temporary folder and on free ports of loopback, and ends with the script.
"""

import argparse
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

from common import BASE, PERSON, PHOTOS, ROOT, Bench, check, free_port, say, until

TOPIC = "homeassistant/device/rollcall-hq/door-1/config"


class HomeAssistant:
    """Its REST interface, from the first user on."""

    def __init__(self, port):
        self.url, self.token = f"http://127.0.0.1:{port}", None

    def ask(self, path, body=None, form=False):
        data = None
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded" if form else "application/json"
            data = (urllib.parse.urlencode(body) if form else json.dumps(body)).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read().decode()
        return json.loads(text) if answer.headers.get_content_type() == "application/json" else text

    def is_up(self):
        try:
            return self.ask("/api/onboarding") is not None
        except (OSError, urllib.error.URLError):
            return False

    def sign_in(self):
        user = {"client_id": f"{self.url}/", "name": "Test", "username": "test", "password": os.urandom(8).hex(),
                "language": "en"}
        code = self.ask("/api/onboarding/users", user)["auth_code"]
        grant = {"grant_type": "authorization_code", "code": code, "client_id": f"{self.url}/"}
        self.token = self.ask("/auth/token", grant, form=True)["access_token"]

    def add_broker(self, port):
        flow = self.ask("/api/config/config_entries/flow", {"handler": "mqtt"})
        done = self.ask(f"/api/config/config_entries/flow/{flow['flow_id']}", {"broker": "127.0.0.1", "port": port})
        assert done["type"] == "create_entry", done

    def template(self, text):
        return self.ask("/api/template", {"template": text})

    def entities(self):
        """Those of MQTT, by what their ids say after the device."""
        listed = json.loads(self.template("{{ integration_entities('mqtt') | to_json }}"))
        states = {state["entity_id"]: state for state in self.ask("/api/states")}
        return {entity.split(".", 1)[1].removeprefix("door_1_"): states.get(entity) for entity in listed}


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--hass", default="hass", help="the command that starts Home Assistant")
    options.add_argument("--program", default=ROOT / "target/debug/rollcall", type=pathlib.Path)
    options.add_argument("--keep", action="store_true", help="go on until interrupted, to look around in a browser")
    options = options.parse_args()
    with Bench(options.program) as bench:
        run(options, bench)


def run(options, bench):
    folder, publish, retained, http = bench.folder, bench.publish, bench.retained, free_port()
    bench.configure()
    subprocess.run(bench.rollcall("enrol", "--id", "zoe", "--name", PERSON, PHOTOS / "obama.jpg"), check=True,
                   capture_output=True)
    rollcall = bench.daemon()
    until("the discovery message is retained", lambda: retained(TOPIC), 60)

    (folder / "ha").mkdir()
    shutil.copy(ROOT / "docs/examples/home-assistant.yaml", folder / "ha/rollcall.yaml")
    (folder / "ha/configuration.yaml").write_text(
        f"homeassistant:\n  name: Test\nautomation: !include rollcall.yaml\nhttp:\n  server_host: 127.0.0.1\n  server_port: {http}\napi:\nconfig:\n"
        "logger:\n  default: warning\n  logs:\n    homeassistant.components.mqtt: info\n")
    command = [*shlex.split(options.hass), "-c", str(folder / "ha")]
    hass = bench.start("hass", command)
    home = HomeAssistant(http)
    say("Home Assistant starts (the first time it fetches packages) …")
    until("Home Assistant is up", home.is_up)
    home.sign_in()
    say(f"Home Assistant {home.ask('/api/config')['version']} on {home.url}")
    home.add_broker(bench.mqtt)
    message = json.loads(retained(TOPIC))
    wanted = {key for key, entity in message["cmps"].items() if len(entity) > 1}
    entities = until("all entities are there", lambda: len(home.entities()) >= len(wanted) and home.entities())
    say(f"{len(wanted)} entities in the message, {len(entities)} in Home Assistant")
    check("as many entities as the message has", len(entities) == len(wanted))

    states = lambda: home.entities()
    has = lambda key: states()[key]["state"] not in ("unknown", "unavailable", "0")
    for key in ("attendance", "last_person", "presence", "unknown_face", "recorded", "unknown_faces"):
        until(f"{key} has something to say", lambda key=key: has(key))
    for key, state in sorted(states().items()):
        shown = {name: value for name, value in state["attributes"].items()
                 if name not in ("friendly_name", "icon", "device_class", "state_class", "event_types")}
        say(f"  {state['entity_id']:45} {state['state']:28} {json.dumps(shown, ensure_ascii=False)}")
    now = states()
    check("a name that is not ASCII", now["last_person"]["state"] == PERSON)
    check("the event tells who", now["attendance"]["attributes"]["person"] == PERSON)
    check("nothing is unavailable", all(state["state"] != "unavailable" for state in now.values()))

    ran = lambda name: home.template(f"{{{{ state_attr('automation.rollcall_{name}', 'last_triggered') }}}}")
    until("the automation has announced somebody", lambda: ran("announce") != "None")
    check("no alarm, and nobody told of a door that is away", (ran("attack"), ran("away")) == ("None", "None"))

    say("a late event, and the same event twice")
    bench.stop(rollcall)
    until("offline is seen", lambda: states()["attendance"]["state"] == "unavailable")
    until("the automation tells of it", lambda: ran("away") != "None")
    announced = ran("announce")
    publish(f"{BASE}/status", "online", "-r")
    before = until("back", lambda: states()["attendance"]["state"] != "unavailable" and states())["attendance"]
    event = {"schema": 1, "event_id": "e-1", "seq": 1, "kind": "attendance", "clock": "synced", "venue": "main",
             "occurred_at": "2026-11-23T07:58:03.412Z", "expires_at": "2026-11-23T07:58:33.412Z", "session": None,
             "direction": "out", "status": "present", "score": 0.7, "historical": True,
             "subject": {"id": "late", "name": "Late"}}
    publish(f"{BASE}/event/attendance", json.dumps(event))
    until("the record has the late one", lambda: states()["last_person"]["state"] == "Late")
    check("no event was triggered by it", states()["attendance"]["state"] == before["state"])
    without = {key: value for key, value in event.items() if key != "historical"}
    publish(f"{BASE}/event/attendance", json.dumps(without | {"subject": {"id": "x", "name": "Unsaid"}}))
    until("the record has the unsaid one", lambda: states()["last_person"]["state"] == "Unsaid")
    check("nor by one that does not say", states()["attendance"]["state"] == before["state"])
    live = event | {"historical": False, "event_id": "e-2", "subject": None}
    publish(f"{BASE}/event/attendance", json.dumps(live))
    first = until("the live one", lambda: states()["attendance"]["state"] != before["state"] and states()["attendance"])
    check("somebody erased is nobody", first["attributes"]["person"] is None and states()["last_person"]["state"] == "unknown")
    publish(f"{BASE}/event/attendance", json.dumps(live))
    publish(f"{BASE}/event/attendance", json.dumps(event | {"subject": {"id": "x", "name": "After"}}))
    until("both have come", lambda: states()["last_person"]["state"] == "After")
    check("the same event again triggers nothing", states()["attendance"]["state"] == first["state"])
    check("nobody who came in was announced meanwhile", ran("announce") == announced)

    say("Home Assistant is started anew")
    bench.stop(hass)
    hass = bench.start("hass", command)
    until("Home Assistant is up again", home.is_up)
    came_back = lambda: (it := states().get("attendance")) and it["state"] == first["state"]
    until("the last event is shown again", came_back)
    check("and nobody was announced by that", ran("announce") == announced)
    check("as many entities as before", len(states()) == len(wanted))

    attack = {key: live[key] for key in ("schema", "seq", "clock", "occurred_at", "expires_at", "historical")}
    attack |= {"event_id": "e-3", "kind": "attack", "venue": None, "subject": {"id": "zoe", "name": PERSON},
               "scores": [0.1], "threshold": 0.4, "enforced": True}
    publish(f"{BASE}/event/attack", json.dumps(attack))
    until("the automation raises the alarm", lambda: ran("attack") != "None")

    say("the button")
    rollcall = bench.daemon()
    replies = subprocess.Popen(["mosquitto_sub", "-p", str(bench.mqtt), "-t", f"{BASE}/reply/+", "-C", "2", "-W", "60"],
                               stdout=subprocess.PIPE)
    until("it is online again", lambda: retained(f"{BASE}/status") == "online", 60)
    button = states()["deliver_now"]["entity_id"]
    for _ in range(2):
        home.ask("/api/services/button/press", {"entity_id": button})
    answers = [json.loads(line) for line in replies.communicate()[0].splitlines()]
    check("both presses are carried out", [answer["ok"] for answer in answers] == [True, True])
    check("each with an id of its own", len({answer["request_id"] for answer in answers}) == 2)
    if options.keep:
        say("until interrupted …")
        hass.wait()

    say("people = false")
    bench.stop(rollcall)
    bench.configure("[home_assistant]\npeople = false\n")
    rollcall = bench.daemon()
    until("the sensor is gone", lambda: "last_person" not in states())
    seen = states()["attendance"]["state"]
    now = until("an event", lambda: states()["attendance"]["state"] not in (seen, "unavailable") and states())
    check("its event tells nobody", "person" not in now["attendance"]["attributes"])

    say("enabled = false")
    bench.stop(rollcall)
    bench.configure("[home_assistant]\nenabled = false\n")
    rollcall = bench.daemon()
    until("all are gone", lambda: len(states()) == 0 or None)
    check("nothing is retained", retained(TOPIC) == "")

    say("a device with everything, which this one is not: the message that the tests compare with")
    bench.stop(rollcall)
    everything = json.loads((ROOT / "src/mqtt/discovery.json").read_text(encoding="utf-8"))
    everything["dev"]["sw"] = everything["o"]["sw"] = "0.1.0"
    publish(f"{BASE}/status", "online", "-r")
    publish(TOPIC, json.dumps(everything))
    until("all are there", lambda: len(states()) == len(everything["cmps"]))
    health = {"camera": {"state": "lost"}, "recognition": {"unknown": 2, "attacks": 1}, "gallery": {"subjects": 144},
              "recorded": 29, "cpu_celsius": 48.2, "outbox": [{"sink": "mqtt", "rows": 0}, {"sink": "mongo", "rows": 7}]}
    publish(f"{BASE}/health", json.dumps(health), "-r")
    expected = {"camera": "on", "unknown_faces": "2", "presentation_attacks": "1", "enrolled": "144", "recorded": "29",
                "processor_temperature": "48.2", "owed_to_mqtt": "0", "owed_to_mongodb": "7"}
    figures = lambda: {key: states()[key]["state"] for key in expected}
    until("the figures have come", lambda: figures() == expected)
    for key, unit in (("processor_temperature", "°C"), ("enrolled", None)):
        check(f"{key} {figures()[key]} {unit or ''}", states()[key]["attributes"].get("unit_of_measurement") == unit)
    publish(f"{BASE}/health", json.dumps(health | {"cpu_celsius": None, "outbox": []}), "-r")
    unknown = ("processor_temperature", "owed_to_mqtt", "owed_to_mongodb")
    until("what is not told is not known", lambda: {states()[key]["state"] for key in unknown} == {"unknown"})

    log = (folder / "ha/home-assistant.log").read_text(errors="replace")
    complaints = [line for line in log.splitlines() if any(it in line for it in ("mqtt", "automation", "template")) and ("WARNING" in line or "ERROR" in line)]
    for line in complaints:
        say(f"  {line}")
    check("Home Assistant's log complains of nothing", not complaints)
    say("everything holds")


if __name__ == "__main__":
    sys.exit(main())
