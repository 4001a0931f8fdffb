"""Containers to measure: a root file system, a bundle, and the ticker inside."""

import json
import mmap
import os
import select
import shutil
import struct
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
START = 300
"""Seconds that a container may take to start: it may write 5 GiB first."""

CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]
APPLETS = ["sh", "sleep", "cat", "true"]


def run(*command, **options):
    """Runs a command to its end. It gets no pipe that a container could inherit and keep open."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} | options
    return subprocess.run([str(word) for word in command], check=True, **options)


def output(*command, **options):
    return run(*command, stdout=subprocess.PIPE, text=True, **options).stdout


def milliseconds(action):
    """How long an action takes."""
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1000


def wait_until(condition, what, deadline=30):
    """There is no event to wait for in shared memory; between two looks others get the processor."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline} s")
        time.sleep(0.002)


class Machine:
    """The runtime that is measured, and where everything is put."""

    def __init__(self, runtime):
        self.runtime = runtime
        self.id = os.environ["OCICLE_TESTBED_ID"]
        self.scratch = Path(os.environ["OCICLE_SCRATCH"]) / f"bench-{os.getpid()}"
        self.scratch.mkdir()
        self.state = self.scratch / "state"
        self.image = self.scratch / "image"
        self._make_image()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.scratch)

    def program(self, name):
        """`bare` is the runtime itself, `ocicle` has the shim in front of it."""
        program = {"bare": self.runtime, "ocicle": "ocicle-runtime"}[name]
        return [program, "--root", self.state]

    @property
    def criu_flags(self):
        """In the pure version 2 view, crun would have CRIU copy version 1 hierarchies it does not see."""
        return ["--manage-cgroups-mode", "ignore"] if self.runtime == "crun" else []

    def _make_image(self):
        for directory in ["bin", "data", "dev", "proc", "run", "sys", "tmp"]:
            (self.image / directory).mkdir(parents=True)
        shutil.copy("/usr/bin/busybox", self.image / "bin/busybox")
        for applet in APPLETS:
            (self.image / "bin" / applet).symlink_to("busybox")
        workload = CHECKOUT / "target/release/workload"
        shutil.copy(workload, self.image / "bin/workload")
        for word in output("ldd", workload).split():
            if word.startswith("/"):
                target = self.image / word.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, target)


@contextmanager
def file_system(machine, kind, mebibytes):
    """A directory on a new file system, in a sparse file that goes with all that is in it."""
    image, place = machine.scratch / f"{kind}.img", machine.scratch / kind
    with ExitStack() as undo:
        undo.callback(image.unlink, missing_ok=True)
        run("truncate", f"--size={mebibytes}M", image)
        run(f"mkfs.{kind}", "-q", image)
        place.mkdir()
        undo.callback(place.rmdir)
        # The loop device goes with the mount, and the mount with this namespace.
        run("mount", "-o", "loop", image, place)
        undo.callback(run, "umount", "--lazy", place)
        yield place


