"""The environment's variables that look like a setting's, and are none."""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from difflib import get_close_matches
from typing import Final, get_type_hints

from serving.channel import Access
from serving.settings import ServerSettings

_PREFIX: Final = "CALOTYPE_"
_ALIKE: Final = 0.85  # two letters in fourteen; a cluster sets variables of its own for a service of our name
_OTHERS: Final = ("CALOTYPE_MODELS", "CALOTYPE_SERVER", "CALOTYPE_HTTP")


def mistyped_variables(names: Iterable[str], *, has_tokens: bool) -> Iterator[tuple[str, str]]:
    """Yield each name that is no variable of ours, but nearly one, and the one that may be meant.

    So is a client's token where the server has none to compare it with: it would let everybody in.
    """
    hints = get_type_hints(Access, include_extras=True)
    of_clients = {name: hint.__metadata__[0].envvar for name, hint in hints.items()}
    of_servers = [_PREFIX + part.name.upper() for part in fields(ServerSettings)]
    known = {*of_clients.values(), *of_servers, *_OTHERS} - ({of_clients["token"]} if not has_tokens else set())
    for name in sorted(set(names) - known):
        if name.startswith(_PREFIX) and (meant := get_close_matches(name, known, n=1, cutoff=_ALIKE)):
            yield name, meant[0]
