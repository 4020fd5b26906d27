"""Load of `mindllm serve`: errors, throughput, memory, and time to the first token.

    python benchmarks/serve.py MODEL STORE [--clients 32] [--seconds 300] [--out serve.json]

1. time to the first token of a streamed answer, of scans that are new and that are kept
2. requests per second of one client, then of many; every status that was answered
3. memory of the server while many ask, after a time to warm up

The server is started as a command of its own. Clients ask one after another and wait as long as
a 429 says. Every scan is asked about in turn, so most of them are kept after the first time.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil

WARM_UP = 0.2  # of the time
SAMPLE_SECONDS = 2.0
MAX_TOKENS = 16


@dataclass
class Load:
    """What clients saw in a time."""

    clients: int
    seconds: float
    statuses: dict[str, int]
    requests_per_second: float
    median_seconds: float
    p95_seconds: float


@dataclass
class Memory:
    """Resident memory of the server, MiB."""

    at_start: float
    after_warm_up: float
    at_end: float
    slope_per_minute: float
    """Of a line through all samples after the warm-up."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(arguments: argparse.Namespace) -> Iterator[tuple[str, psutil.Process]]:
    """Run the server until the block ends."""
    port = free_port()
    words = ["serve", arguments.model, "--store", arguments.store, "--port", str(port)]
    if arguments.max_queue:
        words += ["--max-queue", str(arguments.max_queue)]
    if arguments.llm:
        words += ["--llm", arguments.llm]
    code = "from mindllm.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(arguments.threads)},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, "the server ended"
            try:
                httpx.get(f"{url}/health", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield url, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def body_of(model: str, subject: str, trial: int, stream: bool) -> dict:
    part = {"type": "fmri", "fmri": {"subject": subject, "trial": trial}}
    messages = [{"role": "user", "content": [part]}]
    return {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "stream": stream}


def first_token_seconds(url: str, model: str, subject: str, trials: list[int]) -> list[float]:
    """From a request to the first piece of its answer, one request at a time."""
    seconds = []
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        for trial in trials:
            start = time.perf_counter()
            body = body_of(model, subject, trial, stream=True) | {"mindllm": {"evidence": False}}
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                pieces = (
                    json.loads(line[6:])["choices"][0]["delta"]["content"]
                    for line in answer.iter_lines()
                    if line.startswith("data: {")
                )
                if any(pieces):
                    seconds.append(time.perf_counter() - start)
                for _ in pieces:  # to its end, so that the next request does not wait for it
                    pass
    return seconds


async def ask(
    client: httpx.AsyncClient, model: str, scans: list[tuple[str, int]], number: int,
    deadline: float, seen: list[tuple[str, float]],
) -> None:  # fmt: skip
    """One client: a request after another until the deadline."""
    while time.monotonic() < deadline:
        subject, trial = scans[number % len(scans)]
        number += 7
        start = time.monotonic()
        try:
            answer = await client.post(
                "/v1/chat/completions", json=body_of(model, subject, trial, stream=False)
            )
            status = str(answer.status_code)
        except httpx.HTTPError as error:
            status = type(error).__name__
        seen.append((status, time.monotonic() - start))
        if status == "429":
            await asyncio.sleep(float(answer.headers["retry-after"]))


async def load(
    url: str, model: str, scans: list[tuple[str, int]], clients: int, seconds: float
) -> Load:
    """Ask with many clients for a time."""
    seen: list[tuple[str, float]] = []
    limits = httpx.Limits(max_connections=clients)
    start = time.monotonic()
    async with httpx.AsyncClient(
        base_url=url, timeout=600, trust_env=False, limits=limits
    ) as client:
        await asyncio.gather(
            *(ask(client, model, scans, 31 * n, start + seconds, seen) for n in range(clients))
        )
    spent = time.monotonic() - start
    answered = [duration for status, duration in seen if status == "200"]
    return Load(
        clients,
        round(spent, 1),
        dict(Counter(status for status, _ in seen)),
        round(len(answered) / spent, 3),
        round(float(np.median(answered)), 3),
        round(float(np.quantile(answered, 0.95)), 3),
    )


async def watch_memory(process: psutil.Process, samples: list[tuple[float, float]]) -> None:
    """Sample the memory of the server until cancelled."""
    while True:
        samples.append((time.monotonic(), process.memory_info().rss / 2**20))
        await asyncio.sleep(SAMPLE_SECONDS)


async def load_with_memory(
    url: str, process: psutil.Process, model: str, scans: list[tuple[str, int]], clients: int,
    seconds: float,
) -> tuple[Load, Memory]:  # fmt: skip
    samples: list[tuple[float, float]] = []
    watching = asyncio.create_task(watch_memory(process, samples))
    result = await load(url, model, scans, clients, seconds)
    watching.cancel()
    times, sizes = np.array(samples).T
    late = times > times[0] + WARM_UP * (times[-1] - times[0])
    slope = float(np.polyfit(times[late], sizes[late], 1)[0]) * 60
    first, last = sizes[late][:5].mean(), sizes[-5:].mean()
    return result, Memory(*(round(float(v), 1) for v in (sizes[0], first, last, slope)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("store")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--alone-seconds", type=float, default=60, help="of one client")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--max-queue", type=int, default=0)
    parser.add_argument("--llm")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends, too
    with serve(arguments) as (url, process):
        with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            subjects = client.get("/v1/subjects").json()["data"]
        scans = [(s["id"], t) for s in subjects for t in range(0, s["n_trials"], 8)]
        subject = subjects[-1]["id"]
        first_token_seconds(url, model, subject, [1])  # the alignment of the subject
        new = first_token_seconds(url, model, subject, list(range(3, 19, 2)))
        kept = first_token_seconds(url, model, subject, list(range(3, 19, 2)))
        alone = asyncio.run(load(url, model, scans, 1, arguments.alone_seconds))
        many, memory = asyncio.run(
            load_with_memory(url, process, model, scans, arguments.clients, arguments.seconds)
        )
    result = {
        "first_token_seconds": {
            "new scan": round(float(np.median(new)), 4),
            "kept scan": round(float(np.median(kept)), 4),
        },
        "one client": asdict(alone),
        "many clients": asdict(many),
        "ratio": round(many.requests_per_second / alone.requests_per_second, 2),
        "memory_mib": asdict(memory),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
