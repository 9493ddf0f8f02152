#!/usr/bin/env python3
"""The licences of every crate that is linked into the program, as one text for the package.

    cross/licences.py TARGET [cargo options, e.g. --no-default-features]

Crates that only run while building (build scripts, macros) are not in the binary and not in the list.
"""
import hashlib
import json
import pathlib
import re
import subprocess
import sys

NAMES = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def main():
    target, *options = sys.argv[1:]
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target, *options]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    linked = reached(metadata["resolve"], packages)

    texts = {}  # digest of the words → number, text
    lines = []
    for package in sorted(linked, key=lambda it: (it["name"], it["version"])):
        numbers = []
        for text in licence_texts(package):
            digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
            numbers.append(texts.setdefault(digest, (len(texts) + 1, text))[0])
        licence = package["license"] or "see its text"
        where = "".join(f" [{number}]" for number in sorted(set(numbers)))
        lines.append(f"{package['name']} {package['version']}: {licence}{where}")

    print("The program is made of these Rust crates besides its own code. In brackets: the texts below that the crate carries.")
    print("Where a crate offers a choice of licences, it is used under the first that is MIT, Apache-2.0, ISC or BSD.\n")
    print("\n".join(lines))
    for number, text in texts.values():
        print(f"\n{'=' * 100}\n[{number}]\n\n{text.strip()}")


def reached(resolve, packages):
    """What is linked and not our own: reached from the program through ordinary dependencies."""
    nodes = {node["id"]: node for node in resolve["nodes"]}
    seen, open_ids = set(), [resolve["root"]]
    while open_ids:
        for dependency in nodes[open_ids.pop()]["deps"]:
            package = packages[dependency["pkg"]]
            ordinary = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            macro = any("proc-macro" in target["kind"] for target in package["targets"])
            if ordinary and not macro and package["id"] not in seen:
                seen.add(package["id"])
                open_ids.append(package["id"])
    return [packages[it] for it in seen if packages[it]["source"]]


def licence_texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    files = {path for path in folder.iterdir() if path.is_file() and NAMES.match(path.name)}
    if package.get("license_file"):
        files.add(folder / package["license_file"])
    return [path.read_text(encoding="utf-8", errors="replace") for path in sorted(files)]


if __name__ == "__main__":
    main()
