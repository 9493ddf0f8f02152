"""Minimal clients for MQTT 3.1.1, MongoDB and HTTP over plain sockets.

The recorder needs only the standard library with them, and they expose what ordinary clients hide:
the QoS and the retained flag of each message, the BSON type of each field, the headers of each
HTTP response.
"""

import json
import socket
import struct
import threading
import time

PATIENCE_S = 60


class Mqtt:
    """A client that records every message it receives as (topic, qos, retained, payload)."""

    def __init__(self, port, client_id, topics):
        self.messages, self.acknowledged = [], set()
        self.changed = threading.Condition()
        self.packet_id, self.sending = 0, threading.Lock()
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self.socket.settimeout(None)
        self.stream = self.socket.makefile("rb")
        text = client_id.encode()
        self._send(0x10, b"\x00\x04MQTT\x04\x02\x02\x58" + struct.pack(">H", len(text)) + text)
        threading.Thread(target=self._read, daemon=True).start()
        self._wait(lambda: "connack" in self.acknowledged, "CONNACK")
        for topic in topics:
            text = topic.encode()
            packet_id = self._next_id()
            body = struct.pack(">HH", packet_id, len(text)) + text + b"\x02"
            self._send(0x82, body)
            self._wait(lambda: packet_id in self.acknowledged, f"SUBACK of {topic}")

    def publish(self, topic, payload, retain=False, duplicate=False):
        """Publishes with QoS 1 and waits for the acknowledgement."""
        packet_id, text = self._next_id(), topic.encode()
        head = 0x32 | (0x01 if retain else 0) | (0x08 if duplicate else 0)
        self._send(
            head, struct.pack(">H", len(text)) + text + struct.pack(">H", packet_id) + payload
        )
        self._wait(lambda: packet_id in self.acknowledged, f"PUBACK of {topic}")

    def wait_for(self, matches, what, after=0, patience_s=PATIENCE_S):
        """Returns the first message from index `after` on that `matches(topic, payload)`."""

        def found():
            rest = self.messages[after:]
            return next((it for it in rest if matches(it[0], it[3])), None)

        return self._wait(found, what, patience_s)

    def count(self):
        with self.changed:
            return len(self.messages)

    def close(self):
        self._send(0xE0, b"")
        self.socket.close()

    def _next_id(self):
        self.packet_id += 1
        return self.packet_id

    def _wait(self, ask, what, patience_s=PATIENCE_S):
        end = time.monotonic() + patience_s
        with self.changed:
            while not (answer := ask()):
                if not self.changed.wait(end - time.monotonic()) and time.monotonic() > end:
                    raise TimeoutError(f"not received within {patience_s} s: {what}")
        return answer

    def _send(self, head, body):
        size, length = len(body), b""
        while True:
            size, digit = divmod(size, 128)
            length += bytes([digit | (0x80 if size else 0)])
            if not size:
                break
        with self.sending:
            self.socket.sendall(bytes([head]) + length + body)

    def _read(self):
        try:
            while packet := self._packet():
                self._handle(*packet)
        except (OSError, ValueError):
            pass  # Closed by either side; a message still awaited is reported as missing.

    def _packet(self):
        head = self.stream.read(1)
        if not head:
            return None
        size, shift = 0, 0
        while True:
            digit = self.stream.read(1)[0]
            size |= (digit & 0x7F) << shift
            shift += 7
            if not digit & 0x80:
                return head[0], self.stream.read(size)

    def _handle(self, head, body):
        kind = head >> 4
        if kind == 3:
            qos, length = (head >> 1) & 3, struct.unpack(">H", body[:2])[0]
            topic, rest = body[2 : 2 + length].decode(), body[2 + length :]
            if qos:
                packet_id, rest = rest[:2], rest[2:]
                self._send(0x40 if qos == 1 else 0x50, packet_id)
            with self.changed:
                self.messages.append((topic, qos, bool(head & 1), rest))
                self.changed.notify_all()
        elif kind == 6:
            self._send(0x70, body[:2])
        elif kind in (2, 4, 9):
            with self.changed:
                self.acknowledged.add("connack" if kind == 2 else struct.unpack(">H", body[:2])[0])
                self.changed.notify_all()


