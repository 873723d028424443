"""Loads the embedded engine with many streams for a long time, and looks whether memory, files and threads stay flat.

    python tools/soak_engine.py [--streams 256] [--slots 64] [--minutes 30] [--model DIR] [--json FILE]

A server process (`lwz serve-engine`) on a random policy of 2 layers × 64, or on --model. Each stream sends one request after the
other through the run's own client: prompts and lengths differ, a tenth breaks off in the middle, as a controller does. Every 15
seconds a line shows finished and broken requests, tokens, resident memory, open files and threads of the server, and the memory
of the client. Exit status 1 if memory of the last quarter lies more than 5 % above that of the second, or if the server holds
more files or threads after the last stream than before the first one (4 are tolerated).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from megatron_lwz.http.process import ServerProcess  # noqa: E402
from megatron_lwz.rollout.client import EngineClient  # noqa: E402
from megatron_lwz.rollout.engine.process import engine_process  # noqa: E402
from megatron_lwz.rollout.events import StreamEnd  # noqa: E402
from megatron_lwz.units import MIB  # noqa: E402

LOOK_SECONDS = 15.0
GROWTH = 1.05
TOLERATED = 4
BROKEN = 0.1
LONGEST = 192


@dataclass(frozen=True)
class Look:
    """One line. Memory in MiB."""

    seconds: float
    finished: int
    broken: int
    tokens: int
    server_mib: float
    client_mib: float
    files: int
    threads: int


@dataclass
class Counts:
    """What all streams did."""

    finished: int = 0
    broken: int = 0
    tokens: int = 0


def main() -> int:
    """Runs the load; prints the lines and the verdict. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--slots", type=int, default=64, help="streams that the engine writes at once; the others wait")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", type=Path, help="Hugging Face folder; default: random weights")
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--json", type=Path, help="file for all lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = options.model or Path(temporary)
        if options.model is None:
            from tests.support.engine_model import write_engine_model

            write_engine_model(model)
        log_path = Path(temporary, "log")
        server = engine_process(model, slots=options.slots, dtype="fp32", threads=options.threads, log_path=log_path)
        server.start()
        try:
            server.wait_ready()
            looks = asyncio.run(load(server, options.streams, 60 * options.minutes))
        finally:
            server.stop()
    if options.json:
        options.json.write_text(json.dumps([asdict(look) for look in looks], indent=1) + "\n", encoding="utf-8")
    faults = verdict(looks)
    print("\n".join(faults) or "flat: memory, files and threads")
    return 1 if faults else 0


async def load(server: ServerProcess, streams: int, seconds: float) -> list[Look]:
    """Runs the streams for so many seconds. Returns a look before them, those during, and one after the last has ended."""
    client, counts, end = EngineClient(server.url, server.token), Counts(), time.monotonic() + seconds
    begun = time.monotonic()
    looks = [look(server, counts, 0.0)]
    show(looks[0])
    tasks = [asyncio.create_task(stream(client, number, counts, end)) for number in range(streams)]
    while time.monotonic() < end:
        await asyncio.wait(tasks, timeout=min(LOOK_SECONDS, max(0.0, end - time.monotonic())))
        looks.append(look(server, counts, time.monotonic() - begun))
        show(looks[-1])
    await asyncio.gather(*tasks)
    await client.close()
    await asyncio.sleep(1.0)  # the server closes its side
    looks.append(look(server, counts, time.monotonic() - begun))
    show(looks[-1])
    return looks


async def stream(client: EngineClient, number: int, counts: Counts, end: float) -> None:
    """One request after the other until `end`."""
    rng, request = random.Random(number), 0
    while time.monotonic() < end:
        request += 1
        prompt = [rng.randrange(256) for _ in range(rng.randint(1, 64))]
        length = rng.randint(1, LONGEST)
        break_at = rng.randint(1, length) if rng.random() < BROKEN else None
        events = client.stream(
            prompt,
            request_id=f"{number}-{request}",
            seed=request,
            max_tokens=length,
            temperature=1.0,
            top_p=1.0,
            stop=[],
        )
        got = 0
        async with aclosing(events):
            async for event in events:
                if isinstance(event, StreamEnd):
                    counts.finished += 1
                    break
                got += len(event.tokens)
                if break_at is not None and got >= break_at:
                    counts.broken += 1
                    break
        counts.tokens += got


def look(server: ServerProcess, counts: Counts, seconds: float) -> Look:
    """Reads memory, files and threads of both processes."""
    process, own = psutil.Process(server.pid), psutil.Process()
    return Look(
        seconds=round(seconds, 1),
        finished=counts.finished,
        broken=counts.broken,
        tokens=counts.tokens,
        server_mib=round(process.memory_info().rss / MIB, 1),
        client_mib=round(own.memory_info().rss / MIB, 1),
        files=process.num_fds(),
        threads=process.num_threads(),
    )


def show(seen: Look) -> None:
    """Prints the line."""
    print(
        f"{seen.seconds:7.0f} s  finished {seen.finished:7d}  broken off {seen.broken:6d}  tokens {seen.tokens:9d}  "
        f"server {seen.server_mib:7.1f} MiB, {seen.files:4d} files, {seen.threads:3d} threads  client {seen.client_mib:7.1f} MiB",
        flush=True,
    )


def verdict(looks: list[Look]) -> list[str]:
    """Returns what grew, in words."""
    first, *during, last = looks
    quarter = max(1, len(during) // 4)
    faults = []
    for name in ("server_mib", "client_mib"):
        early = statistics.median(getattr(seen, name) for seen in during[quarter : 2 * quarter] or during)
        late = statistics.median(getattr(seen, name) for seen in during[-quarter:])
        print(f"{name}: {early:.1f} in the second quarter, {late:.1f} in the last ({late / early - 1:+.1%})")
        if late > GROWTH * early:
            faults.append(f"{name} grows: {early:.1f} in the second quarter, {late:.1f} in the last")
    for name in ("files", "threads"):
        before, after = getattr(first, name), getattr(last, name)
        if after > before + TOLERATED:
            faults.append(f"the server's {name}: {before} before, {after} after")
    return faults


if __name__ == "__main__":
    sys.exit(main())
