"""Receptive fields: which part of the picture one place of a feature map has seen.

The recurrences of Araujo, Norris and Sim 2019 (distill.pub/2019/computing-receptive-fields), kept as the interval of
input pixels that the place with index 0 sees: with padding it begins before the picture. Paths that meet are joined to
the smallest interval that holds them, so residual and dense blocks need nothing special.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What index 0 sees along one axis, in input pixels, and how far index 1 lies from it."""

    low: int = 0
    high: int = 0
    stride: int = 1

    @property
    def size_px(self) -> int:
        """Return the number of input pixels that one place sees."""
        return self.high - self.low + 1

    def window(self, *, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> "Axis":
        """Return the axis after a convolution or a pooling."""
        return Axis(
            low=self.low - padding * self.stride,
            high=self.high + (dilation * (kernel - 1) - padding) * self.stride,
            stride=self.stride * stride,
        )


@dataclass(frozen=True, kw_only=True)
class Field:
    """Both axes, and whether something global has flowed in too.

    `axes` is None where no place is left, after global pooling; with `whole` False then, where it cannot be said.
    """

    axes: tuple[Axis, Axis] | None = (Axis(), Axis())  # down, across
    whole: bool = False

    def window(
        self,
        *,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> "Field":
        """Return the field after a convolution or a pooling."""
        if self.axes is None:
            return self
        sides = zip(self.axes, kernel, stride, padding, dilation, strict=True)
        down, across = (
            axis.window(kernel=size, stride=step, padding=pad, dilation=spread)
            for axis, size, step, pad, spread in sides
        )
        return replace(self, axes=(down, across))

    def pooled(self) -> "Field":
        """Return the field after everything has been brought together in one place."""
        return Field(axes=None, whole=True)

    def __str__(self) -> str:
        if self.axes is None:
            return "whole picture" if self.whole else "unknown"
        down, across = (axis.size_px for axis in self.axes)
        return f"{down} × {across}" + (" + whole" if self.whole else "")


UNKNOWN: Final = Field(axes=None)


def joined(fields: Iterable[Field]) -> Field:
    """Return the field where paths meet, by addition, concatenation or gating."""
    fields = tuple(fields)
    if UNKNOWN in fields:
        return UNKNOWN
    pairs = [field.axes for field in fields if field.axes is not None]
    whole = any(field.whole for field in fields)
    if not pairs:
        return Field(axes=None, whole=True)
    down, across = (
        Axis(
            low=min(axis.low for axis in axes),
            high=max(axis.high for axis in axes),
            stride=max(axis.stride for axis in axes),
        )
        for axes in zip(*pairs, strict=True)
    )
    return Field(axes=(down, across), whole=whole)
