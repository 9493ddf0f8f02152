#!/usr/bin/env python3
"""The power goes, again and again, at any instant: nothing that the device acknowledged is lost, and it always comes back.

The real daemon runs in a virtual machine: root read-only, state on an ext4 whose disk has a volatile write cache (disk.py) that
loses what was not flushed when the power is cut. Commands come through a broker on this side, visitors pass the daemon's replay
camera, and the power is cut after a random number of writes to the disk. Acknowledged is what left the machine: an event that the
broker was given, a command that was answered. After each cut the medium is looked at from here, then the machine starts again.

    run.py [--program FILE] [--cuts N] [--seed N] [--verbose]

A tenth of the cuts (at least one) falls into a very first start, as many into the migration of an old database, the others into
full flow and the starts after that. One more cut is of a disk that lies about flushing: there something is lost, and the test has
to notice, or else it sees nothing.
Installs what it needs (Debian packages) and keeps it in .cache/power-cut.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid

import disk
import machine

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
CACHE = ROOT / ".cache" / "power-cut"
PHOTOS = ROOT / ".cache" / "photos"
BASE = "rollcall/vm/door"
STATE_MIB = 48
# Enrolled before the machine is first switched on: an emulated processor takes long for that.
PEOPLE = {"first": "obama.jpg", "second": "biden.jpg"}
SHOWN = ("obama2.jpg", "biden.jpg")
UNANSWERED_MAX = 12
OLD_EVENTS, OLD_OWED = 4000, 40
# Emulated processors are slow, and other work may run beside: reaching this is a failure, not a pause.
PATIENCE = 120

START = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - START:6.1f} s] {text}", flush=True)


class Failed(Exception):
    pass


def insist(holds, what):
    if not holds:
        raise Failed(what)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Broker:
    """A mosquitto of our own, which is never cut off, and everything that it was given."""

    def __init__(self, folder, port):
        self.port = port
        config = folder / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\nlog_type error\nmax_queued_messages 0\n")
        self.process = subprocess.Popen([machine.which("mosquitto"), "-c", config], stdin=subprocess.DEVNULL)
        self.messages, self.arrived = [], threading.Condition()
        for _ in range(200):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            time.sleep(0.05)
        listen = ["mosquitto_sub", "-p", str(self.port), "-q", "1", "-t", f"{BASE}/#", "-F", "%t %p"]
        self.subscriber = subprocess.Popen(listen, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        tell = ["mosquitto_pub", "-p", str(self.port), "-q", "1", "-t", f"{BASE}/command/rename", "-l"]
        self.commands = subprocess.Popen(tell, stdin=subprocess.PIPE, text=True)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.subscriber.stdout:
            topic, _, payload = line.rstrip("\n").partition(" ")
            message = json.loads(payload) if payload.startswith("{") else payload
            with self.arrived:
                self.messages.append((topic.removeprefix(BASE + "/"), message))
                self.arrived.notify_all()

    def rename(self, message):
        self.commands.stdin.write(json.dumps(message) + "\n")
        self.commands.stdin.flush()

    def until(self, accept, patience=PATIENCE, since=0):
        """The first message from `since` on that `accept(topic, message)` takes; None if the time is up."""
        end = time.monotonic() + patience
        with self.arrived:
            while True:
                for topic, message in self.messages[since:]:
                    if accept(topic, message):
                        return message
                since = len(self.messages)
                left = end - time.monotonic()
                if left <= 0 or not self.arrived.wait(left):
                    return None

    def settle(self):
        """Everything that the broker has is heard: a message of our own comes back."""
        mark = uuid.uuid4().hex
        send = ["mosquitto_pub", "-p", str(self.port), "-q", "1", "-t", f"{BASE}/mark", "-m", mark]
        subprocess.run(send, check=True)
        insist(self.until(lambda topic, message: message == mark), "the broker does not answer")

    def events(self):
        """All events that were ever heard, by seq; the same event may come twice, another under its number may not."""
        events, again = {}, 0
        for topic, event in list(self.messages):
            if topic.startswith("event/"):
                known = events.setdefault(event["seq"], event)
                again += known is not event
                insist(known["event_id"] == event["event_id"], f"two events have the number {event['seq']}")
        return events, again

    def answers(self):
        """All answers by request; one that came twice was the same."""
        answers = {}
        for topic, answer in list(self.messages):
            if topic.startswith("reply/"):
                known = answers.setdefault(answer["request_id"], answer)
                insist(known == answer, f"request {answer['request_id']} has two answers")
                insist(answer["ok"], f"refused: {answer}")
        return answers

    def end(self):
        self.commands.stdin.close()
        for process in (self.commands, self.subscriber, self.process):
            process.terminate()
            process.wait()


class Bench:
    """What all machines share, and what is known of the one device that they are."""

    def __init__(self, folder, options):
        self.folder, self.options = folder, options
        self.kernel = machine.prepare(CACHE, say)
        self.broker, self.running, self.disk = Broker(folder, free_port()), None, None
        self.made = self.sent = 0
        self.totals = {"cuts": 0, "cached": 0, "kept": 0, "torn": 0, "checked": 0, "writes": 0, "flushes": 0, "bytes": 0}
        self.device_key, self.seal_key = None, None
        # Events up to this one were delivered before anybody here listened.
        self.delivered_before = 0
        self.initial = folder / "initial"
        self.initial.write_bytes(machine.first_files(self.kernel, HERE / "init.sh"))
        root = folder / "root"
        stripped = folder / "rollcall"
        machine.run("strip", "-o", stripped, options.program)
        runtime = ROOT / ".cache" / "onnxruntime" / "x86_64" / "libonnxruntime.so"
        files = [(PHOTOS / name, f"photos/{name}") for name in set(SHOWN)]
        files += [(path, f"models/{path.name}") for path in (ROOT / "models").iterdir() if path.is_file()]
        programs = [(stripped, "bin/rollcall"), (runtime, "lib64/libonnxruntime.so"), (machine.which("e2fsck"), "bin/e2fsck")]
        machine.root(root, HERE / "init.sh", programs, files)
        shown = "".join(f"/photos/{name},2000,500\n" for name in SHOWN)
        (root / "photos" / "visits.csv").write_text(shown)
        (root / "etc" / "rollcall.toml").write_text(config("10.0.2.2", self.broker.port, "/var/lib/rollcall", "/models",
            "/lib64/libonnxruntime.so") + "[camera]\nsource = \"replay\"\npath = \"/photos/visits.csv\"\nfps = 2\nrepeat = true\n")
        self.system = machine.file_system(folder / "system", root, 160)
        shutil.rmtree(root)

    def image(self, state=None):
        """A new state partition, with what is in the folder `state`."""
        content = self.folder / "content"
        content.mkdir()
        if state:
            shutil.copytree(state, content / "rollcall")
        image = machine.file_system(self.folder / "state.img", content, STATE_MIB).read_bytes()
        shutil.rmtree(content)
        return image

    def new_device(self):
        """What follows is another device, of which nothing is known."""
        self.device_key, self.seal_key, self.sent = None, None, 0
        # Its commands, and what the broker keeps of the former one.
        self.broker.end()
        self.broker = Broker(self.folder, self.broker.port)

    def start(self, image, lying=False):
        self.made += 1
        address = self.folder / f"disk-{self.made}"
        self.disk = disk.Disk(image, address, lying)
        show = (lambda line: print("    " + line, flush=True)) if self.options.verbose else None
        self.running = machine.Machine(self.kernel, self.initial, self.system, address, show)

    def until_up(self):
        insist(self.running.until("VM up", PATIENCE), self.told("the machine does not come up"))

    def until_online(self, since):
        """The daemon runs, knows its people and is the device that it was."""
        health = self.broker.until(lambda topic, message: topic == "health", PATIENCE, since)
        insist(health and health["schema"] == 1, self.told("the daemon does not come back"))
        key = health["device_key"]
        insist(self.device_key in (None, key), "the device has another key than before")
        self.device_key = key
        for line in self.running.lines:
            if "VM checks" in line:
                say(line)
                self.totals["checked"] += 1
        aside = [line for line in self.running.lines if "moved aside" in line]
        insist(not aside, f"the database was found damaged: {aside}")
        return health

    def told(self, what):
        return what + "\n" + "\n".join(self.running.lines[-30:])

    def cut(self, why, chances=(0.0, None, None, 1.0)):
        """The power is off. Gives what the medium holds, after it was looked at from here."""
        # What the disk does with its cache is luck: all of it lost, all of it kept, or anything between.
        chance = random.choice(chances)
        kept = random.random() if chance is None else chance
        cached, whole, torn = self.disk.cut(kept)
        self.running.kill()
        self.tally()
        for name, count in (("cuts", 1), ("cached", cached), ("kept", whole), ("torn", torn)):
            self.totals[name] += count
        self.broker.settle()
        found = self.look(self.disk.durable)
        say(f"cut {self.totals['cuts']} {why}: {cached} writes in the cache, {whole} kept, {torn} torn; {found}")
        return bytes(self.disk.durable)

    def tally(self):
        self.disk.close()
        for name in ("writes", "flushes", "bytes"):
            self.totals[name] += getattr(self.disk, name)

    def files_of(self, image):
        """The state directory as the next start finds it: a copy of the medium, its journal replayed, read without mounting."""
        path = disk.save(image, self.folder / "medium")
        checked = subprocess.run([machine.which("e2fsck"), "-fp", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        insist(checked.returncode in (0, 1), f"the file system is damaged: {checked.stdout}")
        target = self.folder / "state"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        machine.run(machine.which("debugfs"), "-R", f"rdump /rollcall {target}", path, stderr=subprocess.DEVNULL)
        return target / "rollcall"

    def look(self, image, complete=False):
        """Holds what is on the medium against what the device has acknowledged. Gives words about it."""
        state = self.files_of(image)
        aside = [path.name for path in state.glob("*damaged*")] if state.exists() else []
        insist(not aside, f"a database was set aside: {aside}")
        key = state / "rollcall.key"
        if key.exists():
            key = key.read_bytes()
            insist(len(key) == 32 and self.seal_key in (None, key), "the key of the templates is not what it was")
            self.seal_key = key
        insist(key or self.seal_key is None, "the key of the templates is gone")
        heard, _ = self.broker.events()
        answers = self.broker.answers()
        path = state / "rollcall.db"
        if not path.exists() or path.stat().st_size == 0:
            insist(not heard and not answers and self.device_key is None, "the database is gone")
            return "no database yet"
        with contextlib.closing(sqlite3.connect(path)) as database:
            return self.compare(database, heard, answers, complete)

    def compare(self, database, heard, answers, complete):
        one = lambda sql, *values: database.execute(sql, values).fetchone()[0]
        insist(one("pragma integrity_check") == "ok", "the database is damaged")
        insist(not database.execute("pragma foreign_key_check").fetchall(), "a reference leads to nothing")
        version = one("pragma user_version")
        if not one("select count(*) from sqlite_schema where name = 'event'"):
            insist(not heard and not answers and self.device_key is None, "the events are gone")
            return f"schema {version}, empty"
        rows = database.execute("select seq, event_id, kind from event order by seq").fetchall()
        stored = {seq: str(uuid.UUID(bytes=event_id)) for seq, event_id, _ in rows}
        insist(list(stored) == list(range(1, len(stored) + 1)), "seq has a gap")
        for seq, event in heard.items():
            insist(stored.get(seq) == event["event_id"], f"event {seq} was delivered and is lost")
        owed = {seq for seq, in database.execute("select event_seq from outbox where sink = 'mqtt' and event_seq is not null")}
        gone = [seq for seq in stored if seq > self.delivered_before and seq not in owed and seq not in heard]
        insist(not gone, f"events {gone[:5]} are neither owed nor delivered")
        insist(one("select count(*) from outbox where buried_reason is not null") == 0, "something was buried")
        kept = {request for request, in database.execute("select request_id from command")}
        # Others, such as what the command line asks of the daemon, have no event.
        renames = {request for request, in database.execute("select request_id from command where verb = 'rename'")}
        lost = set(answers) - kept
        insist(not lost, f"requests {sorted(lost)[:5]} were answered, and the device does not know it")
        # What a command does, its event and its answer are one: none is there without the others, and none twice.
        bodies = [json.loads(body) for body, in database.execute("select body from event where kind = 'enrolment'")]
        renamed = [body["request_id"] for body in bodies if body["action"] == "renamed"]
        insist(len(renamed) == len(set(renamed)) and set(renamed) == renames, "commands and their events do not belong together")
        self.check_names(database, renamed)
        if complete:
            insist(set(heard) | set(range(1, self.delivered_before + 1)) == set(stored) and not owed, "not everything was delivered")
            insist(len(answers) == self.sent == len(renames), "not every command was answered")
        return f"{len(stored)} events, {len(owed)} of them owed, {len(kept)} commands answered, none lost"

    def check_names(self, database, renamed):
        """Whoever was renamed has the name of the newest command that was carried out."""
        for number, subject in enumerate(PEOPLE):
            mine = [int(request[2:]) for request in renamed if int(request[2:]) % len(PEOPLE) == number]
            if mine:
                name = database.execute("select name from subject where id = ?", (subject,)).fetchone()[0]
                insist(name == f"Name {max(mine)}", f"{subject} is called {name} after the renaming {max(mine)}")

    # The load

    def load(self, stopped, patience=PATIENCE):
        """Renames people until `stopped()`, some commands ahead of the answers."""
        end = time.monotonic() + patience
        while not stopped() and time.monotonic() < end:
            if self.sent - len(self.broker.answers()) < UNANSWERED_MAX:
                subject = list(PEOPLE)[self.sent % len(PEOPLE)]
                request = {"request_id": f"r-{self.sent}", "subject_id": subject, "name": f"Name {self.sent}"}
                self.broker.rename(request)
                self.sent += 1
            else:
                with self.broker.arrived:
                    self.broker.arrived.wait(0.1)

    def until_delivered(self):
        """Everything answered, nothing owed."""
        done = lambda topic, it: topic == "health" and it["outbox"][0]["rows"] == 0 and len(self.broker.answers()) == self.sent
        insist(self.broker.until(done, PATIENCE, len(self.broker.messages)), self.told("not everything is delivered"))

    def stop(self):
        """An orderly end. Gives what the medium holds."""
        self.running.tell("stop")
        ended = self.running.until("VM ended", PATIENCE)
        insist(ended and ended.strip() == "VM ended 0", self.told("the daemon does not end as it should"))
        self.running.tell("off")
        insist(self.running.until("VM state is unmounted", PATIENCE), self.told("the state partition is in use"))
        self.running.until("VM gone", PATIENCE)
        self.running.kill()
        self.tally()
        return bytes(self.disk.durable)

    def end(self):
        if self.running:
            self.running.kill()
        self.broker.end()


def config(host, port, state, models, library):
    return f"""