class Mongo:
    """Runs commands of the MongoDB wire protocol (OP_MSG) on one server."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self.stream = self.socket.makefile("rb")

    def command(self, body, database="admin"):
        body = encode_document({**body, "$db": database})
        self.socket.sendall(struct.pack("<iiiiIB", 21 + len(body), 1, 0, 2013, 0, 0) + body)
        size = struct.unpack("<i", self.stream.read(4))[0]
        return decode_document(self.stream.read(size - 4)[17:])

    def collections(self, database):
        """Returns every document and every index of a database, by collection."""
        listed = self.command({"listCollections": 1, "nameOnly": True}, database)
        found = {}
        for name in sorted(it["name"] for it in listed["cursor"]["firstBatch"]):
            find = {"find": name, "sort": {"_id": 1}, "batchSize": 10000}
            documents = self.command(find, database)["cursor"]["firstBatch"]
            indexes = self.command({"listIndexes": name}, database)["cursor"]["firstBatch"]
            found[name] = {
                "documents": documents,
                "indexes": sorted(indexes, key=lambda it: it["name"]),
            }
        return found


def encode_document(document):
    out = b""
    for key, value in document.items():
        name = key.encode() + b"\0"
        if isinstance(value, bool):
            out += b"\x08" + name + bytes([value])
        elif isinstance(value, int):
            out += b"\x10" + name + struct.pack("<i", value)
        elif isinstance(value, str):
            text = value.encode() + b"\0"
            out += b"\x02" + name + struct.pack("<i", len(text)) + text
        elif isinstance(value, list):
            out += b"\x04" + name + encode_document({str(at): it for at, it in enumerate(value)})
        else:
            out += b"\x03" + name + encode_document(value)
    return struct.pack("<i", len(out) + 5) + out + b"\0"


def decode_document(data):
    """Decodes BSON; a type that JSON does not have becomes an object like {"$date": …}."""
    document, at = {}, 4
    while data[at]:
        kind, end = data[at], data.index(0, at + 1)
        key, at = data[at + 1 : end].decode(), end + 1
        document[key], at = _decode_value(kind, data, at)
    return document


def _decode_value(kind, data, at):
    size = struct.unpack_from("<i", data, at)[0] if len(data) >= at + 4 else 0
    if kind == 0x01:
        return struct.unpack_from("<d", data, at)[0], at + 8
    if kind == 0x02:
        return data[at + 4 : at + 3 + size].decode(), at + 4 + size
    if kind == 0x03:
        return decode_document(data[at : at + size]), at + size
    if kind == 0x04:
        return list(decode_document(data[at : at + size]).values()), at + size
    if kind == 0x05:
        return {
            "$binary": f"<{'bytes' if size else 'empty'}>",
            "subtype": data[at + 4],
        }, at + 5 + size
    if kind == 0x07:
        return {"$oid": data[at : at + 12].hex()}, at + 12
    if kind == 0x08:
        return bool(data[at]), at + 1
    if kind == 0x09:
        ms = struct.unpack_from("<q", data, at)[0]
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms / 1000))
        return {"$date": f"{moment}.{ms % 1000:03}Z"}, at + 8
    if kind == 0x0A:
        return None, at
    if kind == 0x10:
        return size, at + 4
    if kind in (0x11, 0x12):
        return {
            "$timestamp" if kind == 0x11 else "$long": struct.unpack_from("<q", data, at)[0]
        }, at + 8
    raise ValueError(f"unknown BSON type {kind:#x}")


def http(port, method, path, headers, body=b""):
    """Sends one request on a connection of its own; returns status, headers and body."""
    stream = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    lines = [f"{method} {path} HTTP/1.1", "connection: close"]
    names = {name.lower() for name, _ in headers}
    if "host" not in names:
        lines.append(f"host: 127.0.0.1:{port}")
    if "content-length" not in names and (body or method == "POST"):
        lines.append(f"content-length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in headers]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    received = b""
    try:
        stream.sendall(head + body)
    except OSError:
        pass  # The server may refuse by the head alone; its response is still there to be read.
    try:
        while part := stream.recv(65536):
            received += part
    except OSError:
        pass
    stream.close()
    return parse_response(received)


def parse_response(received):
    head, _, body = received.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = sorted(
        (name.lower(), value.strip()) for name, _, value in (it.partition(":") for it in rest)
    )
    if ("transfer-encoding", "chunked") in headers:
        body = _unchunked(body)
    return int(first.split()[1]) if first else 0, headers, body


def _unchunked(rest):
    whole = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        whole, rest = whole + rest[:count], rest[count + 2 :]
        if not count:
            break
    return whole


class EventStream:
    """A connection to /api/events that collects the events it receives as (event, id, data)."""

    def __init__(self, port, path, headers):
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        lines = [f"GET {path} HTTP/1.1", f"host: 127.0.0.1:{port}", "accept: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in headers]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self.received = b""

    def until(self, holds):
        """Reads until `holds(events)` and returns status, headers and events."""
        end = time.monotonic() + PATIENCE_S
        while True:
            events = self._events()
            if holds(events):
                status, headers, _ = parse_response(self.received)
                return status, headers, events
            if time.monotonic() > end:
                raise TimeoutError("the expected server-sent events did not come")
            part = self.socket.recv(65536)
            if not part:
                raise ConnectionError("the event stream ended early")
            self.received += part

    def _events(self):
        head, _, body = self.received.partition(b"\r\n\r\n")
        whole = b""
        while True:
            size, mark, rest = body.partition(b"\r\n")
            if not mark or len(rest) < int(size, 16) + 2:
                break
            count = int(size, 16)
            whole, body = whole + rest[:count], rest[count + 2 :]
        events = []
        for block in whole.decode().split("\n\n")[:-1]:
            fields = dict(
                line.partition(": ")[::2]
                for line in block.splitlines()
                if line and not line.startswith(":")
            )
            if fields:
                events.append(fields)
        return events

    def close(self):
        self.socket.close()


def json_or_text(data):
    """Returns the parsed JSON, or the text itself where it is none."""
    text = data.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except ValueError:
        return text
