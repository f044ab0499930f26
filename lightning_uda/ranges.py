"""Ranges of numbers, declared above the constructor by which they come in."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import NamedTuple, ParamSpec

P = ParamSpec("P")


class Range(NamedTuple):
    """Numbers that make sense, with both ends; what lies outside is a slip, never an experiment.

    Attributes:
        lowest: The smallest of them.
        highest: The largest. Numbers that are open upwards have one too, as infinity is none that can be trained with,
            and one far too large would fill the memory or never end.
    """

    lowest: float
    highest: float

    def __str__(self) -> str:
        """Both ends, as messages say them."""
        return f"from {self.lowest:.12g} to {self.highest:.12g}"


NUMBER = Range(-1e6, 1e6)
"""Any finite number, such as the mean of a colour."""
NOT_NEGATIVE = Range(0, 1e6)
"""Weights of losses, learning rates, factors that may be zero."""
POSITIVE = Range(1e-6, 1e6)
"""Temperatures, ratios, what is divided by."""
SHARE = Range(0, 1)
"""Probabilities, confidences, shares."""
SHARE_NOT_ZERO = Range(1e-9, 1)
"""Shares of what must not vanish."""
DROPPED = Range(0, 0.99)
"""Probabilities of leaving out a value; one in a hundred is left at least."""
HALF = Range(0, 0.5)
"""Half-widths of what goes round once from 0 to 1."""
BELOW_HALF = Range(0, 0.499)
"""Shares of a side that are taken from both ends."""
OF_OPTIMIZER = Range(0, 1e30)
"""Rates and decays; of those too large training ends by itself, with the step."""
SCALE = Range(0.1, 10)
"""Factors on the size of images, and ratios of their sides."""
FACTOR = Range(0.001, 1000)
"""Factors that are multiplied with themselves, round after round."""
BLUR = Range(0, 1000)
"""Widths of Gaussian kernels, in pixels."""
CONTRAST = Range(1e-6, 80)
"""Factors on similarities in an exponent, which float32 can hold."""
COUNT = Range(1, 1_000_000)
"""Numbers of things of which there is at least one."""
COUNT_OR_NONE = Range(0, 1_000_000)
"""Numbers of things of which there may be none."""
PIXELS = Range(0, 2**40)
"""Numbers of pixels, of all images together."""
STEPS = Range(0, 2**40)
"""Numbers of training steps."""
BATCH = Range(1, 65_536)
"""Images of a batch."""
WORKERS = Range(0, 1024)
"""Processes that read images."""
ROUNDS = Range(1, 1000)
"""Rounds of self-training, which are planned before the first one."""
LAYERS = Range(1, 1000)
"""Blocks and levels of a network."""
CHANNELS = Range(1, 65_536)
"""Channels of layers."""
SIDE = Range(1, 10_000)
"""Heights, widths, radii, strides and dilations, in pixels; an image of both has the megapixels that files may have."""
BITS = Range(8, 16)
"""Bits of a number in an image file of 16 bits."""
BINS = Range(16, 2**18)
"""Bins of a histogram of confidences."""
BYTE = Range(0, 255)
"""Values of a colour."""
CLASSES = Range(2, 255)
"""Numbers of classes; with one there is nothing to tell apart."""
CLASS_ID = Range(0, 254)
"""Train ids of classes; 255 is void."""
SEED = Range(0, 2**32 - 1)
"""Keys of random numbers."""


def ranged(**ranges: Range) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Declares the ranges of a constructor's arguments, which every call is held to: by a config and from Python.

    In a list or mapping each number is held to the range; what is no number is passed on. `None` is refused for every
    argument whose annotation doesn't name it, as the command line's parser takes `null` for anything.

    Args:
        **ranges: By the name of the argument.

    Returns:
        A decorator, whose constructor raises a ValueError if a number is outside of its range, infinite or NaN, or an
        argument is `None` that can't be.
    """

    def decorate(init: Callable[P, None]) -> Callable[P, None]:
        parameters = inspect.signature(init).parameters
        names = list(parameters)
        needed = {name: part.annotation for name, part in parameters.items() if "None" not in str(part.annotation)}

        @functools.wraps(init)
        def checked(*args: P.args, **kwargs: P.kwargs) -> None:
            given = dict(zip(names, args, strict=False)) | kwargs
            for name, value in given.items():
                if value is None and name in needed:
                    raise ValueError(f"{type(args[0]).__name__}.{name}: found null, expected {needed[name]}.")
                if name in ranges:
                    require(ranges[name], value, f"{type(args[0]).__name__}.{name}")
            init(*args, **kwargs)

        checked.__dict__["ranges"] = ranges
        return checked

    return decorate


def require(allowed: Range, value: object, name: str) -> None:
    """Requires the numbers of an argument to be in their range.

    Args:
        allowed: The range.
        value: A number, a list or a mapping of them; what is no number is let through.
        name: What the number is called.

    Raises:
        ValueError: If a number is outside, infinite or NaN.
    """
    if not all(allowed.lowest <= number <= allowed.highest for number in _numbers(value)):
        what = "a number" if isinstance(value, Real) else "numbers"
        raise ValueError(f"{name}: found {value}, expected {what} {allowed}.")


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, Real):
        yield float(value)
    elif isinstance(value, Mapping):
        yield from _numbers(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from _numbers(part)
