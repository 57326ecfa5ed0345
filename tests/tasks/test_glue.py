import datasets
import numpy as np
import pytest
from datasets import Dataset

from analog_grasp.tasks import load_task
from analog_grasp.tasks.glue import GLUE

OFFICIAL = [
    ("cola", 8551, 1043, ("matthews",)),
    ("sst2", 67349, 872, ("accuracy",)),
    ("mrpc", 3668, 408, ("accuracy", "f1")),
    ("rte", 2490, 277, ("accuracy",)),
    ("stsb", 5749, 1500, ("pearson", "spearman")),
]


@pytest.mark.parametrize(("name", "train", "validation", "metrics"), OFFICIAL)
def test_sizes_of_the_official_files(glue_dir, name, train, validation, metrics):
    task = load_task(f"glue/{name}", data_dir=glue_dir)
    assert task.name == f"glue/{name}"
    lines = (glue_dir / GLUE[name].folder / "train.tsv").read_text("utf-8").rstrip("\n").split("\n")
    assert len(task.train) == len(lines) - (name != "cola")
    # Some copies of MRPC's training file lack one of the official 3668 rows.
    assert len(task.train) in ((3667, 3668) if name == "mrpc" else (train,))
    assert len(task.validation) == validation
    assert task.metrics == metrics


@pytest.mark.parametrize(
    ("name", "index", "row"),
    [
        # Without a header.
        ("cola", 4, {"text": "As you eat the most, you want the least.", "label": 0}),
        ("sst2", 0, {"text": "it 's a charming and often affecting journey . ", "label": 1}),
    ],
)
def test_rows_of_the_official_files(glue_dir, name, index, row):
    assert load_task(f"glue/{name}", glue_dir).validation[index] == row


def test_mrpc_keeps_single_quotation_marks_and_drops_the_byte_order_mark(glue_dir):
    first = load_task("glue/mrpc", glue_dir).validation[0]
    assert first["label"] == 1
    assert first["text_pair"].startswith('" The foodservice pie business')


def test_rte_entailment_is_label_0(glue_dir):
    task = load_task("glue/rte", glue_dir)
    assert task.label_names[0] == "entailment"
    assert task.labels()[:2].tolist() == [1, 0]
    assert task.validation[0]["text_pair"] == "Christopher Reeve had an accident."


def test_stsb_is_a_regression(glue_dir):
    task = load_task("glue/stsb", glue_dir)
    assert (task.regression, task.num_labels) == (True, 1)
    assert task.labels()[:4].tolist() == [5.0, 4.75, 5.0, 2.4]
    assert (task.labels("train").min(), task.labels("train").max()) == (0, 5)


SST2_ROWS = "sentence\tlabel\ngood film\t1\nbad film\t0\n"


def write(folder, name, train, *devs):
    home = folder / GLUE[name].folder
    home.mkdir(parents=True)
    for file, content in zip(GLUE[name].files, (train, *devs), strict=True):
        (home / file).write_text(content, encoding="utf-8")
    return folder


