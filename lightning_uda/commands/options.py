"""The options of the commands beside the trainer's own."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, NoReturn

from lightning_uda.errors import did_you_mean


class CommandParser(argparse.ArgumentParser):
    """Takes no abbreviations of options, and refuses what is wrong in one line, with the nearest name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.names: list[str] = []
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Adds an argument, and remembers the names of an option."""
        self.names += [name for name in args if name.startswith("-")]
        return super().add_argument(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2 and a message."""
        if (unknown := re.match(r"unrecognized arguments: (\S+)", message)) is not None:
            word = unknown[1].partition("=")[0]
            hint = did_you_mean(word, self.names) or f"Its options are {', '.join(self.names)}."
            message = f"found {word}, which it doesn't take. {hint}"
        sys.stderr.write(f"error: {self.prog}: {message}\n")
        self.exit(2)
