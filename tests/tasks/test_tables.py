import csv
import json

import pytest

from analog_grasp.tasks import load_base_model, load_task


def write(folder, name, *lines):
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def objects(*rows):
    return [json.dumps(row) for row in rows]


def test_named_classes_in_csv(tmp_path, tiny_folder):
    write(
        tmp_path, "train.csv", "id,body,mood", '1,"Good, really.",happy', "2,NA,sad", "3,null,sad"
    )
    write(tmp_path, "dev.csv", "mood,body", "sad,So-so", "happy,Fine")
    task = load_task("csv", tmp_path, text_column="body", label_column="mood", max_length=9)
    assert task.train.to_list() == [
        {"text": "Good, really.", "label": 0},
        # Texts that other readers take for missing cells.
        {"text": "NA", "label": 1},
        {"text": "null", "label": 1},
    ]
    assert task.labels().tolist() == [1, 0]
    assert (task.label_names, task.metrics) == (("happy", "sad"), ("accuracy", "f1"))
    assert task.max_length == 9
    assert set(task.scores(load_base_model(task, str(tiny_folder)))) == {"accuracy", "f1"}


@pytest.mark.parametrize(
    ("labels", "names", "metrics", "encoded"),
    [
        (["10", "2", "3"], ("2", "3", "10"), ("accuracy", "macro_f1"), [2, 0, 1]),
        (["10", "2.5", "-3"], (), ("pearson", "spearman", "mse"), [10.0, 2.5, -3.0]),
        (["none", "some", "none"], ("none", "some"), ("accuracy", "f1"), [0, 1, 0]),
    ],
)
def test_the_labels_determine_the_kind_of_the_task(tmp_path, labels, names, metrics, encoded):
    rows = [f"text {i}\t{label}" for i, label in enumerate(labels)]
    write(tmp_path, "train.tsv", "text\tlabel", *rows)
    write(tmp_path, "test.tsv", "text\tlabel", *rows)
    task = load_task("csv", tmp_path)
    assert (task.label_names, task.metrics) == (names, metrics)
    assert task.labels().tolist() == encoded


def test_json_lines_with_pairs_and_several_labels(tmp_path):
    rows = [
        {"premise": "a", "hypothesis": "b", "label": ["x", "z"]},
        {"premise": "c", "hypothesis": "d", "label": []},
        {"premise": "e", "hypothesis": "f", "label": ["y"]},
    ]
    write(tmp_path, "train.jsonl", *objects(*rows), "")
    write(tmp_path, "validation.json", *objects(*rows[:1]))
    task = load_task("csv", tmp_path, text_column="premise, hypothesis")
    assert task.train[0] == {"text": "a", "text_pair": "b", "label": [1, 0, 1]}
    assert task.labels("train").tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert (task.multi_label, task.metrics) == (True, ("f1", "macro_f1", "accuracy"))