def lines(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def test_qqp(tmp_path):
    header = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
    rows = lines(header, ("0", "1", "2", "Why?", "Why so?", "1"), ("1", "3", "4", "Who?", "A", "0"))
    task = load_task("glue/qqp", write(tmp_path, "qqp", rows, rows))
    assert (task.metrics, task.label_names) == (("accuracy", "f1"), ("not_duplicate", "duplicate"))
    assert task.train[0] == {"text": "Why?", "text_pair": "Why so?", "label": 1}


def test_broken_rows_of_qqp_are_skipped_with_a_warning(tmp_path):
    header = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
    whole = ("0", "1", "2", "Why?", "Why so?", "1")
    rows = lines(header, whole, ("1", "3", "4", "Who"), ("is it?", "A", "0"), whole)
    folder = write(tmp_path, "qqp", rows, lines(header, whole))
    with pytest.warns(UserWarning, match=r"2 lines of .*train\.tsv are parts of rows"):
        task = load_task("glue/qqp", folder)
    assert (len(task.train), len(task.validation)) == (2, 1)
    (folder / "QQP" / "dev.tsv").write_text(lines(header, (*whole, "more")))
    with (
        pytest.warns(UserWarning, match="line break inside"),
        pytest.raises(ValueError, match=r"Line 2 of .* 7 columns"),
    ):
        load_task("glue/qqp", folder)


def test_qnli_and_wnli(tmp_path):
    rows = lines(
        ("index", "question", "sentence", "label"),
        ("0", "When?", "In May.", "entailment"),
        ("1", "Who?", "Here.", "not_entailment"),
    )
    task = load_task("glue/qnli", write(tmp_path, "qnli", rows, rows))
    assert task.train[0] == {"text": "When?", "text_pair": "In May.", "label": 0}
    assert task.labels().tolist() == [0, 1]
    rows = lines(("index", "sentence1", "sentence2", "label"), ("0", "It is.", "He is.", "1"))
    task = load_task("glue/wnli", write(tmp_path, "wnli", rows, rows))
    assert task.train[0] == {"text": "It is.", "text_pair": "He is.", "label": 1}
    assert task.label_names[1] == "entailment"


PARSES = ("sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse")
MNLI_HEADER = ("index", "promptID", "pairID", "genre", *PARSES, "sentence1", "sentence2")


def mnli(extra, *rows):
    """Return an official file: training has the label of one annotator, development of five."""
    before = [("0", "1", "1e", "fiction", "(", ")", "(", ")", *pair) for *pair, _ in rows]
    return lines(
        (*MNLI_HEADER, *extra, "gold_label"),
        *(
            (*row, *("-" for _ in extra), label)
            for row, (*_, label) in zip(before, rows, strict=True)
        ),
    )


@pytest.fixture
def mnli_dir(tmp_path):
    one, five = ["label1"], [f"label{i}" for i in range(1, 6)]
    train = mnli(one, ("a", "b", "neutral"), ("c", "d", "contradiction"))
    matched = mnli(five, ("e", "f", "entailment"), ("g", "h", "neutral"))
    mismatched = mnli(five, ("i", "j", "contradiction"))
    return write(tmp_path, "mnli", train, matched, mismatched)


def test_mnli_is_measured_on_both_development_sets(mnli_dir):
    task = load_task("glue/mnli", mnli_dir)
    assert task.metrics == ("accuracy", "accuracy_mm")
    assert task.num_labels == 3
    assert task.train[1] == {"text": "c", "text_pair": "d", "label": 2}
    assert task.validation["text"][:] == ["e", "g", "i"]
    assert task.validation["part"][:] == ["", "", "mm"]

    class Entails(type(task)):
        def predict(self, model, split, *_):
            return np.eye(3)[[0] * len(self.labels(split))]

    task.__class__ = Entails
    assert task.scores(None) == {"accuracy": 0.5, "accuracy_mm": 0.0}
    assert task.scores(None, "train") == {"accuracy": 0.0}
    assert task.evaluate(None) == 0.5


def test_a_missing_development_set_of_mnli_is_named(mnli_dir):
    (mnli_dir / "MNLI" / "dev_mismatched.tsv").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no dev_mismatched\.tsv in .*dev_matched\.tsv and"
    ):
        load_task("glue/mnli", mnli_dir)


def test_both_development_sets_of_mnli_from_the_hub(monkeypatch):
    rows = {"premise": ["a"], "hypothesis": ["b"], "label": [2], "idx": [0]}
    names = ("train", "validation_matched", "validation_mismatched")
    splits = {name: Dataset.from_dict(rows) for name in names}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name: splits)
    task = load_task("glue/mnli")
    assert task.validation.to_list() == [
        {"text": "a", "text_pair": "b", "label": 2, "part": part} for part in ("", "mm")
    ]


def test_quotation_marks_are_text(tmp_path):
    rows = 'sentence\tlabel\n"so" good\t1\n" half a quote\t0\n'
    task = load_task("glue/sst2", write(tmp_path, "sst2", rows, SST2_ROWS))
    assert task.train["text"][:] == ['"so" good', '" half a quote']


