"""Loading is strict both ways and says what is wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lightllm import LLM, LightLLMError, SamplingParams
from lightllm.config.locate import read_template
from lightllm.config.settings import ModelSettings
from lightllm.device.device import Device
from lightllm.device.file_reader import FileReader
from lightllm.engine.build import choose_dtype
from lightllm.errors import CheckpointError, ConfigError, OutOfMemory
from lightllm.models.checkpoint import DummySource, SafetensorsSource
from lightllm.models.config_reader import ConfigReader
from lightllm.models.registry import read_model_spec


@pytest.fixture
def broken(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be spoiled."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    values = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            values.pop(key)
        else:
            values[key] = value
    path.write_text(json.dumps(values))


def refusal(directory: Path, **settings: Any) -> LightLLMError:
    with pytest.raises(LightLLMError) as caught:
        LLM(str(directory), **settings)
    return caught.value


def test_sharded_equals_single(make_checkpoint: Callable[..., tuple[Path, Any]]) -> None:
    whole, _ = make_checkpoint("Qwen3", seed=5)
    parts, _ = make_checkpoint("Qwen3", seed=5, shard="200KB")
    assert len(list(parts.glob("*.safetensors"))) > 1
    results = []
    for directory in (whole, parts):
        with LLM(str(directory)) as llm:
            output = llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=8), progress=False)
            results.append(output[0].outputs[0].token_ids)
    assert results[0] == results[1]


def test_missing_weight_is_named(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors")
    error = refusal(broken)
    assert isinstance(error, CheckpointError) and "model.layers.1.mlp.up_proj.weight" in error.message


def test_extra_weight_is_named(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.9.oddity"] = weights["model.norm.weight"].clone()
    save_file(weights, broken / "model.safetensors")
    assert "model.layers.9.oddity" in refusal(broken).message


def test_misshapen_weight_is_named_with_both_shapes(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:5].clone()
    save_file(weights, broken / "model.safetensors")
    message = refusal(broken).message
    assert "model.norm.weight" in message and "[5]" in message and "[64]" in message


def test_weights_that_are_no_floats(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].int()
    save_file(weights, broken / "model.safetensors")
    message = refusal(broken).message
    assert "model.norm.weight" in message and "int32" in message


def test_end_of_text_beyond_the_vocabulary(broken: Path) -> None:
    (broken / "generation_config.json").write_text('{"eos_token_id": [2, 99999]}')
    message = refusal(broken).message
    assert "99999" in message and "512" in message


def test_a_pool_that_no_machine_has_room_for(tiny_llama: Path) -> None:
    error = refusal(tiny_llama, max_total_tokens=10**13)
    assert isinstance(error, OutOfMemory) and "--max-total-tokens" in error.message


def test_truncated_weights(broken: Path) -> None:
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "model.safetensors" in refusal(broken).message


def test_no_weights_names_the_flag(broken: Path) -> None:
    (broken / "model.safetensors").unlink()
    assert "--dummy" in refusal(broken).message


def test_index_may_not_lead_outside(broken: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (broken / "model.safetensors").rename(broken.parent / "elsewhere.safetensors")
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "elsewhere.safetensors" in refusal(broken).message


def split(directory: Path) -> None:
    """Turn model.safetensors into two shards and an index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    shards = {f"model-{turn}-of-2.safetensors": sorted(tensors)[turn::2] for turn in (0, 1)}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, directory / file)
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def greedy(directory: Path) -> list[int]:
    with LLM(str(directory)) as llm:
        params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
        return llm.generate([[5, 6, 7]], params, progress=False)[0].outputs[0].token_ids


