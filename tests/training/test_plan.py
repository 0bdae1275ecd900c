"""`rankwright plan`: its counts against real steps, what it shows, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from families import make_base
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rankwright.cli.show import describe_plan
from rankwright.common.errors import UserError
from rankwright.model.attention import ROUTES, _gathered
from rankwright.model.blocks import score_states
from rankwright.model.layout import SHAPE_MULTIPLE, Row, pack, row_tokens
from rankwright.model.loading import empty_model, load_model
from rankwright.model.prompt import EncodedGroup, make_contract
from rankwright.recipe.loading import load_recipe
from rankwright.training.estimate.cost import Types, scoring_bytes
from rankwright.training.estimate.devices import GIB, KNOWN, Device, find_devices, parse_gpus
from rankwright.training.estimate.plan import make_plan
from rankwright.training.estimate.shapes import architecture_of, row_work, rows_of
from rankwright.training.setup import make_trainable

WORKER = Path(__file__).parents[1] / "support" / "step_worker.py"
LORA, FULL = {"method": "lora"}, {"method": "full"}
CASES: list[dict[str, Any]] = [
    LORA,
    FULL,
    LORA | {"checkpointing": True},
    LORA | {"budget": 700},
    LORA | {"family": "llama", "dropout": 0.1, "budget": 700},
    LORA | {"bf16": True},
    FULL | {"bf16": True, "checkpointing": True},
    LORA | {"checkpointing": "cheap"},
    LORA | {"bf16": True, "checkpointing": "cheap"},
    FULL | {"bf16": True, "checkpointing": "cheap"},
    LORA | {"attention": "plain"},
    LORA | {"family": "mistral"},
    LORA | {"attention": "dense"},
]


def counted(case: dict[str, Any]) -> tuple[float, float]:
    """(plan, real) of a step in a process of its own."""
    # By default glibc keeps freed blocks of up to 32 MiB, so that what is resident says more of it than of us.
    environment = jobs.environment(MALLOC_MMAP_THRESHOLD_=str(2**20))
    command = [sys.executable, str(WORKER), json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["real"] > 0
    return float(found["plan"]), float(found["real"])


def case_name(case: dict[str, Any]) -> str:
    return "-".join(str(value) if value is not True else key for key, value in case.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [*CASES[:2], *(pytest.param(c, marks=pytest.mark.slow) for c in CASES[2:])], ids=case_name
)
def test_flops_are_those_that_torch_counts(case: dict[str, Any]) -> None:
    plan, real = counted(case)
    assert plan == pytest.approx(real, rel=0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the highest memory is read as Linux has it")
@pytest.mark.parametrize(
    "case",
    [CASES[0], *(pytest.param(c, marks=pytest.mark.slow) for c in CASES[1:-1] if "budget" not in c)],
    ids=case_name,
)
def test_memory_is_that_of_a_real_step(case: dict[str, Any]) -> None:
    plan, real = counted(case | {"memory": True})
    # The buffers of the libraries that multiply are part of plan's reserve, not of the step.
    assert plan == pytest.approx(real, rel=0.15, abs=64 * 2**20)
    assert real > 200 * 2**20, "too small to say anything"


def shape_only(folder: Path, tiny: Path, **changes: Any) -> Path:
    """A base of the tiny one's tokenizer and other sizes, without weights."""
    folder.mkdir()
    for path in tiny.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.fixture
def large(tmp_path: Path, tiny_qwen3: Path) -> Path:
    """Qwen3-0.6B's sizes."""
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128, "vocab_size": 151936}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 28, "layer_types": None}
    return shape_only(tmp_path / "large", tiny_qwen3, **sizes, **heads, max_position_embeddings=32768)


def recipe_of(folder: Path, base: Path, *overrides: str) -> Any:
    folder.mkdir(exist_ok=True)
    return load_recipe(str(jobs.job(folder / "job", base)), list(overrides)).recipe


