"""JSON asked from a server by POST, with a class for every failure."""

from __future__ import annotations

from typing import Any

import aiohttp

from megatron_lwz.decoding import decode_json
from megatron_lwz.http.retry import Failure, RequestFailure, no_connection
from megatron_lwz.http.session import HttpSession, quoted, read_bounded


class JsonSession(HttpSession):
    """Connections to one server that answers JSON with JSON."""

    async def post_json(self, address: str, body: dict[str, Any], *, most: int, within: str) -> Any:
        """Returns the decoded answer of at most `most` bytes; `within` names the timeout. Raises RequestFailure."""
        try:
            async with self.session.post(address, json=body, allow_redirects=False) as response:
                data = await read_bounded(response, most)
                if response.status != 200:
                    busy = response.status >= 500 or response.status in (408, 429)
                    kind = Failure.SERVER if busy else Failure.REFUSED
                    raise RequestFailure(address, f"answered {response.status}: {quoted(data, 300)}", kind)
                return decode_json(data)
        except RequestFailure:
            raise
        except TimeoutError as error:
            raise RequestFailure(address, f"no answer within {within}", Failure.TIMEOUT) from error
        except (aiohttp.ClientError, OSError) as error:
            raise RequestFailure(address, no_connection(error), Failure.CONNECTION) from error
        except ValueError as error:
            raise RequestFailure(address, f"answered no JSON ({error})", Failure.CONTRACT) from error