class Bundle:
    """An overlay on the image, a network namespace of its own, and a config.json.

    A `place` is a file system of its own, and goes with what is in it. With `subvolume`, which wants
    one of btrfs, the root is a subvolume with a copy of the image. With `tmpfs`, `/data` is one.
    """

    def __init__(self, machine, name, *args, place=None, subvolume=False, tmpfs=False):
        self.machine = machine
        self.id = f"{machine.id}-{os.getpid()}-{name}"
        self.dir = (place or machine.scratch) / name
        self.is_lasting = place is None
        self.subvolume = subvolume
        self.tmpfs = tmpfs
        self.args = args

    def __enter__(self):
        with ExitStack() as undo:
            (self.dir / "criu").mkdir(parents=True)
            if self.is_lasting:
                undo.callback(shutil.rmtree, self.dir)
            if self.subvolume:
                run("btrfs", "subvolume", "create", self.rootfs)
                run("cp", "--archive", f"{self.machine.image}/.", self.rootfs)
            else:
                self._mount_overlay(undo)
            (self.dir / "network").touch()
            run("unshare", f"--net={self.dir}/network", "ip", "link", "set", "lo", "up")
            undo.callback(run, "umount", "--lazy", self.dir / "network")
            (self.dir / "config.json").write_text(json.dumps(self._configuration()))
            self.undo = undo.pop_all()
        return self

    def __exit__(self, error, *_):
        with self.undo:
            if error:
                self.remove()

    def _mount_overlay(self, undo):
        for directory in ["rootfs", "upper", "work"]:
            (self.dir / directory).mkdir()
        layers = f"lowerdir={self.machine.image},upperdir={self.dir}/upper,workdir={self.dir}/work"
        run("mount", "-t", "overlay", "-o", layers, "overlay", self.rootfs)
        undo.callback(run, "umount", "--lazy", self.rootfs)

    @property
    def log(self):
        return self.dir / "log"

    @property
    def rootfs(self):
        return self.dir / "rootfs"

    def call(self, name, command, *flags):
        """Calls the bare runtime, or ocicle in front of it."""
        program = [*self.machine.program(name), "--log", self.log]
        environment = os.environ | {"OCICLE_RUNTIME": self.machine.runtime}
        try:
            run(*program, command, *flags, self.id, stderr=subprocess.DEVNULL, env=environment)
        except subprocess.CalledProcessError as error:
            said = self.log.read_text() if self.log.exists() else "nothing"
            raise RuntimeError(f"{error}; its log says:\n{said[-2000:]}") from error

    def create(self, name="bare"):
        self.call(name, "create", "--bundle", self.dir)

    def start(self, name="bare"):
        self.call(name, "start")

    def checkpoint(self, name, images, *flags):
        work = ["--image-path", images, "--work-path", self.dir / "criu"]
        self.call(name, "checkpoint", *work, *self.machine.criu_flags, *flags)

    def restore(self, name, images):
        work = ["--image-path", images, "--work-path", self.dir / "criu", "--bundle", self.dir]
        self.call(name, "restore", "--detach", *work, *self.machine.criu_flags)

    def delete(self, name="bare"):
        self.call(name, "delete")

    def remove(self):
        """Removes it whatever its state; one that is gone is no error."""
        self.call("bare", "delete", "--force")

    def kill(self):
        """Ends the container; `delete` removes what the runtime keeps of it."""
        program = self.machine.program("bare")
        process = os.pidfd_open(json.loads(output(*program, "state", self.id))["pid"])
        try:
            run(*program, "kill", self.id, "KILL")
            wait_for_end(process)
        finally:
            os.close(process)

    def _configuration(self):
        namespaces = [{"type": kind} for kind in ["pid", "mount", "ipc", "uts"]]
        namespaces.append({"type": "network", "path": str(self.dir / "network")})
        tmpfs = ["nosuid", "mode=755", "size=65536k"]
        data = {"destination": "/data", "type": "tmpfs", "source": "tmpfs"}
        return {
            "ociVersion": "1.0.2",
            "hostname": "bench",
            "root": {"path": "rootfs", "readonly": False},
            "process": {
                "terminal": False,
                "user": {"uid": 0, "gid": 0},
                "args": [str(word) for word in self.args],
                "env": ["PATH=/bin", "RUST_BACKTRACE=1"],
                "cwd": "/",
                "capabilities": dict.fromkeys(["bounding", "effective", "permitted"], CAPABILITIES),
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": tmpfs},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": tmpfs},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                 "options": ["nosuid", "noexec", "nodev", "ro"]},
                *([data] if self.tmpfs else []),
            ],
            "linux": {"cgroupsPath": f"/{self.id}", "namespaces": namespaces},
        }  # fmt: skip


def wait_for_end(pidfd):
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(30_000):
        raise TimeoutError("a container did not end")


def ticker(*, memory, files=0, size=0, rewrite=0, every=20):
    """The command line of a process that ticks."""
    options = {"memory": memory, "files": files, "size": size, "rewrite": rewrite, "every": every}
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["workload", "ticker", "/run/ticker", *flags]


class Ticker(Bundle):
    """A container whose process ticks every millisecond and records its longest gap."""

    def __init__(self, machine, name, *, place=None, subvolume=False, tmpfs=False, **workload):
        where = {"place": place, "subvolume": subvolume, "tmpfs": tmpfs}
        super().__init__(machine, name, *ticker(**workload), **where)

    def begin(self):
        self.create()
        self.start()
        wait_until((self.rootfs / "run/ticker.ready").exists, f"{self.id} ticks", START)

    def pause(self, action):
        return pause_of(self.rootfs / "run/ticker", action)


def pause_of(ticker_file, action):
    """The longest gap between two ticks while something is done, in milliseconds."""
    with Words(ticker_file) as words:
        words.reset()
        action()
        words.await_ticks(3)
        return words.longest / 1e6


class Words:
    """The ticker's three words: longest gap in nanoseconds, ticks, and a request to reset."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        with open(self.path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), 24)
        return self

    def __exit__(self, *_):
        self.map.close()

    @property
    def longest(self):
        return self._word(0)

    def reset(self):
        struct.pack_into("=Q", self.map, 16, 1)
        wait_until(lambda: self._word(2) == 0, "the ticker starts again")
        self.await_ticks(20)

    def await_ticks(self, count):
        wanted = self._word(1) + count
        wait_until(lambda: self._word(1) >= wanted, "the ticker ticks")

    def _word(self, index):
        return struct.unpack_from("=Q", self.map, 8 * index)[0]