@pytest.mark.parametrize("method", ["lora", "full"])
def test_shapes_without_weights_are_those_of_the_loaded_model(tmp_path: Path, tiny_qwen3: Path, method: str) -> None:
    from rankwright.model.loading import load_tokenizer

    tokenizer = load_tokenizer(str(tiny_qwen3))
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    recipe = recipe_of(tmp_path, tiny_qwen3, f"model.method={method}")
    loaded = make_trainable(recipe, load_model(str(tiny_qwen3), contract, tokenizer))
    with torch.device("meta"):
        empty = make_trainable(recipe, empty_model(str(tiny_qwen3), contract, tokenizer, dtype=torch.float32))
    assert architecture_of(empty) == architecture_of(loaded)
    assert all(p.is_meta for p in empty.parameters())
    shapes = [[(n, p.shape, p.dtype, p.requires_grad) for n, p in m.named_parameters()] for m in (empty, loaded)]
    assert shapes[0] == shapes[1]


def test_memory_parts_of_a_known_shape(tmp_path: Path, large: Path) -> None:
    full = make_plan(recipe_of(tmp_path, large, "model.method=full"), "8xh100")
    numbers = sum(p.numel() for p in full.model.parameters())
    assert numbers == pytest.approx(596e6, rel=0.01), "Qwen3-0.6B has 596 million parameters"
    trained = sum(p.numel() for p in full.model.parameters() if p.requires_grad)
    assert trained == pytest.approx(440e6, rel=0.01), "without embeddings"
    assert full.memory["weights"] == 4 * numbers
    assert full.memory["gradients"] == 4 * trained and full.memory["optimizer"] == 8 * trained
    sharded = make_plan(full.recipe, "8xh100", sharded=True)
    assert sharded.memory["optimizer"] == pytest.approx(trained, rel=0.01)
    # Sharded weights arrive in bf16, without copies that autocast would keep.
    copies = 2 * sum(p.numel() for n, p in full.model.named_parameters() if ".layers." in n)
    saved = full.memory["activations"] - sharded.memory["activations"]
    assert saved == pytest.approx(copies, rel=0.01)
    # Eight devices share a step's FLOPs; the four groups of this recipe keep four of them busy.
    assert sum(f > 0 for f in full.step_flops()) == 4
    # But for what fills rows up to a multiple of 128 tokens.
    assert sum(full.step_flops()) == pytest.approx(sum(make_plan(full.recipe, "h100").step_flops()), rel=0.05)


