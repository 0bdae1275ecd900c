"""Checkpoints: whole or not at all, bit for bit, damaged ones passed over, and the right ones kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny import add_random_lora

from rankwright.common.errors import UserError
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import CONTRACT_FILE, PromptContract, make_contract
from rankwright.model.rank_model import RankModel
from rankwright.model.trainable import add_lora, train_all, trainable_state
from rankwright.training.checkpoint import (
    OPTIMIZER,
    STATE,
    WEIGHTS,
    Checkpoints,
    TrainState,
    load_checkpoint,
    read_state,
)
from rankwright.training.optim import make_optimizer

Job = tuple[RankModel, torch.optim.Optimizer, PromptContract]


@pytest.fixture(scope="module")
def contract(tiny_qwen3: Path) -> PromptContract:
    return make_contract(load_tokenizer(str(tiny_qwen3)), mode="portable", max_tokens=128)


def base_model(base: Path, contract: PromptContract) -> RankModel:
    return load_model(str(base), contract, load_tokenizer(str(base)))


def with_optimizer(model: RankModel) -> torch.optim.Optimizer:
    return make_optimizer(model.named_parameters(), learning_rate=0.01, weight_decay=0.1)


def take_steps(model: RankModel, optimizer: torch.optim.Optimizer, count: int, seed: int = 0) -> None:
    """Steps with random gradients, so that the optimizer has a state."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.fixture(scope="module")
def job(tiny_qwen3: Path, contract: PromptContract) -> Job:
    """Do not change the model."""
    model = add_random_lora(base_model(tiny_qwen3, contract))
    optimizer = with_optimizer(model)
    take_steps(model, optimizer, 2)
    return model, optimizer, contract


def state_at(step: int, best: int = 0) -> TrainState:
    return TrainState(step, "inputs", 0.25, best, 1 / 3 if best else None)


def save(root: Path, job: Job, step: int, best: int = 0) -> Path:
    return save_state(root, state_at(step, best), *job)


def save_state(
    root: Path, state: TrainState, model: RankModel, optimizer: torch.optim.Optimizer, contract: PromptContract
) -> Path:
    return Checkpoints(root, state.inputs, contract).save(state, model, optimizer)


def newest(root: Path) -> tuple[Path, TrainState] | None:
    return opened(root, []).newest()


def opened(root: Path, said: list[str], inputs: str = "inputs") -> Checkpoints:
    # Nothing is saved with this contract.
    return Checkpoints(root, inputs, None, said.append)  # type: ignore[arg-type]


def kept(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_round_trip_is_exact_and_training_goes_on_the_same(
    tmp_path: Path, tiny_qwen3: Path, contract: PromptContract, method: str
) -> None:
    def fresh() -> tuple[RankModel, torch.optim.Optimizer]:
        model = base_model(tiny_qwen3, contract)
        model = add_random_lora(model) if method == "lora" else train_all(model)
        return model, with_optimizer(model)

    model, optimizer = fresh()
    take_steps(model, optimizer, 3)
    folder = save_state(tmp_path / "checkpoints", state_at(3, 2), model, optimizer, contract)
    assert folder == tmp_path / "checkpoints" / "step-3"
    assert read_state(folder) == state_at(3, 2)
    assert PromptContract.load(folder) == contract
    other, its_optimizer = fresh()
    load_checkpoint(folder, other, its_optimizer)
    for left, right in ((model, optimizer), (other, its_optimizer)):
        take_steps(left, right, 2, seed=1)
    ours, theirs = trainable_state(other), trainable_state(model)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    # Another optimizer's state would show: the weights alone are not enough.
    weights_only, new_optimizer = fresh()
    load_checkpoint(folder, weights_only)
    take_steps(weights_only, new_optimizer, 2, seed=1)
    assert any(not t.equal(theirs[n]) for n, t in trainable_state(weights_only).items())


def test_values_of_the_state_come_back_exactly(tmp_path: Path, job: Job) -> None:
    state = TrainState(7, "abc", 0.1 + 0.2, 0, None)
    assert read_state(save_state(tmp_path, state, *job)) == state


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, job: Job) -> None:
    folder = save(tmp_path, job, 3)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    model, _, contract = job

    class FullDisk(torch.optim.SGD):
        def state_dict(self) -> dict[str, object]:
            raise OSError("no space left on device")

    broken = FullDisk([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in (3, 4):
        with pytest.raises(OSError, match="no space"):
            save_state(tmp_path, state_at(step), model, broken, contract)
    assert kept(tmp_path) == ["step-3"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_what_a_killed_save_left_is_no_checkpoint(tmp_path: Path, job: Job) -> None:
    save(tmp_path, job, 3)
    draft = tmp_path / ".step-4.tmp"
    draft.mkdir()
    (draft / WEIGHTS).write_bytes(b"half")
    assert newest(tmp_path) == (tmp_path / "step-3", state_at(3))
    save(tmp_path, job, 4)
    assert kept(tmp_path) == ["step-3", "step-4"]


def test_none_without_checkpoints(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") is None
    assert newest(tmp_path) is None


def test_newest_is_by_number_not_by_name(tmp_path: Path, job: Job) -> None:
    for step in (9, 10):
        save(tmp_path, job, step)
    (tmp_path / "step-x").mkdir()
    found = newest(tmp_path)
    assert found is not None and found[0].name == "step-10"


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, STATE, CONTRACT_FILE])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_file_is_said_and_the_one_before_is_used(tmp_path: Path, job: Job, name: str, damage: str) -> None:
    save(tmp_path, job, 1)
    path = save(tmp_path, job, 2) / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-9])
    else:
        # In state.json this hits the brackets: JSON no more.
        content[-2] ^= 0xFF
        path.write_bytes(content)
    assert newest(tmp_path) == (tmp_path / "step-1", state_at(1))
    said: list[str] = []
    opened(tmp_path, said).prepare()
    assert said == ["checkpoint step-2 is damaged or incomplete: passed over, and kept as damaged-step-2"]


