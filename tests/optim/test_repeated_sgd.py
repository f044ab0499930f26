import pytest
import torch

from lightning_uda.optim import RepeatedSGD


@pytest.mark.parametrize("repeats", [1, 3, 4])
def test_repeated_updates_are_the_reference(golden, repeats):
    g = golden("dacs_sgd_repeat")
    param = torch.nn.Parameter(g["param_init"].clone())
    optimizer = RepeatedSGD(
        [{"params": [param], "update_repeats": repeats}],
        momentum=g["momentum"].item(),
        weight_decay=g["weight_decay"].item(),
    )
    for grad, lr, expected in zip(g["grads"], g["lr"], g[f"param_repeat_{repeats}"], strict=True):
        optimizer.param_groups[0]["lr"] = lr.item()
        param.grad = grad.clone()
        optimizer.step()
        assert torch.allclose(param.data, expected, rtol=0, atol=1e-5)
    buffer = optimizer.state[param]["momentum_buffer"]
    assert torch.allclose(buffer, g[f"momentum_repeat_{repeats}"], rtol=0, atol=1e-5)


def test_one_repeat_is_plain_sgd():
    torch.manual_seed(0)
    ours, plain = (torch.nn.Linear(3, 2) for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    optimizers = (
        RepeatedSGD(ours.parameters(), lr=0.1),
        torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4),
    )
    for _ in range(5):
        x = torch.randn(4, 3)
        for model, optimizer in zip((ours, plain), optimizers, strict=True):
            optimizer.zero_grad()
            optimizer.step(lambda model=model, x=x: model(x).pow(2).mean().backward())
    assert torch.allclose(ours.weight, plain.weight, atol=1e-7)


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="expected a number from 0"):
        RepeatedSGD([torch.nn.Parameter(torch.zeros(1))], lr=-1)
