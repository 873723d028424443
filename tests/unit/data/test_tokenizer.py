import json
import shutil

import pytest
import tokenizers

from megatron_lwz.data.markup import Markup
from megatron_lwz.data.tokenizer import Tokenizer, read_pad_id
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
    ids = tokenizer.encode(Markup("end<|endoftext|>"))
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


@pytest.mark.parametrize(
    ("given", "ids"),
    [(5, {5}), ("5", {5}), (5.0, {5}), ([5, "3"], {3, 5}), (None, set()), ([], set())],
)
def test_ids_in_the_forms_of_other_tools_are_read(folder, tmp_path, given, ids):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(
        "\ufeff" + json.dumps({"eos_token_id": given, "pad_token_id": given}), "utf-8"
    )
    assert Tokenizer(tmp_path).eos_ids == ids | {697}
    if len(ids) < 2:
        assert read_pad_id(tmp_path) == (min(ids) if ids else 697)


@pytest.mark.parametrize(
    "given", [-1, 10**30, "many", "-5", 2.5, True, [[5]], [5, None], {"id": 5}, float("nan"), "５"]
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_what_is_no_token_id_is_refused_by_file_and_key(folder, tmp_path, name, given):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(json.dumps({"eos_token_id": given, "pad_token_id": given}))
    with pytest.raises(DataError, match=rf"{name}: eos_token_id = .*must be a token id"):
        Tokenizer(tmp_path)
    if name == "config.json":
        with pytest.raises(DataError, match=r"config\.json: pad_token_id = .*must be a token id"):
            read_pad_id(tmp_path)


def test_ids_beyond_the_vocabulary_and_several_padding_tokens_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text('{"eos_token_id": [5, 700], "pad_token_id": [1, 2]}')
    with pytest.raises(DataError, match=r"config\.json: eos_token_id 700 is no token of tokenizer\.json"):
        Tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"pad_token_id = \[1, 2\]: must be one token id"):
        read_pad_id(tmp_path)


def test_a_vocabulary_with_gaps_is_as_large_as_its_largest_id(tmp_path):
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 70_000}, "a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "b"}')
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.vocab_size == 70_001 and tokenizer.eos_ids == {70_000}


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
