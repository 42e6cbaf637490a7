"""Where results live: one folder per run, named by the hash of its spec, its record written last and atomically.

    runs/STUDY/study.json            the study as it was last run
    runs/STUDY/RUN_ID/setup.json     what the bits depend on, stored before the first step
                      curve.jsonl    one line per step and per validation
                      checkpoint/    while the run is under way
                      adapter_model.safetensors (full: model.safetensors)
                      record.json    training and validation; its being there means that the run is finished
                      predictions.jsonl, items.json, test.json   the one reading of the test split
                      explain.json   what was worked out of the trained weights, once they are tested
                      log.txt        what libraries said
                      .lease, .lock   who works on it now (see `lease`)
    runs/STUDY/costs/KEY.json        what a run's method costs when it is measured alone (see `tuneoff.study.solo`)
    runs/STUDY/.index                what the records held when they were last read, of a large study (see `index`)
    runs/STUDY/.index-explained      likewise what was worked out of the weights

A record carries the sha256 of itself and of its files; a torn or altered one counts as missing and is said so. One that
is there and that the disk does not give is an error: to train its run again would throw away what may be whole.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from tuneoff.errors import StoreError
from tuneoff.files import (
    STALE_S,
    file_sha256,
    make_folder,
    on_disk,
    remove_asides,
    remove_folder,
    sync,
    write_synced,
)
from tuneoff.running import curve_file, setup_file
from tuneoff.running.index import EXPLAINED_INDEX_FILE, INDEX_FILE, Index
from tuneoff.running.lease import RunLock, is_held
from tuneoff.running.setup_file import CHECKSUM
from tuneoff.study.explained import ExplainRecord
from tuneoff.study.identity import digest
from tuneoff.study.predicted import PLAN_FILE, Predicted
from tuneoff.study.records import RECORD_VERSION, Record, TestRecord, to_json
from tuneoff.study.solo import SoloCosts
from tuneoff.study.spec import Study
from tuneoff.study.value import plain

if TYPE_CHECKING:
    from tuneoff.analysis.items import ItemScores

RECORD_FILE = "record.json"
TEST_FILE = "test.json"
SETUP_FILE = "setup.json"
CURVE_FILE = "curve.jsonl"
PREDICTIONS_FILE = "predictions.jsonl"
PREDICTED_FILE = "predictions.json"
LABELS_FILE = "labels.json"
GENERATIONS_FILE = "generations.jsonl"
ITEMS_FILE = "items.json"
EXPLAIN_FILE = "explain.json"
LOG_FILE = "log.txt"
CHECKPOINT_FOLDER = "checkpoint"
STUDY_FILE = "study.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
FULL_WEIGHTS = "model.safetensors"
COSTS_FOLDER = "costs"

AnyRecord = TypeVar("AnyRecord", Record, TestRecord, ExplainRecord, SoloCosts)


class Store:
    """Results of one study, in one folder.

    Args:
        folder: such as `runs/my-study`; it need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        """What was found torn or altered, or cannot be read now, one line each."""
        self.unread: list[str] = []
        """Those of them that are there and that the disk does not give."""
        self._index: Index | None = None
        """While all records are read at once."""
        self._folders: dict[str, Path] = {}
        """Of runs; a report asks several times for each of ten thousand, and making a path takes longer than a stat."""

    def create(self, study: Study) -> None:
        """Make the folder and write down the study.

        Raises:
            StoreError: the folder cannot be written to.
        """
        try:
            make_folder(self.folder)
        except OSError as error:
            raise StoreError(
                f"results cannot be written to {self.folder} ({error.strerror}). "
                "Make it writable, or name another with --out."
            ) from None
        remove_asides(self.folder, STALE_S)
        content = json.dumps(plain(study), indent=2, ensure_ascii=False).encode()
        write_synced(self.folder / STUDY_FILE, content)

    def run_folder(self, run_id: str) -> Path:
        """Return the folder of a run, which need not be there."""
        found = self._folders.get(run_id)
        if found is None:
            found = self._folders[run_id] = self.folder / run_id
        return found

    def check_links(self) -> None:
        """Refuse a folder with links in it: what is written and removed through one lies elsewhere.

        Raises:
            StoreError: there is one.
        """
        if not self.folder.is_dir():
            return
        with os.scandir(self.folder) as entries:
            linked = next((entry.path for entry in entries if entry.is_symlink()), None)
        if linked is not None:
            raise StoreError(f"{linked} is a link; results are not written through one. Remove it.")

    def run_ids(self) -> Iterator[str]:
        """Yield the names of the run folders that are there; a link out of the store is none."""
        if self.folder.is_dir():
            with on_disk(self.folder):
                names = sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False))
            yield from names

    def record(self, run_id: str, *, verify: bool = False) -> Record | None:
        """Return a finished run's record, or none where there is none or it cannot be trusted.

        Args:
            run_id: name of the run.
            verify: compare the files' checksums too, which reads the weights.

        Raises:
            StoreError: it is to be verified, and the disk does not give it.
        """
        path = self.run_folder(run_id) / RECORD_FILE
        body = self._read(path, Record, verify=verify)
        if body is None or (verify and not self._files_are_whole(run_id, body.files)):
            return None
        if body.run_id != run_id or (verify and body.run.run_id != run_id):
            self._distrust(path, f"is the record of another run ({body.run_id})")
            return None
        return body

    def test(self, run_id: str, *, verify: bool = False) -> TestRecord | None:
        """Return a run's reading of the test split, or none (see `record`)."""
        body = self._read(self.run_folder(run_id) / TEST_FILE, TestRecord, verify=verify)
        if body is None or (verify and not self._files_are_whole(run_id, body.files)):
            return None
        return body

    def explained(self, run_id: str) -> ExplainRecord | None:
        """Return what was worked out of a run's weights, or none."""
        return self._read(self.run_folder(run_id) / EXPLAIN_FILE, ExplainRecord)

    def solo(self, key: str) -> SoloCosts | None:
        """Return what a run's method costs when it is measured alone, by `solo_key`, or none."""
        return self._read(self.folder / COSTS_FOLDER / f"{key}.json", SoloCosts)

    def predicted(self) -> dict[str, Predicted]:
        """Return what a plan that was kept here foretells of each arm, by its name; nothing where there is none."""
        try:
            arms = from_json((self.folder / PLAN_FILE).read_bytes())["plan"]["arms"]
            known = {str(arm["name"]): arm.get("predicted") for arm in arms}
            return {name: Predicted.model_validate(own) for name, own in known.items() if own is not None}
        except OSError as error:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                self._note_unread(self.folder / PLAN_FILE, error)
            return {}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}

    def items(self, run_id: str) -> "ItemScores | None":
        """Return a run's test scores by item, or none where there are none that can be read."""
        from tuneoff.analysis.items import ItemScores  # here, because only a report needs NumPy

        path = self.run_folder(run_id) / ITEMS_FILE
        try:
            return ItemScores.from_json(from_json(path.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._note_unread(path, error)
            return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            self._distrust(path, "cannot be read")
            return None

    def _read(self, path: Path, kind: type[AnyRecord], *, verify: bool = False) -> AnyRecord | None:
        body = self._body(path, verify=verify)
        if body is None:
            return None
        if body.get("version") != RECORD_VERSION:
            self._distrust(path, f"has version {body.get('version')}; this program writes version {RECORD_VERSION}")
            return None
        try:
            return kind.model_validate(body)
        except ValidationError as error:
            self._distrust(path, f"is not a valid record ({error.error_count()} errors)")
            return None

    def _body(self, path: Path, *, verify: bool) -> dict[str, Any] | None:
        """Return what a file holds whose checksum is right, or was when the index took it up."""
        try:
            found = None if self._index is None else self._index.body(path)
            if found is not None:
                return found
            with path.open("rb") as handle:
                status = os.fstat(handle.fileno())  # before it is read: a later change shows
                body = from_json(handle.read(), allow_inf_nan=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if verify:
                with on_disk(path):
                    raise
            self._note_unread(path, error)
            return None
        except ValueError as error:
            self._distrust(path, f"cannot be read ({error})")
            return None
        if not isinstance(body, dict) or body.pop(CHECKSUM, None) != digest(body):
            self._distrust(path, "is torn or was altered")
            return None
        if self._index is not None:
            self._index.add(path, status, body)
        return body

    def _distrust(self, path: Path, what: str) -> None:
        self._note(f"{path} {what}; the run will be done again")

    def _note_unread(self, path: Path, error: OSError) -> None:
        self.unread.append(f"{path} cannot be read now ({error.strerror or error})")
        self._note(self.unread[-1])

    def _note(self, line: str) -> None:
        if line not in self.problems:
            self.problems.append(line)

    def _files_are_whole(self, run_id: str, files: Mapping[str, str]) -> bool:
        for name, sha256 in files.items():
            path = self.run_folder(run_id) / name
            is_weights = name in (ADAPTER_WEIGHTS, FULL_WEIGHTS)
            if is_weights and not path.exists():
                continue  # pruned once the learning rate was chosen, or by `keep`
            if not path.exists() or file_sha256(path) != sha256:
                self._distrust(path, "is missing" if not path.exists() else "is torn or was altered")
                return False
        return True

    def records(self) -> tuple[dict[str, Record], dict[str, TestRecord]]:
        """Return all finished runs and readings of the test split, by run."""
        records, tests = {}, {}
        with self._indexed(INDEX_FILE):
            for run_id in self.run_ids():
                if (record := self.record(run_id)) is not None:
                    records[run_id] = record
                    if (test := self.test(run_id)) is not None:
                        tests[run_id] = test
        return records, tests

    def explanations(self, run_ids: Iterable[str]) -> dict[str, ExplainRecord]:
        """Return what was worked out of the weights of some runs, by run; those that have nothing are left out."""
        with self._indexed(EXPLAINED_INDEX_FILE):
            return {run_id: record for run_id in run_ids if (record := self.explained(run_id)) is not None}

    @contextmanager
    def _indexed(self, name: str) -> Iterator[None]:
        """Within the context what a file held is taken from an index, and what was read is kept there at the end."""
        self._index = Index(self.folder, RECORD_VERSION, name)
        try:
            yield
            self._index.save()
        finally:
            self._index = None

    def write_record(self, record: Record) -> None:
        """Write a run's record; from then on the run is finished. What was read with other weights goes.

        Raises:
            StoreError: it cannot be written.
        """
        folder = self.run_folder(record.run_id)
        for name in record.files:  # the record vouches for them, so they are safe before it is there
            with on_disk(folder / name, "written"):
                sync(folder / name)
        for name in (TEST_FILE, EXPLAIN_FILE):
            self._remove(folder / name)
        self._write(folder / RECORD_FILE, to_json(record))

    def write_test(self, test: TestRecord) -> None:
        """Write a run's reading of the test split. What was worked out beside an earlier one goes."""
        self._remove(self.run_folder(test.run_id) / EXPLAIN_FILE)
        self._write(self.run_folder(test.run_id) / TEST_FILE, to_json(test))

    def write_explained(self, record: ExplainRecord) -> None:
        """Write what was worked out of a run's weights."""
        self._write(self.run_folder(record.run_id) / EXPLAIN_FILE, plain(record))

    def write_solo(self, key: str, costs: SoloCosts) -> None:
        """Write what a run's method costs when it is measured alone."""
        (self.folder / COSTS_FOLDER).mkdir(parents=True, exist_ok=True)
        self._write(self.folder / COSTS_FOLDER / f"{key}.json", plain(costs))

    def _write(self, path: Path, body: dict[str, Any]) -> None:
        write_synced(path, json.dumps(body | {CHECKSUM: digest(body)}, indent=2, ensure_ascii=False).encode())

    @staticmethod
    def _remove(path: Path) -> None:
        with on_disk(path, "removed"):
            path.unlink(missing_ok=True)

    def set_aside(self, run_id: str) -> None:
        """Take a finished run out of the results; its old record stays readable next to where it was."""
        folder = self.run_folder(run_id)
        with on_disk(folder, "written"):
            for name in (RECORD_FILE, TEST_FILE, EXPLAIN_FILE):
                with suppress(FileNotFoundError):
                    (folder / name).rename(folder / f"{name}.old")
        remove_folder(folder / CHECKPOINT_FOLDER)

    def tidy(self, run_id: str) -> None:
        """Remove a checkpoint that a killed run left and nobody needs; a cohort's, once all its runs are finished."""
        folder = self.run_folder(run_id) / CHECKPOINT_FOLDER
        if not folder.exists() or self.is_locked(run_id):
            return
        cohort = (self.setup(run_id) or {}).get("cohort", ())
        if run_id in cohort and all((self.run_folder(str(one)) / RECORD_FILE).exists() for one in cohort):
            remove_folder(folder)

    def begin_anew(self, run_id: str) -> None:
        """Set a run aside with what it was set up with: on another machine, it starts as the study asks."""
        self.set_aside(run_id)
        self._remove(self.run_folder(run_id) / SETUP_FILE)

    def setup(self, run_id: str) -> dict[str, Any] | None:
        """Return what a run was set up with, or none where it was not, or the file is torn or not what was written.

        Raises:
            StoreError: the disk does not give it.
        """
        path = self.run_folder(run_id) / SETUP_FILE
        body = setup_file.read(path)
        if body is None and path.exists():
            self._note(f"{path} is torn or was altered; the run starts anew")
        return body

    def write_setup(self, run_id: str, setup: Mapping[str, Any]) -> None:
        """Store what the bits of a run depend on.

        Raises:
            StoreError: it cannot be written.
        """
        setup_file.write(self.run_folder(run_id) / SETUP_FILE, setup)

    def curve(self, run_id: str, kind: str = "") -> list[dict[str, Any]]:
        """Return a run's learning curve, or its rows of one kind (see `curve_file`, as of what follows)."""
        return curve_file.rows(self.run_folder(run_id) / CURVE_FILE, kind)

    def add_to_curve(self, run_id: str, row: Mapping[str, Any]) -> None:
        """Append a point to a run's learning curve. It is safe once `sync_curves` was called."""
        curve_file.add(self.run_folder(run_id) / CURVE_FILE, row)

    def sync_curves(self, run_ids: Iterable[str]) -> None:
        """Make the learning curves as safe as the checkpoint that is saved next: who goes on from there only adds."""
        curve_file.make_safe(self.run_folder(run_id) / CURVE_FILE for run_id in run_ids)

    def cut_curve(self, run_id: str, step: int) -> None:
        """Drop the points after a step, which a resumed run will write again."""
        curve_file.cut(self.run_folder(run_id) / CURVE_FILE, step)

    def weights(self, run_id: str) -> Path | None:
        """Return the file with a run's weights, or none where it has none or they were pruned."""
        for name in (ADAPTER_WEIGHTS, FULL_WEIGHTS):
            path = self.run_folder(run_id) / name
            if path.exists():
                return path
        return None

    def lock(self, run_id: str) -> RunLock:
        """Return the lock that whoever works on a run holds; it ends when its holder dies (see `lease`)."""
        return RunLock(self.run_folder(run_id))

    def is_locked(self, run_id: str) -> bool:
        """Whether some process works on a run now."""
        return is_held(self.run_folder(run_id))
