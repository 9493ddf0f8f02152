"""The other side of the broker: sends commands, keeps all that the device publishes, asks again."""

import contextlib
import json
import struct
import threading
import time

from services import BASE, PATIENCE_S, insist, until
from clients import Mqtt

# Replies that say: nothing was changed, send it again.
AGAIN = {"storage_full", "busy", "timed_out", "rate_limited", "not_ready"}
UNANSWERED_MAX = 32
# A command or its reply is lost when the broker is killed; then the same request is sent again.
AGAIN_AFTER_S = 8


class Office:
    """One subscriber and sender, connected to the broker directly, so that only kills cut it off.

    `load` keeps some commands in flight: visits at the venue `desk`, and renamings.
    """

    def __init__(self, port, rng):
        self.port, self.rng, self.mqtt = port, rng, None
        self.lock, self.seen, self.connections = threading.Lock(), 0, 0
        self.events, self.faults, self.again = {}, [], 0
        self.requests, self.replies, self.given_up = {}, {}, set()
        self.health, self.online = None, 0
        self.probes, self.stopping, self.loader = [], False, None

    def connect(self):
        """Connects anew: the broker was started, and nobody else is let through to it yet."""
        self.close()
        self.connections += 1
        topics = [f"{BASE}/event/+", f"{BASE}/reply/+", f"{BASE}/health", f"{BASE}/status"]
        self.mqtt, self.seen = Mqtt(self.port, f"office-{self.connections}", topics), 0
        for request_id in self.unanswered():
            self.requests[request_id]["sent_at"] = 0

    def close(self):
        self.collect()
        if self.mqtt:
            with contextlib.suppress(OSError):
                self.mqtt.close()
        self.mqtt = None

    def collect(self):
        """Takes over what has arrived since the last time."""
        with self.lock:
            if not self.mqtt:
                return
            messages = self.mqtt.messages[self.seen :]
            self.seen += len(messages)
            for topic, _, retained, payload in messages:
                self._take(topic.removeprefix(BASE + "/"), retained, payload)

    def _take(self, topic, retained, payload):
        if topic.startswith("event/"):
            event = json.loads(payload)
            known = self.events.setdefault(event["seq"], event)
            self.again += known is not event
            if known["event_id"] != event["event_id"]:
                self.faults.append(f"two events have the seq {event['seq']}")
        elif topic.startswith("reply/"):
            self._take_reply(json.loads(payload))
        elif topic == "health":
            self.health = None if retained else json.loads(payload)
        elif topic == "status" and payload == b"online" and not retained:
            self.online += 1

    def _take_reply(self, reply):
        request_id = reply["request_id"]
        if not reply["ok"] and reply["error"]["code"] in AGAIN:
            return
        known = self.replies.setdefault(request_id, reply)
        if known != reply:
            self.faults.append(f"request {request_id} has two replies: {known} and {reply}")

    def request(self, verb, request_id, body, patience_s=PATIENCE_S):
        """Sends one command and returns its reply."""
        self.send(verb, request_id, body)

        def answer():
            self.collect()
            return self.replies.get(request_id)

        return until(f"the reply to {request_id}", answer, patience_s)

    def send(self, verb, request_id, body):
        entry = self.requests.setdefault(request_id, {"verb": verb, "body": body})
        entry["sent_at"] = time.monotonic()
        payload = json.dumps({**body, "request_id": request_id}).encode()
        self.mqtt.publish(f"{BASE}/command/{verb}", payload)

    def start_load(self, probes):
        self.probes = probes
        self.loader = threading.Thread(target=self._load, daemon=True)
        self.loader.start()

    def unanswered(self):
        return [it for it in list(self.requests) if it not in self.replies]

    def _load(self):
        number = 0
        while not self.stopping or self.unanswered():
            self.collect()
            waiting = self.unanswered()
            late = time.monotonic() - AGAIN_AFTER_S
            # The broker is down, or goes down in between: what was not taken is sent again later.
            with contextlib.suppress(OSError, TimeoutError, AttributeError, struct.error):
                for it in waiting:
                    if self.requests[it]["sent_at"] < late:
                        self.send(self.requests[it]["verb"], it, self.requests[it]["body"])
                if not self.stopping and len(waiting) < UNANSWERED_MAX:
                    number += 1
                    self._send_next(number)
                    continue
            time.sleep(0.02)

    def _send_next(self, number):
        subject, image = self.probes[number % len(self.probes)]
        if self.rng.random() < 0.3:
            self.send("attend", f"visit-{number}", {"venue": "desk", "image": image})
        else:
            name = {"subject_id": subject, "name": f"Name {number}"}
            self.send("rename", f"rename-{number}", name)

    def stop_load(self):
        self.stopping = True
        until("every command is answered", lambda: not self.loader.is_alive(), 2 * PATIENCE_S)
        insist(not self.unanswered(), f"the load ended early: {self.unanswered()[:3]}")
        self.collect()

    def until_health(self, what, holds, patience_s=PATIENCE_S):
        """Waits for a new health message of which `holds` is true."""
        self.collect()
        self.health = None

        def is_so():
            self.collect()
            return self.health and holds(self.health)

        until(what, is_so, patience_s)
        insist(not self.faults, self.faults[:3])
        return self.health
