"""podman with a store of its own, and a container that is checkpointed through several runtimes."""

import os
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

from containers import START, output, pause_of, run, ticker, wait_until

NAME = "bench"
IMAGE = "localhost/bench"


class Podman:
    """A container that ticks, below podman.

    podman keeps to the runtime that it made a container with. So that one container serves all
    contenders, that runtime is a script, which calls what `through` says.
    """

    def __init__(self, machine, **workload):
        self.machine, self.workload = machine, workload
        self.dir = machine.scratch / "podman"
        # podman reads errors as JSON from, and asks for checkpoints, runtimes of known names.
        self.runtime = self.dir / "bin" / machine.runtime

    def __enter__(self):
        with ExitStack() as undo:
            self.runtime.parent.mkdir(parents=True)
            undo.callback(shutil.rmtree, self.dir)
            undo.callback(self._unmount_store)
            self.through("bare")
            self._import_image()
            undo.callback(self.call, "rm", "--force", "--time", "0", "--ignore", NAME)
            self._start()
            self.undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self.undo.close()

    def call(self, *arguments):
        """Runs a command of podman to its end."""
        stores = ["--root", self.dir / "root", "--runroot", self.dir / "run"]
        environment = os.environ | {"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}
        return output("podman", *stores, "--runtime", self.runtime, *arguments, env=environment)

    def through(self, contender):
        """Makes the runtime the bare one, or ocicle in front of it."""
        bare = shutil.which(self.machine.runtime)
        ocicle = f"OCICLE_RUNTIME={bare} exec {shutil.which('ocicle-runtime')}"
        program = {"bare": f"exec {bare}", "ocicle": ocicle}[contender]
        self.runtime.write_text(f'#!/bin/sh\n{program} "$@"\n')
        self.runtime.chmod(0o755)

    def forget(self):
        """Removes what podman leaves of a checkpoint: its next archive would hold that too."""
        configuration = self.call("inspect", "--format", "{{.OCIConfigPath}}", NAME).strip()
        shutil.rmtree(Path(configuration).parent / "checkpoint", ignore_errors=True)

    def checkpoint(self, archive, *options):
        """A live checkpoint into an archive, as `podman container checkpoint` makes it."""
        self.call("container", "checkpoint", "--leave-running", "--export", archive, *options, NAME)

    @contextmanager
    def frozen(self):
        """Freezes the container behind podman's back, which checkpoints none that it has paused."""
        id_ = self.call("inspect", "--format", "{{.Id}}", NAME).strip()
        run(self.machine.runtime, "pause", id_)
        try:
            yield
        finally:
            run(self.machine.runtime, "resume", id_)

    def pause(self, action):
        """The longest gap between two ticks while something is done, in milliseconds."""
        return pause_of(self.rootfs / "run/ticker", action)

    def _import_image(self):
        tar = self.dir / "image.tar"
        run("tar", "-cf", tar, "-C", self.machine.image, ".")
        self.call("import", "--quiet", tar, IMAGE)
        tar.unlink()

    def _start(self):
        group = f"/{self.machine.id}-podman-{os.getpid()}"
        limits = ["--pids-limit=0", "--cgroup-parent", group, "--network=none"]
        self.call("run", "--detach", "--name", NAME, *limits, IMAGE, *ticker(**self.workload))
        merged = self.call("inspect", "--format", "{{.GraphDriver.Data.MergedDir}}", NAME)
        self.rootfs = Path(merged.strip())
        wait_until((self.rootfs / "run/ticker.ready").exists, "the container ticks", START)

    def _unmount_store(self):
        """podman keeps its store mounted on itself."""
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        points = [line.split()[1] for line in mounts]
        for point in reversed(points):
            if point.startswith(f"{self.dir}/"):
                # One on top of another may have gone with it.
                subprocess.run(["umount", "--lazy", point], stderr=subprocess.DEVNULL, check=False)