class Live(TorchDispatchMode):
    """Bytes of the tensors that live at the same time, at the highest; on the meta device nothing is computed."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.highest = 0
        # Without the weights.
        self.seen = {p.untyped_storage()._cdata for p in model.parameters()}

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        found = operation(*arguments, **(keywords or {}))
        for tensor in tree_leaves(found):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) and tensor.is_meta else None
            if storage is not None and storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.highest = max(self.highest, self.now)
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        return found

    def gone(self, place: int, size: int) -> None:
        self.seen.discard(place)
        self.now -= size


def varlen_on_meta(q_HTD: Any, k_KTD: Any, v_KTD: Any, row: Row, scale: float) -> Any:
    """The tensors of the route `varlen`, without its kernel."""
    places_S, _, _ = _gathered(row, q_HTD.device)
    copies = [x.transpose(0, 1).index_select(0, places_S) for x in (k_KTD, v_KTD)]
    out_THD = torch.empty_like(q_HTD.transpose(0, 1).contiguous())
    del copies
    return out_THD


@pytest.mark.parametrize(("head", "document", "documents"), [(45, 460, 300), (100, 40, 1600)])
def test_lists_of_any_length_are_scored_in_the_memory_of_a_full_row(
    tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch, head: int, document: int, documents: int
) -> None:
    monkeypatch.setitem(ROUTES._known, "varlen", varlen_on_meta)
    plan = make_plan(recipe_of(tmp_path, large, "prompt.max_tokens=512"), "h200")
    types = Types.of(full=False, bits16=True)
    group = EncodedGroup([1] * head, [[2] * document] * documents, False, 0)
    rows = pack([group], row_tokens(on_cpu=False), SHAPE_MULTIPLE)
    works = [row_work(row, plan.target) for row in rows_of([group], plan.target)]
    assert [work.tokens for work in works] == [len(row.ids_T) for row in rows] and len(rows) > 1
    model = plan.model.eval()
    with torch.no_grad(), Live(model) as live:
        score_states(model.decoder, model.blocks, rows[0], "varlen")
    assert scoring_bytes(plan.shape, works[0], types) == pytest.approx(live.highest, rel=0.05)
    assert live.highest < 1.5 * GIB, "all 138,000 tokens at once take more than 5 GiB"


def test_what_cannot_fit_is_refused_with_what_would(tmp_path: Path, large: Path) -> None:
    recipe = recipe_of(tmp_path, large, "prompt.max_tokens=8192", "train.budget_tokens=65536", "mine.negatives=15")
    with pytest.raises(UserError, match=r"needs [\d.]+ GiB on each device \(activations") as error:
        make_plan(recipe, "2xl4")
    message = str(error.value)
    (said,) = re.findall(r"it fits with (.*) \(", message)
    overrides = [*said.removeprefix("--fsdp2").split()]
    changed = recipe_of(tmp_path / "again", large, "prompt.max_tokens=8192", "mine.negatives=15", *overrides)
    make_plan(changed, "2xl4", sharded="--fsdp2" in said)


@pytest.mark.slow
def test_a_model_that_no_change_makes_fit(tmp_path: Path, tiny_qwen3: Path) -> None:
    sizes = {"hidden_size": 8192, "intermediate_size": 32768, "num_hidden_layers": 80, "layer_types": None}
    huge = shape_only(tmp_path / "huge", tiny_qwen3, **sizes)
    with pytest.raises(UserError, match=r"choose a smaller model\.base or devices with more memory"):
        make_plan(recipe_of(tmp_path, huge), "l4")


def test_a_plan_says_by_which_route_a_base_is_computed(tmp_path: Path, tiny_qwen3: Path) -> None:
    make_base(tmp_path / "olmo2", "olmo2", tiny_qwen3)
    plan = make_plan(recipe_of(tmp_path / "packed", tmp_path / "olmo2"), "h100")
    assert plan.why_plain is None and plan.target.route in ("varlen", "flex")
    assert plan.target.whole_last and not plan.target.own_layers
    plan = make_plan(recipe_of(tmp_path / "chosen", tmp_path / "olmo2", "model.attention=plain"), "h100")
    assert plan.why_plain is None and plan.target.route == "plain"
    config = tmp_path / "olmo2" / "config.json"
    kinds = {"layer_types": ["full_attention", "linear_attention"]}
    config.write_text(json.dumps(json.loads(config.read_text()) | kinds))
    plan = make_plan(recipe_of(tmp_path / "plain", tmp_path / "olmo2"), "h100")
    assert plan.target.route == "plain" and plan.why_plain == "the base has layers of the kind linear_attention"


@pytest.mark.slow
def test_the_command_shows_parts_and_hours(tmp_path: Path, large: Path) -> None:
    recipe = jobs.job(tmp_path / "job", large, train={"max_steps": None, "epochs": 2})
    done = jobs.rankwright("plan", recipe, "--gpus", "8xh100", "--queries", 1000, "--mean-tokens", 100)
    assert done.returncode == 0, done.stderr
    for part in ("weights", "gradients", "optimizer", "activations", "at the peak", "79.100", "500 steps"):
        assert part in done.stdout
    assert not (tmp_path / "job" / "run").exists(), "a look leaves nothing behind"
    done = jobs.rankwright("plan", recipe, "--gpus", "8xh10", "train.schedule=cosin")
    assert done.returncode == 2 and "did you mean 'cosine'" in done.stderr


@pytest.mark.parametrize(
    ("text", "found"), [("8xh100", (8, "h100")), ("cpu", (1, "cpu")), ("2 x A100-80", (2, "a100-80"))]
)
def test_devices(text: str, found: tuple[int, str]) -> None:
    assert parse_gpus(text) == found


@pytest.mark.parametrize("text", ["8xh10", "x", "0xh100", "8h100x", "-1xcpu", ""])
def test_unknown_devices(text: str) -> None:
    with pytest.raises(UserError, match=r"--gpus: .*unknown"):
        parse_gpus(text)


def test_the_table_of_devices_is_in_plausible_units() -> None:
    wanted = "t4 l4 a10 rtx3090 rtx4090 rtx5090 a6000 a100-40 a100-80 h100 h200 b200 mi300x"
    assert set(wanted.split()) <= set(KNOWN)
    for memory, bf16, fp32, source in KNOWN.values():
        assert 10 < memory < 300 and (fp32 < bf16 or not bf16) and bf16 < 5000, "GiB and TFLOP/s"
        assert memory * GIB > 1e10 and source
    assert [name for name, (_, bf16, *_) in KNOWN.items() if not bf16] == ["t4"]


def test_a_device_of_any_name_by_its_memory(
    tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_devices("4xmine", 24) == (4, Device("mine", 24 * GIB, None, None))
    assert find_devices(None, 24)[1].memory == 24 * GIB and find_devices(None)[1].name == "h100"
    # A part of a known one keeps its peak.
    count, part = find_devices("2xh100", 10)
    assert (count, part.memory, part.bf16) == (2, 10 * GIB, 989e12)
    plan = make_plan(recipe_of(tmp_path, tiny_qwen3), None, memory=6)
    assert plan.bits16 and plan.step_seconds(0.35) is None
    describe_plan(plan, mfu=0.35, draws=100, mean_tokens=None)
    assert "how long it takes is not known, since the peak of gpu is not" in capsys.readouterr().out


def test_a_device_without_bf16(tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(recipe_of(tmp_path, tiny_qwen3), "t4")
    assert (
        not plan.bits16
        and plan.target.route == "flex"
        and plan.step_seconds(1.0) == pytest.approx(max(plan.step_flops()) / 8.1e12)
    )
    describe_plan(plan, mfu=0.35, draws=8, mean_tokens=None)
    shown = capsys.readouterr().out
    assert "t4 has no bf16, and fp16 is not trained in: planned in fp32" in shown
    assert "training: 4 steps, under a minute, without evaluation" in shown
    with pytest.raises(UserError, match=r"^train\.precision: bf16, which t4 does not have"):
        make_plan(recipe_of(tmp_path / "again", tiny_qwen3, "train.precision=bf16"), "t4")


def test_cheap_recomputation_lies_between(tmp_path: Path, large: Path) -> None:
    kept = []
    for mode in ("none", "cheap", "full"):
        plan = make_plan(recipe_of(tmp_path / mode, large, f"model.gradient_checkpointing={mode}"), "h100")
        kept.append(plan._step(Types.of(full=False, bits16=True))["activations"])
    assert kept[0] > 1.3 * kept[1] > 3 * kept[2]


def test_what_does_not_fit_in_bf16_may_in_4_bits(tmp_path: Path, tiny_qwen3: Path) -> None:
    """Qwen3-8B: 16 GB in bf16, of which 2.5 are embeddings and head."""
    sizes = {"hidden_size": 4096, "intermediate_size": 12288, "head_dim": 128, "vocab_size": 151936}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 36, "layer_types": None}
    large = shape_only(tmp_path / "8b", tiny_qwen3, **sizes, **heads, tie_word_embeddings=False)
    settings = ["model.gradient_checkpointing=full", "train.budget_tokens=4096", "prompt.max_tokens=160"]
    plan = make_plan(recipe_of(tmp_path, large, *settings, "model.quantize=nf4"), "h100")
    numbers = 7.57e9 - 0.62e9
    linear = 0.516 * numbers + 2 * 2 * 151936 * 4096
    assert plan._weights(Types.of(full=False, bits16=True))["weights"] == pytest.approx(linear, rel=0.03)
    # The evaluation of the merged model is the fullest moment.
    assert plan.memory["merged weights for evaluation"] == pytest.approx(16.4e9, rel=0.02)
    make_plan(plan.recipe, None, memory=23.5)
