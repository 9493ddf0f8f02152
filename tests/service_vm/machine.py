"""A machine that runs systemd: Debian, its own kernel, in software emulation, thrown away afterwards.

The root is made once by debootstrap from the archive that this machine is set up with and kept as a disk image in
.cache/service-vm; each run writes to a copy of its own that goes with it. Nothing is mounted here, and no network is in there.
"""

import base64
import fcntl
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tarfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache" / "service-vm"
# Counted up when what is in the image changes.
IMAGE = CACHE / "debian-12-2.ext4"
KERNEL = CACHE / "vmlinuz"
INITRD = CACHE / "initrd"

SUITE = "bookworm"
PACKAGES = ["systemd-sysv", "kmod", "udev", "dbus"]
NEEDED = ["qemu-system-x86", "debootstrap", "busybox-static", "kmod", "e2fsprogs", "cpio", "binutils"]
PROGRAMS = ["qemu-system-x86_64", "debootstrap", "busybox", "modprobe", "mke2fs", "cpio", "ar"]
# What Debian's kernel has as modules: the disk to start from, and in the guest a camera of the kernel's own.
EARLY = ["virtio_pci", "virtio_blk", "ext4"]
MODULES = EARLY + ["virtio_console", "virtio_rng", "vivid"]
# Of no use here, and slow.
UNWANTED = ["apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer", "e2scrub_all.timer"]
UNWANTED += ["e2scrub_reap.service", "getty@tty1.service", "systemd-firstboot.service", "proc-sys-fs-binfmt_misc.automount"]
UNWANTED += ["dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-pstore.service"]
# As in power_cut/machine.py: QEMU is slow at what later processors add.
PROCESSOR = "Nehalem"

START = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - START:6.1f} s] {text}", flush=True)


class Failed(Exception):
    pass


def find(name):
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def run(*command, **more):
    return subprocess.run(list(map(str, command)), check=True, **more)


def prepare():
    """The programs and the image; what is there already is not made again."""
    CACHE.mkdir(parents=True, exist_ok=True)
    # Another of these tests may prepare itself at the same time, and apt serves one only.
    lock = open(CACHE.parent / "apt.lock", "w")  # released when this returns
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not all(map(find, PROGRAMS)):
        say("installing what is missing")
        quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        run("apt-get", "update", "-q", **quiet)
        run("apt-get", "install", "-y", "-q", "--no-install-recommends", *NEEDED, **quiet)
    if IMAGE.exists() and INITRD.exists():
        return
    if os.geteuid() != 0:
        raise Failed("the image of the machine is made by debootstrap, which only root may run; once, then any user will do")
    say("making the image of the machine (once)")
    root = CACHE / "root"
    if not (root / "etc" / "debian_version").exists() or not (root / "usr" / "bin" / "perl").exists():
        shutil.rmtree(root, ignore_errors=True)
        archives = subprocess.check_output(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"], text=True
        )
        archive = next((line.split()[0] for line in archives.splitlines() if line.split()[1:] == [SUITE]), None)
        if archive is None:
            raise Failed(f"this machine has no package source of {SUITE}")
        with open(CACHE / "debootstrap.log", "w") as log:
            run(find("debootstrap"), "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, root, archive, stdout=log)
    version = kernel_into(root)
    furnish(root)
    part = IMAGE.with_suffix(".part")
    part.unlink(missing_ok=True)
    run(find("mke2fs"), "-q", "-t", "ext4", "-d", root, part, "1500M", stdout=subprocess.DEVNULL)
    make_initrd(root, version)
    part.rename(IMAGE)


def kernel_into(root):
    """Debian's kernel, with only those modules that are needed here."""
    folder = CACHE / "kernel"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    depends = subprocess.check_output(["apt-cache", "depends", "linux-image-amd64"], text=True)
    package = re.search(r"Depends: (linux-image-\S+)", depends).group(1)
    run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package, cwd=folder)
    run("dpkg-deb", "-x", next(folder.glob("*.deb")), folder / "tree")
    boot = next((folder / "tree" / "boot").glob("vmlinuz-*"))
    version = boot.name.removeprefix("vmlinuz-")
    shutil.copy(boot, KERNEL)
    every = folder / "tree"
    run(find("depmod"), "-b", every, version)
    kept = root / "lib" / "modules" / version
    shutil.rmtree(kept.parent, ignore_errors=True)
    for module in modules(every, version, MODULES):
        place = kept / pathlib.Path(module).relative_to(every / "lib" / "modules" / version)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, place)
    for name in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
        shutil.copy(every / "lib" / "modules" / version / name, kept / name)
    run(find("depmod"), "-b", root, version)
    shutil.rmtree(folder)
    return version


def modules(tree, version, names):
    """The files of these modules and of those that they need, in the order in which they are loaded."""
    files = []
    for name in names:
        shown = subprocess.check_output([find("modprobe"), "-d", tree, "-S", version, "--show-depends", name], text=True)
        for line in shown.splitlines():
            word, _, rest = line.partition(" ")
            if word == "insmod" and rest.split()[0] not in files:
                files.append(rest.split()[0])
    return files


