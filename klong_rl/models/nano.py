"""nano: an untrained Llama of a few million parameters with a small tokenizer of its own, as an HF folder.

The default model: small enough that an agent learns on two CPU cores in minutes, through the parts that a large one
uses. Input and output embeddings are untied. The tokenizer is byte-level BPE, so it can write any text; common words
of the task family are single tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from klong_rl.models.folder import whole_or_absent

SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Copying a name from what was read is most of the work, and it is learned in half the steps when the output head starts
# as the input embedding, both well above the usual 0.02.
EMBEDDING_STD = 0.1


def build(folder: Path, texts: Iterable[str], seed: int, vocab_size: int = 512) -> None:
    """Write config, tokenizer (trained on `texts`) and random weights (drawn with `seed`) to `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(texts, vocab_size)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=EMBEDDING_STD)
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    with whole_or_absent(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def train_tokenizer(texts: Iterable[str], vocab_size: int):
    """Byte-level BPE whose merges never cross a word, a digit or a line."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n| ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]+|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIAL[2:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class NanoSource:
    """An untrained nano whose tokenizer knows the words of the task family."""

    vocab_size: int = 512

    def build(self, cache: Path, texts: Sequence[str], seed: int) -> Path:
        digest = hashlib.blake2b("\0".join([str(self.vocab_size), str(seed), *texts]).encode(), digest_size=6)
        folder = cache / "models" / f"nano-{digest.hexdigest()}"
        if not folder.exists():
            build(folder, texts, seed, self.vocab_size)
        return folder
