"""Makes every network of manifest.toml from its published weights and compares the digests.

usage: build.py [--fp32-only] [--out FOLDER] [--cache FOLDER] [--record]

--fp32-only  make the fp32 twins only (fp32/ in the models folder)
--out        where to write; default: the models folder itself
--cache      where fetched archives are kept; default: a folder that is removed at the end
--record     write the digests found into manifest.toml instead of comparing (after a change of the recipe)
"""
import argparse
import json
import re
import sys
import tempfile
import tomllib
from pathlib import Path

import convert
import fetch
import onnx
import quantize

HERE = Path(__file__).resolve().parent
MANIFEST = HERE.parent / "manifest.toml"


def write(out, name, model):
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = model.SerializeToString(deterministic=True)
    path.write_bytes(data)
    return fetch.sha256(data), len(data)


def made(models, out, cache, fp32_only):
    """(manifest entry, sha256, bytes) of each file, as it is made."""
    ranges = json.loads((HERE / "ranges.json").read_text())
    for model in models:
        twin = convert.twin(model["name"], fetch.weights(model, cache))
        yield model["twin"], *write(out, model["twin"]["file"], twin)
        if not fp32_only:
            small = quantize.quantize(model["name"], twin, ranges.get(model["name"]))
            yield model, *write(out, model["file"], small)


def record(found):
    text = MANIFEST.read_text()
    for entry, digest, size in found:
        at = text.index(f'file = "{entry["file"]}"')
        head, tail = text[:at], text[at:]
        tail = re.sub(r'(?<=sha256 = ")[^"]*', digest, tail, count=1)
        text = head + re.sub(r"(?<=bytes = )\d+", str(size), tail, count=1)
    MANIFEST.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fp32-only", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE.parent)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    models = tomllib.loads(MANIFEST.read_text())["model"]
    with tempfile.TemporaryDirectory() as passing:
        cache = options.cache or Path(passing)
        cache.mkdir(parents=True, exist_ok=True)
        found = list(made(models, options.out, cache, options.fp32_only))
    if options.record:
        record(found)
        return 0
    differing = 0
    for entry, digest, size in found:
        same = digest == entry["sha256"] and size == entry["bytes"]
        differing += not same
        print(f"{'same  ' if same else 'DIFFERS'} {digest} {size:>8} {entry['file']}")
    if differing:
        print(f"{differing} of {len(found)} files differ from manifest.toml", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except fetch.Missing as missing:
        sys.exit(f"build.py: {missing}")
