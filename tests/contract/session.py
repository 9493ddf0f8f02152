"""One recorded daemon: sends requests, waits for what they cause, collects what others rely on."""

import base64
import json
import re

from bench import TOKEN, until
from clients import EventStream, http, json_or_text

SHOWN_MAX = 200  # Longer texts of a request (photographs) are recorded by their length only.
BEARER = [("authorization", f"Bearer {TOKEN}")]
JSON = [("content-type", "application/json")]
UNORDERED = (
    "/gallery",
    "/watermark",
    "/health",
    "/status",
)  # Topics published whenever something changed.


# Of the health: what the script decides, and the clock does not.
COUNTERS = ("commands", "commands_refused", "events_published", "recorded", "gallery")


class Session:
    """`began_late`: the recorder could not subscribe before the daemon published."""

    def __init__(
        self, home, site, device, mqtt_port, http_port, *, began_late=False, shares_gallery=False
    ):
        self.home, self.base, self.began_late = home, f"rollcall/{site}/{device}", began_late
        escaped = device.replace("_", "__").replace(".", "_-")
        self.own = [f"{self.base}/", f"/rollcall-{site}/{escaped}/"]
        self.own += [f"rollcall/{site}/gallery"] if shares_gallery else []
        self.site, self.mqtt_port, self.http_port = site, mqtt_port, http_port
        self.mqtt = home.open_mqtt(mqtt_port) if mqtt_port else None
        self.expected, self.requests, self.routes = {}, {}, {}

    def start(self):
        """Starts the daemon and waits until it takes commands."""
        began = self.mqtt.count()
        daemon = self.home.start()
        self.wait_online(began)
        return daemon

    def wait_online(self, after=0):
        # Subscriptions are sent before the status: a broker that has the one has the other.
        status = f"{self.base}/status"
        self.mqtt.wait_for(
            lambda topic, payload: topic == status and payload == b"online",
            "the status online",
            after,
        )

    def wait_for_gap(self, reason):
        """Waits until the watermark has a gap for this reason."""

        def has_gap(topic, payload):
            return topic == f"{self.base}/watermark" and any(
                it["reason"] == reason for it in json.loads(payload)["gaps"]
            )

        self.mqtt.wait_for(has_gap, f"a gap {reason} of the watermark")

    def wait_for_commands(self, count):
        """Waits until the published health counts so many commands."""

        def has_counted(topic, payload):
            return topic == f"{self.base}/health" and json.loads(payload)["commands"] == count

        self.mqtt.wait_for(has_counted, f"{count} commands in health")

    # MQTT

    def send(self, name, verb, body, *, causes=(), reply=True, **more):
        """Publishes a command, records its reply and waits for the events it causes."""
        self.publish(name, verb, body, **more)
        if reply:
            self.reply(name)
        self.expect(*causes)

    def publish(self, name, verb, body, *, target=None, retain=False):
        """Publishes a command; an object gets `name` as its request_id unless it has one."""
        assert name not in self.requests, name
        if isinstance(body, dict) and "request_id" not in body:
            body = {**body, "request_id": name}
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        topic = f"rollcall/{self.site}/{target}" if target else self.base
        topic = f"{topic}/command/{verb}"
        shown = shorten(body.decode("utf-8", "replace") if isinstance(body, bytes) else body)
        self.requests[name] = {"topic": topic, "retain": retain, "request": shown}
        self.sent_at = self.mqtt.count()
        self.mqtt.publish(topic, payload, retain)

    def reply(self, name, after=None):
        """Waits for the reply to the request `name`, wherever it goes."""
        body = self.requests[name]["request"]
        request_id = body.get("request_id") if isinstance(body, dict) else name
        topics = [f"{self.base}/reply/{request_id}", f"{self.base}/reply/unreadable"]
        after = self.sent_at if after is None else after
        found = self.mqtt.wait_for(lambda topic, _: topic in topics, f"the reply to {name}", after)
        topic, qos, retained, payload = found
        answer = {
            "topic": topic,
            "qos": qos,
            "retained": retained,
            "payload": json_or_text(payload),
        }
        self.requests[name].setdefault("replies", []).append(answer)
        return answer["payload"]

    def expect(self, *kinds):
        """Waits until one more event of each of these kinds has been published."""
        for kind in kinds:
            self.expected[kind] = count = self.expected.get(kind, 0) + 1
            topic = f"{self.base}/{kind if '/' in kind else 'event/' + kind}"

            def are_there(topic=topic, count=count):
                return sum(it[0] == topic for it in list(self.mqtt.messages)) >= count

            until(f"{count} messages on {topic}", are_there)

    def settle(self):
        """Waits until every sink has everything, and the vital signs show every command."""
        until("everything is delivered", self._is_delivered)

    def _is_delivered(self):
        health, topic = self.health(), f"{self.base}/health"
        published = [it[3] for it in list(self.mqtt.messages) if it[0] == topic]
        shown = json.loads(published[-1]) if published else {}
        is_current = all(shown.get(key) == health[key] for key in COUNTERS)
        return is_current and all(it["rows"] == 0 for it in health["outbox"])

    def health(self):
        return json.loads(http(self.http_port, "GET", "/api/health", BEARER)[2])

    # HTTP

    def ask(self, name, method, path, headers=(), body=b"", *, token=True, causes=()):
        """Sends an HTTP request and records its response under `name`."""
        assert name not in self.routes, name
        if not isinstance(body, bytes):
            headers, body = [*headers, *JSON], json.dumps(body).encode()
        everything = [*(BEARER if token else []), *headers]
        status, received, data = http(self.http_port, method, path, everything, body)
        received = [list(it) for it in received if it[0] not in ("date", "content-length")]
        shown = shorten(json_or_text(body)) if body else None
        if isinstance(shown, str) and "form-data" in shown:
            shown = "<form>"
        self.routes[name] = {
            "request": {
                "line": f"{method} {path}",
                "headers": [list(it) for it in headers],
                "body": shown,
            },
            "status": status,
            "headers": received,
            "body": response_body(path, received, data),
        }
        self.expect(*causes)
        return data

    def listen(self, name, path, holds, *, headers=(), trigger=None):
        """Reads server-sent events until `holds` of them is true."""
        stream = EventStream(self.http_port, path, [*BEARER, *headers])
        stream.until(lambda events: len(events) > 0)
        if trigger:
            trigger()
        status, received, events = stream.until(holds)
        stream.close()
        received = [list(it) for it in received if it[0] != "date"]
        kept = {}
        for event in events:
            data = json_or_text(event.get("data", "").encode())
            one = {"id": event.get("id"), "fields": sorted(event), "data": data}
            # Health and view come by the clock: one of each shows the shape.
            if event.get("event") in ("health", "view"):
                kept[event["event"]] = [one]
            else:
                kept.setdefault(str(event.get("event")), []).append(one)
        self.routes[name] = {
            "request": {"line": f"GET {path}"},
            "status": status,
            "headers": received,
            "events": kept,
        }

    def metrics(self, name):
        """Returns names, types and labels of /metrics, and its help texts; no values."""
        text = http(self.http_port, "GET", "/metrics", BEARER)[2].decode()
        types, helps, series = {}, {}, {}
        for line in text.splitlines():
            if line.startswith(("# TYPE ", "# HELP ")):
                _, kind, metric, rest = line.split(" ", 3)
                (types if kind == "TYPE" else helps)[metric] = rest
            elif line and not line.startswith("#"):
                series_name = line.rsplit(" ", 1)[0]
                metric, _, labels = series_name.partition("{")
                series.setdefault(metric, []).append(labels.rstrip("}"))
        series = {metric: sorted(labels) for metric, labels in sorted(series.items())}
        return {"name": name, "types": types, "series": series}, helps

    # What is collected at the end

    def messages(self):
        """Returns what was published, by topic; the order of a topic's messages is kept."""
        by_topic = {}
        for topic, qos, retained, payload in list(self.mqtt.messages):
            if "/command/" in topic or not self.is_own(topic):
                continue
            message = {"qos": qos} if self.began_late else {"qos": qos, "retained": retained}
            # The payload of a reply is recorded with its command.
            message |= {} if "/reply/" in topic else {"payload": json_or_text(payload)}
            by_topic.setdefault(topic, []).append(message)
        for topic, messages in by_topic.items():
            if any(mark in topic for mark in UNORDERED):
                # Their number depends on the moment; the last one is recorded as retained.
                by_topic[topic] = {"qos": sorted({it["qos"] for it in messages})}
        return dict(sorted(by_topic.items()))

    def is_own(self, topic):
        return any(mark in topic for mark in self.own)

    def retained(self):
        """Returns what the broker retains, as a client sees it that subscribes now."""
        client = self.home.open_mqtt(self.mqtt_port, "retained")
        probe = "rollcall/recorder/end"
        client.publish(probe, b"end")
        client.wait_for(lambda topic, _: topic == probe, "the end of the retained messages")
        found = [it for it in client.messages if it[2] and self.is_own(it[0])]
        client.close()
        return {
            topic: {"qos": qos, "payload": json_or_text(payload)}
            for topic, qos, _, payload in sorted(found)
        }

    def record(self):
        """Returns everything that this session has collected."""
        recorded = {"commands": self.requests, "routes": self.routes}
        if self.mqtt:
            recorded |= {"messages": self.messages(), "retained": self.retained()}
        return recorded


