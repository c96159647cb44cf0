"""Fields of a dataclass as keyword parameters."""

import inspect
from dataclasses import dataclass
from typing import Annotated

from bundle.flags import spread


@dataclass(frozen=True, kw_only=True)
class Oven:
    heat_celsius: Annotated[int, "Set the heat."] = 180
    fan: bool = False


@spread(Oven)
def bake(cake: str, oven: Oven) -> tuple[str, Oven]:
    """Bake."""
    return cake, oven


def test_every_field_becomes_a_parameter_with_its_default_and_annotation():
    """The signature is all that a command line library reads."""
    parameters = inspect.signature(bake).parameters
    assert list(parameters) == ["cake", "heat_celsius", "fan"]
    assert parameters["heat_celsius"].default == 180
    assert parameters["heat_celsius"].annotation == Annotated[int, "Set the heat."]
    assert bake.__doc__ == "Bake."


def test_the_function_receives_one_instance():
    """The values meet again in the dataclass."""
    assert bake(cake="plum", heat_celsius=200, fan=True) == ("plum", Oven(heat_celsius=200, fan=True))
