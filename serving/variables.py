"""The environment's variables that look like a setting's, and are none."""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from difflib import get_close_matches
from typing import Final, get_type_hints

from serving.channel import Access
from serving.settings import ServerSettings

_PREFIX: Final = "CALOTYPE_"
_ALIKE: Final = 0.85  # two letters in fourteen; a cluster sets variables of its own for a service of our name
_OTHERS: Final = ("MODELS", "SERVER", "HTTP")


def mistyped_variables(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each name that is no variable of ours, but nearly one, and the one that may be meant."""
    of_clients = {hint.__metadata__[0].envvar for hint in get_type_hints(Access, include_extras=True).values()}
    of_servers = (part.name.upper() for part in fields(ServerSettings))
    known = of_clients | {_PREFIX + name for name in (*of_servers, *_OTHERS)}
    for name in sorted(set(names) - known):
        if name.startswith(_PREFIX) and (meant := get_close_matches(name, known, n=1, cutoff=_ALIKE)):
            yield name, meant[0]
