# SPDX-License-Identifier: Apache-2.0
"""Short image names (`busybox`, `ubi9/podman`), as the `[aliases]` of a root's registries.conf spell them out.

Only aliases count. `unqualified-search-registries` would make the meaning of a name depend on which registry answers,
and what a deployment is bound to must not.
"""

from __future__ import annotations

from lashd.things.rootfs import Root, Unreadable
from lashd.things.toml import parse_toml
from lashd.words.errors import ErrorName, LashdError

_PLACES = ("usr/share/containers", "etc/containers")  # the later one weighs more

_PRICE = 6  # of a character of TOML (Root.spend)


class ShortNames:
    """Looks names up in one root; its files are read at the first look-up, because most images need none of them."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._aliases: dict[str, str] | None = None
        self._problem = ""

    def __call__(self, name: str) -> str | None:
        """The full name for the short `name`, without tag, or None. Raises BoundImageInvalid for a damaged file."""
        if self._aliases is None:
            self._aliases = {}
            for path in self._files():
                try:
                    self._aliases |= parse_aliases(self._root.read_text(path, price=_PRICE))
                except Unreadable as error:
                    if not error.absent:
                        self._problem = self._problem or f"'/{path}' {error.why}"
                except ValueError as error:
                    self._problem = self._problem or f"'/{path}' {error}"
        if self._problem:
            # podman does not read past such a file either.
            raise LashdError(
                ErrorName.BOUND_IMAGE_INVALID,
                f"The short image name '{name}' cannot be looked up: {self._problem}. Mend it.",
            )
        return self._aliases.get(name) or None  # an empty value takes an alias back

    def _files(self) -> list[str]:
        """registries.conf first, then the drop-ins sorted by name; one in /etc replaces its namesake in /usr/share."""
        main = [f"{place}/registries.conf" for place in _PLACES]
        present = [path for path in main if self._is_there(path)]
        drop_ins: dict[str, str] = {}
        for place in _PLACES:
            directory = f"{place}/registries.conf.d"
            try:
                entries = list(self._root.list(directory))
            except Unreadable:
                continue
            drop_ins |= {e.name: f"{directory}/{e.name}" for e in entries if e.name.endswith(".conf")}
        return present[-1:] + [drop_ins[name] for name in sorted(drop_ins)]

    def _is_there(self, path: str) -> bool:
        try:
            self._root.real_path(path)
        except Unreadable:
            return False
        return True


def parse_aliases(text: str) -> dict[str, str]:
    """The aliases that the registries.conf `text` makes. Raises ValueError, whose message follows the file's name."""
    aliases = parse_toml(text).get("aliases", {})
    if not isinstance(aliases, dict) or not all(isinstance(value, str) for value in aliases.values()):
        raise ValueError("has [aliases] that are not names")
    for name, full in aliases.items():
        registry, slash, repository = full.partition("/")
        named = slash and ("." in registry or ":" in registry or registry == "localhost")
        if full and (not named or ":" in repository or "@" in repository):
            raise ValueError(f"has an alias for '{name}' that is not a full name without tag and digest: '{full}'")
    return aliases
