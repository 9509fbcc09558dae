"""The command line: `python -m helpers list · run · table · bench · save · classify · evaluate · colab`."""

import os
import signal
import sys
import time
from importlib.util import find_spec

if __name__ == "__main__":  # importing torch takes seconds; Ctrl-C meanwhile exits with the same status as later
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import json
from pathlib import Path

from helpers import bench, demo, experiments, runtime
from helpers.data.pools import listed
from helpers.experiments import records as results
from helpers.experiments.queue import Queue, lines, run_missing
from helpers.report import claims, colab, figures, readme, statistics, tables
from helpers.runtime import PROFILES, UserError, require, require_writable
from helpers.training import processes


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors as the rest of the project does: one sentence and exit status 1."""

    def error(self, message):
        raise UserError(f"{message[0].upper()}{message[1:]}; see python -m helpers --help.")


class Command(Parser):
    """The parser of one command; options may come between positional arguments: `save EXPERIMENT --seed 1 FILE`."""

    intermixed = False

    def parse_known_args(self, args=None, namespace=None):
        if self.intermixed:  # up to Python 3.12, parsing intermixed arguments calls this again
            return super().parse_known_args(args, namespace)
        self.intermixed = True
        return self.parse_known_intermixed_args(args, namespace)


def folder(text: str) -> Path:
    """A path with `~` expanded, because the shell does not expand it in `--results-dir=~/r`."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"there is no home folder for '{text}'") from error


FOLDER, MINUTES = {"type": folder}, {"type": float, "metavar": "MINUTES"}
SEED, PROFILE = {"type": int, "default": 0}, {"default": "full", "help": " · ".join(PROFILES)}
RESULTS = {"--results-dir": FOLDER, "--checkpoint-dir": FOLDER}
SOME = {"--report": {"help": "only experiments of this report"}, "--dataset": {"help": "only experiments on this data set"}}
ARGUMENTS = {
    "list": ("every experiment, most useful first: recorded seeds, and minutes for the missing ones", RESULTS | SOME | {
        "--device": {}, "--json": {"action": "store_true", "help": "the same as JSON, for scripts"},
    }),
    "run": ("train and test one experiment, or all that are missing, and write the run records", RESULTS | SOME | {
        "experiment": {"nargs": "?"},
        "--missing": {"action": "store_true", "help": "instead of one experiment: every planned run that has no record"},
        "--minutes": MINUTES | {"help": "with --missing: stop between epochs once this time is up"},
        "--seed": SEED, "--profile": PROFILE, "--epochs": {"type": int}, "--time-budget": MINUTES,
        "--data-dir": FOLDER, "--device": {},
        "--compile": {"action": "store_true", "help": "train through torch.compile; on a GPU, with CUDA graphs"},
        "--sync-batchnorm": {"action": "store_true", "help": "under torchrun: BatchNorm statistics over all processes"},
        "--tensorboard": {"action": "store_true", "help": "write each epoch's scalars next to the checkpoint"},
        "--resume": {"action": argparse.BooleanOptionalAction, "default": True, "help": "resume from a checkpoint"},
        "--fresh": {"dest": "resume", "action": "store_false", "help": "the same as --no-resume"},
    }),
    "table": ("rebuild tables, figures, claims, model cards and README's tables from the records", {"--results-dir": FOLDER}),
    "bench": ("images per second: a textbook loop against ours, and the rate that a dense convolution reaches", {
        "models": {"nargs": "*", "metavar": "MODEL", "help": " · ".join(bench.MODELS)},
        "--device": {}, "--batch": {"type": int}, "--data-dir": FOLDER | {"help": "with --to"},
        "--to": {"type": float, "metavar": "ACCURACY", "help": "train the named EXPERIMENT to this validation accuracy"},
        "--compile": {"action": "store_true", "help": "also measure our loop with torch.compile"},
        "--json": FOLDER | {"metavar": "FILE", "help": "write the measurements to this file, such as results/bench/t4.json"},
    }),
    "save": ("write the model of a recorded run, from its checkpoint, for classify", RESULTS | {
        "experiment": {},
        "file": {"nargs": "?", "help": "by default: into results/models, in half precision and with a model card"},
        "--data-dir": FOLDER, "--seed": SEED, "--profile": PROFILE,
    }),
    "classify": ("label images with a saved model", {
        "images": {"nargs": "+", "metavar": "IMAGE", "help": "a file, or an http:// or https:// address"},
        "--model": {"metavar": "NAME", "help": "one of results/models, or a file; by default the Pikachu model"},
        "--csv": FOLDER | {"metavar": "FILE", "help": "also write the table to this file, with every class's probability"},
        "--device": {},
    }),
    "evaluate": ("recompute the test accuracy of a model of results/models and compare it with that of its run", {
        "model": {"metavar": "NAME"}, "--data-dir": FOLDER, "--device": {},
    }),
    "colab": ("point the badges and setup cells of README and notebooks to a repository", {
        "repository": {"metavar": "OWNER/REPO"}, "--ref": {"default": "main"},
    }),
}  # fmt: skip


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="python -m helpers", description="Run, list and tabulate the experiments of the notebooks.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Command)
    for name, (purpose, arguments) in ARGUMENTS.items():
        command = commands.add_parser(name, help=purpose)
        for argument, settings in arguments.items():
            command.add_argument(argument, **settings)
    return parser


