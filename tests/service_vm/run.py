#!/usr/bin/env python3
"""The package in a machine that runs systemd, from `apt install` to `apt purge`.

    run.py --package FILE

Installed and started as a caretaker would; recognises by replaying photographs; is killed, hung, stopped, upgraded, brought
back, given a camera while it runs, a root that is read-only, secrets from systemd; and leaves nothing behind. What is judged
is what systemd and the daemon's own record say. Emulated processors are slow: only few faces are recognised.
"""

import argparse
import base64
import json
import pathlib
import re
import sqlite3
import subprocess
import sys
import tempfile

from machine import ROOT, Failed, Machine, prepare, say

STATE = "/var/lib/rollcall"
CONFIG = "/etc/rollcall/config.toml"
PHOTOS = ROOT / ".cache" / "photos"
# The same person, once to enrol and once to pass.
ENROLLED, PASSING = PHOTOS / "obama.jpg", PHOTOS / "obama2.jpg"
# What `systemd-analyze security` may say at most; docs/systemd.md tells what makes it.
EXPOSURE_MAX = 1.9

REPLAY = """
[storage]
directory = "/var/lib/rollcall"
[camera]
source = "replay"
path = "/srv/photos"
pace = "networks"
repeat = true
fps = 2.0
# One frame with somebody, then a while with nobody: a stop right after a visit waits for no network.
show = "500ms"
gap = "4s"
[recognition]
models = "/usr/share/rollcall/models"
samples_min = 1
pad = "off"
[attendance]
venue = "main"
[[venue]]
id = "main"
re_entry_gap = "0s"
"""

CARD = """
[camera]
source = "replay"
path = "/srv/photos"
fps = 2.0
show = "500ms"
gap = "4s"
repeat = true
[recognition]
pad = "off"
"""

CAMERA = """
[storage]
directory = "/var/lib/rollcall"
[camera]
source = "v4l2"
fps = 2.0
# Nothing is to be recognised in a test picture.
mask = [[0.0, 0.0, 1.0, 1.0]]
[recognition]
models = "/usr/share/rollcall/models"
"""


def need(true, what):
    if not true:
        raise Failed(what)


def repacked(package, folder, version, comment=""):
    """The same package with another version, and a shipped configuration that differs by a comment."""
    tree = folder / f"tree-{version}"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
    if comment:
        with open(tree / CONFIG.lstrip("/"), "a") as config:
            config.write(f"# {comment}\n")
    made = folder / f"rollcall_{version}_amd64.deb"
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", "-Znone", tree, made], check=True, stdout=subprocess.DEVNULL)
    return made


def earlier_database(folder):
    """As a version wrote it whose schema was one step older."""
    steps = sorted((ROOT / "src" / "store" / "migrations").glob("*.sql"))[:-1]
    path = folder / "earlier.db"
    database = sqlite3.connect(path)
    for step in steps:
        database.executescript(step.read_text())
    database.execute(
        "insert into event (event_id, kind, occurred_ms, boot_id, boottime_ms, clock, body) "
        "values (zeroblob(16), 'attendance', 1, 'b', 2, 'synced', '{}')"
    )
    database.execute(f"pragma user_version = {len(steps)}")
    database.commit()
    database.close()
    return path, len(steps)


class Door(Machine):
    """The machine with the service, and what to ask of it."""

    def property(self, name):
        return self.run(f"systemctl show -P {name} rollcall")

    def journal(self):
        return self.run("journalctl -u rollcall -o cat --no-pager")

    def start(self):
        """Returns when systemd has heard READY."""
        code, _ = self.ask("systemctl start rollcall", patience=300)
        need(code == 0, f"the service does not start:\n{self.journal()[-3000:]}")
        need(self.property("ActiveState") == "active", "the service is not active")

    def stop(self):
        printed = self.run("date +%s%N; systemctl stop rollcall; date +%s%N").split()
        need(self.property("Result") == "success", f"the stop was not clean: {self.property('Result')}")
        return (int(printed[1]) - int(printed[0])) / 1e9

    def command(self, words, patience=120):
        return self.run(f"runuser -u rollcall -- rollcall --config {CONFIG} {words}", patience)

    def attended(self, more_than, patience=180):
        """The record, when it has more entries than that."""
        ask = f"runuser -u rollcall -- rollcall --config {CONFIG} attendance --json"
        enough = lambda code, text: code == 0 and len(json.loads(text)) > more_than
        return json.loads(self.until("another attendance is recorded", ask, enough, patience))

    def configure(self, text):
        self.run(f"cat > {CONFIG} <<'END'\n{text}\nEND")

    def events(self):
        """`seq` of every event in the database of a daemon that has stopped."""
        need(self.ask(f"test -s {STATE}/rollcall.db-wal")[0] != 0, "the log of the database was not written back at the stop")
        self.run(f"test -f {STATE}/rollcall.db")
        (self.folder / "record.db").write_bytes(base64.b64decode(self.run(f"base64 {STATE}/rollcall.db")))
        database = sqlite3.connect(self.folder / "record.db")
        return [seq for (seq,) in database.execute("select seq from event order by seq")]

    def schema(self, name):
        """SQLite keeps `user_version` in the header."""
        return int(self.run(f"od -An -tu1 -j63 -N1 {STATE}/{name}"))


