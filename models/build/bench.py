"""CPU time of each int8 network beside its fp32 twin: one thread, median of many, taken in turns.

usage: bench.py [--accurate-u8s8]     (build.sh must have made fp32/ before)

--accurate-u8s8  sets session.x64quantprecision, as the daemon does on x86 without VNNI
"""
import sys
import time
import tomllib
from pathlib import Path

import numpy as np

import face

MODELS = Path(__file__).resolve().parent.parent
ROUNDS, RUNS = 30, 10


def times(paths, entry, accurate):
    fed = entry["input"]
    channels = 1 if fed["channels"] == "gray" else 3
    image = np.random.default_rng(1).integers(0, 256, (fed["height"], fed["width"], channels), np.uint8)
    feed = {"input": face.planes(image, fed["mean"], fed["std"])}
    sessions = [face.open_session(path, accurate) for path in paths]
    taken = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, list_ in zip(sessions, taken):
            for _ in range(RUNS):
                start = time.thread_time()
                session.run(None, feed)
                list_.append(time.thread_time() - start)
    return [1000 * float(np.median(t)) for t in taken]


def main():
    for entry in tomllib.loads((MODELS / "manifest.toml").read_text())["model"]:
        paths = [MODELS / entry["twin"]["file"], MODELS / entry["file"]]
        twin, small = times(paths, entry, "--accurate-u8s8" in sys.argv[1:])
        print(f"{entry['name']:14} fp32 {twin:6.2f} ms   int8 {small:6.2f} ms   {small / twin:.2f}")


if __name__ == "__main__":
    main()
