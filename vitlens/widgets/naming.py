"""Names that people give in a view, kept by the lens's atlas."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import traitlets as t

from vitlens.errors import VitlensError
from vitlens.lens import Lens
from vitlens.widgets.base import Widget
from vitlens.widgets.traits import FeatureId, NodeTraits

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas
    from vitlens.atlas.names import Names


class NamesPart(NodeTraits, Widget):
    """A part whose `labels` begin as the names of the atlas and are written there when edited.

    A name that is given or changed, in a view or in Python, is written at once. One that is taken
    away is withdrawn when a view did it: an empty dictionary set in Python, as linking does,
    empties no file; `Names.remove` does. Names of error nodes and of the target stay in the
    widget.

    Attributes
    ----------
    author
        Who gives names; by default the account's name.
    """

    author = t.Unicode()

    _owner: Lens | None = None  # whose atlas is used
    _in_view = False  # whether what changes now comes from the browser
    _reading = False  # whether labels change without anybody naming anything

    @property
    def atlas(self) -> Atlas | None:
        """The lens's atlas, if it has one."""
        return None if self._owner is None else self._owner.atlas

    def use_lens(self, lens: Lens) -> None:
        """Take a lens, and the names of its atlas; labels given before go before those."""
        self._owner = lens
        self.read_names(self.labels)

    def read_names(self, given: dict[FeatureId, str] | None = None) -> None:
        """Show the names as the atlas has them now.

        Parameters
        ----------
        given
            Labels that count more than those of the atlas; nothing is written.
        """
        names = self._names()
        if names is None:
            return
        names.reload()
        others = {node: text for node, text in self.labels.items() if node not in names.labels}
        with self.only_shown():
            self.labels = {**others, **names.labels, **(given or {})}

    @contextmanager
    def only_shown(self) -> Iterator[None]:
        """Within this, labels are shown but not written."""
        before, self._reading = self._reading, True
        try:
            yield
        finally:
            self._reading = before

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take values from the browser."""
        self._in_view = True
        try:
            super().set_state(sync_data)
        finally:
            self._in_view = False

    @t.default("author")
    def _account(self) -> str:
        try:
            return getpass.getuser()
        except (KeyError, OSError, ImportError):  # an account without a name, as in containers
            return ""

    @t.observe("labels")
    def _write_names(self, change: Any) -> None:
        names = self._names()
        if names is None or self._reading:
            return
        old, new = dict(change.old or {}), change.new
        changed = {node: text for node, text in new.items() if old.get(node) != text}
        gone = [node for node in old if node not in new] if self._in_view else []
        try:
            for node, text in changed.items():
                if node[1] >= 0 and names.get(*node) != text:
                    names.set(node[0], node[1], text, author=self.author)
            for node in gone:
                if node[1] >= 0:
                    names.remove(node[0], node[1], author=self.author)
        except VitlensError as error:
            self.tell(error)
            return
        still = {node: names.get(*node) for node in gone if node[1] >= 0 and names.get(*node)}
        if still:
            with self.only_shown():
                self.labels = {**self.labels, **still}
            self.notice = "Somebody else gave this feature a name, which stands."

    def _names(self) -> Names | None:
        atlas = self.atlas
        return None if atlas is None else atlas.names
