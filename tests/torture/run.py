#!/usr/bin/env python3
"""Torture: the daemon under everything that befalls a device, at random; then its books are read.

    run.py [--program FILE] [--minutes N] [--seed N] [--keep]

Two thirds of the time the daemon, mosquitto and mongod are killed (SIGKILL), the network between
them is cut or swallows everything, the daemon's wall clock jumps, its disk runs full and is emptied,
and copies of its database with flipped bits are opened. Meanwhile people pass its replay camera and
commands arrive. In the end everything runs again, and SQLite, MQTT and MongoDB are compared
(books.py). In the last third months pass at a daemon with retention (soak.py).

The seed repeats the choices, not the timing. As root the state is on an ext4 of 64 MiB, in a mount
namespace of this run; without root the disk is not filled. Everything listens on loopback only.
"""

import argparse
import base64
import contextlib
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import soak
from bitflips import BitFlips
from books import Books, read
from office import Office
from proxy import CUT, OPEN, STALLED, Acknowledged, Proxy
from services import (
    MONGOD, PHOTOS, ROOT, RUNTIME, Clock, Daemon, Disk, Failed, Mongod, Mosquitto, insist, until,
)

INSIDE = "TORTURE_INSIDE"
# The demo's photographs: by which one is enrolled, and by which recognised.
PEOPLE = {"first": ("obama.jpg", "obama2.jpg"), "second": ("biden.jpg", "biden.jpg")}
MEMORY_MAX_MIB = 200
HOUR_MS = 3_600_000
JUMPS_MS = (-HOUR_MS, HOUR_MS, 20 * HOUR_MS, -40 * HOUR_MS, 400 * 24 * HOUR_MS, -3 * 10**12)
START = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - START:6.1f} s] {text}", flush=True)


