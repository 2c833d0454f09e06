"""Records and journals of other versions: older ones are read, newer ones refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.collect import metrics_frame, read_records
from harness.identity import cell_id
from harness.journal import Journal
from harness.migrate import MIGRATIONS, SCHEMA_VERSION, migrate
from harness.record import Record, RunDir, read_record, write_record
from harness.spec import build
from tests.harness.test_collect import record_of

GOLDEN = Path(__file__).parents[1] / "golden"
FIRST = GOLDEN / "record_v1.json"
"""Written by the code of schema version 1 (host and processor renamed)."""


def test_every_older_version_has_a_step_and_a_file_that_it_wrote():
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA_VERSION))
    assert all((GOLDEN / f"record_v{version}.json").is_file() for version in MIGRATIONS)


def test_the_first_version_is_read_with_every_number(toy):
    content = json.loads(FIRST.read_text())
    record = read_record(FIRST)
    assert record.schema_version == SCHEMA_VERSION
    assert record.cell == cell_id(build("toy", [("norm", "gn_ws"), ("seed", "3")]))
    assert (record.best, record.num_unreadable, record.num_replaced) == ({}, 0, 0)
    assert record.init is None
    kept = json.loads(record.model_dump_json())
    assert {name: kept[name] for name in content if name != "schema_version"} == {
        name: value for name, value in content.items() if name != "schema_version"
    }


def test_an_old_record_stands_in_the_tables_beside_a_new_one(toy, tmp_path):
    run = RunDir(tmp_path, json.loads(FIRST.read_text())["run_id"])
    run.path.mkdir(parents=True)
    run.record.write_bytes(FIRST.read_bytes())
    records, warnings = read_records(tmp_path)
    assert not warnings
    frame = metrics_frame([*records, record_of()])
    assert frame["value"].tolist() == [33.64485981308411, 61.25]
    assert frame["cell"].notna().tolist() == [True, False]


def test_a_record_of_given_data_names_its_cell_without_their_fingerprint():
    content = json.loads(FIRST.read_text())
    content["spec"]["data"]["root"] = "/data"
    here = migrate(content)["cell"]
    content["science"]["data"]["fingerprint"] = "other"
    assert migrate(content)["cell"] == here != read_record(FIRST).cell


def test_migrating_is_idempotent_and_leaves_the_newest_alone(tmp_path):
    once = migrate(json.loads(FIRST.read_text()))
    assert migrate(once) == once
    run = RunDir(tmp_path, "new")
    run.path.mkdir(parents=True)
    write_record(run, record_of())
    assert json.loads(run.record.read_text())["schema_version"] == SCHEMA_VERSION
    assert read_record(run.record) == record_of()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "newer version .* update normbench"),
        ({"schema_version": 0}, "not a record .schema_version is 0"),
        ({"schema_version": "2"}, "not a record .schema_version is '2'"),
        ({"schema_version": True}, "not a record .schema_version is True"),
        ({"science": {}}, "not a record of schema 1"),
        ({"spec": 5}, "not a record of schema 1"),
        ({"science": {"norm": 1, "data": 2}}, "not a record of schema 1"),
    ],
)
def test_what_is_no_record_of_ours_is_refused_in_one_line(tmp_path, change, words):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(json.loads(FIRST.read_text()) | change))
    with pytest.raises(ValueError, match=words) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_new_field_without_a_new_version_is_seen():
    """Adding a field to the record must raise the version, so that older code refuses in words."""
    names = sorted(Record.model_fields)
    assert (SCHEMA_VERSION, len(names)) == (3, 24), "raise SCHEMA_VERSION, add a migration"


def test_a_journal_keeps_what_it_knows_of_another_version(tmp_path):
    """Journals have no version: rows and keys may be added, and what is unknown is left out."""
    path = tmp_path / "metrics.jsonl"
    known = '{"event": "train", "step": 2, "loss": 1.0, "later": [1]}\n'
    others = ["{", "5", "[]", "null", "{}", '{"event": "new"}', '{"event": "train", "step": "2"}']
    others += ['{"event": ["train"], "step": 1}', '{"event": "train", "step": 9}', "[" * 5000]
    path.write_text("\n".join(others) + "\n" + known + '{"event": "tra')
    with Journal(path, 3, enabled=True):
        pass
    assert path.read_text() == known + '{"event": "start", "step": 3}\n'


def test_the_second_version_is_read_with_every_number(toy):
    """Written by the code of schema version 2 (host, processor, arguments and date renamed)."""
    path = GOLDEN / "record_v2.json"
    content, record = json.loads(path.read_text()), read_record(path)
    assert content["schema_version"] == 2
    assert (record.schema_version, record.init) == (SCHEMA_VERSION, None)
    kept = json.loads(record.model_dump_json())
    del content["schema_version"]
    assert {name: kept[name] for name in content} == content
