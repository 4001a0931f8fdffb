"""What is measured. A case is a function that takes a `Bench` and returns results."""

import json
import os
import re
import shutil
import statistics

from containers import Bundle, Ticker, milliseconds, output, run
from measure import Result, interleave

MIB = 1 << 20
CASES = {}


def case(name, *, full=False):
    """Makes a function the case of that name; `full` ones run only when asked for."""

    def register(function):
        function.full = full
        CASES[name] = function
        return function

    return register


class Bench:
    """What the cases share: the machine, and how often they measure."""

    def __init__(self, machine, runs, quick):
        self.machine, self.quick = machine, quick
        self.runs = runs or (3 if quick else 10)
        self.warmup = 1
        self.timelines = {}

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

    bench = bench_with_runs(bench, bench.runs * 3)
    samples = bench.compare(bare=cycle("bare"), ocicle=cycle("ocicle"))
    return [
        Result("pass-through", what, of(samples, what), difference=2)
        for what in ["state", "create", "start", "delete"]
    ]


def bench_with_runs(bench, runs):
    return Bench(bench.machine, runs, bench.quick)


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


def pause_case(name, limit, *, full=False, **workload):
    """Makes a case of the pause of one workload."""

    @case(name, full=full)
    def measure(bench):
        ticker = Ticker(bench.machine, slug(name), **workload)
        return live_checkpoints(bench, name, ticker, limit)


pause_case("small", 0.5, memory=16)
pause_case("1 GiB", 1.1, memory=1024)
pause_case("1 GiB + 100 MiB files", 1.1, memory=1024, files=100, size=MIB, rewrite=5)
pause_case("1 GiB + 1 GiB files", 1.1, memory=1024, files=1000, size=MIB, rewrite=5)
pause_case("1 GiB + 5 GiB files", 1.1, full=True, memory=1024, files=5000, size=MIB, rewrite=5)
pause_case("100 000 files", 1.25, memory=16, files=100_000, size=1024)


def restores(bench, name, ticker, change, limit):
    """Restores of one checkpoint, by the bare runtime and by ocicle. The same images serve both."""

    def restore(contender):
        def measure(_):
            change(ticker)
            os.sync()
            took = milliseconds(lambda: ticker.restore(contender, images))
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


def rewrite(share):
    """Rewrites that share of the files, as somebody in the container would."""

    def change(ticker):
        files = sorted((ticker.rootfs / "data").iterdir())
        for path in files[: int(len(files) * share)]:
            path.write_bytes(os.urandom(path.stat().st_size))

    return change


def restore_case(name, limit, *, changed=0.0, **workload):
    @case(name)
    def measure(bench):
        ticker = Ticker(bench.machine, slug(name), **workload)
        return restores(bench, name, ticker, rewrite(changed), limit)


restore_case("restore small", 1.1, memory=16)
restore_case("restore 1 GiB", 1.1, memory=1024)
restore_case("restore 1 GiB + 1 GiB files", 1.1, memory=1024, files=1000, size=MIB)
restore_case("restore, 5 % changed", None, changed=0.05, memory=1024, files=1000, size=MIB)


@case("second version")
def second_version(bench):
    """The bytes that a version costs when 1 % of the files have changed since the one before."""
    store = bench.machine.scratch / "store"
    with Ticker(bench.machine, "versions", memory=16, files=1000, size=MIB) as ticker:
        ticker.begin()
        sizes = [version_bytes(bench, ticker, store)]
        rewrite(0.01)(ticker)
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
