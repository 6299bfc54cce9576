"""What unit tests share: a chat format on nano's own tokenizer, made once."""

import pytest

from klong_rl.chat import ChatFormat
from klong_rl.cold_start import corpus
from klong_rl.models.nano import CHAT_TEMPLATE, train_tokenizer
from klong_rl.tasks.relay import RelayDemonstrator, RelayTasks

SYSTEM = "You have a shell, one command a turn. Type submit when done."


@pytest.fixture(scope="session")
def chat(tmp_path_factory) -> ChatFormat:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = corpus(RelayTasks(), RelayDemonstrator(), [2, 4, 6], SYSTEM)
    tokenizer = train_tokenizer(texts, vocab_size=512)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return ChatFormat(folder)
