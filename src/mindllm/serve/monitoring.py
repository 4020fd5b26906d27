"""Counts and times for Prometheus; nothing of what is asked or answered."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Monitoring:
    """What the server counts, in a registry of its own.

    Examples
    --------
    >>> monitoring = Monitoring()
    >>> monitoring.generated_tokens.inc(3)
    >>> b"mindllm_generated_tokens_total 3.0" in monitoring.to_text()
    True
    """

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    requests: Counter = field(init=False)
    request_seconds: Histogram = field(init=False)
    first_token_seconds: Histogram = field(init=False)
    generated_tokens: Counter = field(init=False)
    batch_sizes: Histogram = field(init=False)
    queue_length: Gauge = field(init=False)
    cancelled: Counter = field(init=False)
    cache_lookups: Counter = field(init=False)
    scans: Gauge = field(init=False)

    def __post_init__(self) -> None:
        registry = self.registry
        metrics = {
            "requests": Counter(
                "mindllm_requests", "Requests", ["route", "method", "status"], registry=registry
            ),
            "request_seconds": Histogram(
                "mindllm_request_seconds", "Until the end of an answer", ["route"],
                registry=registry, buckets=SECONDS,
            ),
            "first_token_seconds": Histogram(
                "mindllm_first_token_seconds", "From a request to its first text", ["scan"],
                registry=registry, buckets=SECONDS,
            ),
            "generated_tokens": Counter(
                "mindllm_generated_tokens", "Tokens of answers", registry=registry
            ),
            "batch_sizes": Histogram(
                "mindllm_batch_size", "Requests that are answered at once", registry=registry,
                buckets=SIZES,
            ),
            "queue_length": Gauge(
                "mindllm_queue_length", "Requests that wait or are answered", registry=registry
            ),
            "cancelled": Counter(
                "mindllm_cancelled", "Requests whose client has gone", registry=registry
            ),
            "cache_lookups": Counter(
                "mindllm_cache_lookups", "Lookups of fMRI tokens", ["result"], registry=registry
            ),
            "scans": Gauge("mindllm_scans", "Uploaded scans that are kept", registry=registry),
        }  # fmt: skip
        for name, metric in metrics.items():
            object.__setattr__(self, name, metric)

    def to_text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self.registry)
