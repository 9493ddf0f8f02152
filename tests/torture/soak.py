"""Months at a daemon with retention: memory, descriptors and the database must not grow.

Both of the daemon's clocks advance by twenty hours at a time, less than what retention takes for a
wrong clock. Between two steps people pass and commands arrive, and each step ends when the hourly
maintenance has seen the new time. The first third of the steps is the warm-up.
"""

import base64
import contextlib
import random
import sqlite3
import statistics
import time

from office import Office
from services import PHOTOS, Clock, Daemon, Mosquitto, insist, until

STEP_MS = 20 * 3_600_000
DAY_MS = 86_400_000
KEEP_DAYS = 2
COMMANDS = 40
STEPS_MIN = 12
CLOCK_SEEN = "select cast(value as text) from meta where key = 'clock_seen'"
OLDEST = "select min(occurred_ms), count(*) from event"
NEWEST = "select seq from sqlite_sequence where name = 'event'"


def query(daemon, sql):
    with contextlib.closing(sqlite3.connect(daemon.state / "rollcall.db", timeout=30)) as base:
        return base.execute(sql).fetchone()


def database_bytes(daemon):
    return sum(it.stat().st_size for it in daemon.state.glob("rollcall.db*"))


def run(folder, program, seconds, say):
    clock, mosquitto = Clock(folder), Mosquitto(folder)
    daemon = Daemon(folder, program, folder / "state", clock)
    daemon.configure(mosquitto.port, keep_days=KEEP_DAYS)
    office = Office(mosquitto.port, random.Random(0))
    try:
        mosquitto.start()
        office.connect()
        daemon.start()
        daemon.until_ready()
        samples = _months(daemon, office, clock, seconds)
        insist(daemon.stop() == 0, f"no orderly end:\n{daemon.log()[-2000:]}")
        insist("panicked" not in daemon.log(), "a panic is in the log")
        _judge(samples, say)
    finally:
        daemon.kill()
        mosquitto.kill()


def _months(daemon, office, clock, seconds):
    """Returns for each step: resident bytes, descriptors, threads, database bytes, events."""
    office.until_health("the daemon is online", lambda it: True)
    image = base64.b64encode((PHOTOS / "obama.jpg").read_bytes()).decode()
    body = {"subject": {"id": "first", "name": "First"}, "images": [image]}
    insist(office.request("enrol", "enrol", body)["ok"], "not enrolled")
    # One who is known and one who is not.
    daemon.scene([PHOTOS / "obama.jpg", PHOTOS / "biden.jpg"])
    end, steps, samples = time.monotonic() + seconds, 0, []
    while time.monotonic() < end or steps < STEPS_MIN:
        steps += 1
        for number in range(COMMANDS):
            name = {"subject_id": "first", "name": f"Name {number}"}
            office.send("rename", f"rename-{steps}-{number}", name)
        office.request("sync", f"sync-{steps}", {})
        clock.move(steps * STEP_MS, steps * STEP_MS)
        now_ms = int(time.time() * 1000) + steps * STEP_MS
        seen = lambda: int(query(daemon, CLOCK_SEEN)[0]) >= now_ms - 60_000
        until("maintenance has seen the time", seen)
        oldest_ms, events = query(daemon, OLDEST)
        samples.append((*daemon.measure(), database_bytes(daemon), events, query(daemon, NEWEST)[0]))
        # Two days are kept, and what is needed to tell who was recorded in a session: three steps.
        kept_ms = KEEP_DAYS * DAY_MS + 3 * STEP_MS
        if oldest_ms is not None and now_ms - oldest_ms > kept_ms and steps > 6:
            insist(False, f"an event is {(now_ms - oldest_ms) / DAY_MS:.1f} days old")
        office.requests.clear()
        office.replies.clear()
        office.events.clear()
    return samples


def _judge(samples, say):
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[-third:]
    column = lambda part, at: [it[at] for it in part]
    memory = [statistics.median(column(part, 0)) / (1 << 20) for part in (middle, last)]
    descriptors = [max(column(part, 1)) for part in (middle, last)]
    threads = [max(column(part, 2)) for part in (middle, last)]
    database = [max(column(part, 3)) >> 10 for part in (middle, last)]
    days = len(samples) * STEP_MS // DAY_MS
    say(f"soak of {days} days, {samples[-1][5]} events recorded, {samples[-1][4]} kept")
    say(f"memory (median of the second and of the last third): {memory[0]:.1f}, {memory[1]:.1f} MiB")
    say(f"descriptors {descriptors}, threads {threads}, database {database} KiB")
    insist(memory[1] <= memory[0] * 1.1 + 4, "memory grows")
    insist(descriptors[1] <= descriptors[0] and threads[1] <= threads[0], "descriptors grow")
    insist(database[1] <= database[0] * 1.15 + 256, "the database grows")
