"""A TCP proxy on loopback that can cut the connections through it, or hold them open in silence.

It also reads the MQTT that passes: which events the broker has acknowledged. A broker that is
killed may forget what it acknowledged, and no door could help it; with this the books can tell that
from an event that was never delivered.
"""

import contextlib
import json
import socket
import struct
import threading

OPEN, CUT, STALLED = "open", "cut", "stalled"
PACKET_BYTES_MAX = 64 << 20


class Proxy:
    """Forwards to `port`; `tap(connection)` makes a listener for each connection, or is None."""

    def __init__(self, port, tap=None):
        self.target, self.tap = port, tap
        self.state, self.changed = OPEN, threading.Condition()
        self.sockets = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, state):
        with self.changed:
            self.state = state
            doomed = list(self.sockets) if state == CUT else []
            self.changed.notify_all()
        for it in doomed:
            reset(it)

    def close(self):
        self.set(CUT)
        self.listener.close()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                if self.state == CUT:
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self.target), 5)
                far.settimeout(None)
                tap = self.tap() if self.tap else None
                with self.changed:
                    self.sockets |= {near, far}
                for pair in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._forward, args=(*pair, tap), daemon=True).start()
                continue
            reset(near)

    def _forward(self, source, target, is_outward, tap):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self.changed:
                    self.changed.wait_for(lambda: self.state != STALLED)
                    if self.state == CUT:
                        break
                if tap:
                    tap.read(data, is_outward)
                target.sendall(data)
        for it in (source, target):
            with contextlib.suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)
            with self.changed:
                self.sockets.discard(it)
            it.close()


def reset(it):
    """Ends a connection as a lost peer does: RST, and what was not read is gone."""
    with contextlib.suppress(OSError):
        it.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        it.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        it.close()


class Acknowledged:
    """The ids of the events that a broker has acknowledged, over all connections."""

    def __init__(self):
        self.event_ids, self.lock = set(), threading.Lock()

    def tap(self):
        return _Tap(self)


class _Tap:
    """One MQTT connection: PUBLISH from the device, PUBACK from the broker."""

    def __init__(self, books):
        self.books, self.sent, self.version = books, {}, None
        self.rest = {True: b"", False: b""}

    def read(self, data, is_outward):
        rest = self.rest[is_outward] + data
        while packet := split(rest):
            head, body, rest = packet
            kind = head >> 4
            if is_outward and kind == 1:
                # After the protocol's name, "MQTT" with its length.
                self.version = body[6]
            elif is_outward and kind == 3 and head & 0x06:
                length = struct.unpack(">H", body[:2])[0]
                packet_id = body[2 + length : 4 + length]
                if b"/event/" in body[2 : 2 + length]:
                    payload = self._payload(body[4 + length :])
                    self.sent[packet_id] = json.loads(payload)["event_id"]
            elif not is_outward and kind == 4:
                event_id = self.sent.pop(body[:2], None)
                if body[2:3] >= b"\x80":
                    continue  # Refused, by a reason code of MQTT 5.
                with self.books.lock:
                    self.books.event_ids |= {event_id} - {None}
        self.rest[is_outward] = rest

    def _payload(self, rest):
        """Without the properties of MQTT 5."""
        if self.version != 5:
            return rest
        size, at = 0, 0
        while True:
            size |= (rest[at] & 0x7F) << 7 * at
            at += 1
            if not rest[at - 1] & 0x80:
                return rest[at + size :]


def split(data):
    """Returns head, body and the rest of the first MQTT packet; None if it is not complete."""
    size, shift = 0, 0
    for at in range(1, min(len(data), 5)):
        size |= (data[at] & 0x7F) << shift
        shift += 7
        if not data[at] & 0x80:
            end = at + 1 + size
            assert size <= PACKET_BYTES_MAX, "no MQTT"
            return (data[0], data[at + 1 : end], data[end:]) if len(data) >= end else None
    return None
