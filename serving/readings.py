"""The metrics of a running server as numbers: read over HTTP, and what happened between two readings.

Rates and quantiles are those of the time between them; of a single reading, those since the server's start.
"""

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from math import inf, nan
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from serving.addresses import is_here
from serving.channel import OPEN, Access
from serving.errors import ClientError

DEFAULT_HTTP_ADDRESS: Final = "localhost:8080"
_MAX_BYTES: Final = 64 * 2**20
_TIMEOUT_S: Final = 5
_BUSY: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)

Key = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Reading:
    """All samples of one moment."""

    at_s: float  # seconds since 1970
    samples: Mapping[Key, float]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of that name that have these labels."""
        return sum(self.samples[key] for key in self.keys(name, **labels))

    def keys(self, name: str, **labels: str) -> list[Key]:
        """Return which samples those are."""
        wanted = set(labels.items())
        return [key for key in self.samples if key[0] == name and wanted <= key[1]]

    def values(self, name: str, label: str) -> list[str]:
        """Return the values that a label has in a metric, sorted."""
        return sorted({dict(given)[label] for found, given in self.samples if found == name and label in dict(given)})


@dataclass(frozen=True)
class Span:
    """What happened between two readings."""

    before: Reading
    after: Reading

    def rate(self, name: str, **labels: str) -> float:
        """Return a counter's growth a second."""
        seconds = self.after.at_s - self.before.at_s
        return self.growth(name, **labels) / seconds if seconds > 0 else nan

    def growth(self, name: str, **labels: str) -> float:
        """Return a counter's growth; after a restart of the server, all of it. Series may have left meanwhile."""
        keys = self.after.keys(name, **labels)
        pairs = ((self.before.samples.get(key, 0.0), self.after.samples[key]) for key in keys)
        return sum(after - before if after >= before else after for before, after in pairs)

    def mean(self, name: str, **labels: str) -> float:
        """Return the mean of a histogram's new observations; NaN of none."""
        count = self.growth(f"{name}_count", **labels)
        return self.growth(f"{name}_sum", **labels) / count if count else nan

    def quantile(self, name: str, share: float, **labels: str) -> float:
        """Return a quantile of a histogram's new observations, by linear interpolation as in PromQL; NaN of none."""
        bounds = sorted(self.after.values(f"{name}_bucket", "le"), key=float)
        below = {float(bound): self.growth(f"{name}_bucket", le=bound, **labels) for bound in bounds}
        wanted = share * below.get(inf, 0.0)
        low, count_low = 0.0, 0.0
        for bound, count in below.items():
            if count >= wanted > 0:
                return low if bound == inf else low + (bound - low) * (wanted - count_low) / (count - count_low)
            low, count_low = bound, count
        return nan


def read(address: str, access: Access = OPEN) -> Reading:
    """Read the metrics of the server at an HTTP host:port. Raises ClientError, or SettingsError for a file of TLS."""
    context = access.tls_context()
    url = f"{'http' if context is None else 'https'}://{address}/metrics"
    try:
        request = urllib.request.Request(url, headers=dict(access.metadata()))  # noqa: S310 -- http or https
        with _opener(address, context).open(request, timeout=_TIMEOUT_S) as answer:
            text = answer.read(_MAX_BYTES).decode()
        return parse(text, at_s=time.time())
    except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's own errors are OSErrors
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        told = ascii(str(reason))[1:-1]  # what answers there may be no HTTP, and no text
        raise ClientError(
            f"{address}: found no metrics ({told}); {_next_step(error, reason)}", status="UNAVAILABLE"
        ) from error


def _opener(address: str, context: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    """Return what asks the server itself where it is on this machine: a proxy would get the token, and find another."""
    direct = [urllib.request.ProxyHandler({})] if is_here(address) else []
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), *direct)


def _next_step(error: Exception, reason: object) -> str:
    if isinstance(error, urllib.error.HTTPError) and error.code == HTTPStatus.UNAUTHORIZED:
        return "give --token or CALOTYPE_TOKEN"
    if isinstance(error, urllib.error.HTTPError) and error.code in _BUSY:
        return "wait, and try again"
    if isinstance(reason, ssl.SSLError | ConnectionResetError):  # http.client's RemoteDisconnected is one too
        return "give as --address the server's --http-address, and --tls-ca (--tls-cert, --tls-key) where it wants them"
    return "give as --address the server's --http-address"


def parse(text: str, *, at_s: float) -> Reading:
    """Return the samples of a text in Prometheus' format. Raises ValueError."""
    samples: dict[Key, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name, frozenset(sample.labels.items())] = sample.value
    return Reading(at_s, samples)


def since_start(reading: Reading) -> Span:
    """Return the span from the server's start to a reading."""
    return Span(Reading(reading.total("process_start_time_seconds"), {}), reading)
