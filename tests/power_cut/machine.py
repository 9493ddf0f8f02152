"""A small machine: Debian's own kernel in QEMU (emulated, no /dev/kvm), a root that is read-only, and a state partition on a disk
that is served by this process."""

import fcntl
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import time

MODULES = ["virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "crc32c_generic", "ext4"]
PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "mkfs.ext4": "e2fsprogs", "depmod": "kmod",
    "mosquitto": "mosquitto", "mosquitto_pub": "mosquitto-clients", "readelf": "binutils",
}

# The processor that is emulated. QEMU computes the fused operations and long vectors of later ones piece by piece, so that
# the networks take six times as long with them.
PROCESSOR = "Nehalem"


def which(name):
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def run(*command, **options):
    """What a program printed; it succeeds."""
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def prepare(cache, say, drivers=()):
    """Debian packages, and the kernel unpacked (not installed) into the cache, with modules for some more drivers. What is there
    already is not fetched again."""
    cache.mkdir(parents=True, exist_ok=True)
    # Another of these tests may prepare itself at the same time, and apt serves one only.
    lock = open(cache.parent / "apt.lock", "w")  # released when this returns
    fcntl.flock(lock, fcntl.LOCK_EX)
    missing = sorted({package for program, package in PACKAGES.items() if not which(program)})
    kernel = cache / "kernel"
    if missing or not (kernel / "complete").exists():
        say(f"fetching what is missing: {', '.join(missing) or 'the kernel of the guest'}")
        run("apt-get", "update", "-q")
        if missing:
            install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
            run(*install, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    if not (kernel / "complete").exists():
        depends = run("apt-cache", "depends", "linux-image-amd64")
        package = re.search(r"Depends: (linux-image-\S+)", depends).group(1)
        run("apt-get", "download", "-q", package, cwd=cache, stderr=subprocess.DEVNULL)
        with tempfile.TemporaryDirectory(dir=cache) as unpacked:
            unpacked = pathlib.Path(unpacked)
            for file in cache.glob("linux-image-*.deb"):
                run("dpkg-deb", "-x", file, unpacked)
                file.unlink()
            shutil.rmtree(kernel, ignore_errors=True)
            kernel.mkdir()
            collect(unpacked, kernel, drivers)
        (kernel / "complete").touch()
    return kernel


def collect(unpacked, kernel, drivers):
    """Keeps the kernel as an ELF file, which starts at once (unpacking itself takes an emulated processor seconds), and the modules
    that are needed, with the order of their loading (for each driver in a file of its own)."""
    packed = next(unpacked.glob("boot/vmlinuz-*")).read_bytes()
    at = packed.find(b"\xfd7zXZ\0")
    (kernel / "vmlinux").write_bytes(lzma.LZMADecompressor().decompress(packed[at:]))
    run(which("depmod"), "-b", unpacked, next(unpacked.glob("lib/modules/*")).name)
    orders = {"order": MODULES} | {f"order-{driver}": [driver] for driver in drivers}
    for file, wanted in orders.items():
        order = modules(unpacked, wanted)
        for path in order:
            shutil.copy(path, kernel)
        (kernel / file).write_text("".join(f"{path.name}\n" for path in order))


def modules(kernel, wanted):
    """The modules that some others need, and these, in the order of loading."""
    base = next(kernel.glob("lib/modules/*"))
    needs = {}
    for line in (base / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    names = {re.sub(r"\.ko.*$", "", path.rsplit("/", 1)[-1]).replace("-", "_"): path for path in needs}
    order = []

    def add(path):
        for before in needs[path]:
            add(before)
        if path not in order:
            order.append(path)

    for name in wanted:
        if name.replace("-", "_") in names:
            add(names[name.replace("-", "_")])
    return [base / path for path in order]


def archive(files):
    """A cpio archive of programs, which the kernel takes for its first file system. `files`: (path, mode, content)."""
    out = bytearray()
    for number, (path, mode, data) in enumerate([*files, ("TRAILER!!!", 0, b"")], 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def first_files(kernel, init):
    folders = [(name, 0o040755, b"") for name in ("bin", "modules")]
    carried = [(f"modules/{path.name}", 0o100644, path.read_bytes()) for path in [kernel / "order", *kernel.glob("*.ko")]]
    programs = [("bin/busybox", 0o100755, pathlib.Path(which("busybox")).read_bytes()), ("init", 0o100755, init.read_bytes())]
    return archive([*folders, *carried, *programs])


def libraries(program):
    """The loader and the libraries of a program, as it names them."""
    found, todo = {}, [pathlib.Path(program)]
    while todo:
        text = run("readelf", "-ldW", todo.pop())
        for name in re.findall(r"\(NEEDED\).*\[(.+?)\]", text) + re.findall(r"interpreter: (.+?)\]", text):
            name = pathlib.Path(name).name
            if name not in found:
                found[name] = next(path for place in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64")
                                   if (path := pathlib.Path(place) / name).exists())
                todo.append(found[name])
    return found


def file_system(target, folder, mebibytes):
    """A new ext4 with what is in the folder."""
    target.unlink(missing_ok=True)
    with open(target, "wb") as file:
        file.truncate(mebibytes << 20)
    run(which("mkfs.ext4"), "-q", "-F", "-E", "lazy_itable_init=0,root_owner=0:0", "-d", folder, target)
    return target


def root(folder, init, programs, files):
    """The folder of the guest's root: busybox, the programs with their libraries, files and mount points."""
    for name in ("bin", "dev", "proc", "sys", "tmp", "var/lib", "etc", "lib64"):
        (folder / name).mkdir(parents=True)
    os.symlink("lib64", folder / "lib")
    shutil.copy(which("busybox"), folder / "bin" / "busybox")
    for applet in ("sh", "cat", "cut", "date", "dmesg", "grep", "ip", "killall", "mount", "poweroff", "stty", "tail", "tr", "umount"):
        os.symlink("busybox", folder / "bin" / applet)
    shutil.copy(init, folder / "bin" / "init.sh")
    (folder / "bin" / "init.sh").chmod(0o755)
    for source, name in programs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
        for library, path in libraries(source).items():
            shutil.copy(path, folder / "lib64" / library)
    for source, name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)


class Machine:
    """Switched on, and listened to."""

    def __init__(self, kernel, initial, system, disk_address, show=None):
        self.lines, self.printed = [], threading.Condition()
        # The clock of the machine is set by the kernel's command line: nobody else tells it the time.
        words = f"console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable time={int(time.time()) + 3}"
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "q35"]
        command += ["-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", "2", "-m", "640"]
        command += ["-kernel", kernel / "vmlinux", "-initrd", initial, "-append", words]
        command += ["-device", "virtio-serial-pci", "-chardev", "stdio,id=out,signal=off", "-device", "virtconsole,chardev=out"]
        command += ["-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0"]
        command += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="]
        command += ["-drive", f"file={system},format=raw,if=none,id=system,readonly=on", "-device", "virtio-blk-pci,drive=system"]
        # write-cache=on: the guest is told that the disk has a cache, and flushes it when something is to last.
        command += ["-blockdev", f"driver=nbd,node-name=state,server.type=unix,server.path={disk_address}"]
        command += ["-device", "virtio-blk-pci,drive=state,write-cache=on"]
        self.show = show
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        )
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            line = line.rstrip("\r\n")
            if self.show:
                self.show(line)
            with self.printed:
                self.lines.append(line)
                self.printed.notify_all()
        with self.printed:
            self.lines.append("VM gone")
            self.printed.notify_all()

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def until(self, text, patience):
        """The first line with the text; None if the machine is gone before, or the time is up."""
        end = time.monotonic() + patience
        with self.printed:
            while True:
                for line in self.lines:
                    if text in line:
                        return line
                left = end - time.monotonic()
                if left <= 0 or "VM gone" in self.lines or not self.printed.wait(left):
                    return None

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
