"""Three sentences, two of one meaning, and a server that embeds them so."""

import asyncio
import hashlib

from aiohttp import web

from megatron_lwz.http.server import read_object
from tests.support.scripted_server import Scripted

HORSE = "The old horse walked slowly up the long hill with a heavy cart of stones, and nobody came to help it at all."
STEED = "Up the long slope an aged steed went at a slow pace, drawing a waggon full of rocks, and no one lent it a hand then."
BREAD = "A baker in our street lights his oven before dawn, so that every child has warm bread on the way to school."


def embed(text):
    """A meaning: texts about the horse point one way, others each their own."""
    if "horse" in text or "steed" in text:
        return [1.0, 0.1 * ("steed" in text), *[0.0] * 14]
    return [0.0, 0.0, *(byte / 255 - 0.5 for byte in hashlib.sha256(text.encode()).digest()[:14])]


class Embeddings(Scripted):
    """`answer(texts, number)` gives the vectors, or a whole response."""

    async def handle(self, request):
        body = await read_object(request)
        number = len(self.bodies)
        self.bodies.append(body)
        await asyncio.sleep(self.delay)
        said = self.answer(body["input"], number)
        if isinstance(said, web.StreamResponse):
            return said
        data = [{"index": place, "embedding": vector} for place, vector in enumerate(said)]
        return web.json_response({"data": data[::-1], "model": "m"})
