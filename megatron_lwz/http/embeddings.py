"""Client for embeddings from an OpenAI-compatible server: POST /v1/embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import aiohttp

from megatron_lwz.decoding import OTHER_SHAPE, decode_json
from megatron_lwz.http.completions import CONNECT_SECONDS, CompletionClient
from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.http.session import read_bounded
from megatron_lwz.units import MIB

MAX_ANSWER_BYTES = 64 * MIB


class EmbeddingClient(CompletionClient):
    """A CompletionClient that requests embedding vectors, with the same address, key and classes of failures."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns one vector per text, in order, all of one length. Raises CompletionFailure or RequestFailure."""
        body = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        timeout = aiohttp.ClientTimeout(total=self._timeout, sock_connect=CONNECT_SECONDS)
        try:
            async with self.session.post(
                self.url + "/embeddings", json=body, timeout=timeout, allow_redirects=False
            ) as response:
                await self._check(response)
                data = await read_bounded(response, MAX_ANSWER_BYTES)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._translate(error) from error
        try:
            return _read(decode_json(data), len(texts))
        except OTHER_SHAPE as error:
            advice = f"answered what OpenAI's contract does not know ({error!r:.200})"
            raise RequestFailure(self.url, advice, Failure.CONTRACT) from error


def _read(answer: Any, count: int) -> list[list[float]]:
    """Reads the vectors, in the order of their texts. Raises ValueError, KeyError … for JSON of another shape."""
    rows = {int(row["index"]): row["embedding"] for row in answer["data"]}
    vectors = [[float(value) for value in rows[place]] for place in range(count)]
    if len(answer["data"]) != count or len({len(vector) for vector in vectors}) > 1 or not all(vectors):
        raise ValueError(f"{len(answer['data'])} vectors of {len({len(v) for v in vectors})} lengths for {count} texts")
    if not all(math.isfinite(value) for vector in vectors for value in vector):
        raise ValueError("a vector that is not finite")
    return vectors
