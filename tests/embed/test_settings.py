"""What the files beside a checkpoint say about embedding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny_models import write_json

from lattice.embed.settings import read_settings
from lattice.errors import LatticeError


def settings(directory):
    return read_settings(SimpleNamespace(kind="safetensors", directory=directory))


def pooling(directory, config):
    write_json(directory / "1_Pooling" / "config.json", config)
    return settings(directory)


def test_an_empty_directory_has_neutral_settings_and_names_what_is_missing(tmp_path):
    found = settings(tmp_path)
    assert (found.max_tokens, found.lower_case, found.prompts, found.prompt(None)) == (None, False, {}, "")
    with pytest.raises(LatticeError, match=r"1_Pooling/config\.json"):
        found.need_pooling("model")


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
    ],
)
def test_pooling_modes_in_both_forms(tmp_path, config, mode):
    assert pooling(tmp_path, config).need_pooling("model") == mode


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"pooling_mode_max_tokens": True}, "max_tokens"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "mean and cls"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({}, "none in"),
    ],
)
def test_other_pooling_is_refused_by_name(tmp_path, config, named):
    with pytest.raises(LatticeError, match=named):
        pooling(tmp_path, config).need_pooling("model")


def test_the_pooling_folder_is_the_one_that_modules_json_names(tmp_path):
    write_json(
        tmp_path / "modules.json",
        [{"path": "", "type": "a.Transformer"}, {"path": "9_P", "type": "a.Pooling"}],
    )
    write_json(tmp_path / "9_P" / "config.json", {"pooling_mode_cls_token": True})
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    found = settings(tmp_path)
    assert (found.pooling, found.normalized) == ("cls", False)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([{"path": "", "type": "a.Transformer"}, {"path": "2_Dense", "type": "a.Dense"}], "a.Dense"),
        ([{"path": "../out", "type": "a.Pooling"}], "plain file name"),
        ([{"path": "/etc", "type": "a.Pooling"}], "plain file name"),
        ({"modules": []}, "a list of objects"),
        (["Pooling"], "a list of objects"),
    ],
)
def test_modules_that_are_not_understood_are_refused(tmp_path, modules, message):
    write_json(tmp_path / "modules.json", modules)
    with pytest.raises(LatticeError, match=message):
        settings(tmp_path)


def test_modules_json_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "modules.json").write_text("[{]", "utf-8")
    with pytest.raises(LatticeError, match=r"modules\.json"):
        settings(tmp_path)


def test_old_models_name_the_file_after_their_family(tmp_path):
    write_json(tmp_path / "sentence_roberta_config.json", {"max_seq_length": 75, "do_lower_case": True})
    found = settings(tmp_path)
    assert (found.max_tokens, found.lower_case) == (75, True)
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 80})
    assert settings(tmp_path).max_tokens == 80


def test_prompts(tmp_path):
    path = tmp_path / "config_sentence_transformers.json"
    write_json(path, {"prompts": {"query": "q: ", "passage": "p: "}, "default_prompt_name": "passage"})
    found = settings(tmp_path)
    assert (found.prompt(None), found.prompt("query")) == ("p: ", "q: ")
    assert found.first_prompt("document", "passage") == "passage"
    with pytest.raises(LatticeError, match="query, passage"):
        found.prompt("other")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sentence_bert_config.json", {"max_seq_length": "long"}),
        ("sentence_bert_config.json", {"max_seq_length": 0}),
        ("sentence_bert_config.json", {"max_seq_length": True}),
        ("sentence_xlm-roberta_config.json", {"max_seq_length": True}),
        ("config_sentence_transformers.json", {"prompts": ["query"]}),
        ("config_sentence_transformers.json", {"prompts": {"query": 1}}),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}),
        ("config_sentence_transformers.json", {"similarity_fn_name": "hamming"}),
    ],
)
def test_values_out_of_place_name_their_file(tmp_path, name, value):
    write_json(tmp_path / name, value)
    with pytest.raises(LatticeError, match=name.replace(".", r"\.")):
        settings(tmp_path)


@pytest.mark.parametrize(("number", "mode"), [(1, "mean"), (2, "cls"), (3, "last")])
@pytest.mark.parametrize("architecture", ["bert", "qwen3"])
def test_pooling_of_a_gguf(number, mode, architecture):
    metadata = {"general.architecture": architecture, f"{architecture}.pooling_type": number}
    assert read_settings(SimpleNamespace(kind="gguf", metadata=metadata)).need_pooling("model") == mode


@pytest.mark.parametrize(
    ("extra", "named"), [({}, "no bert.pooling_type"), ({"bert.pooling_type": 4}, "pooling_type 4")]
)
def test_a_gguf_without_pooling_says_which_key(extra, named):
    metadata = {"general.architecture": "bert", **extra}
    with pytest.raises(LatticeError, match=named):
        read_settings(SimpleNamespace(kind="gguf", metadata=metadata)).need_pooling("model")
