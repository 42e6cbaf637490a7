"""Where rows come from, and what is said where nothing is found."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub.errors import GatedRepoError
from tests.data.helpers import pairs, write_jsonl

from tuneoff.data import demo
from tuneoff.data.hub import read_hub
from tuneoff.data.sources import Source, find_sources
from tuneoff.errors import DataError
from tuneoff.study.spec import TaskSpec


def _source(root: Path, data: str, kind: str = "instruction", **more: Any) -> Source:
    return find_sources(TaskSpec(kind=kind, data=data, **more), root).train


def _message(root: Path, data: str, kind: str = "instruction", **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        find_sources(TaskSpec(kind=kind, data=data, **more), root)
    return str(caught.value)


def test_a_file_beside_the_study(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", pairs(3))
    rows = _source(tmp_path, "rows.jsonl", limit=2).read()
    assert [(row.file, row.line) for row in rows] == [("rows.jsonl", 1), ("rows.jsonl", 2)]


def test_a_folder_of_text_is_its_documents_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "b").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name in ("z.txt", "b/a.md", "a.txt", "README.md", "index.tsv", ".hidden.txt", ".git/x.txt"):
        (folder / name).write_text(name)
    sources = find_sources(TaskSpec(kind="text", data="books/"), tmp_path)
    assert [row.file for row in sources.train.read()] == ["books/a.txt", "books/b/a.md", "books/z.txt"]
    assert sources.notes == ("books/: 3 text files, one document each; left out: README.md, index.tsv.",)
    assert len(_source(tmp_path, "books", "text", limit=1).read()) == 1


def test_a_folder_with_one_data_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "README.md").write_text("about")
    write_jsonl(tmp_path / "d" / "rows.jsonl", pairs(1))
    assert [row.file for row in _source(tmp_path, "d").read()] == ["d/rows.jsonl"]
    write_jsonl(tmp_path / "d" / "more.jsonl", pairs(1))
    assert "2 data files (more.jsonl, rows.jsonl); name one" in _message(tmp_path, "d")
    named = find_sources(
        TaskSpec(kind="instruction", data="d", splits={"train": "more.jsonl", "validation": "rows.jsonl"}), tmp_path
    )
    assert isinstance(named.validation, Source)
    assert (named.train.name, named.validation.name, named.test) == ("more.jsonl", "rows.jsonl", 0.1)


def test_a_split_is_found_beside_the_data_then_beside_the_study(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    write_jsonl(tmp_path / "d" / "train.jsonl", pairs(1))
    write_jsonl(tmp_path / "dev.jsonl", pairs(1))
    task = TaskSpec(kind="instruction", data="d/train.jsonl", splits={"validation": "dev.jsonl"})
    found = find_sources(task, tmp_path).validation
    assert isinstance(found, Source)
    assert found.files[0][0] == tmp_path / "dev.jsonl"
    assert "Did you mean train.jsonl?" in _message(tmp_path, "d/train.jsonl", splits={"test": "training.jsonl"})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("row.jsonl", "Did you mean rows.jsonl?"),
        ("nowhere/rows.jsonl", "there is no folder"),
        ("d/dolly", "no such file or folder"),
        ("../../x y", "no such file or folder"),
        ("~nobody/such", "no such file or folder"),
        ("x" * 5000 + "/y", "no such file or folder"),
        ("nul\0byte", "no such file or folder"),
        ("empty", "folder without data"),
        ("d", "is a folder of text; kind: instruction needs rows"),
    ],
)
def test_nothing_there(tmp_path: Path, data: str, message: str) -> None:
    write_jsonl(tmp_path / "rows.jsonl", pairs(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("a")
    assert message in _message(tmp_path, data)


def test_each_kind_has_demo_data_and_folders_of_its_own(tmp_path: Path) -> None:
    assert _source(tmp_path, "demo", "qa", limit=3).read()[2].values["id"] == "demo-001-2-1"
    assert set(_source(tmp_path, "demo", "classification").read()[0].values) == {"text", "label"}
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("a")
    assert "kind: qa needs rows" in _message(tmp_path, "d", "qa")
    (tmp_path / "s.tsv").write_text("1\ta\n0\tb\n")
    for data in ("s.tsv", str(tmp_path / "s.tsv")):
        source = _source(tmp_path, data, "classification", columns={"text": 1, "label": 0})
        assert [row.values for row in source.read()] == [{"0": "1", "1": "a"}, {"0": "0", "1": "b"}]


def test_digest_follows_the_content(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", pairs(2))
    first = _source(tmp_path, "rows.jsonl").digest()
    assert _source(tmp_path, "rows.jsonl").digest() == first
    write_jsonl(path, pairs(3))
    assert _source(tmp_path, "rows.jsonl").digest() != first


def test_demo_data_has_splits_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        demo, "generate_demo_rows", lambda split, seed: [{"instruction": split, "context": "", "response": "x"}]
    )
    sources = find_sources(TaskSpec(kind="instruction", data="demo", splits={"test": "test"}), tmp_path)
    assert [source.read()[0].values["instruction"] for source in sources.official().values()] == [
        "train",
        "validation",
        "test",
    ]
    assert len(sources.notes) == 1
    assert len(sources.train.digest()) == 64
    assert "Did you mean test?" in _message(tmp_path, "demo", splits={"test": "testing"})


class _FakeRows(list[dict[str, str]]):
    def select(self, numbers: range) -> "_FakeRows":
        return _FakeRows(self[number] for number in numbers)


def test_hub_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def load(name: str, configuration: str | None, split: str) -> _FakeRows:
        asked.append((name, configuration, split))
        return _FakeRows([{"text": "a"}, {"text": "b"}] if split == "train" else [])

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = _source(tmp_path, "owner/name:config", "text", limit=1)
    assert [(row.file, row.line) for row in source.read()] == [("owner/name:config, split train", 1)]
    assert asked == [("owner/name", "config", "train")]
    with pytest.raises(DataError, match="is empty"):
        read_hub("owner/name", "test", None)


def test_a_pinned_revision_is_asked_for_and_the_commit_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    commit = "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb"

    def load(*name: str | None, **options: str) -> _FakeRows:
        asked.append((name, options))
        rows = _FakeRows([{"text": "a"}])
        address = f"hf://datasets/owner/name@{commit}/data/train.parquet"
        rows.info = datasets.DatasetInfo(download_checksums={address: {"num_bytes": 1}})  # type: ignore[attr-defined]
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = _source(tmp_path, "owner/name:config@v1.1", "text")
    assert source.read()[0].file == "owner/name:config@v1.1, split train"
    assert source.commit() == commit
    assert set(map(str, asked)) == {str((("owner/name", "config"), {"split": "train", "revision": "v1.1"}))}


class _Response:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class _GatedError(GatedRepoError):
    def __init__(self) -> None:
        Exception.__init__(self, "403 Client Error")


def _with_status(status: int) -> OSError:
    error = OSError("refused")
    error.response = _Response(status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."), "hf auth login"),
        (_GatedError(), "Accept its licence"),
        (_with_status(401), "hf auth login"),
        (_with_status(403), "hf auth login"),
        (_with_status(404), "no data set of that name"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub"), "no data set of that name"),
        (ConnectionError("Couldn't reach 'x' on the Hub (LocalEntryNotFoundError)"), "Check the network"),
        (ConnectionError("Couldn't reach 'x' on the Hub (OfflineModeIsEnabled)"), "HF_HUB_OFFLINE"),
        (ValueError("Unknown split \"testing\". Should be one of ['train', 'test']."), "Did you mean test?"),
        (ValueError("Config name is missing. Please pick one among: ['a', 'b']"), "ID:CONFIGURATION"),
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "comes as a Python script"),
        (ValueError("something\nelse"), "something else"),
    ],
)
def test_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    def load(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError) as caught:
        read_hub("owner/name", "testing", None)
    assert words in caught.value.message
    assert caught.value.file == "owner/name"
    assert "\n" not in caught.value.message


def test_without_a_network(tmp_path: Path) -> None:
    """No fake: the tests run with HF_HUB_OFFLINE=1."""
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        _source(tmp_path, "owner/no-such-name").read()
