"""Names that people give to features, in a text file that merges well in git.

One JSON object per line, sorted by layer, feature and author, so that two people's additions change
different lines. Computed names are never kept here; see `vitlens.atlas.proposals`.
"""

from __future__ import annotations

import csv
import getpass
import hashlib
import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock

from vitlens.errors import CheckpointError, FeatureError
from vitlens.io import atomic_path, read_json, write_json

_LOCK_SECONDS = 30


@dataclass(frozen=True)
class Name:
    """The name that one person gave to one feature.

    Attributes
    ----------
    layer, feature
        The feature.
    name
        Its name; "" withdraws the author's earlier name.
    author, note
        Who gave the name, and a remark.
    date
        When, in ISO 8601; a date without a time zone is UTC.
    """

    layer: int
    feature: int
    name: str
    author: str = ""
    date: str = ""
    note: str = ""

    @property
    def key(self) -> tuple[int, int, str]:
        """The feature and the author: there is one entry for each key."""
        return self.layer, self.feature, self.author

    @property
    def age(self) -> tuple[datetime, str, str]:
        """Orders entries of one key: the date, then the text for ties."""
        when = datetime.fromisoformat(self.date) if self.date else datetime.min
        return (when if when.tzinfo else when.replace(tzinfo=UTC)), self.name, self.note


class Names:
    """The names people gave, in a file.

    Every change is written at once. The file is read again first, so that names written by others
    stay; of two entries of one author for one feature the later date wins.

    Parameters
    ----------
    path
        The file, which need not exist yet; None keeps names in memory.
    n_features
        Number of features by layer; names of other features are listed in `unknown` and
        otherwise left alone. None accepts every feature.
    author
        Author of new names; by default the account's name.

    Raises
    ------
    CheckpointError
        If the file holds something other than names. It is left as it is.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        n_features: Mapping[int, int] | None = None,
        author: str | None = None,
    ):
        self.path = None if path is None else Path(path)
        self.author = _account() if author is None else author
        self._n_features = None if n_features is None else dict(n_features)
        self._entries: dict[tuple[int, int, str], Name] = {}
        self.reload()

    def reload(self) -> None:
        """Read the file again, for names that others wrote."""
        if self.path is not None and self.path.exists():
            self._entries = _merged([*self._entries.values(), *_read_lines(self.path)])

    @property
    def entries(self) -> tuple[Name, ...]:
        """All names that were not withdrawn, sorted by layer, feature and author."""
        return tuple(entry for entry in self._sorted() if entry.name)

    @property
    def everything(self) -> tuple[Name, ...]:
        """All entries, including withdrawn ones, whose name is ""."""
        return tuple(self._sorted())

    @property
    def unknown(self) -> tuple[Name, ...]:
        """Entries for features that do not exist; they stay in the file and are not used."""
        return tuple(entry for entry in self.entries if not self._knows(entry))

    @property
    def labels(self) -> dict[tuple[int, int], str]:
        """The latest name of each feature, by (layer, feature)."""
        known = (entry for entry in self.entries if self._knows(entry))
        return {(e.layer, e.feature): e.name for e in sorted(known, key=lambda e: e.age)}

    def get(self, layer: int, feature: int) -> str:
        """The latest name of a feature, "" without one."""
        given = self.of(layer, feature)
        return given[0].name if given else ""

    def of(self, layer: int, feature: int) -> tuple[Name, ...]:
        """All people's names of a feature, the latest first."""
        given = [e for e in self.entries if (e.layer, e.feature) == (layer, feature)]
        return tuple(sorted(given, key=lambda entry: entry.age, reverse=True))

    def set(
        self,
        layer: int,
        feature: int,
        name: str,
        *,
        note: str = "",
        author: str | None = None,
        date: str | None = None,
    ) -> Name:
        """Name a feature; replaces this author's earlier name of it.

        Parameters
        ----------
        layer, feature
            The feature.
        name
            The name; "" withdraws the author's.
        note
            A remark.
        author, date
            By default `author` of these names, and now.

        Returns
        -------
        Name
            The entry.

        Raises
        ------
        FeatureError
            If there is no such feature.
        VitlensError
            If the file cannot be written.
        """
        entry = Name(
            layer,
            feature,
            " ".join(name.split()),
            self.author if author is None else author,
            date or "",
            note.strip(),
        )
        if not self._knows(entry):
            raise FeatureError(f"There is no feature {layer}/{feature} to name.")
        _checked(asdict(entry), "The name")
        if date is None:
            entry = replace(entry, date=self._now(entry.key))
        self._update([entry])
        return entry

    def remove(self, layer: int, feature: int, *, author: str | None = None) -> None:
        """Withdraw an author's name of a feature.

        The entry stays in the file without a name, so that a merge does not restore it.
        """
        self.set(layer, feature, "", author=author)

    def update(self, entries: Iterable[Name]) -> tuple[Name, ...]:
        """Add entries; of two entries of one author for one feature the later date wins.

        Returns
        -------
        tuple of Name
            Those of `entries` whose features do not exist here. They are kept nevertheless.
        """
        entries = tuple(entries)
        self._update(entries)
        return tuple(entry for entry in entries if not self._knows(entry))

    def export(self, path: str | Path) -> None:
        """Write all names that were not withdrawn to a .csv, .json or .jsonl file.

        Raises
        ------
        CheckpointError
            If the file has another ending.
        """
        kind, rows = _kind(path), [asdict(entry) for entry in self.entries]
        if kind == ".json":
            write_json(path, rows)
            return
        text = _csv(rows) if kind == ".csv" else _lines(self.entries)
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")

    def read(self, path: str | Path) -> tuple[Name, ...]:
        """Add the names in a .csv, .json or .jsonl file; see `update`.

        A table needs the columns layer, feature and name.

        Raises
        ------
        CheckpointError
            If the file is missing or holds something else. No name is added then.
        """
        kind = _kind(path)
        if kind == ".jsonl":
            return self.update(_read_lines(Path(path)))
        rows = read_json(path) if kind == ".json" else _read_csv(Path(path))
        if not isinstance(rows, list):
            raise CheckpointError(f"{path} does not hold a list of names.")
        return self.update(
            [_checked(row, f"Entry {number} of {path}") for number, row in enumerate(rows, 1)]
        )

    def save(self, path: str | Path) -> None:
        """Write all entries, including withdrawn ones, to another file of this kind."""
        with atomic_path(path) as temporary:
            temporary.write_text(_lines(self._sorted()), encoding="utf-8", newline="")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Name]:
        return iter(self.entries)

    def _update(self, entries: Iterable[Name]) -> None:
        with _locked(self.path):
            self.reload()
            merged = _merged([*self._entries.values(), *entries])
            if self.path is not None:
                with atomic_path(self.path) as temporary:
                    text = _lines([merged[key] for key in sorted(merged)])
                    temporary.write_text(text, encoding="utf-8", newline="")
            self._entries = merged

    def _now(self, key: tuple[int, int, str]) -> str:
        """The time, or just after the author's earlier entry, so that the last call wins."""
        self.reload()
        now = datetime.now(UTC)
        if key in self._entries:
            now = max(now, self._entries[key].age[0] + timedelta(milliseconds=1))
        return now.isoformat(timespec="milliseconds")

    def _sorted(self) -> list[Name]:
        return [self._entries[key] for key in sorted(self._entries)]

    def _knows(self, entry: Name) -> bool:
        if self._n_features is None:
            return True
        return 0 <= entry.feature < self._n_features.get(entry.layer, 0)


