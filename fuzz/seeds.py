#!/usr/bin/env python3
"""Writes small inputs for each fuzz target to begin with: seeds.py FOLDER

They are made here, of the forms in docs/wire.md and of the shipped config.toml. No photograph of
anybody is among them.
"""

import base64
import json
import pathlib
import struct
import sys
import zlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
ID, WHEN = "0192f0c1-7c1a-7000-8000-3a5f0c9e1d42", "2026-11-23T07:58:03.412Z"
JANE = {"id": "jane", "name": "Jane Döe"}


def png(width=8, height=8):
    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + bytes((at * 9) % 256 for at in range(width * 3)) for _ in range(height))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def jpeg(width=16, height=16):
    """A grey picture: every block has the DC difference 0 and nothing else, two bits each."""

    def segment(marker, data):
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    frame = struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0])
    huffman = bytes([1] + [0] * 15) + b"\0"
    blocks = (width // 8) * (height // 8)
    return (
        b"\xff\xd8"
        + segment(0xDB, b"\0" + bytes([1] * 64))
        + segment(0xC0, frame)
        + segment(0xC4, b"\x00" + huffman + b"\x10" + huffman)
        + segment(0xDA, bytes([1, 1, 0x00, 0, 63, 0]))
        + bytes((blocks * 2 + 7) // 8)
        + b"\xff\xd9"
    )


WEBP = [
    base64.b64decode("UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA=="),
    base64.b64decode("UklGRiIAAABXRUJQVlA4IBYAAAAwAQCdASoBAAEADsD+JaQAA3AAAAAA"),
]
IMAGE = base64.b64encode(b"\xff\xd8\xff\xd9").decode()

# In the order of VERBS in src/command.rs.
SESSION = {"id": "am", "weekdays": ["mon"], "start": "08:00", "end": "12:00", "early_ms": 1}
EXAM = {"id": "exam", "dates": ["2026-12-24"], "start": "22:00", "end": "02:00"}
COMMANDS = [
    {"subject": JANE, "images": [IMAGE, f"data:image/jpeg;base64,{IMAGE}"], "replace": True},
    {"subject": JANE, "samples": 3, "timeout_ms": 30000, "allow_duplicate": False},
    {"subject_id": "jane", "erase": True},
    {"subject_id": "jane", "name": "Jane"},
    {"after": "jane", "limit": 100},
    {"image": IMAGE},
    {"venue": "main", "image": IMAGE, "direction": "in"},
    {"venue": "main", "from": WHEN, "to": "2026-12-23T07:58:03+01:00", "after": 7, "all": True},
    {
        "venue": "room-a",
        "name": "Room A",
        "time_zone": "Europe/Berlin",
        "direction": "alternate",
        "re_entry_gap_ms": 300000,
        "sessions": [SESSION, EXAM],
    },
    {"venue": "room-a"},
    {"after": None},
    {"retry_buried": True},
    {},
]
SUMMARY = {"venue": "main", "summary": True, "absent": True, "after": 3, "limit": 5}

# In the order of `Kind::ALL`.
EVENTS = [
    {
        "venue": "a", "session": "s/x", "subject": JANE, "direction": "in", "status": "present",
        "score": 0.7, "threshold": 0.4, "frames": 4, "track_ms": 610, "latency_ms": 84,
    },
    {"venue": None, "score": 0.25, "threshold": 0.42, "frames": 5, "track_ms": 800},
    {"venue": None, "subject": None, "scores": [0.5], "threshold": 0.75, "enforced": True},
    {"state": "lost", "reason": "unplugged", "lost_ms": None},
    {"action": "enrolled", "subject": JANE, "references": 3, "request_id": "r-1"},
    {"corrects": ID, "was": WHEN, "session": "s/x", "status": "late", "superseded_by": ID},
    {"reason": "retained", "verb": "enrol", "count": 2},
]


def subject(withdrawn=None):
    """One subject as it is inside a seal: a head, and the templates of its references."""
    version = {"withdrawals": 0, "changes": 3, "device": "door-1"}
    reference = {"id": ID, "embedder": "03" * 32, "dimension": 4, "quality": 0.5, "created_ms": 1}
    head = {"form": 1, "subject_id": "jane", "version": version, "withdrawn": withdrawn}
    head |= {"name": "Jane", "enrolled_ms": 7, "references": [] if withdrawn else [reference]}
    text = json.dumps(head).encode()
    floats = b"" if withdrawn else struct.pack("<4f", 1, 0, 0, 0)
    return struct.pack("<I", len(text)) + text + floats


def packet(head, body):
    return bytes([head, len(body)]) + body


MQTT = [
    packet(0x20, b"\x01\x00"),
    packet(0x90, b"\x00\x01\x01\x01"),
    packet(0x30, b"\x00\x01apayload"),
    packet(0x3B, b"\x00\x01a\x00\x07payload"),
    packet(0x40, b"\x00\x07"),
    packet(0xD0, b""),
]


def first(number, data):
    return bytes([number]) + (data if isinstance(data, bytes) else json.dumps(data).encode())


def seeds():
    yield from (("image", it) for it in [png(), jpeg(), *WEBP])
    for kind in range(4):
        yield "camera_frame", bytes([kind, 8, 8, 3]) + (jpeg() if kind == 0 else bytes(128))
    for target in ("jpeg", "jpeg_frame"):
        yield from ((target, bytes(range(at, at + 64))) for at in (0, 60, 120, 180))
    for number, body in enumerate(COMMANDS):
        body = {"request_id": "r-1", "expires_at": "2026-12-01T00:00:00Z", "schema": 1, **body}
        yield "command", first(number, body)
        yield "command", first(130 + number, {**body, "verb": "rename"})
    yield "command", first(7, {"request_id": "r-1", **SUMMARY})
    yield from (("event", first(number, it)) for number, it in enumerate(EVENTS))
    claims = {"iat": 1795420600, "exp": 1795420900, "jti": "j-1", "aud": "hq/door-1"}
    claims["cmd"] = {"request_id": "r-1", "verb": "rename", "subject_id": "jane", "name": "J"}
    yield "token", first(1, claims)
    text = [{"alg": "EdDSA", "typ": "JWT"}, claims]
    text = [base64.urlsafe_b64encode(json.dumps(it).encode()).rstrip(b"=") for it in text]
    yield "token", first(0, b".".join([*text, b"A" * 86]))
    header = {"export": 1, "id": ID, "created_at": WHEN, "site": "hq", "device": "door-1"}
    header = json.dumps({**header, "subjects": 1, "embedders": []}).encode()
    yield "export", first(0, b"H" + struct.pack("<I", len(header)) + header + b"K\x28\0\0\0")
    for plain in (subject(), subject({"erased": True, "at_ms": 9})):
        yield "export", first(1, plain)
        yield "gallery_record", first(2, plain)
    sealed = base64.b64encode(bytes(64)).decode()
    version = {"withdrawals": 0, "changes": 3, "device": "door-1"}
    record = {"schema": 1, "version": version, "withdrawn": False, "sealed": sealed}
    yield "gallery_record", first(0, record)
    yield "gallery_record", first(1, {"schema": 1, "sealed": sealed})
    yield "gallery_record", first(3, [["jane", 0, 3, "door-1", False]])
    shipped = (ROOT / "config.toml").read_text()
    # Short inputs run often.
    lines = (line.partition(" # ")[0].rstrip() for line in shipped.splitlines())
    plain = "\n".join(line for line in lines if line and not line.startswith("#"))
    venue = '\n[[venue]]\nid = "main"\ntime_zone = "Europe/Berlin"\nre_entry_gap = "5m"\n'
    venue += '[[venue.session]]\nid = "am"\nweekdays = ["mon"]\nstart = "08:00"\nend = "12:00"\n'
    sections = ["[" + it for it in plain.split("\n[")[1:]]
    yield from (("config", it.encode()) for it in (plain + venue, *sections))
    card = '[device]\nsite = "hq"\n[mqtt]\nhost = "b"\nuser = "u"\npassword = "p"\n' + venue
    yield from (("provisioning", it.encode()) for it in (card, plain.split("[storage]")[0]))
    yield "roster", b'\x03file,id,name\na.jpg,jane,Jane\n"b c.jpg",john,"J, J."\n'
    listed = [{"name": "rollcall.db", "bytes": 4, "sha256": "00" * 32}]
    contents = {"schema": 9, "events": 1, "newest_seq": 1, "owed": {"mqtt": 1}, "subjects": 0}
    contents |= {"references": 0, "unreadable": 0, "galleries": None}
    manifest = {"backup": 1, "created_at": WHEN, "version": "0.1.0", "site": "hq", "keys": True}
    manifest |= {"device": "door-1", "contents": contents, "files": listed}
    yield "backup", json.dumps(manifest).encode()
    sent = packet(0x82, b"\x00\x01\x00\x01a\x01") + MQTT[3] + packet(0xC0, b"") + packet(0xE0, b"")
    yield from (("broker", bytes([how]) + sent) for how in (0, 1, 2, 4, 40))
    head = b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n"
    yield "websocket", head + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    yield "websocket", b"\x82\x84\x01\x02\x03\x04\xd1\x02\x03\x04\x89\x80\x00\x00\x00\x00"
    thrown = b'{"exception":"frappe.exceptions.ValidationError: Inactive Employee"}'
    heads = [b"200 OK", b"204 No Content", b"417 Expectation Failed", b"429 Wait\r\nRetry-After: 7"]
    for preset, head in enumerate(heads):
        length = f"Content-Length: {len(thrown)}".encode()
        whole = b"HTTP/1.1 " + head + b"\r\n" + length + b"\r\n\r\n" + thrown
        yield "webhook", bytes([preset]) + whole
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n[17]\r\n0\r\n\r\n"
    yield "webhook", b"\x02" + chunked
    yield from (("mqtt_stream", bytes([piece]) + b"".join(MQTT)) for piece in (0, 6, 255))


def main():
    folder = pathlib.Path(sys.argv[1])
    for number, (target, data) in enumerate(seeds()):
        (folder / target).mkdir(parents=True, exist_ok=True)
        (folder / target / f"{number:03}").write_bytes(data)


if __name__ == "__main__":
    main()