def furnish(root):
    for unwanted in (root / "var/cache/apt/archives", root / "var/lib/apt/lists", root / "usr/share/doc", root / "usr/share/locale"):
        shutil.rmtree(unwanted, ignore_errors=True)
        unwanted.mkdir(parents=True)
    (root / "etc/hostname").write_text("door\n")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (root / "etc/fstab").write_text("")
    units = root / "etc/systemd/system"
    for unit in UNWANTED:
        link = units / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    (units / "guest.service").write_text(
        "[Unit]\nDescription=What the test says\nAfter=basic.target\n[Service]\nExecStart=/bin/bash /usr/local/sbin/guest.sh\n"
        "Environment=HOME=/root DEBIAN_FRONTEND=noninteractive LC_ALL=C\nOOMScoreAdjust=-900\n"
    )
    wants = units / "multi-user.target.wants" / "guest.service"
    wants.unlink(missing_ok=True)
    wants.symlink_to("/etc/systemd/system/guest.service")
    (root / "etc/modules-load.d/guest.conf").write_text("virtio_console\n")
    shutil.copy(HERE / "guest.sh", root / "usr/local/sbin/guest.sh")


def make_initrd(root, version):
    """busybox, the modules of the disk, and a script that goes over to it."""
    tree = CACHE / "initrd.d"
    shutil.rmtree(tree, ignore_errors=True)
    for folder in ("bin", "dev", "proc", "sys", "new", "m"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(find("busybox"), tree / "bin" / "busybox")
    load = []
    for module in modules(root, version, EARLY):
        shutil.copy(module, tree / "m")
        load.append(f"insmod /m/{pathlib.Path(module).name}")
    script = ["#!/bin/busybox sh", "/bin/busybox --install -s /bin", "export PATH=/bin", "mount -t devtmpfs dev /dev", *load]
    script += ["until [ -e /dev/vda ]; do usleep 10000; done", "mount -t ext4 /dev/vda /new", "mount --move /dev /new/dev"]
    script += ["exec switch_root /new /sbin/init"]
    (tree / "init").write_text("\n".join(script) + "\n")
    (tree / "init").chmod(0o755)
    listed = subprocess.check_output(["find", "."], cwd=tree)
    with open(INITRD, "wb") as out:
        run("cpio", "-o", "-H", "newc", "--quiet", input=listed, cwd=tree, stdout=out)
    shutil.rmtree(tree)


class Machine:
    """The machine, started; commands are given to root's shell in it one after the other."""

    def __init__(self, folder, luggage, memory=1024):
        """`luggage`: name → file here; unpacked to /root in the guest."""
        self.folder, self.number, self.rest = folder, 0, b""
        with tarfile.open(folder / "luggage.tar", "w") as tar:
            for name, file in luggage.items():
                tar.add(file, name)
        door = socket.socket(socket.AF_UNIX)
        door.bind(str(folder / "door"))
        door.listen(1)
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "q35"]
        command += ["-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", "2", "-m", str(memory), "-rtc", "base=utc"]
        command += ["-kernel", KERNEL, "-initrd", INITRD, "-serial", f"file:{folder / 'kernel.log'}"]
        append = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr audit=0 cryptomgr.notests no_timer_check tsc=reliable"
        command += ["-append", f"{append} root=/dev/vda rw systemd.show_status=0 systemd.journald.forward_to_console=0"]
        command += ["-drive", f"file={IMAGE},format=raw,if=virtio,snapshot=on,cache=unsafe"]
        command += ["-drive", f"file={folder / 'luggage.tar'},format=raw,if=virtio,readonly=on"]
        command += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=door,path={folder / 'door'}"]
        command += ["-device", "virtconsole,chardev=door", "-device", "virtio-rng-pci"]
        # The copy that the machine writes to.
        environment = {**os.environ, "TMPDIR": str(folder)}
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, env=environment)
        door.settimeout(30)
        self.line, _ = door.accept()
        self.read(time.monotonic() + 180, "the machine did not come up")
        say("the machine is up")
        self.run("tar -x -C /root -f /dev/vdb")

    def read(self, end, late):
        """The next line, as number, exit code and text."""
        while b"\n" not in self.rest:
            left = end - time.monotonic()
            if left <= 0:
                raise Failed(f"{late}\n{self.kernel_log()}")
            self.line.settimeout(left)
            try:
                more = self.line.recv(1 << 16)
            except TimeoutError:
                continue
            if not more:
                raise Failed(f"the machine is gone\n{self.kernel_log()}")
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\n")
        number, code, text = line.split()
        return int(number), int(code), base64.b64decode(text).decode(errors="replace").rstrip("\n")

    def kernel_log(self):
        log = self.folder / "kernel.log"
        return log.read_text(errors="replace")[-3000:] if log.exists() else ""

    def ask(self, command, patience=120):
        """Exit code and what it printed."""
        self.number += 1
        self.line.sendall(f"{self.number} ".encode() + base64.b64encode(command.encode()) + b"\n")
        end = time.monotonic() + patience
        while True:
            number, code, text = self.read(end, f"not done in {patience} s: {command}")
            if number == self.number:
                return code, text

    def run(self, command, patience=120):
        """What it printed; that it fails is a failure."""
        code, text = self.ask(command, patience)
        if code != 0:
            raise Failed(f"{command}: exit code {code}\n{text}")
        return text

    def until(self, what, command, accept=lambda code, text: code == 0, patience=180):
        """Asks again until the answer is accepted."""
        end = time.monotonic() + patience
        while True:
            code, text = self.ask(command)
            if accept(code, text):
                return text
            if time.monotonic() > end:
                raise Failed(f"not in time ({patience} s): {what}; last: {code} {text}")
            time.sleep(0.3)

    def end(self):
        self.process.terminate()
        self.process.wait()
        self.line.close()
