"""Medians of the rounds, and ratios within a round."""
import statistics
from typing import NamedTuple


class Spread(NamedTuple):
    """A median and how far the rounds lie apart."""

    median: float
    low: float
    high: float

    def text(self, digits=0, unit=""):
        """For people."""
        shown = f"{self.median:,.{digits}f}{unit}"
        if self.low == self.high:
            return shown
        return f"{shown} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


def spread(values):
    """Of a list; None of an empty one."""
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def cells_of(results, system, load):
    """The valid runs of a system at a load, by round."""
    return {cell["round"]: cell for cell in results["cells"]
            if (cell["system"], cell["connections"], cell["batch"], cell["duplicates"]) == (system, *load)
            and not cell["void"]}


def of(results, system, load, field):
    """The spread of a field."""
    return spread([cell[field] for cell in cells_of(results, system, load).values()])


def ratio(results, over, under, load, field):
    """The spread of one system's field over another's, each ratio within one round: the machine's moods cancel."""
    return sums(results, over, under, load, (field,))


def sums(results, over, under, load, fields):
    """The same of the sum of some fields."""
    above, below = cells_of(results, over, load), cells_of(results, under, load)

    def total(cell):
        return sum(cell[field] for field in fields)
    return spread([total(above[turn]) / total(below[turn]) for turn in above if turn in below and total(below[turn])])


def replica_costs(results, batch, count):
    """The spread of what an event costs so many processes, over what it costs one in the same round."""
    def costs(processes):
        return {row["round"]: row["proxy_us_per_event"] for row in results.get("replicas", ())
                if (row["processes"], row["batch"]) == (processes, batch) and not row["void"]}
    one, several = costs(1), costs(count)
    return spread([several[turn] / one[turn] for turn in sorted(one.keys() & several.keys())])


def pending_costs(results, system, batch, size):
    """Proxy + Redis CPU µs an event, by round."""
    return {row["round"]: row["proxy_us_per_event"] + row["redis_us_per_event"] for row in results["pending"]
            if (row["system"], row["batch"], row["pending"]) == (system, batch, size) and not row["void"]}


def pending_cost(results, system, batch, size):
    """The spread of that."""
    return spread(pending_costs(results, system, batch, size).values())
