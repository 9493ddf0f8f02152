#!/usr/bin/env python3
"""Shows that a new program keeps the contracts of an old one.

    run.py both --old OLD --new NEW       what `make contract` does: all of the following
    run.py record --program P FILE        one recording
    run.py compare OLD.json NEW.json      the differences of two recordings; exit code 1 if any
    run.py upgrade --new NEW FOLDER       NEW opens the state and backups a recording left in FOLDER

A recording starts mosquitto, mongod and four daemons one after the other and sends a fixed script
of requests: every command over MQTT and every route over HTTP with good and bad input, and the
command line. It keeps every message, response, document and exit code. Times, ids and measured values are
replaced by placeholders (normalise.py). Intended differences stand in allowed.txt.

Needs `make setup`, mosquitto and a mongod (tests/fetch_mongod.sh, or MONGOD=FILE); otherwise only
Python's standard library.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

sys.dont_write_bytecode = True  # Nothing of a run stays in the source tree.

import compare
import record
import session
import upgrade


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = options.add_subparsers(dest="command", required=True)
    both = commands.add_parser("both")
    both.add_argument("--old", required=True, type=pathlib.Path)
    both.add_argument("--new", required=True, type=pathlib.Path)
    both.add_argument(
        "--keep", type=pathlib.Path, help="a new folder for recordings, states and logs"
    )
    both.add_argument(
        "--old-models", type=pathlib.Path, help="models for OLD, if it cannot read this tree's"
    )
    one = commands.add_parser("record")
    one.add_argument("--program", required=True, type=pathlib.Path)
    one.add_argument("--keep", type=pathlib.Path, help="a new folder for states and logs")
    one.add_argument("file", type=pathlib.Path)
    two = commands.add_parser("compare")
    two.add_argument("old", type=pathlib.Path)
    two.add_argument("new", type=pathlib.Path)
    opened = commands.add_parser("upgrade")
    opened.add_argument("--new", required=True, type=pathlib.Path)
    opened.add_argument("folder", type=pathlib.Path)
    for parser in (both, two):
        parser.add_argument(
            "--show-allowed",
            action="store_true",
            help="print the differences that a rule allows, too",
        )
    raise SystemExit(1 if run(options.parse_args()) else 0)


def run(options):
    """Returns the number of differences."""
    if options.command == "compare":
        old, new = (json.loads(it.read_text()) for it in (options.old, options.new))
        return compare.compare(old, new, show_allowed=options.show_allowed)
    if options.command == "upgrade":
        return upgrade.open_old_state(options.new, options.folder)
    with tempfile.TemporaryDirectory(prefix="rollcall-contract-") as scratch:
        folder = pathlib.Path(options.keep or pathlib.Path(scratch) / "kept")
        if options.command == "record":
            recording(options.program, folder, options.file)
            return 0
        folder.mkdir(parents=True)
        old = recording(options.old, folder / "old", folder / "old.json", options.old_models)
        new = recording(options.new, folder / "new", folder / "new.json")
        found = compare.compare(old, new, show_allowed=options.show_allowed)
        return found + upgrade.open_old_state(options.new, folder / "old")


def recording(program, folder, file, models=None):
    if not program.is_file():
        raise SystemExit(f"{program} is missing: build it, or name another one")
    found, seconds = record.timed(program, folder, models)
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    counts = session.count_requests(found)
    print(
        f"{program.name}: {counts['commands']} commands, {counts['http']} HTTP requests and "
        f"{counts['command_line']} calls of the command line in {seconds:.0f} s",
        flush=True,
    )
    # The data of mongod is large and of no further use.
    shutil.rmtree(folder / "mongod", ignore_errors=True)
    return found


if __name__ == "__main__":
    main()
