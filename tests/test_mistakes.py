"""Each kind of mistake in options ends in one line: what was found, what is allowed, the nearest name."""

import re
import shlex

import pytest

from lightning_uda.__main__ import main
from lightning_uda.cli import UDACLI, run_trainer
from lightning_uda.config_files import with_paths
from lightning_uda.mistakes import described, explained
from tests.test_checkpoints import error_of

DACS = ["fit", "--config", "minicity/dacs"]


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def parser():
    """The command line's parser, made once."""

    class ParserOnly(UDACLI):
        def parse_arguments(self, parser, args):
            raise Stop(parser)

    with pytest.raises(Stop) as stop:
        run_trainer([], ParserOnly)
    return stop.value.args[0]


METHODS = "AdaBN, DACS, DAFormer, DSP, EHTDI, MeanTeacher, NaiveClassMix, SelfTraining, SourceOnly, T2SDA, "
NETWORKS = "CaffeDeepLabV2, DeepLabV2, EncoderDecoder, FCN8s, HRDA, WideResNet38, WrappedNetwork, "
MINE = r"or one of yours by its import path\)"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model DACSS", rf"model: found 'DACSS'; expected a UDAModule \({METHODS}.*{MINE}\. Did you mean DACS\?"),
        ("--model lightning_uda.optim.Poly", r"model: found 'lightning_uda.optim.Poly'; expected a UDAModule .*"),
        ("--model lightning_uda.methods.DAX", r"model: found .* \(module .* has no attribute 'DAX'\.\)"),
        ("--model no_such.Thing", r"model: found 'no_such.Thing'; expected .* \(No module named 'no_such'\.\)"),
        ("--model UDAModule", rf"model: found 'UDAModule'; expected a UDAModule \({METHODS}.*{MINE}\."),
        ("--model TeacherModule", rf"model: found 'TeacherModule'; expected a UDAModule \({METHODS}.*{MINE}\."),
        (
            "--model.terms.a Term",
            rf"model\.terms\.a: found 'Term'; expected a Term \(ConfidentPaste, .*{MINE} or null\.",
        ),
        (
            "--data.source SegmentationDataset",
            rf"data\.source: found 'SegmentationDataset'; expected a .*{MINE} or null\..*",
        ),
        ("--data.source StoredDataset", rf"data\.source: found 'StoredDataset'; expected a .*{MINE} or null\. .*"),
        ("--model.network resnet18", rf"model\.network: found 'resnet18'; expected a .* \({NETWORKS}.*"),
        ("--model.optimizer AdamWW", r"model\.optimizer: found 'AdamWW'; expected an Optimizer .* mean AdamW\?"),
        ("--data.source MiniCty", r"data\.source: found 'MiniCty'; .* or null\. Did you mean MiniCity\?"),
        ("--trainer.logger Wandb", r"trainer\.logger: found 'Wandb'; .*, a list of such, .* mean WandbLogger\?"),
        ("--trainer.callbacks+=ImagePanel", r"trainer\.callbacks: found 'ImagePanel'; .* mean ImagePanels\?"),
        ("--trainer.callbacks=", r"trainer\.callbacks: found ''; .*, a list of such or null\."),
        ("--model.terms.a FeatureMMDD", r"model\.terms\.a: found 'FeatureMMDD'; .* mean FeatureMMD\?"),
        (
            "--model.evaluate techer",
            r"model\.evaluate: found 'techer'; expected 'student' or 'teacher'\. Did you mean teacher\?",
        ),
        (
            "--model.network.batch_norm frozn",
            r"model\.network\.batch_norm: found 'frozn'; expected 'train', .* or 'eval'\.",
        ),
        ("--model.treshold 0.5", r"model: DACS has no argument 'treshold'\. Its arguments are pixel_weighting, .*"),
        (
            "--model.pixel_weighting.treshold 0.5",
            r"model\.pixel_weighting: BatchConfidence has no argument 'treshold'\. Did you mean threshold\? "
            r"Its arguments are threshold, scope\.",
        ),
        ("--model.optimizer.lrr 1", r"model\.optimizer: AdamW has no argument 'lrr'\. Did you mean lr\? .*"),
        ("--data.source.lenght 5", r"data\.source: MiniCity has no argument 'lenght'\. Did you mean length\? .*"),
        ("--data.source_transform '{corp: null}'", r"data\.source_transform: .* 'corp'\. Did you mean crop\? .*"),
        ("--trainer.callbacks ImagePanels --trainer.callbacks.num_image 4", r".* Did you mean num_images\? .*"),
        ("--trainer.max_steps many", r"trainer\.max_steps: found 'many'; expected a whole number\."),
        ("--data.batch_size four", r"data\.batch_size: found 'four'; expected a whole number\."),
        ("--model.optimizer.lr fast", r"model\.optimizer\.lr: found 'fast'; expected a number\."),
        ("--model.scoring.border near", r"model\.scoring\.border: found 'near'; expected a whole number or null\."),
        ("--data.source_transform.crop 5", r"data\.source_transform\.crop: found 5; expected \[a whole.*\] or null\."),
        (
            "--model.network.backbone.name x",
            r"model\.network\.backbone: found an option 'name' of it; expected a text\.",
        ),
        ("--seed_everything x", r"seed_everything: found 'x'; expected true or false or a whole number\."),
        ("--trainer 3", r"trainer: found 3; expected a mapping of the arguments of Trainer\."),
        ("--model.network null", r"model: DACS needs network, which isn't given\."),
        ("--data.source FolderDataset", r"data\.source: FolderDataset needs root, which isn't given\."),
        ("--data.label_space citiscapes", r"data\.label_space: Unknown label space 'citiscapes': expected one of .*"),
        ("--data.label_space null", r"data\.label_space: Unknown label space None: expected one of .*"),
        (
            "--model.optimizer AdamW --model.optimizer.betas [0.9]",
            r"model\.optimizer\.betas: found \[0\.9\]; expected \[a number, a number\]\.",
        ),
        (
            "--trainer.max_step 3",
            r"found --trainer\.max_step, which is no option of fit\. Did you mean --trainer\.max_steps\?.*",
        ),
        ("--modle DACS", r"found --modle, which is no option of fit\. Did you mean --model\? .*"),
        ("word", r"found 'word'\. Each option begins with --\. .*"),
        ("--config", r"argument -c/--config: expected one argument"),
    ],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_a_mistake_is_one_line_with_what_is_allowed(option, message, parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(with_paths([*DACS, *shlex.split(option)]))
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(f"error: {message}\n", printed), printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trainer: {max_step: 3}", "found 'trainer.max_step'. Did you mean trainer.max_steps?"),
        ("modle: 3", "found 'modle'. Did you mean model?"),
        (
            "model: {init_args: {pixel_weighting: {init_args: {treshold: 3}}}}",
            "no argument 'treshold'. Did you mean threshold?",
        ),
        ("model: {init_args: {pixel_weighting: {class_path: BatchConfidens}}}", "Did you mean BatchConfidence?"),
        ("trainer: {max_steps: many}", "trainer.max_steps: found 'many'; expected a whole number."),
    ],
)
def test_so_is_a_mistake_in_a_file(content, message, parser, capsys, tmp_path):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(SystemExit):
        parser.parse_args(with_paths([*DACS, "--config", str(tmp_path / "own.yaml")]))
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (
            "model: {init_args: {optimizer: {class_path: SGD, lr: 0.1}}}",
            "model.optimizer: found 'lr' beside class_path: SGD",
        ),
        (
            "data: {class_path: UDADataModule, batch_size: 3}",
            "data: found 'batch_size' beside class_path: UDADataModule",
        ),
        (
            "trainer: {callbacks: [{class_path: ImagePanels, n: 1}]}",
            "trainer.callbacks: found 'n' beside class_path: Im",
        ),
    ],
)
def test_arguments_beside_a_class_are_told_where_they_belong(content, place, capsys, tmp_path):
    (tmp_path / "own.yaml").write_text(f"{content}\n")
    message = error_of(*DACS, "--config", str(tmp_path / "own.yaml")).splitlines()[0]
    assert message.startswith(f"error: {place}")
    assert message.endswith("; expected init_args alone, below which the arguments of a class stand.")
    option = ["--model.optimizer", "{class_path: SGD, lr: 0.1}"]
    assert "error: found 'lr' beside class_path: SGD; expected init_args alone, below" in error_of(*DACS, *option)


