"""The parser of the trainer's options, which says in one or two lines what it refuses."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.errors import did_you_mean
from lightning_uda.methods import UDAModule
from lightning_uda.mistakes import explained

_ROOTS = {"model": UDAModule, "data": UDADataModule, "trainer": Trainer}
_UNRECOGNIZED = "unrecognized arguments: "
_REQUIRED = "the following arguments are required: "
_FURTHER = ("--config", "--help", "--print_config")
_EXAMPLES = "minicity/dacs, folders/dacs or gta5_to_cityscapes/dacs"


class OptionParser(LightningArgumentParser):
    """Takes no abbreviations of options, and refuses what is wrong in one or two lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.commands: dict[str, Any] = {}

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        """Adds the place of the commands, and remembers their parsers."""
        action = super().add_subcommands(*args, **kwargs)
        self.commands = action.choices
        return action

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """Checks all options, once a TensorBoardLogger that is given without a folder has that of all runs."""
        for run in (namespace, *(namespace.get(name) for name in self.commands)):
            if isinstance(run, Namespace) and run.get("trainer.logger") is not None:
                _give_folder(run["trainer.logger"], run.get("output"))
        super().validate(namespace, *args, **kwargs)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Options as text, not checked again after parsing, which takes several times as long."""
        return str(super().dump(*args, **{"skip_validation": True, **kwargs}))

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Writes options to a file, not checked again either."""
        super().save(*args, **{"skip_validation": True, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program with status 2 and a message."""
        if not self.exit_on_error:
            super().error(message, ex)
        sys.stderr.write(f"error: {self._explained(message)}\n")
        self.exit(2)

    def _explained(self, message: str) -> str:
        if message.startswith(_UNRECOGNIZED):
            return self._unrecognized(message.removeprefix(_UNRECOGNIZED).split()[0])
        if message.startswith(_REQUIRED):
            return self._required({name.rpartition(".")[2] for name in message.removeprefix(_REQUIRED).split(", ")})
        if message.startswith(("Option ", "Subcommand ")):
            return self._unrecognized(message.split("'")[-2])
        return explained(message, _ROOTS)

    def _unrecognized(self, word: str) -> str:
        name, parser = self._command()
        option = word.partition("=")[0]
        keys = [f"--{key}" for key in parser.get_defaults(skip_validation=True).keys()]
        names = keys if option.startswith("-") else [key.removeprefix("--") for key in keys]
        what = f"found {option}, which is no option of {name}." if option.startswith("-") else f"found {option!r}."
        hint = did_you_mean(option, [*names, *_FURTHER]) or "Each option begins with --."
        return f"{what} {hint} `lightning-uda {name} --help` lists the options."

    def _required(self, names: set[str]) -> str:
        command, _ = self._command()
        if len(names) > 1:
            what = f"found no --config. Give a file, or the name of a shipped one, such as {_EXAMPLES}"
            files = ", or --images PATH with the run's folder as --ckpt_path" if command == "predict" else ""
            return f"{command}: {what}{files}; `lightning-uda configs` lists all."
        (name,) = names
        parts = {"model": "a method, such as --model DACS", "data": "datasets, such as --data minicity"}
        return f"{command}: found no --{name}. Give {parts.get(name, f'--{name}')}, or a --config that has it."

    def _command(self) -> tuple[str, Any]:
        """The command that is being parsed, and its parser."""
        name = next((word for word in getattr(self, "args", ()) if word in self.commands), None)
        if name is not None:
            return name, self.commands[name]
        return " ".join(word for word in self.prog.split()[1:] if word != "[options]"), self


def _give_folder(loggers: Any, folder: str | None) -> None:
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, Namespace) and str(logger.get("class_path")).endswith(".TensorBoardLogger"):
            given = logger.get("init_args.save_dir")
            if given is None:
                logger["init_args.save_dir"] = folder
