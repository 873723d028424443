"""vLLM's completions protocol: the fields of a request, and the shape of answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from megatron_lwz.rollout.engine.generation import Delta

LOGPROBS_MODE = "full_softmax_at_temperature"
"""Mode of our log-probs: of the full softmax at the sampling temperature, before top-p; fp32, natural logarithm."""


_Text = Annotated[str, Field(max_length=1024)]
_LEAST, _MOST = 1e-6, 1e6
"""Temperatures between which logits that are divided by them stay finite."""


def _usable(temperature: float) -> float:
    if temperature != 0 and not _LEAST <= temperature <= _MOST:
        raise ValueError("out of range")
    return temperature


class CompletionRequest(BaseModel):
    """The body of POST /v1/completions. Unsupported settings are rejected unless they have no effect."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    model: _Text | None = None
    prompt: str | list[int]
    max_tokens: Annotated[int, Field(ge=1)] = 16
    temperature: Annotated[float, AfterValidator(_usable)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: _Text | Annotated[list[_Text], Field(max_length=64)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=1024)] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    return_token_ids: bool = False
    request_id: _Text | None = None
    user: _Text | None = None

    n: Literal[1] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    repetition_penalty: float | None = Field(None, ge=1, le=1)
    top_k: Literal[0, -1] | None = None
    min_p: float | None = Field(None, ge=0, le=0)
    min_tokens: Literal[0] | None = None
    skip_special_tokens: Literal[True] | None = None

    def stop_strings(self) -> list[str]:
        """Returns the stop strings without empty ones."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]


def parse_request(body: dict[str, Any]) -> CompletionRequest:
    """Parses a body. Raises ValueError with one line that names the key, the value and the fault."""
    try:
        return CompletionRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if key == "n":
            advice = "one completion per request: send a request per sample, the prompt is computed once for all"
        elif key == "prompt" and first["type"] != "missing":
            raise ValueError("prompt: must be one text or one list of token ids") from error
        elif first["type"] == "extra_forbidden":
            advice = "this engine does not know the key"
        elif key == "temperature" and first["type"] == "value_error":
            advice = f"must be 0 (the most likely token), or from {_LEAST:g} to {_MOST:g}"
        elif key == "logprobs":
            advice = "only the sampled token's log-prob is given: use 0 or 1"
        else:
            advice = first["msg"]
        value = "" if first["type"] == "missing" else f" = {str(first['input'])[:80]}"
        raise ValueError(f"{key}{value}: {advice}") from error


class AnswerWriter:
    """Makes the JSON objects of one request's answer."""

    def __init__(self, request: CompletionRequest, *, request_id: str, model: str, created: int) -> None:
        self._request = request
        self._head = {"id": request_id, "object": "text_completion", "created": created, "model": model}

    def chunk(self, delta: Delta, *, prompt: tuple[int, ...] | None = None) -> dict[str, Any]:
        """Returns one streamed chunk; `prompt` is passed with the first."""
        return {**self._head, "weight_version": delta.version, "choices": [self._choice([delta], prompt)]}

    def whole(self, deltas: list[Delta], prompt: tuple[int, ...]) -> dict[str, Any]:
        """Returns the answer to a request without `stream`.

        `weight_versions` are run-length segments [first token, version].
        """
        versions: list[list[Any]] = []
        start = 0
        for delta in deltas:
            if not versions or versions[-1][1] != delta.version:
                versions.append([start, delta.version])
            start += len(delta.tokens)
        return {
            **self._head,
            "weight_version": deltas[-1].version,
            "weight_versions": versions,
            "choices": [self._choice(deltas, prompt)],
            "usage": usage(len(prompt), start),
        }

    def last(self, prompt_tokens: int, tokens: int) -> dict[str, Any]:
        """Returns the chunk that `stream_options.include_usage` requests."""
        return {**self._head, "choices": [], "usage": usage(prompt_tokens, tokens)}

    def _choice(self, deltas: list[Delta], prompt: tuple[int, ...] | None) -> dict[str, Any]:
        tokens = [token for delta in deltas for token in delta.tokens]
        reason = deltas[-1].reason
        choice: dict[str, Any] = {
            "index": 0,
            "text": "".join(delta.text for delta in deltas),
            "logprobs": None,
            "finish_reason": reason.value if reason else None,
            "stop_reason": deltas[-1].stop,
        }
        if self._request.logprobs is not None:
            logprobs = [value for delta in deltas for value in delta.logprobs]
            choice["logprobs"] = {"token_logprobs": logprobs, "tokens": [f"token_id:{token}" for token in tokens]}
        if self._request.return_token_ids:
            choice["token_ids"] = tokens
            if prompt is not None:
                choice["prompt_token_ids"] = prompt
        return choice


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Returns the token counts in OpenAI's format."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