class Torture:
    def __init__(self, folder, program, seed, is_root):
        self.rng, self.counts = random.Random(seed), {}
        self.disk = Disk(folder, is_root)
        self.mosquitto, self.mongod = Mosquitto(folder), Mongod(folder)
        self.acknowledged = Acknowledged()
        self.to_broker = Proxy(self.mosquitto.port, self.acknowledged.tap)
        self.to_mongod = Proxy(self.mongod.port)
        self.clock = Clock(folder)
        self.daemon = Daemon(folder, program, self.disk.state, self.clock)
        self.daemon.configure(self.to_broker.port, self.to_mongod.port)
        self.office = Office(self.mosquitto.port, random.Random(self.rng.random()))
        self.flips = BitFlips(folder, program, random.Random(self.rng.random()))
        # What goes on now, with the time at which it is made good.
        self.ongoing, self.moved_ms = {}, 0

    def begin(self):
        self.mosquitto.start()
        self.mongod.start()
        self.mongod.until_primary()
        self.office.connect()
        self.daemon.start()
        self.daemon.until_ready()
        self.office.until_health("the daemon is online", lambda it: it["mongo"] is not None)
        probes = []
        for subject, names in PEOPLE.items():
            images = [base64.b64encode((PHOTOS / it).read_bytes()).decode() for it in names]
            body = {"subject": {"id": subject, "name": subject}, "images": images[:1]}
            reply = self.office.request("enrol", f"enrol-{subject}", body)
            insist(reply["ok"], f"not enrolled: {reply}")
            reply = self.office.request("recognise", f"look-{subject}", {"image": images[1]})
            insist(reply.get("names") == [subject], f"not recognised: {reply}")
            probes.append((subject, images[1]))
        self.daemon.scene([PHOTOS / names[1] for names in PEOPLE.values()])
        self.office.start_load(probes)

    # What befalls the device. Each returns how to make it good and after how long.

    def kill_daemon(self):
        self.daemon.measure()
        self.daemon.kill()
        if self.rng.random() < 0.4:
            say(f"  bits flipped in a copy, {self.flips.try_one(self.disk.state)}")
        return self.daemon.start, self.rng.choice((0, 0, 1))

    def kill_mosquitto(self):
        self.mosquitto.kill()
        return self.start_mosquitto, self.rng.uniform(0, 4)

    def start_mosquitto(self):
        # Nothing is let through to it before there is a subscriber again.
        self.to_broker.set(CUT)
        self.mosquitto.start()
        self.office.connect()
        self.to_broker.set(OPEN)

    def kill_mongod(self):
        self.mongod.kill()
        return self.mongod.start, self.rng.uniform(0, 4)

    def cut_broker(self):
        self.to_broker.set(self.rng.choice((CUT, STALLED)))
        return lambda: self.to_broker.set(OPEN), self.rng.uniform(0.2, 8)

    def cut_mongod(self):
        self.to_mongod.set(self.rng.choice((CUT, STALLED)))
        return lambda: self.to_mongod.set(OPEN), self.rng.uniform(0.2, 8)

    def move_clock(self):
        by_ms = self.rng.choice(JUMPS_MS)
        if by_ms < -(10**12):
            by_ms = 5_000 - int(time.time() * 1000)  # To 1970, where nobody trusts it.
        self.moved_ms = by_ms
        self.clock.move(by_ms)
        return lambda: self.clock.move(0), self.rng.uniform(0.5, 6)

    def fill_disk(self):
        if self.disk.is_small:
            self.disk.fill()
        return self.disk.empty, self.rng.uniform(1, 6)

    def torture(self, seconds):
        actions = [self.kill_daemon] * 3 + [self.kill_mosquitto, self.kill_mongod] * 2
        actions += [self.cut_broker, self.cut_mongod, self.move_clock, self.fill_disk] * 2
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pause = time.monotonic() + self.rng.uniform(0.1, 1.5)
            while time.monotonic() < pause:
                self.make_good(time.monotonic())
                self.watch()
                time.sleep(0.05)
            action = self.rng.choice(actions)
            name = action.__name__
            # The broker's proxy has one state, and its restart sets it.
            busy = {"kill_mosquitto", "cut_broker"} if "bro" in name or "mosq" in name else {name}
            if busy & set(self.ongoing):
                continue
            undo, after_s = action()
            self.counts[name] = self.counts.get(name, 0) + 1
            self.ongoing[name] = (time.monotonic() + after_s, undo)
            detail = f" by {self.moved_ms / HOUR_MS:.1f} h" if name == "move_clock" else ""
            say(f"{name.replace('_', ' ')}{detail}, for {after_s:.1f} s")

    def make_good(self, now):
        for name, (due, undo) in list(self.ongoing.items()):
            if due <= now:
                del self.ongoing[name]
                undo()

    def watch(self):
        """The daemon must not end by itself, whatever happens to it."""
        self.daemon.measure()
        if "kill_daemon" not in self.ongoing and not self.daemon.runs():
            code = self.daemon.process.returncode
            raise Failed(f"the daemon ended with {code}:\n{self.daemon.log()[-3000:]}")

    def settle(self):
        """Everything runs again: all is delivered and replied to, and the daemon ends in order."""
        self.make_good(float("inf"))
        self.mongod.until_primary()
        say(f"everything runs again; {len(self.office.unanswered())} commands wait for replies")
        self.office.stop_load()
        self.daemon.scene([])
        rows = lambda it: sum(sink["rows"] for sink in it["outbox"])
        health = self.office.until_health("nothing is pending", lambda it: rows(it) == 0)
        self.daemon.measure()
        buried = [it for it in health["outbox"] if it["buried"]]
        insist(not buried, f"dead letters: {buried}")
        insist(self.daemon.stop() == 0, f"no orderly end:\n{self.daemon.log()[-3000:]}")
        # What the end itself recorded is delivered by another start.
        self.daemon.start()
        self.daemon.until_ready()
        self.office.until_health("nothing is pending again", lambda it: rows(it) == 0)
        insist(self.daemon.stop() == 0, f"no orderly end:\n{self.daemon.log()[-3000:]}")
        self.office.collect()
        return health

    def judge(self, health):
        stored = read(self.disk.state / "rollcall.db")
        books = Books(stored, self.office, self.acknowledged.event_ids, self.mongod.attendance())
        faults = books.compare()
        log = self.daemon.log()
        if "panicked" in log:
            faults.append("a panic is in the log")
        peak_mib = self.daemon.peak_kib / 1024
        if peak_mib > MEMORY_MAX_MIB:
            faults.append(f"the daemon used {peak_mib:.0f} MiB, more than {MEMORY_MAX_MIB}")
        kinds = {}
        for row in stored.values():
            kinds[row["kind"]] = kinds.get(row["kind"], 0) + 1
        say(f"done to it: {self.counts}")
        say(f"copies with flipped bits: {self.flips.figures()}")
        say(f"{len(stored)} events {kinds}; {self.office.again} came more than once")
        say(f"{len(self.office.requests)} requests, {len(self.office.replies)} replied to")
        say(f"in MongoDB {len(books.documents)} attendances")
        say(f"acknowledged and forgotten by a killed broker: {books.forgotten_by_broker}")
        say(f"sightings not stored on a full disk, since the last start: {health['store']['errors']}")
        say(f"peak memory of the daemon: {peak_mib:.0f} MiB")
        for kind in ("attendance", "enrolment"):
            insist(kinds.get(kind, 0) > 0, f"nothing was tried: there is no event of the kind {kind}")
        kinds = ("lost", "doubled", "gap", "altered")
        say(", ".join(f"{sum(it.startswith(k) for it in faults)} {k}" for k in kinds))
        insist(not faults, "\n".join(faults[:20]))

    def end(self):
        self.office.stopping = True
        for it in (self.daemon, self.mosquitto, self.mongod):
            it.kill()
        for it in (self.to_broker, self.to_mongod):
            it.close()
        self.disk.close()


def needed(program):
    for path, hint in (
        (program, "cargo build"),
        (RUNTIME, "make setup"),
        (PHOTOS / "complete", "make setup"),
        (MONGOD, "tests/fetch_mongod.sh"),
        (pathlib.Path("/usr/sbin/mosquitto"), "apt install mosquitto"),
    ):
        insist(path.exists(), f"{path} is missing: {hint}")


def run(options, folder):
    is_root = os.geteuid() == 0
    if not is_root:
        say("not root: the disk is not filled")
    torture = Torture(folder, options.program, options.seed, is_root)
    try:
        torture.begin()
        say("the load runs")
        torture.torture(options.minutes * 40)
        torture.judge(torture.settle())
    finally:
        torture.end()
    (folder / "soak").mkdir()
    soak.run(folder / "soak", options.program, options.minutes * 20, say)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default=ROOT / "target/debug/rollcall", type=pathlib.Path)
    parser.add_argument("--minutes", default=10.0, type=float)
    parser.add_argument("--seed", default=random.randrange(1 << 32), type=int)
    parser.add_argument("--keep", action="store_true", help="keep the folder of a run that failed")
    options = parser.parse_args()
    if os.geteuid() == 0 and INSIDE not in os.environ:
        # Mounts of our own, which go with this process however it ends.
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
        os.execvpe("unshare", command, {**os.environ, INSIDE: "1"})
    say(f"seed {options.seed}")
    needed(options.program)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        run(options, folder)
    except Failed as failure:
        print(f"torture: FAILED (seed {options.seed}): {failure}", file=sys.stderr)
        if options.keep:
            print(f"kept: {folder}", file=sys.stderr)
        sys.exit(1)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