def response_body(path, headers, data):
    kind = dict(headers).get("content-type", "")
    if path.startswith("/page/") or kind.startswith("text/html"):
        # The page is no interface of other programs; its files change with each release.
        return f"<{kind}>"
    if kind.startswith("image/"):
        return f"<{data[:3].hex()}…>"
    if path == "/metrics" and kind.startswith("text/plain"):
        return "<metrics>"
    return json_or_text(data)


def shorten(value):
    """Returns a request without its photographs."""
    if isinstance(value, dict):
        return {name: shorten(it) for name, it in value.items()}
    if isinstance(value, list):
        return [shorten(it) for it in value[:20]]
    if isinstance(value, str) and len(value) > SHOWN_MAX:
        return f"<{len(value)} characters>"
    return value


def b64(data):
    return base64.b64encode(data).decode()


def multipart(parts):
    """Returns header and body of a form; a part is (name, file name or None, bytes)."""
    mark, out = "contract-boundary", b""
    for name, file, data in parts:
        attached = f'; filename="{file}"' if file else ""
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{name}"{attached}\r\n\r\n'
        out += head.encode() + data + b"\r\n"
    return [
        ("content-type", f"multipart/form-data; boundary={mark}")
    ], out + f"--{mark}--\r\n".encode()


def count_requests(recording):
    """Returns the number of commands, HTTP requests and calls of the command line."""
    text = json.dumps(recording)
    commands = sum(len(it.get("commands", {})) for it in recording["sessions"].values())
    routes = sum(len(it.get("routes", {})) for it in recording["sessions"].values())
    return {
        "commands": commands,
        "http": routes,
        "command_line": len(re.findall(r'"exit_code"', text)),
    }
