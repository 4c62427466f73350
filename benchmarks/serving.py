"""Measures `finetune serve` on this machine: bursts beside slow clients, and shared batches.

    python benchmarks/serving.py runs/rotten_tomatoes/minilm

- ``burst``: 500 requests at once, each with a connection of its own, while 200 other clients send
  one byte a second. Of the accepted requests the time to the whole answer, of /health that of
  another process that asks all the while. Three bursts.
- ``throughput``: 16 clients that each send the next text when the last is answered, with shared
  batches and one by one, in turn, and whether both give the same answers.

The run has to label texts; its test rows are sent. Client and server share the machine; all traffic
stays on the loopback address. It takes two minutes and writes results/serving.json, an entry a run.
"""

import argparse
import asyncio
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune import run_directory

HOST = "127.0.0.1"
SLOW, BURST, BURSTS, CLIENTS = 200, 500, 3, 16
SECONDS = 6.0
ROUNDS = 3
RESULTS = Path(__file__).with_name("results") / "serving.json"
PACKAGES = ("torch", "transformers", "fastapi", "uvicorn")


def serve(run: str, rows: int) -> None:
    """Serves a run with at most so many rows a batch, as a process of its own."""
    from finetune.serving import server
    from finetune.serving.app import create_app
    from finetune.serving.limits import Limits
    from finetune.serving.service import Service

    # One by one, 16 clients would wait for too long.
    limits = Limits(rows=rows) if rows > 1 else Limits(rows=rows, patience=60)
    server.run(create_app(Service(run_directory.one(run)), limits), HOST, 0, limits)


class Server:
    """A serving process; a context in which it runs."""

    def __init__(self, run: str, rows: int = 32) -> None:
        words = [sys.executable, __file__, run, "--serve", str(rows)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if "http://" in line)
        self.port = int(line.rpartition(":")[2])

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def request(path: str, text: str | None = None, close: bool = True) -> bytes:
    """Returns the bytes of a request for the prediction of a text, or without one of a GET."""
    body = b"" if text is None else json.dumps({"inputs": [text]}).encode()
    head = f"{'GET' if text is None else 'POST'} {path} HTTP/1.1\r\nHost: {HOST}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return (head + ("Connection: close\r\n" if close else "") + "\r\n").encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Reads one response: its status and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
    return int(head.split()[1]), await reader.readexactly(length)


async def ask(port: int, given: bytes) -> tuple[int, float]:
    """Sends one request over a new connection; returns its status and seconds."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(given)
    status, _ = await answer(reader)
    seconds = time.perf_counter() - start
    writer.close()
    return status, seconds


def watch(port: int, seconds: float) -> list[float]:
    """Asks /health again and again; returns the seconds of each answer."""

    async def whole() -> list[float]:
        found, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            status, taken = await ask(port, request("/health"))
            assert status == 200
            found.append(taken)
            await asyncio.sleep(0.02)
        return found

    return asyncio.run(whole())


async def drip(port: int) -> None:
    """Sends a request at one byte a second, until the server has had enough."""
    _, writer = await asyncio.open_connection(HOST, port)
    try:
        for byte in request("/predict", "slow " * 100):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(1)
    except OSError:
        pass


async def burst(port: int, texts: list[str]) -> dict[str, Any]:
    """Returns what became of one burst beside slow clients."""
    slow = [asyncio.create_task(drip(port)) for _ in range(SLOW)]
    await asyncio.sleep(1)
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1) as other:
        health = loop.run_in_executor(other, watch, port, 4.0)
        await asyncio.sleep(2)
        asked = [request("/predict", texts[i % len(texts)]) for i in range(BURST)]
        answers = await asyncio.gather(*(ask(port, each) for each in asked))
        seconds = await health
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    accepted = [taken for status, taken in answers if status == 200]
    others: dict[str, int] = {}
    for status, _ in answers:
        if status != 200:
            others[str(status)] = others.get(str(status), 0) + 1
    return {
        "accepted": len(accepted),
        "others": others,
        "accepted_p50": statistics.median(accepted),
        "accepted_p99": _p99(accepted),
        "health_answers": len(seconds),
        "health_p50": statistics.median(seconds),
        "health_p99": _p99(seconds),
        "health_max": max(seconds),
    }


def _p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


async def throughput(port: int, texts: list[str]) -> tuple[float, dict[str, Any]]:
    """Returns requests a second of clients that wait for their answers, and the answers by text."""
    found: dict[str, Any] = {}
    end = time.perf_counter() + SECONDS
    count = 0

    async def client(number: int) -> None:
        nonlocal count
        reader, writer = await asyncio.open_connection(HOST, port)
        i = number
        while time.perf_counter() < end:
            text = texts[i % len(texts)]
            writer.write(request("/predict", text, close=False))
            status, body = await answer(reader)
            assert status == 200
            found[text] = json.loads(body)["predictions"][0]
            i, count = i + CLIENTS, count + 1
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return count / (time.perf_counter() - start), found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Compares the answers to the texts that both have."""
    texts = sorted(ours.keys() & theirs.keys())
    apart = [
        abs(p - theirs[text]["probabilities"][name])
        for text in texts
        for name, p in ours[text]["probabilities"].items()
    ]
    same = sum(ours[text]["prediction"] == theirs[text]["prediction"] for text in texts)
    return {"texts": len(texts), "same_prediction": same, "largest_difference": max(apart)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures finetune serve.")
    parser.add_argument("run", help="a run directory of a classifier of texts")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.run, options.serve)
    run = run_directory.one(options.run)
    texts = run.predictions()["text"].tolist()
    with Server(options.run) as shared:
        with urllib.request.urlopen(f"http://{HOST}:{shared.port}/health") as health:
            engine = json.load(health)["engine"]
        asyncio.run(throughput(shared.port, texts))
        bursts = [asyncio.run(burst(shared.port, texts)) for _ in range(BURSTS)]
    print(json.dumps(bursts, indent=1))
    rates: dict[str, list[float]] = {"shared": [], "one_by_one": []}
    answers: dict[str, dict[str, Any]] = {"shared": {}, "one_by_one": {}}
    with Server(options.run) as shared, Server(options.run, 1) as single:
        for _ in range(ROUNDS):
            for name, server in (("shared", shared), ("one_by_one", single)):
                rate, found = asyncio.run(throughput(server.port, texts))
                rates[name].append(rate)
                answers[name] |= found
    middle = {name: statistics.median(values) for name, values in rates.items()}
    results = {
        "command": f"python benchmarks/serving.py {options.run}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in PACKAGES},
        "engine": engine,
        "words_of_a_text": statistics.mean(len(text.split()) for text in texts),
        "burst": {"slow_clients": SLOW, "requests": BURST, "rounds": bursts},
        "throughput": {
            "clients": CLIENTS,
            "requests_per_second": rates,
            "times": middle["shared"] / middle["one_by_one"],
            "answers": differences(answers["shared"], answers["one_by_one"]),
        },
    }
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    known[run.results()["name"]] = results
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results["throughput"], indent=1))


if __name__ == "__main__":
    main()