def test_all_damaged_is_none_and_each_is_said(tmp_path: Path, job: Job) -> None:
    for step in (1, 2):
        (save(tmp_path, job, step) / STATE).write_text("[]")
    assert newest(tmp_path) is None
    said: list[str] = []
    opened(tmp_path, said).prepare()
    assert [text.split()[1] for text in said] == ["step-2", "step-1"]


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path, job: Job) -> None:
    seen = []
    for step, best in [(5, 5), (10, 5), (15, 5), (20, 5), (25, 25), (30, 25), (35, 25)]:
        save(tmp_path, job, step, best)
        seen.append(sorted(int(name[5:]) for name in kept(tmp_path)))
    # At 25 the best changes; the checkpoint before still knows 5 as its best.
    assert seen == [[5], [5, 10], [5, 10, 15], [5, 15, 20], [5, 20, 25], [25, 30], [25, 30, 35]]


def test_falling_back_finds_the_best_of_that_time(tmp_path: Path, job: Job) -> None:
    for step, best in [(1, 1), (2, 1), (3, 1), (4, 4)]:
        save(tmp_path, job, step, best)
    (tmp_path / "step-4" / WEIGHTS).unlink()
    found = newest(tmp_path)
    assert found is not None and found[1].step == 3
    assert read_state(tmp_path / f"step-{found[1].best_step}") == state_at(1, 1)


def test_parameters_of_another_recipe_are_an_error_for_the_user(
    tmp_path: Path, tiny_qwen3: Path, contract: PromptContract, job: Job
) -> None:
    folder = save(tmp_path, job, 1)
    full = train_all(base_model(tiny_qwen3, contract))
    with pytest.raises(UserError, match="trained parameters are not those of this recipe"):
        load_checkpoint(folder, full)
    # The same names in another shape; a rank of 1 could be filled by broadcasting.
    other_rank = add_lora(base_model(tiny_qwen3, contract), rank=8, alpha=16, dropout=0.0, seed=0)
    with pytest.raises(UserError, match=r"lora_A.*has shape \[4, \d+\], in this recipe \[8, \d+\]"):
        load_checkpoint(folder, other_rank)


def test_a_rank_of_one_is_not_spread_over_more(tmp_path: Path, tiny_qwen3: Path, contract: PromptContract) -> None:
    narrow = add_random_lora(base_model(tiny_qwen3, contract), rank=1)
    folder = save_state(tmp_path, state_at(1), narrow, with_optimizer(narrow), contract)
    wide = add_random_lora(base_model(tiny_qwen3, contract), rank=4)
    before = trainable_state(wide)
    before = {name: tensor.clone() for name, tensor in before.items()}
    with pytest.raises(UserError, match="use the recipe it was made with"):
        load_checkpoint(folder, wide)
    assert all(tensor.equal(before[name]) for name, tensor in trainable_state(wide).items())


def test_state_json_names_every_file(tmp_path: Path, job: Job) -> None:
    folder = save(tmp_path, job, 1)
    written = json.loads((folder / STATE).read_text())
    assert set(written) == {*(f.name for f in dataclasses.fields(TrainState)), "sha256", "seal"}
    assert {*written["sha256"], STATE} == {p.name for p in folder.iterdir()}


def test_damaged_ones_take_no_place_among_the_kept(tmp_path: Path, job: Job) -> None:
    for step in (50, 100):
        (save(tmp_path, job, step) / WEIGHTS).write_bytes(b"half")
    said: list[str] = []
    opened(tmp_path, said).prepare()
    assert len(said) == 2
    for step in (10, 20):
        save(tmp_path, job, step)
    assert kept(tmp_path) == ["damaged-step-100", "damaged-step-50", "step-10", "step-20"]


def test_checkpoints_of_other_inputs_are_moved_and_those_of_the_same_stay(tmp_path: Path, job: Job) -> None:
    root, said = tmp_path / "checkpoints", list[str]()
    for _ in range(2):
        save(root, job, 1)
        opened(root, said).prepare()
        assert kept(root) == ["step-1"] and not said
        opened(root, said, "other").prepare()
        said.clear()
    assert kept(tmp_path) == ["checkpoints-inputs", "checkpoints-inputs-2"]
