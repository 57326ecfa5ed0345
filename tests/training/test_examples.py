import shutil

from transformers import AutoTokenizer

from analog_grasp.tasks import load_base_model, load_task
from analog_grasp.training.examples import draw_examples


def test_texts_are_padded_on_the_right(bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    AutoTokenizer.from_pretrained(tmp_path, padding_side="left").save_pretrained(tmp_path)
    model = load_base_model(load_task("reviews"), str(tmp_path))
    batch = draw_examples(["good", "the food was good"], 2, model, seed=0)
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0, 0, 0]
