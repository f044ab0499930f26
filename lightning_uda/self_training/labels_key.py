"""Key of all that the pseudo-labels of a round depend on, so that labels that are there already are recognised."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def labels_key(network: nn.Module, parts: Iterable[object], prior: Tensor | None) -> str:
    """The key of weights and settings.

    Args:
        network: Its parameters and buffers count.
        parts: Numbers, texts and objects; of an object its class and the arguments that it was made with, which it
            must keep as attributes of their names.
        prior: The spatial prior, on the CPU; `None` for none.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(repr([_settings(part) for part in parts]).encode())
    if prior is not None:
        digest.update(prior.numpy().tobytes())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _settings(part: object) -> str:
    """A part and the arguments it was made with, as text; a number or text as it is."""
    if not hasattr(part, "__dict__"):
        return repr(part)
    names = inspect.signature(type(part)).parameters
    return f"{type(part).__name__}({', '.join(f'{name}={_settings(getattr(part, name, None))}' for name in names)})"
