"""The base classes and value types that every section of the config is built on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError, core_schema

_LARGEST_FLOAT = 3.4e38
"""Settings end up in fp32 tensors, where a larger number becomes infinite."""
_LARGEST_INT = 2**63 - 1
_KEY = re.compile(r"(?:sk|hf|gh[a-z]|pat|xai|gsk|nvapi)[-_][\w-]{16}", re.ASCII)
"""How the keys of well-known services begin; the names of variables are upper case as a rule."""
_KEY_NAME = re.compile(r"(?i)(?:^|[-_])(?:api[-_]?key|access[-_]?key|authorization|bearer|password|secret|token)$")
_PASSWORD_IN_ADDRESS = re.compile(r"://[^/?#@\s]{1,200}@")
_USE = {"use": "export the key as a variable and give its name in api_key_env"}
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def user_path(text: str) -> str:
    """Returns a path that a person gave, with `~` expanded. Raises ValueError for what cannot be a path."""
    if not text.strip():
        raise ValueError("an empty path: name a file or folder")
    if "\0" in text:
        raise ValueError("a path cannot hold a NUL character")
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise ValueError(
            "no home folder is known for '~': write the whole path, or ./~ for a file of this name"
        ) from error


def _address(text: str) -> str:
    """Refuses what is no address of a server, such as one without `http://`."""
    scheme, _, rest = text.partition("://")
    if scheme not in ("http", "https") or not rest or rest[0] in "/:?#" or any(map(str.isspace, text)):
        raise ValueError("not an address: write http://host:port")
    try:
        _ = urlsplit(text).port
    except ValueError as error:  # a port that is none, half an IPv6 address
        raise ValueError(f"not an address ({error}): write http://host:port") from error
    if "@" in re.split(r"[/?#]", rest, maxsplit=1)[0]:
        raise PydanticCustomError("secret", "holds a user or password, which the run folder would keep: {use}", _USE)
    if "?" in rest or "#" in rest:
        raise PydanticCustomError("secret", "ends in a query, which may hold a key and is not sent: {use}", _USE)
    return text


def _variable(text: str) -> str:
    """Refuses what is a key itself, not the name of the variable with the key."""
    if not re.fullmatch(r"[A-Za-z_]\w{0,99}|", text, re.ASCII) or _KEY.match(text):
        raise PydanticCustomError("secret", "is no name of an environment variable: {use}", _USE)
    return text


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable seems to hold a key, by its name or by how its value begins."""
    return bool(_KEY_NAME.search(name) or _KEY.match(value) or _PASSWORD_IN_ADDRESS.search(value))


def _without_keys(body: dict[str, Any]) -> dict[str, Any]:
    """Refuses parts of a request that hold a key."""
    for name in body:
        if _KEY_NAME.search(str(name)):
            raise PydanticCustomError("secret", f"'{name}' would be kept in the run folder: {{use}}", _USE)
    return body


def _one_of_a_list(value: Any) -> Any:
    """Reads a single value as a list of one: `rollout.stop=</answer>`."""
    return [value] if isinstance(value, (str, int, float, Mapping)) else value


def _parts_of_a_list(value: Any) -> Any:
    """Reads a text as a list, split at its commas: `rollout.urls=http://a,http://b`. Another single value is a list of one."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return _one_of_a_list(value)


class _ListMark:
    """Marks a list of which a single value is also read; editors are told so by the JSON schema."""

    def __init__(self, read: Callable[[Any], Any], *, as_text: bool = False) -> None:
        self._read = read
        self._as_text = as_text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        whole = handler(schema)
        return {"anyOf": [whole, whole["items"], *([{"type": "string"}] if self._as_text else [])]}


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Normalizer = Literal["zscore", "range", "none"]
UserPath = Annotated[str, AfterValidator(user_path)]
OneOrList = _ListMark(_one_of_a_list)
"""Marks a list whose items are texts that may hold commas, or sections."""
CommaList = _ListMark(_parts_of_a_list, as_text=True)
"""Marks a list whose items hold no commas: addresses, paths, names, numbers."""
Paths = Annotated[tuple[UserPath, ...], CommaList]
Variable = Annotated[str, AfterValidator(_variable)]
"""The name of an environment variable that holds a key."""
Body = Annotated[dict[str, Any], AfterValidator(_without_keys)]
"""Additional keys of a request."""
Url = Annotated[str, AfterValidator(_address)]
Urls = Annotated[tuple[Url, ...], CommaList]


class Section(BaseModel):
    """Base class of all sections. Sections are frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read_true(cls, given: Any, info: ValidationInfo) -> Any:
        """Reads YAML's true as the word that was written, `on`, where it is one of the choices. It is no 1."""
        if isinstance(given, bool):
            annotation = cls.model_fields[str(info.field_name)].annotation
            if (word := "on" if given else "off") in get_args(annotation):
                return word
            if {int, float} & {annotation, *get_args(annotation)}:
                raise ValueError(f"must be a number, not {str(given).lower()}")
        return given

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_what_cannot_be_used(cls, value: Any) -> Any:
        if (fault := _fault(value)) is not None:
            raise ValueError(fault)
        return value


class ComponentSection(Section):
    """The settings that every reward component has."""

    weight: float = Field(
        1.0, ge=0, description="weight of the component in the average over components; paper: equal weights (B)"
    )
    normalizer: Normalizer | None = Field(
        None,
        description="normaliser of this component; null: the one of reward.normalizer; refused with reward.combine: rewards",
    )


class ServedSection(ComponentSection):
    """The settings of every component whose scores a server of ours computes, or one like it."""

    hf: UserPath | None = Field(
        None, description="Hugging Face folder of the model: the run serves it on loopback and stops it at the end"
    )
    url: Url | None = Field(None, description="URL of a running server")
    api_key_env: Variable = Field("LWZ_REWARD_TOKEN", description="environment variable with the server's token")
    timeout: float = Field(120.0, gt=0, description="timeout of one request, in seconds")
    retries: int = Field(
        3, ge=0, description="maximum retries of a failed request; after that, the group's scores are masked"
    )
    backoff: float = Field(0.5, gt=0, description="seconds before the first retry; doubles with each further retry")
    threads: int = Field(1, ge=0, description="CPU threads of the server that the run starts; 0 = all cores")
    tokens_per_batch: int = Field(
        32768, gt=0, description="maximum tokens per forward pass of the server that the run starts"
    )

    @property
    def used(self) -> bool:
        """Whether the component is part of the run."""
        return self.hf is not None or self.url is not None


def _fault(value: Any) -> str | None:
    """Returns what makes a value unusable, wherever it stands in a list or mapping; None if nothing does."""
    if isinstance(value, str):
        return "is not valid Unicode (half a surrogate pair): write it in UTF-8" if _HALF_PAIR.search(value) else None
    if isinstance(value, float):
        return "is too large: fp32 holds numbers up to 3.4e38" if abs(value) > _LARGEST_FLOAT else None
    if isinstance(value, int):
        return f"is too large: at most {_LARGEST_INT}" if abs(value) > _LARGEST_INT else None
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    faults = map(_fault, value) if isinstance(value, (list, tuple)) else ()
    return next((fault for fault in faults if fault is not None), None)
