"""Replaces what differs from run to run (times, ids, measured values) by placeholders."""

import base64
import datetime
import json
import re

# Measured by the running program: only the type is compared.
MEASURED = {
    "uptime_s",
    "frames_captured",
    "frames_analysed",
    "frames_detected",
    "frames_replaced",
    "frames_unreadable",
    "frames_missed",
    "faces",
    "templates",
    "identified",
    "unknown",
    "attacks",
    "too_far",
    "track_ms",
    "latency_ms",
    "boottime_ms",
    "lost_ms",
    "frames",
    "database_bytes",
    "free_bytes",
    "rss_bytes",
    "late_ms",
    "present_ms",
    "bytes",
    "events_published",
    "frame",
    "captured",
    "replaced",
    "analysed",
    "detected",
    "rung",
}
# Null or a value, depending on the moment.
MOMENTARY = {"rows", "oldest_at", "oldest_age_s", "complete_through", "cpu_celsius", "last_seen"}
# Random or derived from something random.
OPAQUE = {"sealed", "digest", "device_key", "jti", "sha256"}

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{32}\b")
TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?")
DATE = re.compile(r"\d{4}-\d\d-\d\d")
TOKEN = re.compile(r"[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{80,}")
KEY = re.compile(r"ed25519:[A-Za-z0-9_-]{43}")
FREE = re.compile(r"\b\d+ MB free")
SITE_KEY = re.compile(r"site key [0-9a-f]{8}")
# Times further away from now than this are part of the script and compared as they are; a watermark
# goes seven days back.
NEAR_DAYS = 8
# Enough of a path to tell ids apart, and so little that a further message shifts few of them.
PLACE_STEPS = 5


class Normaliser:
    """`replacements` are texts of this run (folders, ports) and their placeholders."""

    def __init__(self, replacements):
        # Only whole words: the digits of a port may stand within a digest.
        self.replacements = [
            (re.compile(rf"(?<![0-9A-Za-z]){re.escape(old)}(?![0-9A-Za-z])"), new)
            for old, new in sorted(replacements.items(), key=lambda it: -len(it[0]))
        ]
        self.ids, self.path = {}, []
        today = datetime.datetime.now(datetime.timezone.utc).date()
        days = range(-NEAR_DAYS, NEAR_DAYS + 1)
        self.near = {(today + datetime.timedelta(days=it)).isoformat() for it in days}

    def value(self, value, key=None):
        if key in MOMENTARY and not isinstance(value, (dict, list)):
            return "<momentary>"
        if key in OPAQUE and isinstance(value, str):
            return f"<{key}>"
        if isinstance(value, dict):
            if set(value) == {"$long"} and key in MEASURED:
                return {"$long": "<number>"}
            if value.get("code") == "timed_out":
                value = {**value, "message": "<momentary>"}  # It lists what each frame lacked.
            # Ids are numbered in this order; that of the members is no contract.
            found = {name: self.member(name, value[name], name) for name in sorted(value)}
            return {self.text(name): found[name] for name in value}
        if key == "gaps" and isinstance(value, list):
            # Adjoining gaps are merged later, so that their number depends on the moment.
            gaps = {json.dumps(self.value(it), sort_keys=True) for it in value}
            return [json.loads(it) for it in sorted(gaps)]
        if isinstance(value, list):
            return [self.member(at, it, key) for at, it in enumerate(value)]
        if isinstance(value, str):
            return self.text(value)
        if key in MEASURED and isinstance(value, (int, float)) and not isinstance(value, bool):
            return "<number>"
        return round(value, 4) if isinstance(value, float) else value

    def text(self, text):
        for old, new in self.replacements:
            text = old.sub(new, text)
        if TOKEN.fullmatch(text):
            return self.token(text)
        text = UUID.sub(lambda it: self.id("id", it.group()), text)
        text = SITE_KEY.sub("site key <fingerprint>", FREE.sub("<number> MB free", text))
        text = KEY.sub(lambda it: self.id("key", it.group()), text)
        text = TIME.sub(self.time, text)
        return DATE.sub(lambda it: "<date>" if it.group() in self.near else it.group(), text)

    def time(self, found):
        """Keeps how a time is written: its precision and its offset."""
        shape = re.sub(r"\d", "0", found.group()[len("2026-11-23") :])
        return f"<date{shape}>" if found.group(1) in self.near else found.group()

    def id(self, kind, text):
        """Returns a name for an id, the same for each appearance: the place of the first one."""
        if text not in self.ids:
            place = "/".join(str(it).split("/")[-1] for it in self.path[-PLACE_STEPS:])
            used = sum(it.startswith(f"<{kind} of {place}") for it in self.ids.values())
            self.ids[text] = f"<{kind} of {place}{f' #{used + 1}' if used else ''}>"
        return self.ids[text]

    def member(self, step, value, key):
        self.path.append(step)
        found = self.value(value, key)
        self.path.pop()
        return found

    def token(self, text):
        """The header and the claims of a compact JWS; its signature is not compared."""
        header, claims = (
            json.loads(base64.urlsafe_b64decode(it + "===")) for it in text.split(".")[:2]
        )
        if "kid" in header:
            header["kid"] = "<thumbprint>"
        return {
            "header": self.value(header),
            "claims": self.value(claims),
            "signature": "<signature>",
        }