def test_shards_may_be_links_into_a_cache(broken: Path, tmp_path: Path) -> None:
    """As in the hub's cache, where every file of a snapshot is a link to a blob elsewhere."""
    expected = greedy(broken)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    split(broken)
    for number, path in enumerate(sorted(broken.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert greedy(broken) == expected


def test_the_single_file_comes_first_and_nothing_is_there_twice(broken: Path) -> None:
    """As in Transformers: what lies beside model.safetensors, shards or an adapter, does not count."""
    expected, single = greedy(broken), (broken / "model.safetensors").read_bytes()
    tensors = {name: torch.zeros_like(tensor) for name, tensor in load_file(broken / "model.safetensors").items()}
    save_file(tensors, broken / "zz.safetensors")
    assert greedy(broken) == expected
    split(broken)
    (broken / "model.safetensors.index.json").unlink()
    assert "both hold" in refusal(broken).message
    (broken / "model.safetensors").write_bytes(single)
    assert greedy(broken) == expected


def test_dummy_weights_need_only_a_config(broken: Path) -> None:
    (broken / "model.safetensors").unlink()
    with LLM(str(broken), dummy=True) as llm:
        output = llm.generate([[1, 2]], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), progress=False)
    assert len(output[0].outputs[0].token_ids) == 3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sparse_oddity": 3}, "sparse_oddity"),
        ({"model_type": "gpt_oddity"}, "gpt_oddity"),
        ({"model_type": ...}, "model_type"),
        ({"hidden_size": ...}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_act": "relu6"}, "relu6"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "spiral"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": -1}},
            "rope_theta must be a number above 0, got -1",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "twist": 2}}, "twist"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor must be a number of at least 0, got '2'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor must be above 0, got 0"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": None}}, "needs the key 'factor'"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 20.5}},
            "original_max_position_embeddings must be an integer above 0, got 20.5",
        ),
        ({"rope_parameters": {"partial_rotary_factor": "0.5"}}, "at most 1, got '0.5'"),
        ({"partial_rotary_factor": 2.0}, "at most 1, got 2.0"),
        ({"partial_rotary_factor": 0.07}, "must be even and at least 2, partial_rotary_factor 0.07"),
        ({"mlp_bias": True}, "bias"),
        ({"max_position_embeddings": 10**30}, "max_position_embeddings must be at most 2147483647, got 1"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a finite number, got 1"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a finite number, got nan"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10**400}}, "rope_theta must be a number above 0"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 10**400}}, "factor must be a number of at least 0"),
    ],
)
def test_bad_config_is_named(broken: Path, changes: dict[str, Any], named: str) -> None:
    change_config(broken, **changes)
    error = refusal(broken)
    assert isinstance(error, CheckpointError) and named in error.message


@pytest.mark.parametrize("stored", ["int8", ["bfloat16"]])
def test_a_type_of_weights_that_is_none_is_named(stored: Any) -> None:
    """On a GPU, where the checkpoint's own is taken: by the engine and by `lightllm env --explain`."""
    gpu = Device(torch.device("cuda"), "Some GPU")
    with pytest.raises(ConfigError, match=r"dtype .* is not one of float32, bfloat16, float16; use --dtype"):
        choose_dtype(ModelSettings(), ConfigReader({"dtype": stored}), gpu)
    assert choose_dtype(ModelSettings(), ConfigReader({"torch_dtype": "float32"}), gpu)[0] == torch.bfloat16


def test_unknown_key_can_be_allowed(broken: Path) -> None:
    change_config(broken, sparse_oddity=3)
    LLM(str(broken), allow_unknown_config_keys=True).close()


def test_older_rope_keys(broken: Path) -> None:
    change_config(broken, rope_parameters=..., rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 2.0})
    LLM(str(broken)).close()


