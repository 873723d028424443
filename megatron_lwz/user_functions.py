"""Functions of the user's own, named in the config as `package.module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from megatron_lwz.errors import ConfigError


def load_function(key: str, path: str) -> Callable[..., Any]:
    """Imports the function that config key `key` names as `path` ("package.module:function").

    Raises ConfigError for a path of another form, a module or name that cannot be imported, and what is not callable.
    """
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise ConfigError(key, path, "must read package.module:function")
    try:
        function = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as error:  # a module of the user's may raise anything while it is imported
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(key, path, f"cannot be imported ({said})") from error
    if not callable(function):
        raise ConfigError(key, path, "is not a function")
    return function
