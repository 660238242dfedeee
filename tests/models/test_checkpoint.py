"""Loading is strict both ways and says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightllm import LLM, LightLLMError, SamplingParams
from lightllm.device.file_reader import FileReader
from lightllm.errors import CheckpointError, ConfigError, OutOfMemory
from lightllm.models.checkpoint import DummySource, SafetensorsSource


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
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "elsewhere.safetensors" in refusal(broken).message


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
        ({"mlp_bias": True}, "bias"),
    ],
)
def test_bad_config_is_named(broken: Path, changes: dict[str, Any], named: str) -> None:
    change_config(broken, **changes)
    error = refusal(broken)
    assert isinstance(error, CheckpointError) and named in error.message


def test_unknown_key_can_be_allowed(broken: Path) -> None:
    change_config(broken, sparse_oddity=3)
    LLM(str(broken), allow_unknown_config_keys=True).close()


def test_older_rope_keys(broken: Path) -> None:
    change_config(broken, rope_parameters=..., rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 2.0})
    LLM(str(broken)).close()


def test_not_a_model_directory(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path).message


def test_config_that_is_no_json(broken: Path) -> None:
    (broken / "config.json").write_text("{oops")
    assert "config.json" in refusal(broken).message


def test_no_such_directory() -> None:
    with pytest.raises(ConfigError, match="neither a directory"):
        LLM("/no/such/place")


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
    source.ignore("norm")
    source.ignore("not there either")
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
