#!/usr/bin/env python3
"""The parts of the package as a software bill of materials: CycloneDX 1.5, JSON.

    cross/sbom.py VERSION TARGET RUNTIME [cargo options, e.g. --no-default-features]

Every crate that is linked into the program with its checksum of Cargo.lock, ONNX Runtime (RUNTIME is its
library) and the models. The same commit gives the same bytes: the time is $SOURCE_DATE_EPOCH, the serial
number is made of the content.
"""

import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import uuid

from licences import reached

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main():
    version, target, runtime, *options = sys.argv[1:]
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    done = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, cwd=ROOT)
    metadata = json.loads(done.stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    own = packages[metadata["resolve"]["root"]]
    linked = sorted(reached(metadata["resolve"], packages), key=lambda it: (it["name"], it["version"]))
    components = [crate(it, checksums()) for it in linked]
    components += [library(pathlib.Path(runtime)), *models()]
    reference = f"pkg:deb/rollcall@{version}"
    program = {"type": "application", "bom-ref": reference, "name": "rollcall", "version": version}
    program |= {"licenses": [{"expression": own["license"]}]}
    bom = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}
    bom["dependencies"] = dependencies(reference, metadata["resolve"], packages, components)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    when = datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    bom["metadata"] = {"timestamp": when, "component": program}
    digest = json.dumps(bom, sort_keys=True)
    bom["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, digest).urn
    print(json.dumps(bom, indent=1, sort_keys=True))


def checksums():
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    return {(it["name"], it["version"]): it.get("checksum") for it in lock["package"]}


def crate_ref(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def crate(package, sums):
    found = {"type": "library", "bom-ref": crate_ref(package), "purl": crate_ref(package)}
    found |= {"name": package["name"], "version": package["version"], "scope": "required"}
    # Old manifests separate a choice of licences with a slash.
    if package["license"]:
        found["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if checksum := sums[package["name"], package["version"]]:
        found["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return found


def library(path):
    found = re.search(rb"VERS_([0-9.]+)", path.read_bytes())
    version = found.group(1).decode() if found else "unknown"
    it = {"type": "library", "bom-ref": "onnxruntime", "name": "onnxruntime", "version": version}
    return it | {"licenses": [{"expression": "MIT"}], "hashes": [sha256(path)]}


def models():
    """The networks, as models/manifest.toml describes them: their licences are in models/NOTICE."""
    for path in sorted((ROOT / "models").glob("*.onnx")):
        it = {"type": "machine-learning-model", "bom-ref": f"model/{path.name}", "name": path.name}
        yield it | {"hashes": [sha256(path)]}


def sha256(path):
    return {"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}


def dependencies(program, resolve, packages, components):
    """Which part needs which, among the parts that are listed."""
    listed = {it["bom-ref"] for it in components}
    nodes = {}
    for node in resolve["nodes"]:
        reference = program if node["id"] == resolve["root"] else crate_ref(packages[node["id"]])
        if reference in listed | {program}:
            needed = {crate_ref(packages[it["pkg"]]) for it in node["deps"]} & listed
            nodes[reference] = sorted(needed)
    nodes[program] = sorted([*nodes[program], *(it for it in listed if not it.startswith("pkg:cargo/"))])
    return [{"ref": reference, "dependsOn": needed} for reference, needed in sorted(nodes.items())]


if __name__ == "__main__":
    main()
