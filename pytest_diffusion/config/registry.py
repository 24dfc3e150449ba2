"""One register for everything that is declared by name: checks, laws, closed-form models, sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """Items by name, in the order of their declaration. `what` names one of them in messages: "check", "law"."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._items: dict[str, Item] = {}
        self._places: dict[str, str] = {}

    def add(self, name: str, item: Item, *, declared: Any = None) -> Item:
        """The item itself, now known by its name. Raises ValueError for a name that is taken.

        `declared` is the function or class that stands for the item. When its module is imported anew, it declares the
        same item again, which takes the earlier one's place.
        """
        place = f"{declared.__module__}.{declared.__qualname__}" if declared is not None else ""
        if name in self._items and (not place or place != self._places.get(name)):
            known = f": {self._places[name]}" if self._places.get(name) else ""
            raise ValueError(f"There is already a {self.what} named {name!r}{known}.")
        self._items[name], self._places[name] = item, place
        return item

    def remove(self, name: str) -> None:
        """Forget an item. Raises KeyError where there is none of this name."""
        del self._items[name]

    def get(self, name: str) -> Item | None:
        """The item of a name, or None."""
        return self._items.get(name)

    @property
    def names(self) -> list[str]:
        """All names, in order."""
        return list(self._items)

    def __getitem__(self, name: str) -> Item:
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items.values())
