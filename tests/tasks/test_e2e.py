"""Data of the E2E NLG Challenge."""

import datasets
import pytest
from datasets import Dataset

from analog_grasp.tasks import load_task
from analog_grasp.tasks.e2e import linearised
from analog_grasp.tasks.metrics import missing_java

TRAIN = 'mr,ref\n"name[Zizzi], area[riverside]","Zizzi, by the river."\n'
TEST = '"mr","ref"\n"name[Aromi]","Aromi ""is"" here."\n"name[Zizzi]","b"\n"name[Aromi]","c"\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "trainset.csv").write_text(TRAIN, encoding="utf-8")
    (tmp_path / "testset_w_refs.csv").write_text(TEST, encoding="utf-8-sig")
    return tmp_path


def test_references_are_grouped_by_meaning(folder):
    task = load_task("e2e", folder)
    assert task.train[0] == {
        "text": "name : Zizzi | area : riverside",
        "references": ["Zizzi, by the river."],
    }
    assert task.validation.to_list() == [
        {"text": "name : Aromi", "references": ['Aromi "is" here.', "c"]},
        {"text": "name : Zizzi", "references": ["b"]},
    ]


@pytest.mark.skipif(missing_java() is not None, reason="no Java")
def test_all_metrics_of_the_challenge(folder):
    assert load_task("e2e", folder).metrics == ("bleu", "nist", "meteor", "rouge_l", "cider")


def test_metrics_that_cannot_be_computed_are_omitted_with_a_warning(folder, monkeypatch):
    monkeypatch.setattr("analog_grasp.tasks.e2e.missing_java", lambda: "there is no java")
    with pytest.warns(UserWarning, match="without meteor, rouge_l, cider: there is no java"):
        task = load_task("e2e", folder)
    assert task.metrics == ("bleu", "nist")


def test_the_missing_training_set_is_named_with_its_first_line(folder):
    (folder / "trainset.csv").rename(folder / "devset.csv")
    with pytest.raises(FileNotFoundError) as caught:
        load_task("e2e", folder)
    message = str(caught.value)
    assert "'e2e' finds no trainset.csv in" in message
    assert "a first line of mr,ref" in message
    assert "the task 'e2e/dev' uses devset.csv alone" in message


def test_both_files_may_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trainset\.csv and no testset_w_refs\.csv"):
        load_task("e2e", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no devset\.csv .* should contain devset\.csv, CSV"
    ):
        load_task("e2e/dev", tmp_path)


def test_every_fifth_meaning_of_the_development_set_is_measured(tmp_path):
    rows = [f"name[{i}],{i} {end}" for i in range(11) for end in "ab"]
    (tmp_path / "devset.csv").write_text("\n".join(["mr,ref", *rows]))
    task = load_task("e2e/dev", tmp_path)
    assert task.validation["text"][:] == ["name : 4", "name : 9"]
    assert task.train["text"][:] == [f"name : {i}" for i in range(11) if i not in (4, 9)]
    assert task.references() == [["4 a", "4 b"], ["9 a", "9 b"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"first line of .*testset_w_refs\.csv is ''; it should be mr,ref"),
        ("ref,mr\na,b\n", "is 'ref,mr'; it should be mr,ref"),
        ("mr,ref\n", "has no rows"),
        ("mr,ref\na,b\na,b,c\n", "Line 3 of .* has 3 columns"),
        ("mr,ref\nname[a],\n", "Line 2 of .* or an empty one"),
        ('mr,ref\n"a,b\n', "Line 2 of .* is not valid CSV"),
    ],
)
def test_errors_name_the_file_and_the_line(folder, content, message):
    (folder / "testset_w_refs.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_task("e2e", folder)


def test_other_encodings_raise(folder):
    (folder / "trainset.csv").write_bytes(TRAIN.encode("utf-16"))
    with pytest.raises(ValueError, match=r"trainset\.csv is not UTF-8"):
        load_task("e2e", folder)


def test_the_official_development_set(e2e_dir):
    task = load_task("e2e/dev", e2e_dir)
    assert (len(task.train), len(task.validation)) == (438, 109)
    assert sum(map(len, task.references("train") + task.references())) == 4672
    assert task.train["text"][0] == "name : Alimentum | area : city centre | familyFriendly : no"
    assert not set(task.train["text"]) & set(task.validation["text"])


def test_without_a_folder_the_hub_is_used(monkeypatch):
    rows = Dataset.from_dict(
        {"meaning_representation": ["name[a]", "name[a]"], "human_reference": ["x", "y"]}
    )
    asked = []

    def load_dataset(path, revision):
        asked.append((path, revision))
        return {"train": rows, "validation": rows, "test": rows.select([0])}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task("e2e")
    assert asked == [("tuetschek/e2e_nlg", "refs/convert/parquet")]
    assert (task.references("train"), task.references()) == ([["x", "y"]], [["x"]])


def test_an_unreachable_hub_points_to_the_data_folder(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match=r"Hub.*--data-dir.* trainset\.csv and testset"):
        load_task("e2e")


def test_odd_meanings():
    assert linearised(" name[The, Inn] ,area[]") == "name : The, Inn | area :"