def _merged(entries: Iterable[Name]) -> dict[tuple[int, int, str], Name]:
    merged: dict[tuple[int, int, str], Name] = {}
    for entry in entries:
        other = merged.get(entry.key)
        if other is None or entry.age > other.age:
            merged[entry.key] = entry
    return merged


@contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    """Let one program at a time read, merge and write; the lock is in the temporary folder."""
    if path is None:
        yield
        return
    # Each account has its own locks, as another account's file may not be opened.
    name = hashlib.sha256(f"{_account()}|{path.resolve()}".encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"vitlens-{name}.lock", timeout=_LOCK_SECONDS):
        yield


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # an account without a name, as in some containers
        return ""


def _checked(row: Any, what: str) -> Name:
    """One entry from plain values; whole numbers may be written as text, as CSV does."""
    if not isinstance(row, Mapping):
        raise CheckpointError(f"{what} is not a feature name: {row!r}.")
    try:
        layer, feature = (_whole(row[column]) for column in ("layer", "feature"))
        texts = {f.name: row.get(f.name) or "" for f in fields(Name)[2:]}
        if "name" not in row or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError("name, author, date and note must be text")
        entry = Name(layer, feature, **texts)
        _ = entry.age
    except (KeyError, TypeError, ValueError) as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{what} is not a feature name: {missing}.") from error
    return entry


def _whole(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or number < 0 or str(number) != str(value).strip():
        raise ValueError(f"layer and feature must be whole numbers from 0, not {value!r}")
    return number


def _lines(entries: Iterable[Name]) -> str:
    return "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)


def _read_lines(path: Path) -> list[Name]:
    entries = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        what = f"Line {number} of {path}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            hint = " (left by a merge?)" if line[:7] in ("<<<<<<<", "=======", ">>>>>>>") else ""
            raise CheckpointError(f"{what} is not JSON{hint}: {line[:40]!r}.") from error
        entries.append(_checked(row, what))
    return entries


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Name)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_csv(path: Path) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(_text(path).removeprefix("\ufeff"), newline="")))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as text: {error}.") from error


def _kind(path: str | Path) -> str:
    kind = Path(path).suffix.lower()
    if kind not in (".csv", ".json", ".jsonl"):
        raise CheckpointError(f"Names are stored in .csv, .json or .jsonl files, not in {path}.")
    return kind
