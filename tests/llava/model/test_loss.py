import pytest
import torch
from torch import nn
from transformers.loss.loss_utils import ForCausalLMLoss

from llava.constants import IGNORE_INDEX
from llava.model import loss as module
from llava.model.loss import next_token_loss

WORDS = 11


class Head(nn.Linear):
    """Counts its calls and rows."""

    calls = rows = 0

    def forward(self, states):
        self.calls, self.rows = self.calls + 1, self.rows + len(states)
        return super().forward(states)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    hidden = torch.randn(3, 9, 4, requires_grad=True)
    labels = torch.randint(0, WORDS, (3, 9))
    labels[:, :4] = IGNORE_INDEX
    labels[1, 6:] = IGNORE_INDEX
    return Head(4, WORDS), hidden, labels


@pytest.mark.parametrize("count", [None, 40])
@pytest.mark.parametrize("rows", [1, 5, 2048])
def test_it_is_the_loss_of_all_logits(batch, monkeypatch, rows, count):
    head, hidden, labels = batch
    monkeypatch.setattr(module, "ROWS", rows)
    expected = ForCausalLMLoss(nn.functional.linear(hidden, head.weight, head.bias), labels, WORDS, count)
    (wanted,) = torch.autograd.grad(expected, hidden)
    found = next_token_loss(head, hidden, labels, count)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, hidden)[0], wanted)


def test_no_logits_but_those_with_labels(batch):
    head, hidden, labels = batch
    next_token_loss(head, hidden, labels).backward()
    assert (head.calls, head.rows) == (1, int((labels[:, 1:] != IGNORE_INDEX).sum()))


def test_a_batch_without_labels_learns_nothing(batch):
    head, hidden, labels = batch
    loss = next_token_loss(head, hidden, torch.full_like(labels, IGNORE_INDEX), torch.tensor(0))
    loss.backward()
    assert loss.item() == 0
    assert head.calls == 1  # as in the other processes
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
