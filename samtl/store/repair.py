"""Taking back what is damaged, so that the next encoder pass redoes exactly that.

Nothing is deleted: a shard stays until the pass that redoes it takes its place, and a record that cannot be trusted
goes to `.damaged/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from samtl.errors import DamageError
from samtl.images.transforms import PATCH
from samtl.store import documents, durable
from samtl.store.fingerprint import read_fingerprint
from samtl.store.layout import ROOT, array_specs, root_metadata
from samtl.store.log import LOG, place_in_log
from samtl.store.rows import read_rows
from samtl.store.verify import LISTS, Checked, Finding
from samtl.store.writer import withdraw

ASIDE = ".damaged"


@dataclass
class Repaired:
    """What was done.

    Attributes
    ----------
    rewritten : list of str
        Files of metadata that say again what they have to.
    set_aside : list of str
        Records that were moved to `.damaged/`.
    withdrawn : dict
        Block to the arrays of it that do not count any more.
    """

    rewritten: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    withdrawn: dict[int, list[str]] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """How many blocks the next pass has to redo at least a part of."""
        records = [place_in_log(Path(path).name) for path in self.set_aside]
        return len({*self.withdrawn, *(place[0] for place in records if place)})


def repair(store: Path, checked: Checked) -> Repaired:
    """Mend what can be mended without the encoder, and withdraw the rest.

    Parameters
    ----------
    store : Path
        Locked by the caller since before it was checked.
    checked : Checked

    Raises
    ------
    DamageError
        Where the lists that everything refers to are damaged: they are to be had from a copy only. Where a folder is in
        a file's place, since whatever it holds is not samtl's to remove. Nothing is changed then.
    """
    for finding in checked.findings:
        if finding.what in LISTS:
            raise DamageError(
                f"{store / finding.path} cannot be repaired ({finding.told}), since what the rows are is known from it "
                "alone: take it from a copy of the store, or embed anew under another name"
            )
        if finding.what != "record":  # these are set aside, folders too
            durable.require_no_folder(store / finding.path)
    done = Repaired()
    _set_aside(store, [f for f in checked.findings if f.what == "record"], done)
    for block, arrays in _damaged(checked.findings).items():
        withdraw(store, checked.records[block][-1], arrays)
        done.withdrawn[block] = arrays
    if any(finding.what == "metadata" for finding in checked.findings):
        _rewrite(store, [f for f in checked.findings if f.what == "metadata"], done)
    return done


def _damaged(findings: Sequence[Finding]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for finding in findings:
        if (
            finding.block is not None
            and finding.array
            and finding.array not in found.get(finding.block, [])
        ):
            found.setdefault(finding.block, []).append(finding.array)
    return found


def _set_aside(store: Path, findings: Sequence[Finding], done: Repaired) -> None:
    """Move records that cannot be trusted, and those of their blocks that came later, the last one first."""
    if not findings:
        return
    aside = store / ASIDE
    durable.make_folder(aside)
    there = {path.name: place_in_log(path.name) for path in (store / LOG).glob("[!.]*")}
    bad = {Path(finding.path).name for finding in findings}
    first: dict[int, int] = {}  # of a block, the first record that says nothing
    for name in bad:
        place = there.get(name)
        if place is not None:
            block, sequence = place
            first[block] = min(sequence, first.get(block, sequence))
    later = {
        name
        for name, place in there.items()
        if place and place[1] >= first.get(place[0], place[1] + 1)
    }
    for name in sorted(bad | later, key=lambda name: there.get(name) or (-1, 0), reverse=True):
        (store / LOG / name).rename(_free(aside / name))
        durable.sync_folder(store / LOG)
        done.set_aside.append(f"{LOG}/{name}")
    durable.sync_folder(aside)


def _free(path: Path) -> Path:
    """Give a name that is not taken."""
    number = 0
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free


def _rewrite(store: Path, findings: Sequence[Finding], done: Repaired) -> None:
    identity, listed = read_fingerprint(store), read_rows(store)
    specs = array_specs(int(identity["fingerprint"]["image_size"]) // PATCH, identity["columns"])
    # An array that nothing is committed of, and whose own metadata is gone, is not there.
    in_need = {finding.array for finding in findings}
    all_of = {
        name: spec.metadata(len(listed))
        for name, spec in specs.items()
        if name in in_need or (store / name / ROOT).exists()
    }
    root = root_metadata(identity, listed.attributes(), all_of)
    for finding in findings:
        content = root if finding.path == ROOT else all_of[finding.array]
        durable.make_folder((store / finding.path).parent)
        durable.replace(store / finding.path, documents.canonical(content))
        done.rewritten.append(finding.path)
