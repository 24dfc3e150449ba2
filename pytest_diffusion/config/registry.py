"""One register for everything that is declared by name: checks, laws, closed-form models, sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """Items by name, in the order of their declaration. `what` names one of them in messages: "check", "law"."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._items: dict[str, Item] = {}

    def add(self, name: str, item: Item, *, replace: bool = False) -> Item:
        """The item itself, now known by its name. Raises ValueError for a name that is taken, unless `replace`."""
        if name in self._items and not replace:
            raise ValueError(f"There is already a {self.what} named {name!r}.")
        self._items[name] = item
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
