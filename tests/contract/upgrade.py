"""Opens with the new program what a recording of the old one left: state directory and backups.

The listings must be the same to the last id and time (of an older schema: once the daemon has
migrated it), and the templates must open: a photograph is recognised.
"""

import json
import shutil

import compare
from bench import Bench, Home, photo
from command_line import listings
from session import Session, b64
from settings import UPGRADED

RECOGNISED = {"names": ["Barack Obama"]}
ADDED = [("+ **", "contracts change by addition")]
SOURCES = ("state", "backup-beside", "backup-after")


def open_old_state(new, folder):
    """Returns the number of differences; `folder` is what a recording kept."""
    old, target, found = folder.resolve() / "main", folder / "upgraded", 0
    expected = json.loads((old / "listings.json").read_text())
    shutil.rmtree(target, ignore_errors=True)
    with Bench(new, target) as bench:
        mqtt_port = bench.start_mosquitto()
        for name in SOURCES:
            print(f"{name} of the old program, opened by the new one:")
            http_port = bench.port(f"http-port-{name}")
            home = Home(bench, name, UPGRADED.format(mqtt=mqtt_port, http=http_port))
            if name == "state":
                shutil.copytree(old / "state", home.folder / "state")
            else:
                restore(home, old / name)
            found += 0 if must_migrate(home) else compare.compare(expected, listings(home), ADDED)
            daemon = home.start()
            session = Session(home, "hq", "door-1", None, http_port)
            body = {"image": b64(photo("obama2.jpg"))}
            answer = json.loads(session.ask("recognise", "POST", "/recognize_faces", (), body))
            found += compare.compare(RECOGNISED, answer, allowed=ADDED)
            bench.stop(daemon)
            found += compare.compare(expected, listings(home), allowed=ADDED)
    return found


def must_migrate(home):
    """Whether the listings refuse to read the database before the daemon has migrated it."""
    code, _, error = home.run("subjects", "--json")
    is_older = code != 0 and b"start the daemon once" in error
    if is_older:
        print("an older schema: the listings ask to start the daemon once")
    return is_older


def restore(home, backup):
    code, _, error = home.run("restore", str(backup))
    if code:
        raise SystemExit(
            f"`rollcall restore` ended with {code}: {error.decode('utf-8', 'replace')}"
        )
