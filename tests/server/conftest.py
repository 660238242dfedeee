from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from lightllm.text.tokenizer import Tokenizer

from .fake_engine import LiveServer, Script

TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>"
    "answer with <tool_call>{...}</tool_call>{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + (message.content or '') }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}{% endif %}"
    "{# </think> #}"
)
CORPUS = ["Hello, wörld 🎉! How are you today?", "The quick brown fox jumps over the lazy dog.", "one two three"] * 4


@pytest.fixture(scope="session")
def toy_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a byte-level BPE with a beginning token and the ChatML tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|begin|>", "<|im_end|>", "<|im_start|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("</tool_call>", special=False)])
    backend.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    directory: Path = tmp_path_factory.mktemp("toy")
    backend.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<|begin|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def tokenizer(toy_directory: Path) -> Tokenizer:
    return Tokenizer.load(toy_directory)


@pytest.fixture
def tokenizer_with(toy_directory: Path, tmp_path: Path) -> Callable[..., Tokenizer]:
    """Makes the tokenizer with other values in its tokenizer_config.json."""

    def make(**values: Any) -> Tokenizer:
        directory = tmp_path / "toy"
        shutil.copytree(toy_directory, directory)
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return Tokenizer.load(directory)

    return make


@pytest.fixture(scope="session")
def shared_server(tokenizer: Tokenizer) -> Iterator[LiveServer]:
    live = LiveServer(tokenizer, max_body_bytes=1 << 20)
    yield live
    live.stop()


@pytest.fixture
def server(shared_server: LiveServer) -> Iterator[LiveServer]:
    """The shared server with a fresh script and empty records."""
    shared_server.engine.script = Script()
    shared_server.engine.submits.clear()
    shared_server.engine.aborted.clear()
    yield shared_server
    shared_server.wait(lambda: shared_server.frontend.num_live == 0)


@pytest.fixture
def own_server(tokenizer: Tokenizer) -> Iterator[Callable[..., LiveServer]]:
    """Makes servers that a test may break."""
    made: list[LiveServer] = []

    def make(other_tokenizer: Tokenizer | None = None, **options: Any) -> LiveServer:
        made.append(LiveServer(other_tokenizer or tokenizer, **options))
        return made[-1]

    yield make
    for live in made:
        live.stop()


@pytest.fixture(scope="session")
def shared_http(shared_server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_server.url, timeout=10) as client:
        yield client


@pytest.fixture(scope="session")
def shared_client(shared_server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=shared_server.url + "/v1", api_key="none", max_retries=0, timeout=10) as made:
        yield made


@pytest.fixture
def http(server: LiveServer, shared_http: httpx.Client) -> httpx.Client:
    """A plain client of the shared server."""
    return shared_http


@pytest.fixture
def client(server: LiveServer, shared_client: openai.OpenAI) -> openai.OpenAI:
    """The official client of the shared server, without retries."""
    return shared_client
