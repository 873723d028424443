"""Functions of the user's own, named in the config as `package.module:function`: the one place that imports them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from megatron_lwz.errors import ConfigError


def load_function(key: str, path: str) -> Callable[..., Any]:
    """The callable at `path`, "package.module:function"; the function may be an attribute of an attribute.

    The module must be installed, in the folder where the run was started, or on PYTHONPATH. Raises ConfigError, which
    names `key`.
    """
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise ConfigError(key, path, "must read package.module:function")
    try:
        function = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as error:  # a module of the user's may raise anything while it is imported
        raise ConfigError(key, path, f"cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(function):
        raise ConfigError(key, path, "is not a function")
    return function
