"""The fingerprint changes with everything that decides the tokens, and with nothing else."""

from __future__ import annotations

import shutil

import pytest
from transformers import AutoTokenizer

from loramoe.data import DatasetError, data_files, data_fingerprint, fingerprint


@pytest.fixture
def hashed(tokenizer, write, row, tmp_path):
    """Fingerprint of one file; keywords change the settings."""
    file = write("rows.jsonl", [row()])

    def compute(**changes):
        settings = {"template": "release", "max_seq_length": 64, "task_types": [0, 1], **changes}
        return data_fingerprint(settings.pop("files", [file]), settings.pop("tokenizer", tokenizer), **settings)

    return compute


@pytest.mark.parametrize(
    "changes", [{"template": "chat"}, {"max_seq_length": 65}, {"task_types": [0, 1, 2]}, {"task_types": None}]
)
def test_settings_count(hashed, changes):
    assert hashed(**changes) != hashed() == hashed(task_types=(1, 0, 0))


@pytest.mark.parametrize("options", [{"frame": "$A"}, {"pad_token": "</s>"}, {"chat_template": "{{ messages }}"}])
def test_the_definition_of_the_tokenizer_counts(hashed, make_tokenizer, options):
    assert hashed(tokenizer=make_tokenizer(**options)) != hashed() == hashed(tokenizer=make_tokenizer())


def test_an_added_token_counts(hashed, tokenizer):
    before = hashed()
    tokenizer.add_tokens(["word"])
    assert hashed() != before


def test_the_folder_and_the_last_call_of_the_tokenizer_do_not_count(hashed, make_tokenizer, tmp_path):
    seen = set()
    for name in ("here", "there"):
        make_tokenizer(pad_token="</s>").save_pretrained(tmp_path / name)
        loaded = AutoTokenizer.from_pretrained(tmp_path / name)
        seen.add(hashed(tokenizer=loaded))
        loaded(["a", "b c"], padding="max_length", truncation=True, max_length=2)
        seen.add(hashed(tokenizer=loaded))
    assert len(seen) == 1


def test_contents_of_the_files_count_and_their_names_do_not(hashed, write, row, tmp_path):
    before = hashed()
    moved = tmp_path / "moved.jsonl"
    shutil.copy(tmp_path / "rows.jsonl", moved)
    assert hashed(files=[moved]) == before
    assert hashed(files=[moved, moved]) != before
    write("rows.jsonl", [row(output="Us.")])
    assert hashed() != before


def test_the_border_between_two_files_counts(hashed, write, row):
    one, two, both = write("1.jsonl", [row()]), write("2.jsonl", [row()] * 2), write("3.jsonl", [row()] * 3)
    assert len({hashed(files=files) for files in ([one, two], [two, one], [both])}) == 3


def test_the_format_of_the_files_counts(hashed, tmp_path):
    """The same bytes may be a good `.jsonl` and a broken `.json`."""
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "rows.json")
    assert hashed(files=[tmp_path / "rows.json"]) != hashed()


def test_the_version_of_the_code_counts(hashed, monkeypatch):
    before = hashed()
    monkeypatch.setattr(fingerprint, "FORMAT_VERSION", fingerprint.FORMAT_VERSION + 1)
    assert hashed() != before


def test_an_unreadable_file_is_named(hashed, tmp_path):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DatasetError, match=r"folder\.json: cannot be read \(Is a directory\)"):
        hashed(files=data_files(tmp_path))