@pytest.mark.parametrize(
    ("dev", "message"),
    [
        (["text,label", "a,0", "b,"], r"Line 3 of .*dev\.csv has no label"),
        (["text,label", "a,0", '"b', 'c",NA'], r"Line 4 of .*dev\.csv has the label 'NA'.* 0, 1"),
        (["text,label", "a,0", "b,null"], r"Line 3 of .*dev\.csv has the label 'null'"),
        (["text,label", " ,0"], r"Line 2 of .*dev\.csv has the text ' '; .* not blank"),
        (["text,label", "a,2"], r"Line 2 of .*dev\.csv has the label '2'.* training file: 0, 1"),
        (["text,label", "a,b,c"], r"Line 2 of .*dev\.csv has 3 columns and should have 2: text"),
        (["body,label", "a,0"], r"dev\.csv has no column 'text'; its columns are body, label"),
        (["text,label"], r"dev\.csv has no rows"),
        (["text,label", 'a,"0'], r"Line 2 of .*dev\.csv is not valid CSV"),
        ([], r"dev\.csv has no rows"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path, dev, message):
    write(tmp_path, "train.csv", "text,label", "a,0", "b,1")
    write(tmp_path, "dev.csv", *dev)
    with pytest.raises(ValueError, match=message):
        load_task("csv", tmp_path)


@pytest.mark.parametrize("label", ["inf", "-inf", "Infinity"])
def test_an_infinite_label_of_a_regression_raises(tmp_path, label):
    for name in ("train.csv", "dev.csv"):
        write(tmp_path, name, "text,label", "a,0.5", "b,1.5", f"c,{label}")
    with pytest.raises(ValueError, match=f"Line 4 .* label '{label}'; .* a finite number"):
        load_task("csv", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "Line 1 of .* should be a JSON object"),
        ('{"text": "a"', "Line 1 of .* should be a JSON object"),
        ('{"text": "a", "label": 1, "label": 0}', "Line 1 of .* names 'label' twice"),
        ('{"text": null, "label": 1}', "Line 1 of .* has the text None"),
        ('{"text": "a", "label": null}', "Line 1 of .* has no label"),
        ('{"text": "a", "label": {"x": 1}}', "Line 1 of .* a name, a number or a list of names"),
        ('{"text": "\\ud800", "label": 1}', "Line 1 of .* has the text"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "Line 1 of .* should be a JSON object"),
        ('{"text": "a", "label": "x"}', "labels in .* are x; there should be two classes"),
    ],
)
def test_invalid_json_lines(tmp_path, line, message):
    write(tmp_path, "train.jsonl", line)
    write(tmp_path, "dev.jsonl", line)
    with pytest.raises(ValueError, match=message):
        load_task("csv", tmp_path)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (["text,label,label", "a,x,1", "c,y,2"], "Line 1 of .* names the column 'label' twice"),
        (["", "text,label", "a,x", "b,y,z"], "Line 4 of .* has 3 columns and should have 2"),
    ],
)
def test_errors_of_the_first_line(tmp_path, train, message):
    write(tmp_path, "train.csv", *train)
    write(tmp_path, "dev.csv", "text,label", "a,x")
    with pytest.raises(ValueError, match=message):
        load_task("csv", tmp_path)


def test_blank_first_lines_long_cells_and_labels_with_underscores(tmp_path):
    write(tmp_path, "train.csv", "", "text,label", f"{'a ' * 70_000},1_1", "c,2_1")
    write(tmp_path, "dev.csv", "text,label", "a,1_1")
    limit = csv.field_size_limit()
    task = load_task("csv", tmp_path)
    assert task.label_names == ("1_1", "2_1")
    assert len(task.train["text"][0]) == 140_000
    assert csv.field_size_limit() == limit


def test_two_training_files_raise(tmp_path):
    write(tmp_path, "train.csv", "text,label", "a,x", "b,y")
    write(tmp_path, "train.jsonl", *objects({"text": "z", "label": "q"}))
    for name in ("dev.csv", "test.csv"):
        write(tmp_path, name, "text,label", "a,x")
    with pytest.raises(ValueError, match=r"train\.csv and train\.jsonl; .* one train file"):
        load_task("csv", tmp_path)
    (tmp_path / "train.jsonl").unlink()
    assert load_task("csv", tmp_path).label_names == ("x", "y")


def test_pairs_in_one_file_only_raise(tmp_path):
    write(tmp_path, "train.csv", "text,text_pair,label", "a,b,0", "c,d,1")
    write(tmp_path, "dev.csv", "text,label", "a,0")
    with pytest.raises(ValueError, match="The train rows alone of the task 'csv'"):
        load_task("csv", tmp_path)


def test_missing_files_and_other_encodings(tmp_path):
    with pytest.raises(ValueError, match="requires a data folder"):
        load_task("csv")
    write(tmp_path, "train.csv", "text,label", "a,0", "b,1")
    with pytest.raises(FileNotFoundError, match=r"no validation file in .* validation\.csv, "):
        load_task("csv", tmp_path)
    (tmp_path / "test.csv").write_bytes("text,label\na,0\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"test\.csv is not UTF-8"):
        load_task("csv", tmp_path)
