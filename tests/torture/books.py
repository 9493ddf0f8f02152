"""Holds the three books of a run against each other: SQLite, what MQTT delivered, MongoDB.

Lost: recorded and not delivered, or replied to and not recorded. Doubled: one request or one `seq`
with two events. A gap: a `seq` that is missing.
"""

import contextlib
import json
import sqlite3
import time
import uuid

from services import insist

EVENTS = """select seq, event_id, kind, occurred_ms, clock, venue, subject_id, body, superseded_by
from event order by seq"""


def read(database):
    """Returns the events of a database by seq; its own integrity is part of the books."""
    with contextlib.closing(sqlite3.connect(database)) as base:
        insist(base.execute("pragma integrity_check").fetchone() == ("ok",), "SQLite is damaged")
        insist(not base.execute("pragma foreign_key_check").fetchall(), "a key leads to nothing")
        pending = base.execute("select sink, count(*) from outbox group by sink").fetchall()
        insist(not pending, f"pending at the end: {pending}")
        names = ("seq", "id", "kind", "ms", "clock", "venue", "subject", "body", "superseded_by")
        rows = [dict(zip(names, row)) for row in base.execute(EVENTS)]
    for row in rows:
        row["id"] = str(uuid.UUID(bytes=row["id"]))
        row["body"] = json.loads(row["body"])
        by = row["superseded_by"]
        row["superseded_by"] = by and str(uuid.UUID(bytes=by))
    return {row["seq"]: row for row in rows}


def moment(ms):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms // 1000)) + f".{ms % 1000:03}Z"


class Books:
    """The findings: each of the counts must be 0 at the end, except where its name says else."""

    def __init__(self, stored, office, acknowledged, documents):
        self.stored, self.office = stored, office
        self.acknowledged, self.documents = acknowledged, documents
        self.faults, self.forgotten_by_broker = list(office.faults), 0

    def compare(self):
        self._sequence()
        self._mqtt()
        self._mongo()
        self._requests()
        return self.faults

    def _fault(self, kind, what):
        self.faults.append(f"{kind}: {what}")

    def _sequence(self):
        expected = range(1, len(self.stored) + 1)
        missing = sorted(set(expected) - set(self.stored))
        if missing or max(self.stored, default=0) != len(self.stored):
            self._fault("gap", f"seq {missing[:5]}")
        if len({it["id"] for it in self.stored.values()}) != len(self.stored):
            self._fault("doubled", "an event_id")

    def _mqtt(self):
        for seq, event in self.office.events.items():
            row = self.stored.get(seq)
            if row is None or row["id"] != event["event_id"] or row["kind"] != event["kind"]:
                self._fault("lost", f"event {seq} was delivered and is not in the database")
        for seq, row in self.stored.items():
            if seq in self.office.events:
                continue
            if row["id"] in self.acknowledged:
                self.forgotten_by_broker += 1
            else:
                self._fault("lost", f"event {seq} ({row['kind']}) was never delivered by MQTT")

    def _mongo(self):
        recorded = {it["id"]: it for it in self.stored.values() if it["kind"] == "attendance"}
        for event_id in set(recorded) - set(self.documents):
            self._fault("lost", f"attendance {recorded[event_id]['seq']} is not in MongoDB")
        for event_id in set(self.documents) - set(recorded):
            self._fault("lost", f"{event_id} is in MongoDB and not in the database")
        for event_id in set(recorded) & set(self.documents):
            row, document = recorded[event_id], self.documents[event_id]
            theirs = (document["clock"], document.get("superseded_by"))
            if theirs != (row["clock"], row["superseded_by"]):
                self._fault("altered", f"attendance {row['seq']}: {theirs} in MongoDB, {row}")
            if document["occurred_at"]["$date"] != moment(row["ms"]):
                self._fault("altered", f"attendance {row['seq']} has another time in MongoDB")

    def _requests(self):
        """Every request was replied to, and has exactly the effect that its reply states."""
        sent, replies = self.office.requests, self.office.replies
        of_desk = [it for it in self.stored.values() if it["venue"] == "desk"]
        of_desk = {it["id"]: it for it in of_desk if it["kind"] == "attendance"}
        renamed = [it["body"] for it in self.stored.values() if it["kind"] == "enrolment"]
        renamed = [it["request_id"] for it in renamed if it["action"] == "renamed"]
        visits, names = [], []
        for request_id, request in sent.items():
            reply = replies.get(request_id)
            if reply is None:
                self._fault("lost", f"{request_id} was never replied to")
            elif not reply["ok"]:
                self._fault("lost", f"{request_id} was refused: {reply['error']}")
            elif request["verb"] == "attend":
                visits += reply["event_ids"]
                if len(reply["event_ids"]) != 1:
                    self._fault("lost", f"{request_id} has {len(reply['event_ids'])} events")
            elif request["verb"] == "rename":
                names.append(request_id)
        if len(visits) != len(set(visits)) or len(renamed) != len(set(renamed)):
            self._fault("doubled", "an event belongs to two requests, or a request has two events")
        for event_id in set(visits) - set(of_desk):
            self._fault("lost", f"the visit {event_id} was replied to and is not recorded")
        for event_id in set(of_desk) - set(visits):
            self._fault("doubled", f"visit {of_desk[event_id]['seq']} belongs to no reply")
        for request_id in set(renamed) ^ set(names):
            self._fault("doubled or lost", f"{request_id}: its event and its reply do not agree")