def installs(door, version):
    door.run(f"apt-get install -y /root/rollcall_{version}.deb", patience=300)
    need(door.property("LoadState") == "loaded", "there is no unit")
    need(door.run("systemctl is-enabled rollcall") == "enabled", "the service is not enabled")
    need("video" in door.run("id -nG rollcall").split(), "the user is not in group video")
    modes = door.run(f"stat -c '%a %U' {STATE}; ls -l {CONFIG}; getent passwd rollcall")
    need(modes.startswith("700 rollcall\n") and "nologin" in modes, f"the state directory or the user is not as it should be:\n{modes}")
    say(f"installed: {door.run('dpkg-query -W rollcall')}, enabled, its user and its folders are there")
    judged = door.run("systemd-analyze security --no-pager rollcall.service")
    overall = float(re.search(r"Overall exposure level for rollcall.service: (\S+)", judged).group(1))
    open_points = [line.split()[1] for line in judged.splitlines() if line.startswith("- ")]
    say(f"systemd-analyze security: {overall}; left open: {', '.join(open_points)}")
    need(overall <= EXPOSURE_MAX, f"more exposed than {EXPOSURE_MAX}:\n{judged}")


def is_set_up(door):
    """As on a unit: a file from the card and flags, and it runs."""
    door.run("mkdir -p /srv/photos /root/card && cp /root/passing.jpg /srv/photos/ && chmod -R a+rX /srv")
    door.run(f"cat > /root/card/rollcall.toml <<'END'\n{CARD}\nEND")
    answers = "--site site --device door --venue main --time-zone Europe/Berlin --mqtt-host none --mongo-uri-file none"
    setup = f"rollcall setup --yes --from /root/card/rollcall.toml {answers} --http-listen 0.0.0.0:8080"
    said = door.run(setup, patience=300)
    door.until("setup has started the service", "systemctl is-active rollcall")
    token = "/etc/rollcall/secrets/http_token"
    need(door.run(f"stat -c '%a %U' {token}") == "600 rollcall", "the token is not the daemon's own")
    need(door.run(f"cat {token}") not in said, "setup prints the token")
    hello = "printf 'GET /healthz HTTP/1.1\\r\\nhost: door\\r\\nconnection: close\\r\\n\\r\\n'"
    door.until("the page answers", f"exec 3<>/dev/tcp/127.0.0.1/8080 && {hello} >&3 && grep -q '200 OK' <&3")
    door.stop()
    say("rollcall setup: configuration written, service started, HTTP with a token of its own")


def recognises(door):
    door.run("mkdir -p /srv/photos && cp /root/passing.jpg /srv/photos/ && chmod -R a+rX /srv /root/*.jpg && cp /root/enrolled.jpg /srv/")
    door.configure(REPLAY)
    door.command("check-config")
    said = door.command("enrol --id passer --name Passer /srv/enrolled.jpg", patience=300)
    say(f"enrolled by command: {said.splitlines()[0] if said else 'done'}")
    door.start()
    say(f"READY; {door.property('StatusText')}")
    [first, *_] = door.attended(0)
    need(first["subject"]["id"] == "passer", f"somebody else was recorded: {first}")
    say(f"recognised by replay: seq {first['seq']}, clock {first['clock']}")
    need(first["clock"] == "unsynced", "nothing keeps this machine's clock right, and the daemon says so")
    return first


def asks_for_the_clock(door):
    """That the kernel's word on the clock is heard within the filter of system calls."""
    # adjtimex(ADJ_STATUS | ADJ_MAXERROR), all zero: as a time server's client says that the clock is right.
    disciplined = 'my $t = pack("L x4 q4 l x4 q16", 0x0014, (0) x 21); syscall(159, $t) >= 0 or die $!'
    door.run(f"perl -e '{disciplined}'")
    ask = f"runuser -u rollcall -- rollcall --config {CONFIG} attendance --json"
    is_synced = lambda _, text: any(it["clock"] != "unsynced" for it in json.loads(text))
    door.until("the kernel's word on the clock is heard", ask, is_synced)
    say("a clock that is kept right is believed")


