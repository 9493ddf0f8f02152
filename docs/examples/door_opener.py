#!/usr/bin/env python3
"""Opens a door for those who are allowed in: how to read an event that something depends on. Needs paho-mqtt 2.

    door_opener.py --allow jdoe,mmuster [--host 127.0.0.1] [--port 1883] [--base rollcall/hq/door-1]

"Opening" prints a line here: put the relay into `open_door`. A face is no key: a door that protects something needs a second
factor (known limitations in README.md). This machine and the device must both know the time (NTP), because `expires_at` is
compared.
"""

import argparse
import collections
import datetime
import json

import paho.mqtt.client as mqtt

SEEN_MAX = 1000


def refusal(event, retained, allowed, seen, now):
    """Returns why the door stays shut, or None. Anything doubtful keeps it shut."""
    if retained:
        return "retained: nobody knows how old it is"
    if event.get("kind") != "attendance" or not isinstance(event.get("event_id"), str):
        return "no attendance"
    if event.get("historical") is not False:
        return "historical: it was delivered late"
    if event.get("clock") != "synced":
        return "the device does not know the time"
    try:
        expires_at = datetime.datetime.fromisoformat(event["expires_at"].replace("Z", "+00:00"))
        is_past = now >= expires_at
    except (KeyError, AttributeError, TypeError, ValueError):
        return "no expires_at"
    if is_past:
        return "expired: it was on its way for too long"
    if event["event_id"] in seen:
        return "delivered once more"
    if not isinstance(event.get("subject"), dict) or event["subject"].get("id") not in allowed:
        return "not allowed in"
    return None


def open_door():
    print("OPEN", flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--allow", required=True, help="subject ids, with commas between")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=1883)
    options.add_argument("--base", default="rollcall/hq/door-1")
    options = options.parse_args()
    allowed = set(options.allow.split(","))
    seen = collections.OrderedDict()

    def on_connect(client, _userdata, _flags, reason, _properties):
        print(f"connected: {reason}", flush=True)
        client.subscribe(f"{options.base}/event/attendance", qos=1)

    def on_message(_client, _userdata, message):
        try:
            event = json.loads(message.payload)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            print("shut: no event", flush=True)
            return
        why = refusal(event, message.retain, allowed, seen, datetime.datetime.now(datetime.timezone.utc))
        if why:
            print(f"shut: {why}", flush=True)
            return
        seen[event["event_id"]] = None
        while len(seen) > SEEN_MAX:
            seen.popitem(last=False)
        open_door()

    # A clean session: what comes while this is not running must not wait for it.
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, clean_session=True)
    client.on_connect, client.on_message = on_connect, on_message
    client.connect(options.host, options.port)
    client.loop_forever()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