@pytest.mark.parametrize("name", ["''", "3", "null", "[]"])
def test_a_class_without_a_name_is_told(name, tmp_path):
    (tmp_path / "own.yaml").write_text(f"data: {{init_args: {{eval_transform: {{class_path: {name}}}}}}}")
    message = error_of(*DACS, "--config", str(tmp_path / "own.yaml"))
    assert message.startswith("error: data.eval_transform: found class_path: ")
    assert "; expected the name of a class." in message


@pytest.mark.parametrize("name", ["name", "output"])
def test_a_run_without_name_or_place_is_told(name, tmp_path):
    (tmp_path / "own.yaml").write_text(f"{name}: null\n")
    message = error_of(*DACS, "--config", str(tmp_path / "own.yaml"))
    assert message.startswith(f"error: {name}: found null; expected a text. Leave it out for its default.")


def test_of_a_whole_group_of_settings_the_beginning_is_shown(parser, capsys, tmp_path):
    (tmp_path / "own.yaml").write_text("include: minicity/dacs\ndata: {init_args: {eval_transform: ''}}\n")
    with pytest.raises(SystemExit):
        parser.parse_args(with_paths(["fit", "--config", str(tmp_path / "own.yaml")]))
    printed = capsys.readouterr().err
    assert "expected a mapping of the arguments of EvalTransform (resize, interpolation, labels)." in printed
    assert len(printed) < 330


@pytest.mark.parametrize(
    ("words", "named"), [("fit", "no --config"), ("predict", "no --config"), ("fit --data minicity", "no --model")]
)
def test_a_command_alone_says_which_config_to_give(words, named, parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(with_paths(words.split()))
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {words.split()[0]}: found {named}. Give a")
    assert named != "no --config" or "minicity/dacs" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("grid minicity --sed 3", "lightning-uda grid: found --sed, which it doesn't take. Did you mean --seeds?"),
        ("grid minicity --seed 3", "Did you mean --seeds?"),
        ("report runs --outptu x", "Did you mean --output?"),
        ("report", "lightning-uda report: the following arguments are required: runs"),
    ],
)
def test_further_commands_take_no_abbreviations_and_name_the_nearest_option(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "a whole number or null"),
        (list[float], "a list, each item a number"),
        (dict[str, int], "a mapping of names to a whole number"),
        (tuple[int, int] | None, "[a whole number, a whole number] or null"),
        (str | list[str], "a text or a list of such"),
    ],
)
def test_types_in_words(hint, words):
    assert described(hint) == words


def test_an_account_of_an_unknown_kind_is_shortened_to_a_line():
    account = "Something else:\n  - of types\n  Subtypes: [int]\n  in detail " + 400 * "x"
    assert explained(account, {}).startswith("Something else: of types in detail xxx")
    assert len(explained(account, {})) < 320