def survives_a_kill(door):
    before = door.attended(0)
    pid = door.property("MainPID")
    door.run(f"kill -9 {pid}")
    door.until("started again after kill -9", "systemctl is-active rollcall && [ $(systemctl show -P NRestarts rollcall) = 1 ]")
    need(door.property("MainPID") not in (pid, "0"), "the process is the same")
    after = door.attended(len(before))
    need([it["seq"] for it in after[: len(before)]] == [it["seq"] for it in before], "something recorded was lost")
    took = door.stop()
    say(f"kill -9: started again by systemd, {len(before)} of {len(before)} records still there, stopped in {took:.1f} s")
    need(took < 5, f"the stop took {took:.1f} s")
    seqs = door.events()
    need(seqs == list(range(1, len(seqs) + 1)), f"seq has gaps: {seqs}")
    say(f"{len(seqs)} events, no number missing")


def is_ended_when_it_hangs(door):
    door.run("systemctl reset-failed rollcall")
    door.start()
    seconds = int(door.run("systemctl show -P WatchdogUSec --value rollcall | sed 's/min//;s/^1$/60/;s/s$//'"))
    since = door.run("date +%s")
    pid = door.property("MainPID")
    door.run(f"kill -STOP {pid}")
    door.until("started again after it hung", f"[ $(systemctl show -P NRestarts rollcall) = 1 ] && systemctl is-active rollcall")
    took = int(door.run("date +%s")) - int(since)
    door.attended(len(door.attended(0)))
    need("Watchdog timeout" in door.run("journalctl -u rollcall --no-pager"), "it was not the watchdog that ended it")
    say(f"hung: ended by the watchdog (limit {seconds} s) and started again, {took} s after it stood still")
    need(door.stop() < 5, "the stop takes too long")


def takes_a_camera_that_comes_later(door):
    door.configure(CAMERA)
    door.start()
    need("streaming" not in door.property("StatusText"), "there is no camera yet")
    door.run("modprobe vivid n_devs=1 node_types=1 num_inputs=1 input_types=0")
    door.until("the camera streams", "systemctl show -P StatusText rollcall", lambda _, text: "camera streaming" in text)
    say(f"a camera that was plugged in after the start: {door.property('StatusText')}")
    need(door.ask("systemctl is-active rollcall")[0] == 0, "the daemon has ended")
    pid = door.property("MainPID")
    door.run("grep -q 81: /sys/class/video4linux/video0/dev")
    need("/dev/video0" in door.run(f"ls -l /proc/{pid}/fd"), "the daemon has not opened the camera")
    door.stop()


def ends_for_good_or_tries_again(door):
    door.configure("[camera]\nsorce = 1\n")
    door.ask("systemctl start rollcall")
    need(door.property("ExecMainStatus") == "78", "a wrong configuration is exit code 78")
    need(door.property("ActiveState") == "failed" and door.property("NRestarts") == "0", "78 is not tried again")
    say("78: not tried again")
    door.configure(REPLAY)
    door.run("systemctl reset-failed rollcall")


def takes_secrets(door):
    """A key in systemd's credential store is used, and none is made beside it."""
    door.run(f"mv {STATE} {STATE}.kept; install -d -o rollcall -g rollcall -m 700 {STATE}")
    door.run("install -d -m 700 /etc/credstore; head -c 32 /dev/urandom > /etc/credstore/rollcall.key; chmod 600 /etc/credstore/*")
    door.start()
    need(door.ask(f"test -e {STATE}/rollcall.key")[0] != 0, "a key was made though systemd passes one")
    door.stop()
    door.run("rm -r /etc/credstore")
    say("secrets: the key of systemd's store is used; without one the daemon starts too")