[device]
site = "vm"
name = "door"
[storage]
directory = "{state}"
[clock]
trust = "always"
[recognition]
models = "{models}"
runtime_library = "{library}"
threads = 1
# An emulated processor takes seconds for what a real one does in milliseconds.
samples_min = 1
pad = "off"
[[venue]]
id = "main"
re_entry_gap = "0s"
[mqtt]
host = "{host}"
port = {port}
health_every = "1s"
"""


def enrolled(folder, program):
    """A state directory with people in it, made here by the same program."""
    state, text = folder / "enrolled", folder / "enrolled.toml"
    library = ROOT / ".cache" / "onnxruntime" / "x86_64" / "libonnxruntime.so"
    text.write_text(config("", 0, state, ROOT / "models", library))
    for subject, photo in PEOPLE.items():
        command = [program, "--config", text, "enrol", "--id", subject, "--name", "Nobody", PHOTOS / photo]
        machine.run(*command, stderr=subprocess.DEVNULL)
    return state


def old_database(folder):
    """A state directory as the first version left it: events that the broker has, and some that it has not."""
    state = folder / "old"
    state.mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(state / "rollcall.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.executescript((ROOT / "src/store/migrations/0001.sql").read_text())
        sql = ("insert into event (event_id, kind, occurred_ms, boot_id, boottime_ms, clock, venue, subject_id, direction, body) "
               "values (?, 'attendance', ?, 'before', ?, 'synced', 'main', ?, 'in', ?)")
        for number in range(OLD_EVENTS):
            subject, passed_ms = f"p{number % 50}", number * 60_000
            body = {"schema": 1, "venue": "main", "session": None, "subject": {"id": subject, "name": "Nobody"}, "direction": "in",
                    "status": "present", "score": 0.7, "threshold": 0.4, "frames": 3, "track_ms": 600, "latency_ms": 80}
            values = (uuid.uuid4().bytes, 1_700_000_000_000 + passed_ms, passed_ms, subject, json.dumps(body))
            database.execute(sql, values)
        owe = "insert into outbox (sink, event_seq, created_ms) select 'mqtt', seq, 1 from event where seq > ?"
        database.execute(owe, (OLD_EVENTS - OLD_OWED,))
        database.execute("insert into meta values ('sink.mqtt', cast('-1' as blob))")
        database.execute("pragma user_version = 1")
        database.commit()
    return state


def starts(bench, what, image, cuts):
    """The power goes during a start, and again during the start after that; then the daemon comes up, and stays what it is."""
    # How much a start writes, so that cuts fall anywhere within it; once undisturbed.
    bench.start(image)
    bench.until_up()
    before = bench.disk.writes
    bench.until_online(0)
    bench.broker.settle()
    writes = bench.disk.writes - before
    say(f"{what}: {writes} writes to the disk until the daemon is there")
    bench.look(bench.stop())
    while cuts:
        bench.new_device()
        medium = image
        for again in range(min(2, cuts)):
            bench.start(medium)
            bench.until_up()
            bench.disk.cut_after(random.randint(1, writes if again == 0 else max(writes // 2, 2)))
            # A start that found most of it done may have written all there was to write.
            bench.disk.until_dark(PATIENCE / 6)
            medium = bench.cut(f"in {what}")
            cuts -= 1
        since = len(bench.broker.messages)
        bench.start(medium)
        bench.until_online(since)
        say(f"{what}: there again; {bench.look(bench.stop())}")


def flow(bench, image, cuts):
    """The power goes in full flow, and now and then during the start that follows."""
    for number in range(cuts + 1):
        since = len(bench.broker.messages)
        bench.start(image)
        if 0 < number < cuts and random.random() < 0.2:
            bench.disk.cut_after(random.randint(1, 40))
            bench.disk.until_dark(PATIENCE / 4)
            image = bench.cut("while it starts after a cut")
            continue
        health = bench.until_online(since)
        gallery = health["gallery"]
        insist((gallery["subjects"], gallery["references"]) == (len(PEOPLE), len(PEOPLE)), f"people are lost: {gallery}")
        if number == cuts:
            break
        bench.disk.cut_after(random.randint(1, 800))
        bench.load(lambda: bench.disk.dark)
        insist(bench.disk.dark, bench.told("the load does not reach the disk"))
        image = bench.cut("in full flow")
    bench.until_delivered()
    words = bench.look(bench.stop(), complete=True)
    heard, again = bench.broker.events()
    kinds = collections.Counter(event["kind"] for event in heard.values())
    say(f"at the end {words}")
    say(f"{len(heard)} events heard ({dict(kinds)}), {again} of them more than once; {len(bench.broker.answers())} answers")
    insist(kinds["attendance"] > 0, "nobody was recorded")


def control(bench, image):
    """With a disk that answers flushes without flushing, something must be found lost."""
    bench.start(image, lying=True)
    bench.until_online(0)
    bench.load(lambda: len(bench.broker.answers()) >= 50)
    try:
        bench.cut("of a disk that lies", chances=[0.0])
    except Failed as failure:
        say(f"noticed, as it must be: {str(failure).splitlines()[0]}")
        return
    raise Failed("a disk that lies about flushing was not noticed: this test sees nothing")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default=ROOT / "target" / "debug" / "rollcall", type=pathlib.Path)
    parser.add_argument("--cuts", default=20, type=int)
    parser.add_argument("--seed", default=random.randrange(1 << 32), type=int, help="repeats the random choices, not the timing")
    parser.add_argument("--verbose", action="store_true", help="show what the machines print")
    options = parser.parse_args()
    insist(options.program.is_file(), f"{options.program} is not built")
    insist((PHOTOS / "complete").exists(), f"{PHOTOS} is not complete: make setup fetches the photographs")
    say(f"seed {options.seed}")
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        bench = Bench(folder, options)
        try:
            say("everything is there")
            full = bench.image(enrolled(folder, options.program))
            part = max(1, options.cuts // 10)
            starts(bench, "a first start", bench.image(), part)
            bench.new_device()
            bench.delivered_before = OLD_EVENTS - OLD_OWED
            starts(bench, "a migration", bench.image(old_database(folder)), part)
            bench.new_device()
            bench.delivered_before = 0
            flow(bench, full, max(1, options.cuts - 2 * part))
            figures = dict(bench.totals)
            bench.new_device()
            control(bench, full)
            say(
                f"{figures['cuts']} cuts: {figures['cached']} writes were in the cache, {figures['kept']} of them reached the medium"
                f" whole, {figures['torn']} in part; {figures['writes']} writes, {figures['flushes']} flushes,"
                f" {figures['bytes'] >> 20} MiB in all; {figures['checked']} times the file system had to be checked before it"
                " could be mounted. Nothing lost"
            )
        except Failed:
            if bench.disk:
                say(f"the medium is kept as {disk.save(bench.disk.durable, CACHE / 'failed.image')}")
            raise
        finally:
            bench.end()


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        print(f"power cut test: FAILED: {failure}", file=sys.stderr)
        sys.exit(1)