def test_rope_scaling_added_by_hand_counts(broken: Path) -> None:
    """As in Transformers, which writes the newer section and takes the older."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    change_config(broken, rope_parameters={"rope_type": "default", "rope_theta": 5e5}, rope_scaling=yarn)
    rope = read_model_spec(ConfigReader.load(broken)).rope
    assert (rope.kind, rope.theta, rope.stretched_positions) == ("yarn", 5e5, 256)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_what_a_config_leaves_out_is_the_familys_default(family: str) -> None:
    values = {"hidden_size": 96, "num_attention_heads": 4, "num_hidden_layers": 30, "intermediate_size": 64}
    values |= {"vocab_size": 99, "use_sliding_window": True} if family != "Llama" else {"vocab_size": 99}
    theirs = getattr(transformers, f"{family}Config")(**values, num_key_value_heads=2)
    ours = read_model_spec(ConfigReader({**values, "num_key_value_heads": 2, "model_type": family.lower()}))
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 24)
    assert ours.max_position == theirs.max_position_embeddings
    windows = (
        [theirs.sliding_window if kind == "sliding_attention" else None for kind in theirs.layer_types or []]
        if (family != "Llama")
        else []
    )
    assert list(ours.windows) == windows


def test_a_tied_head_that_differs_is_not_tied(broken: Path) -> None:
    """As in Transformers, which compares the two."""
    expected = greedy(broken)
    change_config(broken, tie_word_embeddings=True)
    assert greedy(broken) == expected
    tensors = load_file(broken / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, broken / "model.safetensors")
    tied = greedy(broken)
    del tensors["lm_head.weight"]
    save_file(tensors, broken / "model.safetensors")
    assert greedy(broken) == tied != expected


def test_not_a_model_directory(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path).message


def test_config_that_is_no_json(broken: Path) -> None:
    for text in ("{oops", "[" * 100_000):
        (broken / "config.json").write_text(text)
        assert "config.json cannot be read as JSON" in refusal(broken).message


def test_no_such_directory() -> None:
    with pytest.raises(ConfigError, match="neither a directory"):
        LLM("/no/such/place")


@pytest.mark.parametrize("name", ["~no-such-user/model", "a" * 5000])
def test_names_that_can_be_no_path(tiny_llama: Path, name: str) -> None:
    for given in ({"model": name}, {"model": str(tiny_llama), "tokenizer": name}):
        with pytest.raises(ConfigError, match="cannot be read"):
            LLM(**given)
    with pytest.raises(ConfigError, match=r"chat template .* cannot be read"):
        read_template(name)


@pytest.mark.parametrize(
    ("place", "mode"),
    [("", 0o000), ("model", 0o000), ("model", 0o111), ("model", 0o444), ("model/model.safetensors", 0)],
)
def test_what_may_not_be_read_is_said_to_be_so(broken: Path, place: str, mode: int) -> None:
    path = broken.parent / place
    path.chmod(mode)
    try:
        if os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
            pytest.skip("this user may read everything")
        assert "Permission denied" in refusal(broken).message
    finally:
        path.chmod(0o755)


def test_unknown_setting_is_named(tiny_llama: Path) -> None:
    assert "speed" in refusal(tiny_llama, speed=11).message


def test_context_beyond_the_model(tiny_llama: Path) -> None:
    message = refusal(tiny_llama, max_model_len=1000).message
    assert "1000" in message and "256" in message


def test_no_room_names_the_flag(tiny_llama: Path) -> None:
    error = refusal(tiny_llama, memory_fraction=1e-9)
    assert isinstance(error, OutOfMemory) and "--memory-fraction" in error.message


NAMES_AND_SHAPES = (("first", (3, 5)), ("second", (4, 5)), ("third", (2000, 200)), ("norm", (5,)))


@pytest.fixture(params=["mapped", "read", pytest.param("cuda", marks=pytest.mark.gpu)])
def make_source(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., SafetensorsSource]:
    """A source over two files: on a CPU as it is, with the GPU's reader on a CPU, and on a GPU."""

    def make(dtype: torch.dtype = torch.float32) -> SafetensorsSource:
        generator = torch.Generator().manual_seed(1)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in NAMES_AND_SHAPES}
        save_file({"first": tensors.pop("first")}, tmp_path / "a.safetensors")
        save_file(tensors, tmp_path / "b.safetensors")
        device = torch.device("cuda" if request.param == "cuda" else "cpu")
        source = SafetensorsSource(tmp_path, dtype, device)
        if request.param == "read":
            source._reader = FileReader(device, threads=2, piece_bytes=1 << 10)
        return source

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_stacked_in_order(make_source: Callable[..., SafetensorsSource], dtype: torch.dtype) -> None:
    source = make_source(dtype)
    stacked = source.take_stacked(NAMES_AND_SHAPES[:2]).cpu()
    large = source.take(*NAMES_AND_SHAPES[2]).cpu()
    assert source.has("norm") and not source.has("not there either")
    with pytest.raises(CheckpointError, match="does not use: norm"):
        source.check_all_taken()
    source.close()
    generator = torch.Generator().manual_seed(1)
    first, second, third = (torch.randn(shape, generator=generator).to(dtype) for _, shape in NAMES_AND_SHAPES[:3])
    assert torch.equal(stacked, torch.cat([first, second])) and torch.equal(large, third)


def test_a_weight_left_over_is_named(make_source: Callable[..., SafetensorsSource]) -> None:
    source = make_source()
    source.take(*NAMES_AND_SHAPES[0])
    source.take(*NAMES_AND_SHAPES[2])
    with pytest.raises(CheckpointError, match="norm, second"):
        source.check_all_taken()
    source.close()


def test_one_bad_part_of_a_stack_is_named(make_source: Callable[..., SafetensorsSource]) -> None:
    source = make_source()
    with pytest.raises(CheckpointError, match=r"second has shape \[4, 5\], the config calls for \[9, 5\]"):
        source.take_stacked([NAMES_AND_SHAPES[0], ("second", (9, 5))])
    with pytest.raises(CheckpointError, match=r"lacks the weight fourth \[4, 5\]"):
        source.take_stacked([NAMES_AND_SHAPES[0], ("fourth", (4, 5))])
    source.close()


def test_a_file_cut_while_it_is_read(make_source: Callable[..., SafetensorsSource], tmp_path: Path) -> None:
    source = make_source()
    if source._reader is None:
        pytest.skip("a mapped file that is cut ends the process")
    source.take("norm", (5,))
    with (tmp_path / "b.safetensors").open("r+b") as file:
        file.truncate(1 << 12)
    with pytest.raises(CheckpointError, match=r"cannot read third: the file ends before byte"):
        source.take("third", (2000, 200))
    source.close()


def test_an_index_that_promises_too_much(broken: Path) -> None:
    names = [*load_file(broken / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"]
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks the weight model.layers.1.mlp.up_proj.weight" in refusal(broken).message


def test_dummy_weights_are_the_same_alone_and_stacked() -> None:
    source = DummySource(torch.float32, torch.device("cpu"), seed=4)
    stacked = source.take_stacked([("a", (30, 20)), ("b", (7, 20))])
    assert torch.equal(stacked[:30], source.take("a", (30, 20)))
    assert not torch.equal(stacked[:7], stacked[30:])
    assert torch.equal(source.take("x_norm.weight", (3,)), torch.ones(3))
