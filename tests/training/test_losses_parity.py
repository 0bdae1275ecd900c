"""Losses against sentence-transformers: value and gradient of a real tiny CrossEncoder's parameters.

Its losses return one number for a batch, the mean over groups (or over pairs, which is the same for groups of one
size). Where ours differ on purpose the test says how, and feeds theirs what makes both the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PAIRS
from torch import Tensor

from rankwright.training.losses import LOSSES

# Two groups of four documents, no two scores equal. Labels of one group all differ.
QUERIES = ["what is a bond?", "void contract"]
DOCUMENTS = [[document for _, document in PAIRS[start : start + 4]] for start in (0, 4)]
GRADED = torch.tensor([[1.0, 3.0, 0.0, 2.0], [0.0, 0.5, 2.0, 1.0]])
BINARY = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
TEACHER = torch.tensor([[-3.0, 8.5, 0.1, -1.0], [-0.5, -6.0, -2.0, -2.5]])


@pytest.fixture(scope="module")
def encoder(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A CrossEncoder with random weights whose scores differ by units."""
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen3)
    tokenizer.chat_template = None
    config = Qwen3Config.from_pretrained(tiny_qwen3, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(0)
    model = Qwen3ForSequenceClassification(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.4 if "embed" in name else parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = CrossEncoder(str(folder), device="cpu").eval()
    scores = scores_of(found, QUERIES, DOCUMENTS)
    assert all(row.detach().sort().values.diff().min() > 0.02 for row in scores) and torch.cat(scores).std() > 0.5
    return found


def scores_of(encoder: Any, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[Tensor]:
    pairs = [(q, d) for q, ds in zip(queries, documents, strict=True) for d in ds]
    scores_N = encoder(encoder.preprocess(pairs))["scores"].view(-1)
    return list(torch.split(scores_N, [len(ds) for ds in documents]))


def gradient_of(encoder: Any, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(encoder.parameters()))])


def assert_equal(encoder: Any, ours: Tensor, theirs: Tensor) -> None:
    """Value and gradient of all weights."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradient, its_gradient = gradient_of(encoder, ours), gradient_of(encoder, theirs)
    assert its_gradient.norm() > 1e-3
    assert (gradient - its_gradient).norm() < 1e-4 * its_gradient.norm()


def assert_same(encoder: Any, name: str, options: dict[str, Any], labels: Tensor, theirs: Tensor) -> None:
    """The mean of ours over the two groups is theirs."""
    scores_QD = torch.stack(scores_of(encoder, QUERIES, DOCUMENTS))
    loss_Q = LOSSES.bind(name, options)(scores_QD, labels, torch.ones_like(labels, dtype=torch.bool))
    assert_equal(encoder, loss_Q.mean(), theirs)


def theirs_of_lists(kind: str, encoder: Any, labels: Tensor, **options: Any) -> Tensor:
    """A listwise loss of sentence-transformers on the two groups."""
    from sentence_transformers.cross_encoder import losses

    found: Tensor = getattr(losses, kind)(encoder, **options)((QUERIES, DOCUMENTS), list(labels))
    return found


@pytest.mark.parametrize(
    ("name", "kind", "labels"), [("bce", "BinaryCrossEntropyLoss", BINARY), ("mse", "MSELoss", TEACHER)]
)
def test_pointwise_losses_are_the_same(encoder: Any, name: str, kind: str, labels: Tensor) -> None:
    from sentence_transformers.cross_encoder import losses

    pairs = [(q, d) for q, ds in zip(QUERIES, DOCUMENTS, strict=True) for d in ds]
    theirs = getattr(losses, kind)(encoder)([list(side) for side in zip(*pairs, strict=True)], labels.flatten())
    assert_same(encoder, name, {}, labels, theirs)


def test_listwise_softmax_is_listnet_of_log_gains(encoder: Any) -> None:
    # Theirs has softmax(labels) for the target, ours labels / sum of labels = softmax(log(labels)).
    assert_same(encoder, "listwise_softmax", {}, GRADED, theirs_of_lists("ListNetLoss", encoder, GRADED.log()))
    assert_same(encoder, "listwise_softmax", {}, BINARY, theirs_of_lists("ListNetLoss", encoder, BINARY.log()))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_distil_is_listnet_without_the_teachers_entropy(encoder: Any, temperature: float) -> None:
    entropy = torch.distributions.Categorical(logits=TEACHER / temperature).entropy().mean()
    theirs = theirs_of_lists("ListNetLoss", encoder, TEACHER / temperature) - entropy
    assert_same(encoder, "kl_distil", {"temperature": temperature}, TEACHER, theirs)


def test_list_mle_is_the_same_where_labels_differ(encoder: Any) -> None:
    theirs = theirs_of_lists("ListMLELoss", encoder, GRADED, respect_input_order=False)
    assert_same(encoder, "list_mle", {}, GRADED, theirs)


def test_ranknet_is_the_same_in_natural_logarithms(encoder: Any) -> None:
    # Six pairs a group: the mean over all pairs is the mean over groups.
    theirs = theirs_of_lists("RankNetLoss", encoder, GRADED, reduction_log="natural")
    assert_same(encoder, "ranknet", {}, GRADED, theirs)


@pytest.mark.parametrize(("k", "pairs"), [(10, 6), (2, 5), (1, 3)])
def test_lambda_rank_is_the_same_summed_over_pairs(encoder: Any, k: int, pairs: int) -> None:
    # Their gain 2^label - 1 is our linear one for log2(1 + label); of six pairs k leaves those with a place up to k.
    from sentence_transformers.cross_encoder.losses import LambdaRankScheme

    options = {"weighting_scheme": LambdaRankScheme(), "k": k, "reduction_log": "natural"}
    theirs = theirs_of_lists("LambdaLoss", encoder, (1 + GRADED).log2(), **options)
    assert_same(encoder, "lambda_rank", {"k": k}, GRADED, pairs * theirs)
    with pytest.raises(AssertionError):
        assert_same(
            encoder, "lambda_rank", {"k": k}, GRADED, pairs * theirs_of_lists("LambdaLoss", encoder, GRADED, **options)
        )


def test_margin_mse_is_the_same_with_the_best_document_first(encoder: Any) -> None:
    from sentence_transformers.cross_encoder.losses import MarginMSELoss

    best = TEACHER.argmax(dim=1).tolist()
    orders = [[b, *(i for i in range(4) if i != b)] for b in best]
    columns = [[ds[order[i]] for ds, order in zip(DOCUMENTS, orders, strict=True)] for i in range(4)]
    theirs = MarginMSELoss(encoder)([QUERIES, *columns], list(TEACHER.gather(1, torch.tensor(orders))))
    assert_same(encoder, "margin_mse", {}, TEACHER, theirs)


@pytest.mark.parametrize(("name", "kind"), [("kl_distil", "ListNetLoss"), ("list_mle", "ListMLELoss")])
def test_groups_of_different_sizes_are_padded_alike(encoder: Any, name: str, kind: str) -> None:
    from sentence_transformers.cross_encoder import losses

    documents, labels = [DOCUMENTS[0], DOCUMENTS[1][:2]], [GRADED[0], GRADED[1, :2]]
    options = {"respect_input_order": False} if kind == "ListMLELoss" else {}
    theirs = getattr(losses, kind)(encoder, **options)((QUERIES, documents), labels)
    if name == "kl_distil":
        theirs = theirs - torch.stack([torch.distributions.Categorical(logits=y).entropy() for y in labels]).mean()
    scores = scores_of(encoder, QUERIES, documents)
    scores_QD, labels_QD, mask_QD = (
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=junk)
        for rows, junk in ((scores, torch.nan), (labels, torch.nan), ([torch.ones(4), torch.ones(2)], 0.0))
    )
    assert_equal(encoder, LOSSES[name](scores_QD, labels_QD, mask_QD.bool()).mean(), theirs)
