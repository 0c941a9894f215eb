"""Arrays that a caller declared constant: recognised from call to call, so that what depends on them is prepared once."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")

REMEMBERED = 32  # sets of constants whose buffers are kept: the layers of a model that share one kernel


@dataclass(slots=True)
class Constants(Generic[T]):
    """What was made of the last few sets of constant arrays.

    An array is known again if it is the same object with the same address and, where the library counts writes (PyTorch), the
    same count. Otherwise its contents are taken on trust: declaring an input constant promises that they do not change.

    Parameters
    ----------
    names : sequence of str
        Of the constant inputs, for messages.
    places : sequence of int
        Their places among the arguments.
    make : callable
        Makes a value for the arguments' addresses.
    """

    names: Sequence[str]
    places: Sequence[int]
    make: Callable[[Sequence[int]], T]
    remembered: int = REMEMBERED
    # With each value the arrays themselves are kept, so that no other object can come to have the same identity.
    _known: OrderedDict[tuple[Any, ...], tuple[T, tuple[Any, ...]]] = field(default_factory=OrderedDict)
    _misses: int = 0
    _told: bool = False

    def of(self, arrays: Sequence[Any], pointers: Sequence[int]) -> T:
        """Return the value for the constants among `arrays`, made now if they are not known."""
        key = tuple((id(arrays[i]), pointers[i], _writes(arrays[i])) for i in self.places)
        found = self._known.get(key)
        if found is not None:
            self._misses = 0
            self._known.move_to_end(key)
            return found[0]
        self._misses += 1
        if self._misses > 2 * self.remembered and not self._told:
            self._tell()
        while len(self._known) >= self.remembered:
            self._known.popitem(last=False)
        made = self.make(pointers)
        self._known[key] = (made, tuple(arrays[i] for i in self.places))
        return made

    def _tell(self) -> None:
        self._told = True
        warnings.warn(
            f"expected the same arrays for the constants {', '.join(self.names)} from call to call; each of the last {self._misses} "
            "calls came with others, and what depends on them was computed anew each time. Keep the arrays, or do not declare "
            "them constant.",
            stacklevel=4,
        )


def _writes(array: Any) -> int:
    """Return how often a tensor was written in place, as far as its library counts."""
    try:
        return int(getattr(array, "_version", 0))
    except RuntimeError:  # PyTorch counts no writes of tensors made in inference mode
        return 0
