"""Loading of custom functions, which the config names as `package.module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from megatron_lwz.errors import ConfigError


def load_function(key: str, path: str) -> Callable[..., Any]:
    """Imports the function that config key `key` names as `path` ("package.module:function").

    Raises ConfigError if the path has another form, the module or name cannot be imported, or the object is not
    callable.
    """
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise ConfigError(key, path, "must read package.module:function")
    try:
        function = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except (Exception, SystemExit) as error:  # a custom module may raise anything while it is imported
        if type(error) is not SystemExit and isinstance(error, SystemExit):
            raise  # a signal ends this process
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            key, path, f"cannot be imported ({said}): correct it, or add its folder to PYTHONPATH"
        ) from error
    if not callable(function):
        raise ConfigError(key, path, "is not a function: name one as package.module:function")
    return function