def migrates_and_goes_back(door, schema, version, newer):
    # From the last step: a database of the version before.
    door.run(f"cp /root/earlier.db {STATE}/rollcall.db; rm -f {STATE}/rollcall.db-* {STATE}/rollcall.key; chown -R rollcall: {STATE}")
    door.start()
    door.stop()
    need((door.schema("rollcall.db"), door.schema(f"rollcall.db.schema-{schema}")) == (schema + 1, schema), "not migrated, or no copy kept")
    need(door.run(f"stat -c '%a %U' {STATE}/rollcall.db.schema-{schema}") == "600 rollcall", "others may read the copy")
    say(f"a database of schema {schema}: migrated to {schema + 1}, a copy of it kept")
    door.run(f"rm -r {STATE} && mv {STATE}.kept {STATE}")

    # The upgrade, with a shipped configuration that has changed.
    events = door.events()
    door.start()
    pid = door.property("MainPID")
    door.run(f"apt-get install -y -o Dpkg::Options::=--force-confold /root/rollcall_{newer}.deb", patience=300)
    need(door.property("ActiveState") == "active" and door.property("MainPID") != pid, "not restarted by the upgrade")
    need("pace = \"networks\"" in door.run(f"cat {CONFIG}"), "the configuration was not kept")
    need(len(door.attended(0)) > 0 and door.schema("rollcall.db") == schema + 1, "the record was not kept")
    door.stop()
    need(door.events()[: len(events)] == events, "events were lost by the upgrade")
    say(f"upgraded to {newer}: restarted, configuration and {len(events)} events kept")

    # As if that version had changed the schema, and did not do: the way back of docs/updating.md.
    door.run(f"cp -a {STATE}/rollcall.db {STATE}/rollcall.db.schema-{schema + 1}")
    door.run(f"printf '\\{schema + 2:03o}' | dd of={STATE}/rollcall.db bs=1 seek=63 conv=notrunc status=none")
    door.run(f"apt-get install -y --allow-downgrades -o Dpkg::Options::=--force-confold /root/rollcall_{version}.deb", patience=300)
    door.ask("systemctl start rollcall")
    said = door.journal()
    need("use the version that wrote it" in said, f"the older version does not say why:\n{said[-2000:]}")
    need("status=74" in said, "the older version ends with another code than 74")
    door.until("74 is tried again", "[ $(systemctl show -P NRestarts rollcall) -ge 1 ]")
    say(f"the older version refuses: {next(line for line in said.splitlines() if 'wrote it' in line)}")
    door.run(f"systemctl stop rollcall; cd {STATE}; mkdir newer && mv rollcall.db* newer/")
    door.run(f"cd {STATE}; cp -a newer/rollcall.db.schema-{schema + 1} rollcall.db")
    before = len(door.command("attendance").splitlines())
    door.start()
    need(len(door.command("attendance").splitlines()) >= before > 2, "the record is not back")
    door.stop()
    say("brought back from the copy: it starts and has its record")


def bears_a_read_only_root(door):
    # The journal goes to memory, as it would there.
    door.run(f"journalctl --relinquish-var && mount --bind {STATE} {STATE} && mount -o remount,bind,ro /")
    need(door.ask("touch /etc/x")[0] != 0, "the root is not read-only")
    before = len(json.loads(door.command("attendance --json")))
    door.start()
    door.attended(before)
    door.stop()
    door.run(f"mount -o remount,bind,rw / && umount {STATE} && journalctl --flush")
    say("a read-only root with a writable state directory: recognises and records")


def leaves_nothing(door):
    door.start()
    door.run("apt-get remove -y rollcall", patience=300)
    need(door.ask("pgrep -x rollcall")[0] != 0, "it still runs")
    need(door.ask(f"test -s {STATE}/rollcall.db -a -s {CONFIG}")[0] == 0, "removing is not purging: record and configuration stay")
    door.run("apt-get purge -y rollcall", patience=300)
    left = door.run(
        "find / -xdev \\( -path /proc -o -path /sys -o -path /run -o -path /var/log -o -path /root -o -path /srv \\) -prune "
        "-o -iname '*rollcall*' -print"
    )
    need(not left, f"left behind:\n{left}")
    need(door.ask("systemctl cat rollcall")[0] != 0, "the unit is still there")
    say("removed: it ended, its record stayed; purged: nothing is left but the account")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--package", required=True, type=pathlib.Path)
    options = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        version = subprocess.check_output(["dpkg-deb", "-f", options.package, "Version"], text=True).strip()
        newer = f"{version}+upgrade"
        earlier, schema = earlier_database(folder)
        luggage = {f"rollcall_{version}.deb": options.package, "enrolled.jpg": ENROLLED, "passing.jpg": PASSING}
        luggage["earlier.db"] = earlier
        luggage[f"rollcall_{newer}.deb"] = repacked(options.package, folder, newer, "as a newer version ships it")
        door = Door(folder, luggage)
        try:
            installs(door, version)
            is_set_up(door)
            recognises(door)
            asks_for_the_clock(door)
            survives_a_kill(door)
            is_ended_when_it_hangs(door)
            takes_a_camera_that_comes_later(door)
            ends_for_good_or_tries_again(door)
            takes_secrets(door)
            migrates_and_goes_back(door, schema, version, newer)
            bears_a_read_only_root(door)
            leaves_nothing(door)
        except Failed:
            code, said = door.ask("systemctl status --no-pager rollcall; journalctl -u rollcall --no-pager | tail -n 60")
            print(said, file=sys.stderr)
            raise
        finally:
            door.end()
    say("passed")


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        print(f"service test: FAILED: {failure}", file=sys.stderr)
        sys.exit(1)
