#!/usr/bin/env python3
"""Two builds of rollcall over the same photographs: do they make the same templates and the same decisions?

Of each person (a folder of numbered photographs, or photographs whose names differ only in a number at the end) the first photograph is enrolled by the build of
this machine. Both builds then say who is in every photograph. For an enrolled photograph the score is the cosine of the two
builds' templates of it; for the others it is what a door with the one processor sees of people enrolled at one with the other.
Exits with 1 when the templates are further apart than they may be, or a decision differs that is not on the threshold.
"""
import argparse
import json
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

# Least cosine of the two templates of one photograph. With fp32 only the order of sums differs; with int8 a value that falls
# on the edge of two steps goes to one here and to the other there (docs/package.md has what was measured).
COSINE_MIN = {"fp32": 0.9999, "int8": 0.95}
PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--precision", "--models", "--photographs", "--here", "--here-library", "--there", "--there-library"):
        parser.add_argument(option, required=True)
    args = parser.parse_args()

    people = {}
    for path in sorted(pathlib.Path(args.photographs).rglob("*")):
        if path.suffix.lower() in PICTURES:
            people.setdefault(re.sub(r"[^A-Za-z]+$", "", path.stem) or path.parent.name, []).append(path)
    with tempfile.TemporaryDirectory() as folder:
        here = Build(args.here, args.here_library, args, folder)
        there = Build(args.there, args.there_library, args, folder)
        enrolled = {photographs[0]: name for name, photographs in people.items() if here.enrol(name, photographs[0])}
        everything = [path for photographs in people.values() for path in photographs]
        begun = time.monotonic()
        ours = here.recognise(everything)
        middle = time.monotonic()
        theirs = there.recognise(everything)
        seconds = middle - begun, time.monotonic() - middle
    sys.exit(report(args.precision, enrolled, ours, theirs, seconds))


class Build:
    """A program with its library, over one gallery that both builds share."""

    def __init__(self, command, library, args, folder):
        self.command = shlex.split(command)
        self.environment = os.environ | {
            "ROLLCALL_STORAGE_DIRECTORY": f"{folder}/state",
            "ROLLCALL_RECOGNITION_MODELS": os.path.abspath(args.models),
            "ROLLCALL_RECOGNITION_PRECISION": args.precision,
            "ROLLCALL_RECOGNITION_RUNTIME_LIBRARY": os.path.abspath(library),
        }

    def run(self, *arguments):
        return subprocess.run([*self.command, *map(str, arguments)], env=self.environment, stdout=subprocess.PIPE, text=True)

    def enrol(self, name, path):
        done = self.run("enrol", "--allow-duplicate", "--id", re.sub(r"[^A-Za-z0-9._-]", "_", name), path)
        return done.returncode == 0

    def recognise(self, paths):
        done = self.run("recognise", "--json", *paths)
        if done.returncode != 0:
            sys.exit(f"{self.command} ended with {done.returncode}")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return {pathlib.Path(line["file"]): line["faces"] for line in lines}


def report(precision, enrolled, ours, theirs, seconds):
    faults, cosines, changes, faces, moved = [], [], [], 0, 0
    for path, seen in ours.items():
        other = theirs[path]
        if len(seen) != len(other):
            faults.append(f"{path.name}: {len(seen)} faces here, {len(other)} there")
            continue
        for a, b in zip(seen, other):
            faces += 1
            if (a["subject"] or {}).get("id") != (b["subject"] or {}).get("id"):
                moved += 1
                on_the_edge = max(abs(face["score"] - face["threshold"]) for face in (a, b)) < 0.05
                if not on_the_edge:
                    faults.append(f"{path.name}: decided otherwise: {a['score']:.3f} here, {b['score']:.3f} there")
            if path in enrolled and len(seen) == 1:
                cosines.append(b["score"])
            elif path not in enrolled:
                changes.append(b["score"] - a["score"])
    print(f"{precision}: {len(ours)} photographs, {len(enrolled)} enrolled, {faces} faces, "
          f"{moved} decided otherwise; {seconds[0]:.0f} s here, {seconds[1]:.0f} s there")
    if not cosines:
        return f"{precision}: nothing was compared"
    print(f"{precision}: cosine of the templates: least {min(cosines):.6f}, mean {statistics.mean(cosines):.6f}, "
          f"of {len(cosines)}; asked for {COSINE_MIN[precision]}")
    if changes:
        print(f"{precision}: score of the others: mean change {statistics.mean(changes):+.4f}, "
              f"spread {statistics.pstdev(changes):.4f}, largest {max(changes, key=abs):+.4f}, of {len(changes)}")
    if min(cosines) < COSINE_MIN[precision]:
        faults.append("the templates are further apart than they may be")
    return "\n".join(faults) or 0


if __name__ == "__main__":
    main()
