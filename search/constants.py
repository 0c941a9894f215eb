"""Arrays that a caller declared constant: recognised from call to call, so that what depends on them is prepared once."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_Seen = tuple[int, Any, int, int | None]  # place, array, address, writes

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
    _known: OrderedDict[tuple[Any, ...], tuple[T, tuple[_Seen, ...]]] = field(default_factory=OrderedDict)
    _last: tuple[T, tuple[_Seen, ...]] | None = None
    _misses: int = 0
    _told: bool = False

    def of(self, arrays: Sequence[Any], pointers: Sequence[int]) -> T:
        """Return the value for the constants among `arrays`, made now if they are not known."""
        last = self._last
        if last is not None and all(
            arrays[i] is array and pointers[i] == pointer and (writes is None or array._version == writes)
            for i, array, pointer, writes in last[1]
        ):
            self._misses = 0
            return last[0]
        seen = tuple((i, arrays[i], pointers[i], _writes(arrays[i])) for i in self.places)
        key = tuple((id(array), pointer, writes) for _, array, pointer, writes in seen)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = (self._made(pointers), seen)
        else:
            self._misses = 0
            self._known.move_to_end(key)
        self._last = found
        return found[0]

    def _made(self, pointers: Sequence[int]) -> T:
        self._misses += 1
        if self._misses > 2 * self.remembered and not self._told:
            self._tell()
        while len(self._known) >= self.remembered:
            self._known.popitem(last=False)
        return self.make(pointers)

    def _tell(self) -> None:
        self._told = True
        warnings.warn(
            f"expected the same arrays for the constants {', '.join(self.names)} from call to call; each of the last {self._misses} "
            "calls came with others, and what depends on them was computed anew each time. Keep the arrays, or do not declare "
            "them constant.",
            stacklevel=5,
        )


def _writes(array: Any) -> int | None:
    """Return how often a tensor was written in place; None where its library does not count."""
    try:
        return getattr(array, "_version", None)
    except RuntimeError:  # PyTorch counts no writes of tensors made in inference mode
        return None
