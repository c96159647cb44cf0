"""Spread a frozen dataclass over a function's keyword parameters, so that its fields become a command's options.

One place then holds an option's name, type, default and help. Knows no command line library: it only sets the
signature that such a library reads.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar, get_type_hints

Result = TypeVar("Result")


def spread(config_class: type[Any]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Return a decorator that replaces the parameter annotated `config_class` by one keyword parameter a field.

    Every field needs a default. The function still receives one config_class instance.
    """
    hints = get_type_hints(config_class, include_extras=True)
    spread_parameters = [
        inspect.Parameter(part.name, inspect.Parameter.KEYWORD_ONLY, default=part.default, annotation=hints[part.name])
        for part in fields(config_class)
    ]

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        own = inspect.signature(function, eval_str=True).parameters.values()
        (target,) = [parameter.name for parameter in own if parameter.annotation is config_class]
        kept = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own if parameter.name != target]

        @wraps(function)
        def command(**options: Any) -> Result:
            values = {part.name: options.pop(part.name) for part in fields(config_class)}
            return function(**options, **{target: config_class(**values)})

        vars(command)["__signature__"] = inspect.Signature(kept + spread_parameters)
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in kept + spread_parameters}
        del command.__wrapped__  # or signature readers see the original again
        return command

    return decorate
