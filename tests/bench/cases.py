"""What is measured. A case is a function that takes a `Bench` and returns results."""

import json
import os
import re
import shutil
import statistics
from contextlib import nullcontext
from copy import copy

from containers import Bundle, Ticker, file_system, milliseconds, output, run
from measure import Result, interleave
from podman import Podman

MIB = 1 << 20
EFFORTS = ["quick", "normal", "full"]
CASES = {}


def case(name, *, effort="quick"):
    """Makes a function the case of that name, which runs with that effort and with greater ones."""

    def register(function):
        function.effort = effort
        CASES[name] = function
        return function

    return register


def chosen(effort):
    """The names of the cases that belong to an effort."""
    most = EFFORTS.index(effort)
    return [name for name, case in CASES.items() if EFFORTS.index(case.effort) <= most]


class Bench:
    """What the cases share: the machine, and how often they measure."""

    def __init__(self, machine, runs):
        self.machine, self.runs = machine, runs
        self.warmup = 1
        self.timelines = {}

    def with_runs(self, runs):
        """The same, measuring so often; at least once."""
        other = copy(self)
        other.runs = max(runs, 1)
        return other

    def compare(self, **contenders):
        return interleave(self.runs, self.warmup, **contenders)

    def images(self, bundle):
        """An empty place for images, with nothing of the last ones still on its way to the disk."""
        images = bundle.dir / "images"
        shutil.rmtree(images, ignore_errors=True)
        os.sync()
        return images

    def note_timeline(self, name, images):
        """Keeps how long each phase of a checkpoint of ocicle took."""
        manifest = json.loads((images / "ocicle-manifest.json").read_text())
        phases = self.timelines.setdefault(name, {})
        for phase in manifest["timeline"]:
            phases.setdefault(phase["name"], []).append(phase["end"] - phase["begin"])
        phases.setdefault("freeze to thaw", []).append(manifest["freeze"]["milliseconds"])


@case("pass-through")
def pass_through(bench):
    """`state`, `create`, `start` and `delete`: ocicle only hands them on."""

    def cycle(name):
        def measure(_):
            with Bundle(bench.machine, "pass", "sleep", "1000") as bundle:
                times = {"create": milliseconds(lambda: bundle.create(name))}
                times["state"] = milliseconds(lambda: bundle.call(name, "state"))
                times["start"] = milliseconds(lambda: bundle.start(name))
                bundle.kill()
                times["delete"] = milliseconds(lambda: bundle.delete(name))
            return times

        return measure

    bench = bench.with_runs(bench.runs * 3)
    samples = bench.compare(bare=cycle("bare"), ocicle=cycle("ocicle"))
    return [
        Result("pass-through", what, of(samples, what), difference=2)
        for what in ["state", "create", "start", "delete"]
    ]


def of(samples, what):
    return {name: measured[what] for name, measured in samples.items()}


def live_checkpoints(bench, name, ticker, limit):
    """The pause inside, and how long the command took, of checkpoints that leave it running."""

    def checkpoint(contender):
        def measure(number):
            images = bench.images(ticker)
            times = {}

            def command():
                call = lambda: ticker.checkpoint(contender, images, "--leave-running")
                times["command"] = milliseconds(call)

            times["pause"] = ticker.pause(command)
            if contender == "ocicle" and number >= 0:
                bench.note_timeline(name, images)
            return times

        return measure

    with ticker:
        ticker.begin()
        samples = bench.compare(bare=checkpoint("bare"), ocicle=checkpoint("ocicle"))
        ticker.kill()
        ticker.delete()
    return [
        Result(name, "pause", of(samples, "pause"), ratio=limit),
        Result(name, "command", of(samples, "command")),
    ]


def pause_case(name, limit, *, effort="quick", on=None, **workload):
    """Makes a case of the pause of one workload; `on` names another file system for all of it."""

    @case(name, effort=effort)
    def measure(bench):
        with file_system(bench.machine, on, ROOM) if on else nullcontext() as place:
            ticker = Ticker(bench.machine, slug(name), place=place, **workload)
            return live_checkpoints(bench, name, ticker, limit)


GIB_OF_FILES = {"memory": 1024, "files": 1000, "size": MIB, "rewrite": 5}
FIVE_GIB = GIB_OF_FILES | {"files": 5000}
MANY_FILES = {"memory": 16, "files": 100_000, "size": 1024}
ROOM = 24 << 10
"""MiB of a file system for any of the cases; what is not written takes no room."""

pause_case("small", 0.5, memory=16)
pause_case("256 MiB on a tmpfs", 0.5, memory=16, files=256, size=MIB, tmpfs=True)
pause_case("1 GiB", 1.1, memory=1024)
pause_case("1 GiB + 100 MiB files", 1.1, **GIB_OF_FILES | {"files": 100})
pause_case("1 GiB + 1 GiB files", 1.1, **GIB_OF_FILES)
pause_case("1 GiB + 5 GiB files", 1.1, effort="full", **FIVE_GIB)
# One that goes as a whole: to remove so many files would take longer than to measure them.
pause_case("100 000 files", 1.25, effort="normal", on="ext4", **MANY_FILES)
for where, place in {
    "xfs": {"on": "xfs"},
    "btrfs": {"on": "btrfs"},
    "btrfs subvolume": {"on": "btrfs", "subvolume": True},
}.items():
    pause_case(f"{where}, 1 GiB + 1 GiB files", 1.1, effort="normal", **place, **GIB_OF_FILES)
    pause_case(f"{where}, 1 GiB + 5 GiB files", 1.1, effort="full", **place, **FIVE_GIB)
    pause_case(f"{where}, 100 000 files", 1.25, effort="normal", **place, **MANY_FILES)


