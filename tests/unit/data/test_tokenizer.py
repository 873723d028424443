import json
import shutil

import pytest

from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import DataError


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(tiny.train_tokenizer(list(tiny.documents(200, seed=1)), 700), path)
    return path


def test_text_comes_back_whole(folder):
    tokenizer = Tokenizer(folder)
    text = "The <think> 2024-style café 写一篇短文。\n\n😀 naïve"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert max(tokenizer.encode(text)) < tokenizer.vocab_size == 700


def test_special_tokens_are_ids_and_can_be_left_out(folder):
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode("end<|endoftext|>")
    assert ids[-1] in tokenizer.eos_ids
    assert tokenizer.decode(ids) == "end"
    assert tokenizer.decode(ids, skip_special=False) == "end<|endoftext|>"


def test_eos_ids_are_the_union_of_all_files(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 3]}')
    assert Tokenizer(tmp_path).eos_ids == {3, 5, 697}
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["eos_token"] = {"content": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer(tmp_path).eos_ids == {3, 5, 699}


def test_broken_folders_give_one_line(folder, tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
    shutil.copy(folder / "tokenizer.json", tmp_path)
    with pytest.raises(DataError, match="no end-of-text token"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    with pytest.raises(DataError, match="'<eos>' is not in"):
        Tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="not a tokenizers file") as caught:
        Tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
