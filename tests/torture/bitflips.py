"""Flips bits in a copy of the daemon's database, and opens the copy.

Each event must then be what it was, or be absent and counted: never another one. The copy has no
broker, no MongoDB and no camera, so that nothing leaves it.
"""

import contextlib
import shutil
import sqlite3

from services import Daemon, Failed, insist

COMPARED = "select seq, event_id, kind, venue, subject_id, direction, body from event"
# Events whose time is not known yet are corrected by any start; they are compared without it.
# A page with its head.
FRAME_BYTES = 4096 + 24
UNSYNCED = "select seq from event where clock = 'unsynced'"


class BitFlips:
    def __init__(self, folder, program, rng):
        self.folder, self.program, self.rng = folder / "flips", program, rng
        self.folder.mkdir()
        self.tries = self.flipped = self.corrected = self.set_apart = self.rebuilt = 0

    def try_one(self, state):
        """`state` belongs to a daemon that does not run. Returns a line about what happened."""
        self.tries += 1
        folder = self.folder / str(self.tries)
        folder.mkdir()
        sockets = shutil.ignore_patterns("*.sock", "reserve")
        shutil.copytree(state, folder / "state", ignore=sockets)
        shutil.copytree(state, folder / "before", ignore=sockets)
        before = events(folder / "before" / "rollcall.db")
        where = self._flip(folder / "state")
        daemon = Daemon(folder, self.program, folder / "state")
        daemon.configure(camera="none")
        daemon.start()
        daemon.until_ready()
        code = daemon.stop()
        log = daemon.log()
        insist(code == 0 and "panicked" not in log, f"{where}: exit code {code}\n{log[-3000:]}")
        after = events(folder / "state" / "rollcall.db")
        altered = [seq for seq, row in before.items() if after.get(seq, row) != row]
        insist(not altered, f"{where}: the events {altered[:5]} are not what they were")
        missing = sorted(set(before) - set(after))
        counted = unreadable(folder / "state" / "rollcall.db")
        aside = list((folder / "state").glob("*damaged*"))
        insist(
            set(missing) <= counted,
            f"{where}: the events {missing[:5]} are gone and not counted\n{log[-3000:]}",
        )
        self.set_apart += len(missing)
        self.rebuilt += bool(aside)
        self.corrected += "corrected" in log
        shutil.rmtree(folder)
        return f"{where}: {len(missing)} events set apart{', rebuilt' if aside else ''}"

    def figures(self):
        return (
            f"{self.tries}, with {self.flipped} bits; opened with a correction {self.corrected},"
            f" rebuilt {self.rebuilt}; events set apart {self.set_apart}"
        )

    def _flip(self, state):
        """Flips one bit or a few in the database, and at most one in each frame of its log.

        Several in one frame lose what was committed from there on: SQLite ends the log there.
        """
        files = [state / "rollcall.db", state / "rollcall.db-wal"]
        files = [it for it in files if it.exists() and it.stat().st_size > 0]
        places, frames = [], set()
        for _ in range(self.rng.choice((1, 1, 1, 3, 8))):
            path = self.rng.choice(files)
            at, bit = self.rng.randrange(path.stat().st_size), self.rng.randrange(8)
            frame = (at - 32) // FRAME_BYTES if path.suffix == ".db-wal" else None
            if frame in frames:
                continue
            frames |= {frame} - {None}
            with open(path, "r+b") as file:
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1 << bit]))
            places.append(f"{path.name.removeprefix('rollcall.')}@{at}.{bit}")
            self.flipped += 1
        return " ".join(places)


def events(path):
    """Returns the events of a database, those without a known time left out."""
    with contextlib.closing(sqlite3.connect(path)) as base:
        try:
            unsynced = {seq for (seq,) in base.execute(UNSYNCED)}
            return {row[0]: row[1:] for row in base.execute(COMPARED) if row[0] not in unsynced}
        except sqlite3.Error as error:
            raise Failed(f"{path.parent.name}: {error}") from error


def unreadable(path):
    with contextlib.closing(sqlite3.connect(path)) as base:
        return {key for (key,) in base.execute("select key from unreadable where tbl = 'event'")}
