import shutil

import torch
from transformers import AutoTokenizer

from analog_grasp.tasks import load_base_model, load_task
from analog_grasp.training.examples import draw_batches, draw_examples


def test_texts_are_padded_on_the_right(bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    AutoTokenizer.from_pretrained(tmp_path, padding_side="left").save_pretrained(tmp_path)
    model = load_base_model(load_task("reviews"), str(tmp_path))
    batch = draw_examples(["good", "the food was good"], 2, model, seed=0)
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0, 0, 0]


def test_batches_hold_examples_of_similar_length():
    lengths = torch.tensor([2, 9] * 20)
    examples = {"attention_mask": torch.arange(9) < lengths[:, None]}
    generator = torch.Generator().manual_seed(0)
    draws = [draw_batches(examples, 4, 8, generator) for _ in range(30)]
    assert all(rows.shape == (4, 8) for rows in draws)
    drawn = torch.stack(draws)
    assert {*drawn.flatten().tolist()} == {*range(40)}
    # Of four batches at most one has examples of both lengths; the longest can be at any place.
    mixed = (lengths[drawn].amin(2) != lengths[drawn].amax(2)).sum(1)
    assert int(mixed.max()) == 1
    assert {*lengths[drawn].sum(2).argmax(1).tolist()} == {0, 1, 2, 3}