def list_experiments(options) -> None:
    """Print one line per experiment: the recorded seeds, and how many minutes the missing ones would take here."""
    queue = Queue(options.results_dir, options.checkpoint_dir, report=options.report, dataset=options.dataset)
    table = queue.table(runtime.choose_device(options.device))
    for line in [json.dumps(list(table), indent=1)] if options.json else lines(table):
        print(line, flush=True)


def run_experiments(options) -> None:
    common = {name: getattr(options, name) for name in ("data_dir", "device", "resume", "sync_batchnorm", "tensorboard")}
    if options.tensorboard and find_spec("tensorboard") is None:
        raise UserError("TensorBoard is not installed here; pip install tensorboard, or leave out --tensorboard.")
    common |= {"compiled": options.compile, "time_budget": None if options.time_budget is None else options.time_budget * 60}
    if options.results_dir:
        require_writable(options.results_dir, "--results-dir")
    if bool(options.experiment) == options.missing:
        raise UserError("Name one experiment to run, or pass --missing; python -m helpers list shows them all.")
    if not options.missing:
        if options.report or options.dataset or options.minutes is not None:
            raise UserError("--report, --dataset and --minutes are for --missing; for one experiment use --time-budget.")
        return run_experiment(options, common)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("torchrun trains one experiment; name it, or start run --missing by itself, once on each GPU.")
    if options.epochs is not None or options.seed:
        raise UserError("--missing runs what the plan declares; leave out --epochs and --seed.")
    places = (options.results_dir, options.checkpoint_dir, options.profile, options.report, options.dataset)
    run_missing(Queue(*places), options.minutes, **common)


def run_experiment(options, common: dict) -> None:
    """Run one experiment, write its record and print its result."""
    declared = experiments.recipe_for(experiments.find(options.experiment), options.profile)
    path = results.record_path(options.experiment, options.profile, options.seed, options.results_dir)
    is_kept = options.results_dir or (options.profile != "smoke" and options.epochs in (None, declared.epochs))
    if is_kept and path.exists():
        print(f"A record already exists, {path.name}; a run on the same images replaces it, another --results-dir keeps both.")
    common |= {"checkpoint_dir": options.checkpoint_dir, "epochs": options.epochs}
    record, predictions = experiments.run(options.experiment, options.seed, options.profile, **common)
    if processes.rank():
        return
    written = results.save(record, predictions, options.results_dir) if is_kept else None  # before a print can fail
    test, source = record["test"], record["dataset"]["source"]
    low, high = statistics.wilson(round(test["accuracy"] * test["n"]), test["n"])
    result = f"test accuracy {test['accuracy']:.2%} ({low:.2%} to {high:.2%}) on {test['n']} images of {source}"
    print(f"{options.experiment}, seed {options.seed}, {options.profile}: {result}.")
    if written:
        print(f"Record: {os.path.relpath(written)}")
    else:
        print("No record was written: a smoke run, or one with another --epochs, is recorded only with --results-dir.")


