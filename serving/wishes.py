"""What the operator wants to answer, as far as it can be had: the pins that hold now, the default, the shadows.

At a start a wish that cannot be had stops it. Later, and where one of several workers comes back, it is a complaint:
what answers goes on answering. Who comes back beside others that serve answers by the versions by which they do, or not
at all: its callers would get now one version, now another. Knows no models.
"""

from collections.abc import Collection
from pathlib import Path

from serving.accord import Accord
from serving.complaints import Complaints
from serving.errors import SettingsError, StartupError
from serving.versions import NEWEST, Shadowing, VersionPolicy


class Wishes:
    """Those of one catalogue, whose models lie in `models`.

    `accord` is what the others do where a worker comes back, empty where none of them serves; None at a first start.
    """

    def __init__(
        self, policy: VersionPolicy, *, default_model: str, models: Path, complaints: Complaints, accord: Accord | None
    ) -> None:
        self._policy = policy
        self._default_model = default_model
        self._models = models
        self._complaints = complaints
        self._accord = accord
        self._pins: dict[str, int] = {}

    def pin(self, name: str) -> int | None:
        """Return the version of a model that is to answer, where one is named."""
        return self._pins.get(name)

    def shadow(self, name: str) -> Shadowing | None:
        """Return which version is to shadow it."""
        return self._policy.shadows.get(name)

    @property
    def pins(self) -> dict[str, int]:
        """Model name to version, as they were read last."""
        return self._pins

    def read_pins(self) -> None:
        """Read the pins anew. Raises SettingsError; then those before stay."""
        self._pins = self._policy.read_pins()

    def begin(self, names: Collection[str]) -> None:
        """Read the pins, without which nobody knows what is to answer; object to wishes for models that are not here.

        Raises StartupError.
        """
        try:
            self.read_pins()
        except SettingsError as error:
            if not (self._accord and self._accord.answering):
                raise StartupError(str(error)) from error
            self._pins = dict(self._accord.pins)
            self._complaints.tell(f"pins stay as they are: {error}")
        for wanted in filter(None, (self._default_model, *self._pins, *self._policy.shadows)):
            if wanted not in names:
                self._object(f"{self._models}: no model {wanted!r}, found {', '.join(names)}")

    def tries(self, name: str, there: list[int]) -> list[int]:
        """Return the versions, of those there are, to be tried at a start until one answers: a pinned one alone.

        A worker that comes back tries what answers elsewhere alone; where none serves, the others after the pinned one.
        Raises StartupError.
        """
        if self._accord and name in self._accord.answering:
            return [version for version in there if version == self._accord.answering[name]]
        pin, newest_first = self.pin(name), there[::-1]
        if pin is None:
            return newest_first
        if pin not in there:
            found = ", ".join(map(str, there))
            self._object(f"{self._models / name}: pinned to version {pin}, found {found}; change the pin")
        pinned = [version for version in there if version == pin]
        return list(dict.fromkeys([*pinned, *newest_first])) if self._accord is not None else pinned

    def missed(self, refused: Collection[str]) -> list[str]:
        """Return the models among those without an answer without which there is to be no start."""
        needed = (self._default_model, *self._pins) if self._accord is None else self._accord.answering
        return [name for name in needed if name in refused]

    def look_again(self, names: Collection[str]) -> None:
        """Read the pins anew; complain where that fails, and of pins for models that are not here."""
        try:
            self.read_pins()
        except SettingsError as error:
            self._complaints.tell(f"pins stay as they are: {error}")
        for name in sorted(set(self._pins) - set(names)):
            self._complaints.tell(f"pinned model {name!r} is not here")

    def complain(self, name: str, there: Collection[int], *, answering: int | None, may_come: bool) -> None:
        """Complain of what a look did not bring about for a model; `may_come`: the pinned version is on its way."""
        pin, shadow = self.pin(name), self.shadow(name)
        if pin is not None and answering != pin and not may_come:
            self._complaints.tell(f"{name}: pinned to version {pin}, which cannot serve; {answering} does")
        if shadow is not None and shadow.version == NEWEST and pin is None:
            self._complaints.tell(
                f"{name}: the newest version is to shadow what answers, and does itself; pin an older one"
            )
        if shadow is not None and shadow.version not in (NEWEST, *there):
            self._complaints.tell(f"{name}: version {shadow.version} is to shadow it, and is not here")

    def _object(self, reason: str) -> None:
        if self._accord is None:
            raise StartupError(reason)
        self._complaints.tell(reason)
