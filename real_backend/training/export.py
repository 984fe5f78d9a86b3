"""The Hugging Face folders of the embedded pair: writing them, and reading them back."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from real_backend.training.core import ASSISTANT, BOS, EOS, PAD, USER, Llama, LlamaSize, token_id

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    f"{{{{ '{USER}' + message['content'] + '\\n' }}}}"
    "{% else %}"
    f"{{{{ '{ASSISTANT}' + message['content'] + eos_token }}}}"
    "{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
)


def as_transformers(model: Llama, **tokens: Any) -> LlamaForCausalLM:
    """The trained model as a transformers module. tokens: bos_token_id, eos_token_id and what else
    its config is to hold.
    """
    shape = model.shape
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=shape.max_positions,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        **tokens,
    )
    network = LlamaForCausalLM(config)
    network.load_state_dict({**model.state_dict(), "lm_head.weight": model.embedding()})
    network.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=False,
    )
    return network


@contextlib.contextmanager
def folder_in_place(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files then come to `folder`: every one whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as room:
        yield Path(room)
        for file in Path(room).iterdir():
            file.replace(folder / file.name)


def export(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, float16 weights, tokenizer with chat template and generation settings."""
    network = as_transformers(
        model,
        bos_token_id=token_id(tokenizer, BOS),
        eos_token_id=token_id(tokenizer, EOS),
        pad_token_id=token_id(tokenizer, PAD),
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": model.shape.max_positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    with folder_in_place(folder) as room:
        network.half().save_pretrained(room)
        tokenizer.save(str(room / "tokenizer.json"))
        (room / "tokenizer_config.json").write_text(text, encoding="utf-8")


def read_back(folder: Path) -> Llama:
    """The exported model as the training module, float16 weights widened to float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = LlamaSize(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        inner=config["intermediate_size"],
        vocab=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        rope_theta=config["rope_parameters"]["rope_theta"],
        norm_eps=config["rms_norm_eps"],
    )
    model = Llama(shape, seed=0)
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight", None)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.requires_grad_(False)


def load_for_generation(folder: Path) -> LlamaForCausalLM:
    """The exported model through transformers, in float32."""
    network: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return network.eval()