def make_tables(options) -> None:
    """Rebuild tables, figures and claims; model cards and README's tables too, if the records are the repository's own."""
    records = results.load_all(options.results_dir)
    written = tables.write(records, options.results_dir) + figures.write(records, options.results_dir)
    written += claims.write(options.results_dir, records)
    if options.results_dir is None:
        written += [readme.write(records), *map(demo.write_card, demo.list_models().values())]
    print("\n".join(path.name for path in written))


def run_bench(options) -> None:
    if options.json:
        require_writable(options.json.parent, "--json")
        require(not options.json.is_dir(), f"{options.json} is a folder; name a file with --json.")
    require(options.to is None or not (options.batch or options.compile), "With --to, leave out --batch and --compile.")
    if options.to is None:
        measured = bench.run(options.models, options.device, options.batch, options.compile)
    else:
        measured = bench.time_to(options.to, options.models, options.data_dir, options.device)
    if options.json:
        text = json.dumps(measured, indent=1, ensure_ascii=False) + "\n"
        try:
            runtime.save_text(options.json, text)
        except OSError as error:
            print(text)
            why = f"{options.json.name} could not be written ({error.strerror}); the measurements are printed above."
            raise UserError(why) from error


def save_model(options) -> None:
    experiments.recipe_for(experiments.find(options.experiment), options.profile)  # refuses unknown names
    path = results.record_path(options.experiment, options.profile, options.seed, options.results_dir)
    run = f"{options.experiment} --seed {options.seed} --profile {options.profile}"
    name = f"{options.experiment}, seed {options.seed}, {options.profile}"
    require(path.exists(), f"There is no record of {name}; run python -m helpers run {run} first.")
    record = results.load(path)
    if options.file:
        print(f"Model: {demo.save_model(options.file, *demo.best_weights(record, options.checkpoint_dir)).name}")
    else:
        written = demo.ship(record, options.checkpoint_dir, options.data_dir, options.results_dir)
        print(f"Model: {written.name}, and its card {written.stem}.md")


def classify_images(options) -> None:
    """Print one line per image; then raise an error that lists those that could not be read."""
    model = demo.load_model(demo.find_model(options.model), options.device)
    table = demo.classify(model, options.images)
    if len(table) == 1 and (reason := table["error"][0]):
        raise UserError(f"{table['image'][0]} cannot be classified: {reason}.")
    if options.csv:
        with runtime.writing(f"The table {options.csv}", "--csv"):
            runtime.save_text(options.csv, table.to_csv(index=False))
    if model.about.sample:
        print("SAMPLE: this model was trained on generated images; its labels mean nothing.")
    shown = table[["image", "label", "probability", "error"]].rename(columns={"error": ""})
    print(shown.to_string(index=False, float_format="{:.2%}".format, na_rep=""))
    if failed := list(table["image"][table["error"] != ""]):
        raise UserError(f"{len(failed)} of {len(table)} images could not be read: {listed(failed)}.")


def write_colab(options) -> None:
    print("\n".join(path.name for path in colab.write(options.repository, options.ref)) or "Nothing needed to change.")


COMMANDS = {"list": list_experiments, "run": run_experiments, "table": make_tables, "bench": run_bench, "save": save_model}
COMMANDS |= {"classify": classify_images, "colab": write_colab}
COMMANDS["evaluate"] = lambda options: print(demo.evaluate(options.model, options.data_dir, options.device))


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 bad input or a closed pipe, 130 Ctrl-C."""
    later, nowhere = runtime.is_later_process(), open(os.devnull, "w")
    sys.stdout, sys.stderr = (None if later else sys.stdout) or nowhere, sys.stderr or nowhere
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # of names that the terminal cannot show
    try:
        options = make_parser().parse_args(arguments)
        COMMANDS[options.command](options)
        processes.leave()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader closed the pipe, as in `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError) as error:
        if later:
            time.sleep(5)  # if the first process failed too, it reports the error and torchrun ends this one
        if isinstance(error, OSError):  # such as a folder that this user may not search
            error = f"{error.filename or 'A file'} cannot be used ({error.strerror or error}); choose another file or folder."
        print(*str(error).splitlines(), file=sys.stderr)  # always one line, even if a name contains line breaks
        return 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
