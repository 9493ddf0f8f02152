#!/usr/bin/env python3
"""Enrols a folder of photographs, then prints who comes. Needs paho-mqtt 2: pip install paho-mqtt

    arrivals.py [--enrol people/] [--host 127.0.0.1] [--port 1883] [--base rollcall/hq/door-1]

In the folder is one folder for each person, named by the person's id, with one to ten photographs (JPEG, PNG, WebP) and, if
the name is not the id, a file name.txt:  people/jdoe/name.txt  people/jdoe/front.jpg  people/jdoe/glasses.jpg
"""

import argparse
import base64
import datetime
import json
import pathlib
import uuid

import paho.mqtt.client as mqtt

PHOTOGRAPHS = {".jpg", ".jpeg", ".png", ".webp"}
IMAGES_MAX = 10


def enrolments(folder):
    """The `enrol` commands for a folder of people."""
    for person in sorted(it for it in folder.iterdir() if it.is_dir()):
        photographs = sorted(it for it in person.iterdir() if it.suffix.lower() in PHOTOGRAPHS)[:IMAGES_MAX]
        named = person / "name.txt"
        name = named.read_text(encoding="utf-8").strip() if named.is_file() else person.name
        images = [base64.b64encode(it.read_bytes()).decode() for it in photographs]
        if images:
            # The same id again would return the stored reply.
            yield {"request_id": f"py-{uuid.uuid4()}", "subject": {"id": person.name, "name": name}, "images": images}


def summary(answer):
    """Returns one line about a reply to `enrol`."""
    # A rejected image is no failure: the others may suffice.
    reasons = [it["reason"] for it in answer.get("images") or [] if not it["accepted"]]
    if answer["ok"]:
        return f"enrolled {answer['subject_id']}: {answer['references']} references" + "".join(f", one {it}" for it in reasons)
    return f"not enrolled: {answer['error']['message']}" + "".join(f", one {it}" for it in reasons)


def arrival(event):
    """Returns one line about an attendance. It may be delivered twice, and then has the same event_id."""
    when = datetime.datetime.fromisoformat(event["occurred_at"].replace("Z", "+00:00")).astimezone()
    who = event["subject"]["name"] if event["subject"] else "(erased)"
    late = " (delivered late)" if event["historical"] else ""
    return f"{when:%d.%m. %H:%M:%S}  {who}: {event['direction']}, {event['status']}{late}"


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--enrol", type=pathlib.Path, metavar="FOLDER")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=1883)
    options.add_argument("--base", default="rollcall/hq/door-1")
    options = options.parse_args()
    base = options.base
    waiting = {}
    if options.enrol:
        waiting = {it["request_id"]: it for it in enrolments(options.enrol)}
    seen = set()

    def on_connect(client, _userdata, _flags, reason, _properties):
        print(f"connected: {reason}", flush=True)
        client.subscribe([(f"{base}/reply/+", 1), (f"{base}/event/attendance", 1)])

    def on_subscribe(client, *_):
        # Only now, so that no reply is missed. One after the other, because photographs are large.
        next_enrolment(client)

    def next_enrolment(client):
        if waiting:
            client.publish(f"{base}/command/enrol", json.dumps(next(iter(waiting.values()))), qos=1)

    def on_message(client, _userdata, message):
        content = json.loads(message.payload)
        if message.topic.startswith(f"{base}/reply/"):
            if waiting.pop(content["request_id"], None):
                print(summary(content), flush=True)
                next_enrolment(client)
        elif content["event_id"] not in seen:
            seen.add(content["event_id"])
            print(arrival(content), flush=True)

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
    client.connect(options.host, options.port)
    client.loop_forever()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
