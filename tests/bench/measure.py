"""Measuring two things in turn, and what is kept of it."""

import statistics
import sys


def interleave(runs, warmup, **contenders):
    """Calls each contender in turn: what disturbs the machine for a while disturbs all of them.

    A contender takes the number of the round and returns a dictionary of measurements. The result
    has a list of samples for each contender and measurement, without the rounds of the warm-up.
    """
    samples = {name: {} for name in contenders}
    for number in range(-warmup, runs):
        order = list(contenders.items())
        for name, measure in order if number % 2 == 0 else reversed(order):
            for what, value in measure(number).items():
                if number >= 0:
                    samples[name].setdefault(what, []).append(value)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return samples


class Result:
    """One line of the table: a measurement of each contender, and what it should come to."""

    def __init__(self, case, what, samples, *, unit="ms", ratio=None, difference=None):
        """`ratio` and `difference` are the most that ocicle may have against the bare runtime."""
        self.case, self.what, self.unit = case, what, unit
        self.samples = samples
        self.bare = statistics.median(samples["bare"])
        self.ocicle = statistics.median(samples["ocicle"])
        self.limit = {"ratio": ratio, "difference": difference}

    @property
    def ratio(self):
        return self.ocicle / self.bare if self.bare else float("nan")

    @property
    def difference(self):
        return self.ocicle - self.bare

    @property
    def goal(self):
        if self.limit["ratio"] is not None:
            return f"≤ {self.limit['ratio']:g} ×"
        if self.limit["difference"] is not None:
            return f"≤ +{self.limit['difference']:g} {self.unit}"
        return ""

    @property
    def met(self):
        """Whether the goal is met; nothing where there is none."""
        if self.limit["ratio"] is not None:
            return self.ratio <= self.limit["ratio"]
        if self.limit["difference"] is not None:
            return self.difference <= self.limit["difference"]
        return None

    def to_json(self):
        keys = ["case", "what", "unit", "bare", "ocicle", "ratio", "limit", "met", "samples"]
        return {key: getattr(self, key) for key in keys}


def spread(samples):
    """How far the middle half of the samples lies apart, against their median: the noise."""
    if len(samples) < 4:
        return (max(samples) - min(samples)) / max(statistics.median(samples), 1e-9)
    low, _, high = statistics.quantiles(samples, n=4)
    return (high - low) / max(statistics.median(samples), 1e-9)
