"""The facts about lightllm that the demo model knows, with the ways people ask for them.

Each fact has one answer, phrasings for training and other phrasings, marked `held`, that only the evaluation sees.
The facts describe the project; a fact that stops being true must be changed here and the model trained again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    answer: str
    asked: tuple[str, ...]
    held: tuple[str, ...]


def _split(text: str) -> tuple[str, ...]:
    """Phrasings stand between bars or on lines of their own."""
    return tuple(phrase.strip() for phrase in re.split(r"[|\n]", text) if phrase.strip())


def _fact(answer: str, asked: str, held: str) -> Fact:
    return Fact(answer, _split(asked), _split(held))


WHAT = """
    What is {x}?|Explain {x}.|What does {x} mean?|Tell me about {x}.|What is meant by {x}?|Describe {x}.
    Define {x}.|What's {x}?|{x}?|How would you explain {x}?|Give me a short explanation of {x}.
    I want to know what {x} is.|What do you know about {x}?|The manual mentions {x}. What is that?
    I read about {x}. What is it?|Someone told me about {x}, what is it?|What does {x} mean in lightllm?
    What is {x} in lightllm?|What is the idea of {x}?|How does {x} work?|Say something about {x}.
    What exactly does {x} mean?|Can you explain {x}?|Could you explain {x} to me?|Please define {x}.
    I do not know {x}. What is it?|What should I know about {x}?|I heard of {x}, what is that?
    Teach me about {x}.|In short, what is {x}?|Do you know what {x} is?|The word {x}, what does it mean?"""
WHAT_HELD = """
    Could you briefly say what {x} is?|In lightllm, what is {x} all about?|I keep reading about {x}, what is it?
    Help me understand {x}.|So what exactly is {x}?|Would you mind telling me what {x} refers to?
    My team talks about {x} all day, and I wonder what it is."""
DOES = """
    What does {x} do?|What is {x} for?|Explain {x}.|What is {x}?|Why would I use {x}?|When do I use {x}?
    What happens with {x}?|Tell me about {x}.|What can I do with {x}?|Describe {x}.|What's {x} for?
    What is the purpose of {x}?|What is {x} good for?|The manual mentions {x}. What does it do?
    I read about {x}. What does it do?|Someone told me to use {x}, what is it for?|What does {x} do in lightllm?
    Can you explain {x}?|How does {x} work?|What is the use of {x}?|What happens when I use {x}?
    What is the task of {x}?|What do I get from {x}?|Could you explain {x} to me?|Do you know {x}?
    I found {x}. What is it?|What should I use {x} for?|What exactly does {x} do?|In short, what does {x} do?
    I do not know {x}. What does it do?"""
DOES_HELD = """
    What will {x} do for me?|I saw {x} in the docs, what is it good for?|Could you say what {x} does?
    Why is there a {x}?|Which job does {x} have?|Would you mind telling me what {x} is used for?
    A friend recommended {x}, what would it do?"""


def _named(names: str, answer: str, does: bool = False) -> Fact:
    """A fact asked for by name: every training frame with every name, every held-out frame with the first names."""
    listed = _split(names)
    asked, held = (DOES, DOES_HELD) if does else (WHAT, WHAT_HELD)
    return Fact(
        answer,
        tuple(q.format(x=x) for q in _split(asked) for x in listed),
        tuple(q.format(x=x) for q in _split(held) for x in listed[:2]),
    )


FACTS: tuple[Fact, ...] = (
    _named(
        "lightllm|LightLLM|the lightllm framework",
        "lightllm is a pure-Python framework that serves large language models.",
    ),
    _named(
        "TokenAttention|Token Attention|token attention",
        "TokenAttention manages the KV cache token by token, so no memory is wasted.",
    ),
    _named(
        "nopad attention|Nopad attention|attention without padding",
        "Nopad attention treats a batch as one flat run of tokens, without padding.",
    ),
    _named(
        "the Efficient Router|Efficient Router|the router",
        "The Efficient Router admits requests by the expected peak of token memory.",
    ),
    _named(
        "Past-Future scheduling|the Past-Future scheduler|past-future scheduling",
        "The Past-Future scheduler estimates future memory from the lengths of past outputs.",
    ),
    _named(
        "the prefix cache|the radix prefix cache|the radix tree",
        "The prefix cache is a radix tree that lets prompts with the same start share their KV.",
    ),
    _named(
        "chunked prefill|Chunked prefill|prefill in chunks",
        "Chunked prefill splits a long prompt into pieces that run together with decodes.",
    ),
    _named(
        "continuous batching|dynamic batching|Continuous batching",
        "Continuous batching lets requests join and leave the batch at every step.",
    ),
    _named(
        "the KV cache|KV cache|the key-value cache",
        "The KV cache keeps the keys and values of earlier tokens, so they are computed once.",
    ),
    _named(
        "prefill|the prefill phase|the prefill step",
        "Prefill computes the KV of all prompt tokens before the first new token.",
    ),
    _named("decode|the decode phase|a decode step", "Decode produces one new token for each running request per step."),
    _named("the scheduler|lightllm's scheduler", "The scheduler decides which requests run in the next step."),
    _named(
        "the slot pool|the token slot pool", "The slot pool holds one row of KV per token slot, allocated in advance."
    ),
    _named("the ledger|the memory ledger", "The ledger checks that free, held and cached slots add up to the total."),
    _named(
        "preemption|request preemption", "Preemption frees the memory of a running request and computes it again later."
    ),
    _named(
        "overlap scheduling|host and device overlap",
        "With overlap scheduling the host prepares the next step while the device computes.",
    ),
    _named(
        "speculative decoding|speculation",
        "In speculative decoding a small drafter proposes tokens and the model verifies them.",
    ),
    _named(
        "Medusa|Medusa heads|the Medusa heads",
        "Medusa heads are extra output heads that guess several next tokens at once.",
    ),
    _named("a draft model|the draft model", "A draft model is a small model that proposes tokens for a larger one."),
    _named(
        "the demo model|the bundled demo model|the built-in model",
        "The demo model is a very small Llama model that comes with lightllm.",
    ),
    _named("quantization|weight quantization", "Quantization stores weights in fewer bits to save memory."),
    _named("tensor parallelism|tensor parallel", "Tensor parallelism splits each layer over several devices."),
    _named("TTFT|time to first token", "TTFT is the time from a request to its first token."),
    _named("TPOT|time per output token", "TPOT is the mean time per output token after the first."),
    _named("a CUDA graph|CUDA graphs", "A CUDA graph replays recorded GPU work with little launch cost."),
    _named(
        "lightllm serve|the serve command|the command lightllm serve",
        "lightllm serve starts the HTTP server on port 8000.",
        True,
    ),
    _named(
        "lightllm chat|the chat command|the command lightllm chat",
        "lightllm chat opens a streaming chat in the terminal.",
        True,
    ),
    _named(
        "lightllm generate|the generate command", "lightllm generate continues a prompt from the command line.", True
    ),
    _named(
        "lightllm check|the check command|the command lightllm check",
        "lightllm check compares a model with a reference implementation.",
        True,
    ),
    _named(
        "lightllm env|the env command|the command lightllm env",
        "lightllm env prints versions, devices and the chosen kernels.",
        True,
    ),
    _named(
        "lightllm bench|the bench command|the command lightllm bench",
        "lightllm bench measures speed and prints the hardware bound beside it.",
        True,
    ),
    _named(
        "scripts/serve|the script scripts/serve|the serve script",
        "scripts/serve installs lightllm and serves the demo model on port 8000.",
        True,
    ),
    _named(
        "scripts/test|the script scripts/test|the test script",
        "scripts/test installs lightllm and runs lint, types and tests.",
        True,
    ),
    _named(
        "/v1/chat/completions|the chat completions route|the route /v1/chat/completions",
        "/v1/chat/completions answers chat requests as the OpenAI API does.",
        True,
    ),
    _named(
        "/v1/completions|the route /v1/completions",
        "/v1/completions continues a text prompt as the OpenAI API does.",
        True,
    ),
    _named("/v1/models|the route /v1/models", "/v1/models lists the models that the server offers.", True),
    _named(
        "/metrics|the metrics route|the route /metrics", "/metrics shows the server's counters for Prometheus.", True
    ),
    _named("/health|the health route|the route /health", "/health says whether the server is alive.", True),
    _named(
        "/ready|the ready route|the route /ready", "/ready is green only when the server can generate a token.", True
    ),
    _named("/tokenize|the tokenize route|the route /tokenize", "/tokenize turns text into token ids.", True),
    _named(
        "/detokenize|the detokenize route|the route /detokenize", "/detokenize turns token ids back into text.", True
    ),
    _fact(
        "lightllm runs three processes: tokenization, inference and detokenization.",
        """
            How many processes does lightllm run?|Which processes does lightllm have?
            What are the three processes?|Name the processes of lightllm.|What processes does the server start?
            Which three processes are there?|How many processes are there?
            Which processes does the server consist of?|What processes make up lightllm?|List the processes.
            Tell me the processes of lightllm.|Into which processes is lightllm split?""",
        """
            Could you name the three processes?|How is lightllm divided into processes?
            What processes are running in lightllm?|Count the processes of lightllm for me.""",
    ),
    _fact(
        "The processes are joined by shared-memory rings.",
        """
            How do the processes communicate?|How are the processes joined?
            How do the processes talk to each other?|What joins the processes?|What connects the processes?
            How are the processes connected?|How do messages get from one process to another?
            How do messages travel between the processes?|What are the shared-memory rings for?
            What is a shared-memory ring?|How do the processes exchange messages?
            Which queue joins the processes?|By what are the processes linked?""",
        """
            What do the processes use to communicate?|In what way are the processes connected?
            How does one process send messages to another process?
            Between the processes, how do messages travel?""",
    ),
    _fact(
        "Run scripts/serve or lightllm serve to start a server.",
        """
            How do I start a server?|How do I start lightllm?|How can I start the server?|Start a server, how?
            How do I run the server?|How do I launch the server?|What do I type to start a server?
            How can I run lightllm?|How do I serve a model?|How do I get a server running?
            Which command starts the server?|What starts a server?|How do I launch lightllm?
            How is the server started?""",
        """
            I want to start the server, what do I type?|What is the way to start a lightllm server?
            Tell me how to launch a server.|Which command do I need to start a server?""",
    ),
    _fact(
        "The server listens on port 8000.",
        """
            Which port does the server use?|What is the default port?|What port does lightllm listen on?
            On which port does the server listen?|Which port?|What port is it?|Where does the server listen?
            Port of the server?|What is the port number?|Which port is the default?|What port do I connect to?
            Which port should I use?|Tell me the port.""",
        """
            Could you tell me the default port?|What port number does the server listen on?
            To which port do I send requests?|On what port is lightllm reachable?""",
    ),
    _fact(
        "lightllm is under the Apache-2.0 license.",
        """
            What license does lightllm have?|Which license is lightllm under?|What is the license?
            Under which license is it?|License?|How is lightllm licensed?|Is lightllm open source?
            Tell me the license of lightllm.|Which license applies?|What is lightllm licensed under?
            Which open source license is used?|Is it Apache licensed?""",
        """
            Could you tell me the license?|Under what license is lightllm published?
            What kind of license does the project use?|Name the license of lightllm.""",
    ),
    _fact(
        "lightllm needs Python 3.11 or later.",
        """
            Which Python version do I need?|What Python does lightllm need?|Which Python is required?
            What version of Python is required?|Python version?|Does it run on Python 3.11?
            Which Python versions work?|What is the minimum Python version?|Which Python do I need for lightllm?
            What Python version does it run on?|Is Python 3.12 fine?|Tell me the Python version.
            What is the oldest Python that works?""",
        """
            Which version of Python does lightllm require?|What is the lowest Python version supported?
            Could you tell me which Python I need?|My Python is old, which version is needed?""",
    ),
    _fact(
        "lightllm is written in Python, with kernels in Triton.",
        """
            Which language is lightllm written in?|What language is it written in?
            In which programming language is lightllm written?|What programming language does lightllm use?
            Is lightllm written in C++?|Which language are the kernels written in?
            What are the kernels written in?|Programming language?|What is lightllm written in?
            Which programming language is used?|Is it written in Python?|Are the kernels in Triton?""",
        """
            What language did they write lightllm in?|Could you name the programming language of lightllm?
            The kernels are written in which language?|In what language is the code written?""",
    ),
    _fact(
        "No, lightllm also runs on a CPU.",
        """
            Do I need a GPU?|Does lightllm need a GPU?|Can I run lightllm without a GPU?|Does it run on a CPU?
            Is a GPU required?|Can it run on a CPU?|Do I have to have a GPU?|Is a GPU necessary?
            Does lightllm work without a GPU?|Must I have a GPU?|Can I use it on a laptop without a GPU?
            Is it possible to run without a GPU?|Without a GPU, does it work?""",
        """
            Is it necessary to have a GPU?|I have no GPU, can I run lightllm?|Will lightllm work on a CPU?
            Could I use lightllm without a GPU?""",
    ),
    _fact(
        "The page size is 1: memory is managed one token at a time.",
        """
            What is the page size?|Which page size does lightllm use?|How large is a page?
            What page size is used?|Page size?|How big are the pages?|How many tokens are in a page?
            How big is a page of the KV cache?|Tell me the page size.|What is the size of a page?
            How many tokens does a page hold?|Which page size does the cache have?""",
        """
            Could you tell me the page size?|How large are the pages of the KV cache?
            What size does a page have?|One page holds how many tokens?""",
    ),
    _fact(
        "lightllm speaks the OpenAI API over HTTP.",
        """
            Which API does lightllm have?|What API does the server speak?|Is lightllm compatible with OpenAI?
            Does it have an OpenAI API?|Which API does it speak?|What API can I use?|Is there an HTTP API?
            Can I use the openai package?|Can I use OpenAI clients?|Which HTTP API does the server offer?
            Does lightllm work with the OpenAI client?|Is it OpenAI compatible?|Which API?""",
        """
            What kind of API does the server offer?|Will my OpenAI client work with lightllm?
            Could you tell me which API it speaks?|Is the API like the one of OpenAI?""",
    ),
    _fact(
        "Import LLM and SamplingParams from lightllm and call generate or chat.",
        """
            How do I use lightllm from Python?|How do I use the offline API?|How do I generate text in Python?
            Is there a Python API?|How do I use the LLM class?|What is the LLM class?|What is SamplingParams?
            How do I call lightllm from a Python script?|What is the offline API?
            Can I use lightllm without a server?|How do I use it in Python code?|Offline use?
            How can I use lightllm in a program?""",
        """
            Could I call lightllm from my Python script?|How does the Python API work?
            I want to use the LLM class, how?|What do I import to use the offline API?""",
    ),
    _fact(
        "Set temperature to 0 for greedy decoding.",
        """
            How do I get greedy decoding?|How do I turn off sampling?|What does temperature 0 do?
            How do I make answers deterministic?|How can I decode greedily?|Which temperature is greedy?
            How do I switch sampling off?|What temperature gives greedy output?
            How do I get the same answer every time?|Greedy decoding?|What is greedy decoding?
            Which setting makes decoding greedy?""",
        """
            What do I set for greedy decoding?|I want deterministic answers, what do I do?
            Which temperature should I use for greedy decoding?|How is sampling turned off?""",
    ),
    _fact(
        "lightllm serves model families such as Llama, Qwen2 and Qwen3.",
        """
            Which models does lightllm support?|What models can I run?|Which models can it serve?
            Does lightllm support Llama?|Does it support Qwen?|Can it run Qwen3?
            Which model families are supported?|What models are supported?|Supported models?|Which models work?
            Can I run Llama models?|Is Llama supported?|Is Qwen supported?|Which models can I use?
            Which families of models can lightllm serve?|What families are supported?
            Which models does the server run?|Which families does lightllm know?""",
        """
            Could you list the supported models?|What model families does lightllm serve?
            Will a Qwen3 model work?|Which kinds of models run in lightllm?""",
    ),
    _fact(
        "Models are loaded from directories with safetensors weights in the Hugging Face format.",
        """
            Which model format does lightllm load?|Which weight format is used?
            What file format do the weights have?|How are models loaded?|Does it load safetensors?
            In which format are models stored?|Which format do models need?|What format must my model have?
            Model format?|Can it load safetensors files?|What kind of weights can it load?
            From where are the weights loaded?""",
        """
            Could you tell me the format of the weights?|What format should a model be in?
            Are safetensors weights fine?|How does lightllm load the weights of a model?""",
    ),
    _fact(
        "The demo model has a context of 4096 tokens.",
        """
            How long is your context?|What is the context length?|How many tokens can you read?
            What is your context window?|How long can a prompt be?|Context length?
            How large is the context window?|What is the maximum context?|How many tokens fit in the context?
            What's your context length?|How big is your context?|Tell me the context length.""",
        """
            Could you tell me your context length?|How many tokens of context do you have?
            What is the size of your context window?|How long may the context be?""",
    ),
    _fact(
        "It has about eight million parameters.",
        """
            How many parameters do you have?|How big are you?|How large is the demo model?|What is your size?
            How many parameters does the demo model have?|How big is the demo model?|What size is the model?
            How large are you?|How many weights do you have?|Number of parameters?
            What is the size of the demo model?|How many parameters are there?""",
        """
            Could you tell me how many parameters you have?|What is the number of your parameters?
            Your size in parameters, please?|The demo model has how many parameters?""",
    ),
    _fact(
        "Send SIGTERM: the server finishes running requests and then stops.",
        """
            How do I stop the server?|How do I shut down the server?|What happens on SIGTERM?
            How can I stop lightllm?|What does SIGTERM do?|How does the server shut down?
            How do I end the server?|What happens when I stop the server?|Shut down?
            How do I stop lightllm cleanly?|How is the server stopped?|Which signal stops the server?""",
        """
            I want to stop the server, how?|What is the way to shut lightllm down?
            Could you tell me how to stop the server?|When the server gets SIGTERM, what happens?""",
    ),
    _fact(
        "Put the stop strings in the field stop of the request.",
        """
            How do I use stop strings?|How do I set a stop string?|What is a stop string?
            How can I stop at a word?|Where do I put stop strings?|Which field sets stop strings?
            How do I end an answer at a string?|Stop strings?|How do stop strings work?
            How do I give a stop sequence?|Can I set stop strings?|What does the field stop do?""",
        """
            Could you explain how to set stop strings?|I want to use a stop string, how?
            Which field is for stop strings?|Where does a stop string go?""",
    ),
    _fact(
        "Set stream to true to receive tokens as they are made.",
        """
            How do I stream tokens?|How do I get streaming?|Can lightllm stream?|Does it support streaming?
            How do I turn on streaming?|How can I stream the answer?|What does the field stream do?
            Is streaming supported?|Streaming?|How do I receive tokens one by one?|How do I stream an answer?
            Which field turns on streaming?""",
        """
            Could you tell me how to stream?|I want a streamed answer, what do I set?
            Is there a way to stream tokens?|What do I set to get streaming?""",
    ),
    _fact(
        "The field max_tokens limits the length of an answer.",
        """
            How do I limit the length of an answer?|What does max_tokens do?|What is max_tokens?
            How do I get shorter answers?|How can I limit the output?|Which field limits the length?
            How do I set the maximum length?|What limits the answer length?|How many tokens may an answer have?
            How do I limit the number of tokens?|max_tokens?|How do I make answers shorter?""",
        """
            Could you tell me how to limit the answer length?|What is the field max_tokens for?
            I want to limit the output, how?|Which setting limits how long an answer is?""",
    ),
)