def podman_case(size_in_words, compress, **workload):
    """Makes a case of podman's own export, live and frozen throughout, and with ocicle below it."""
    name = f"podman, {size_in_words}, {compress}"

    @case(name, effort="normal")
    def measure(bench):
        with Podman(bench.machine, **workload) as podman:
            samples = podman_exports(bench.with_runs(bench.runs // 2), podman, compress)
        live, frozen, ocicle = samples["live"], samples["frozen"], samples["ocicle"]
        return podman_results(name, live, ocicle) + podman_results(f"{name}, frozen", frozen, ocicle)


def podman_results(name, others, ocicle):
    both = {what: {"bare": others[what], "ocicle": ocicle[what]} for what in others}
    return [
        Result(name, "pause", both["pause"]),
        Result(name, "command", both["command"], ratio=1.0),
        Result(name, "archive", both["archive"], unit="MiB"),
    ]


def podman_exports(bench, podman, compress):
    """`live` runs again while podman exports; `frozen` stays so until it has; ocicle is live."""
    archive = podman.dir / "archive.tar"

    def export(runtime, around=nullcontext, options=()):
        def measure(_):
            podman.through(runtime)
            podman.forget()
            archive.unlink(missing_ok=True)
            os.sync()
            times = {}

            def command():
                with around():
                    call = lambda: podman.checkpoint(archive, "--compress", compress, *options)
                    times["command"] = milliseconds(call)

            times["pause"] = podman.pause(command)
            return times | {"archive": archive.stat().st_size / MIB}

        return measure

    return bench.compare(
        live=export("bare"),
        frozen=export("bare", around=podman.frozen),
        # What podman would copy once more is in the snapshot.
        ocicle=export("ocicle", options=["--ignore-rootfs"]),
    )


for compress in ["none", "zstd"]:
    podman_case("small", compress, memory=16)
    podman_case("1 GiB + 1 GiB files", compress, **GIB_OF_FILES)


def restores(bench, name, ticker, share, limit):
    """Restores of one checkpoint, by the bare runtime and by ocicle. The same images serve both.

    Where files have changed, the bare runtime's time is that of its restore and of writing them.
    """

    def restore(contender):
        def measure(_):
            were = rewrite(ticker, share)
            os.sync()

            def command():
                if contender == "bare":
                    put_back(were)
                ticker.restore(contender, images)

            took = milliseconds(command)
            ticker.kill()
            ticker.delete()
            return {"restore": took}

        return measure

    with ticker:
        images = ticker.dir / "images"
        ticker.begin()
        ticker.checkpoint("ocicle", images)
        ticker.remove()
        samples = bench.compare(bare=restore("bare"), ocicle=restore("ocicle"))
    return [Result(name, "restore", of(samples, "restore"), ratio=limit)]


def rewrite(ticker, share):
    """Rewrites that share of the files, as somebody in the container would; what they were."""
    files = sorted((ticker.rootfs / "data").iterdir()) if share else []
    were = {path: path.read_bytes() for path in files[: int(len(files) * share)]}
    for path, content in were.items():
        path.write_bytes(os.urandom(len(content)))
    return were


def put_back(were):
    for path, content in were.items():
        path.write_bytes(content)


def restore_case(name, *, changed=0.0, **workload):
    @case(name)
    def measure(bench):
        ticker = Ticker(bench.machine, slug(name), **workload)
        return restores(bench, name, ticker, changed, 1.1)


restore_case("restore small", memory=16)
restore_case("restore 1 GiB", memory=1024)
restore_case("restore 1 GiB + 1 GiB files", memory=1024, files=1000, size=MIB)
restore_case("restore, 5 % changed", changed=0.05, memory=1024, files=1000, size=MIB)


@case("second version")
def second_version(bench):
    """The bytes that a version costs when 1 % of the files have changed since the one before."""
    store = bench.machine.scratch / "store"
    with Ticker(bench.machine, "versions", memory=16, files=1000, size=MIB) as ticker:
        ticker.begin()
        sizes = [version_bytes(bench, ticker, store)]
        rewrite(ticker, 0.01)
        sizes.append(version_bytes(bench, ticker, store))
        ticker.kill()
        ticker.delete()
    first, second = sizes[0], sizes[1] - sizes[0]
    samples = {"bare": [first / MIB], "ocicle": [second / MIB]}
    return [Result("second version, 1 % changed", "bytes", samples, unit="MiB", ratio=0.03)]


def version_bytes(bench, ticker, store):
    """Makes a version; what the store then occupies. A file of several names counts once."""
    flags = bench.machine.criu_flags
    globals_ = ["--root", bench.machine.state, "--store", store]
    environment = os.environ | {"OCICLE_RUNTIME": bench.machine.runtime}
    run("ocicle", *globals_, "checkpoint", "--leave-running", *flags, ticker.id, env=environment)
    return int(output("du", "--summarize", "--block-size=1", store).split()[0])


def slug(name):
    """A name for a directory and a control group."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def medians(timeline):
    return {phase: statistics.median(times) for phase, times in timeline.items()}