def test_mrpc_from_the_files_of_the_corpus(tmp_path):
    header = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    for name, count in (("train", 3), ("test", 2)):
        rows = [(str(i % 2), "1", "2", f'{name} "{i}', "b") for i in range(count)]
        (tmp_path / "MRPC").mkdir(exist_ok=True)
        path = tmp_path / "MRPC" / f"msr_paraphrase_{name}.txt"
        path.write_text(lines(header, *rows), encoding="utf-8-sig")
    task = load_task("glue/mrpc", tmp_path)
    assert task.validation.to_list() == [
        {"text": f'test "{i}', "text_pair": "b", "label": i} for i in range(2)
    ]
    assert len(task.train) == 3
    # GLUE's own files come first.
    write(tmp_path / "both", "mrpc", lines(header, rows[0]), lines(header, rows[0]))
    path.rename(tmp_path / "both" / "MRPC" / path.name)
    assert len(load_task("glue/mrpc", tmp_path / "both").validation) == 1
    with pytest.raises(FileNotFoundError, match=r"\(or msr_paraphrase_train\.txt and msr"):
        load_task("glue/mrpc", tmp_path)


def test_missing_files_are_named_with_folder_and_header(tmp_path):
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "train.tsv").write_text(SST2_ROWS)
    with pytest.raises(FileNotFoundError) as caught:
        load_task("glue/sst2", tmp_path)
    message = str(caught.value)
    assert "no dev.tsv in" in message
    assert str(tmp_path / "SST-2") in message
    assert "a first line of sentence, label" in message
    assert "no train.tsv" not in message


def test_missing_folder_names_both_files_and_cola_has_no_header(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no train\.tsv and no dev\.tsv") as caught:
        load_task("glue/cola", str(tmp_path / "nowhere"))
    assert "no header, but source, label, star, sentence in each line" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dev", "message"),
    [
        ("sst2", "good film\t1\n", r"first line of .*dev\.tsv is 'good film 1'; it should name"),
        ("sst2", "", r"first line of .*dev\.tsv is ''"),
        ("sst2", "sentence\tlabel\n", r"dev\.tsv has no rows"),
        ("sst2", SST2_ROWS + "a\tb\t1\n", r"Line 4 of .*dev\.tsv has 3 columns .* have 2"),
        ("sst2", SST2_ROWS + "film\t2\n", r"Line 4 of .*dev\.tsv has the label '2'.*0 or 1"),
        ("cola", "gj04\t1\tA sentence.\n", r"Line 1 of .*dev\.tsv has 3 columns .* have 4"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tyes\n", "entailment or not_entail"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\t7\n", "a number from 0 to 5"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\tnan\n", "a number from 0 to 5"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\thigh\n", "a number from 0 to 5"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path, name, dev, message):
    good = {
        "sst2": SST2_ROWS,
        "cola": "gj04\t1\t\tA sentence.\n",
        "rte": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
        "stsb": "sentence1\tsentence2\tscore\na\tb\t1.5\n",
    }[name]
    with pytest.raises(ValueError, match=message):
        load_task(f"glue/{name}", write(tmp_path, name, good, dev))


def test_other_encodings_raise(tmp_path):
    folder = write(tmp_path, "sst2", SST2_ROWS, SST2_ROWS)
    (folder / "SST-2" / "dev.tsv").write_bytes(SST2_ROWS.encode("utf-16"))
    with pytest.raises(ValueError, match=r"dev\.tsv is not UTF-8"):
        load_task("glue/sst2", folder)


def test_without_a_folder_the_hub_is_used(monkeypatch):
    rows = Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "label": [2.5], "idx": [0]})
    asked = []

    def load_dataset(path, name):
        asked.append((path, name))
        return {"train": rows, "validation": rows}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task("glue/stsb")
    assert asked == [("nyu-mll/glue", "stsb")]
    assert task.train[0] == {"text": "a", "text_pair": "b", "label": 2.5}
    np.testing.assert_array_equal(task.labels(), [2.5])


def test_an_unreachable_hub_points_to_the_data_folder(monkeypatch):
    def load_dataset(path, name):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match=r"Hub.*--data-dir.* SST-2/train\.tsv"):
        load_task("glue/sst2")
