"""The command line: `python -m helpers list · run · table · bench · save · classify · evaluate · colab`."""

import os
import signal
import sys

if __name__ == "__main__":  # torch takes seconds to import; Ctrl-C in them ends as it does later
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import json
from pathlib import Path

from helpers import bench, demo, experiments, runtime
from helpers.data.pools import listed
from helpers.experiments import records as results
from helpers.experiments.queue import Queue, run_missing
from helpers.report import claims, colab, figures, memory, readme, tables
from helpers.report import statistics as intervals
from helpers.runtime import PROFILES, UserError, require_writable


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are the project's: one sentence and exit status 1."""

    def error(self, message):
        raise UserError(f"{message[0].upper()}{message[1:]}; see python -m helpers --help.")


def folder(text: str) -> Path:
    """A path as the user wrote it, `~` included: a shell leaves that alone in `--results-dir=~/r`."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"there is no home folder for '{text}'") from error


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="python -m helpers", description="Run, list and tabulate the experiments of the notebooks.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    add_experiments(commands)

    table = commands.add_parser("table", help="rebuild the tables and figures from the run records")
    table.add_argument("--results-dir", type=folder)

    speed = commands.add_parser("bench", help="images a second: a textbook loop against ours, and the pieces alone")
    speed.add_argument("models", nargs="*", metavar="MODEL", help=" · ".join(bench.MODELS))
    speed.add_argument("--device")
    speed.add_argument("--batch", type=int)
    speed.add_argument(
        "--to", type=float, metavar="ACCURACY", help="instead, train the EXPERIMENT named until validation has it"
    )
    speed.add_argument("--data-dir", type=folder, help="with --to")
    speed.add_argument("--compile", action="store_true", help="our loop through torch.compile too")
    speed.add_argument(
        "--json", type=folder, metavar="FILE", help="write what was measured here, such as results/bench/t4.json"
    )

    save = commands.add_parser("save", help="write the model of a recorded run, from its checkpoint, for classify")
    save.add_argument("experiment")
    save.add_argument("file", nargs="?", help="without one, into results/models, in half precision and with a model card")
    save.add_argument("--seed", type=int, default=0)
    save.add_argument("--profile", default="full", help=" · ".join(PROFILES))
    save.add_argument("--results-dir", type=folder)
    save.add_argument("--checkpoint-dir", type=folder)

    label = commands.add_parser("classify", help="label images with a saved model")
    label.add_argument("images", nargs="+", metavar="IMAGE", help="a file, or an http:// or https:// address")
    label.add_argument("--model", metavar="NAME", help="one of results/models, or a file; by default the first of them")
    label.add_argument("--csv", metavar="FILE", help="write the table there too, with the probability of every class")
    label.add_argument("--device")

    check = commands.add_parser("evaluate", help="recompute the accuracy of a model of results/models, and compare it")
    check.add_argument("model", metavar="NAME")
    check.add_argument("--data-dir")
    check.add_argument("--device")

    badges = commands.add_parser("colab", help="write the badges and setup cells of README and notebooks")
    badges.add_argument("repository", metavar="OWNER/REPO")
    badges.add_argument("--ref", default="main")
    return parser


def add_experiments(commands) -> None:
    """The commands `list` and `run`."""
    listing = commands.add_parser(
        "list", help="every experiment, most worth first: what is there, and the minutes of what is not"
    )
    run = commands.add_parser("run", help="train and test one experiment, or all that are missing, and write the run records")
    run.add_argument("experiment", nargs="?")
    run.add_argument("--missing", action="store_true", help="instead of one: what the plan declares and no record is there of")
    for command in (listing, run):
        command.add_argument("--report", help="only this report's" + " (with --missing)" * (command is run))
        command.add_argument("--dataset", help="only on this data set" + " (with --missing)" * (command is run))
        command.add_argument("--results-dir", type=folder)
        command.add_argument("--checkpoint-dir", type=folder)
        command.add_argument("--device")
    listing.add_argument("--json", action="store_true", help="the same for scripts")
    run.add_argument("--minutes", type=float, help="with --missing: stop after the epoch in which they are spent")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--profile", default="full", help=" · ".join(PROFILES))
    run.add_argument("--epochs", type=int)
    run.add_argument("--data-dir", type=folder)
    run.add_argument("--time-budget", type=float, metavar="MINUTES")
    run.add_argument("--compile", action="store_true", help="train through torch.compile, on a GPU with CUDA graphs")
    run.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="go on from a checkpoint")
    run.add_argument("--fresh", dest="resume", action="store_false", help="the same as --no-resume")


def list_experiments(options) -> None:
    """Print a line for each experiment: the seeds that are there, and the minutes that the missing ones would take here."""
    queue = Queue(options.results_dir, options.checkpoint_dir, report=options.report, dataset=options.dataset)
    table = queue.table(runtime.choose_device(options.device))
    if options.json:
        print(json.dumps(list(table), indent=1))
        return
    print(f"{'experiment':42} {'report':8} {'dataset':14} {'model':28} epochs  full runs")
    for row in table:
        seeds = [f"have seed {', '.join(map(str, row['have']))}"] if row["have"] else []
        if missing := row["minutes"]:
            minutes = [f"{seed} ({minutes:,.0f} min)" for seed, minutes in missing.items()]
            seeds.append(f"need seed {', '.join(minutes)}")
        columns = f"{row['experiment']:42} {row['report']:8} {row['dataset']:14} {row['model']:28} {row['epochs']:6}"
        print(f"{columns}  {'; '.join(seeds)}")


def run_experiments(options) -> None:
    """Run one experiment, or all that are missing."""
    common = {
        "data_dir": options.data_dir,
        "device": options.device,
        "compiled": options.compile,
        "resume": options.resume,
        "time_budget": None if options.time_budget is None else options.time_budget * 60,
    }
    if options.results_dir:
        require_writable(options.results_dir, "--results-dir")
    if bool(options.experiment) == options.missing:
        raise UserError("Name one experiment to run, or say --missing; python -m helpers list shows what there is.")
    if options.missing:
        if options.epochs is not None or options.seed:
            raise UserError("--missing runs what the plan declares; leave out --epochs and --seed.")
        places = (options.results_dir, options.checkpoint_dir, options.profile, options.report, options.dataset)
        run_missing(Queue(*places), options.minutes, **common)
    elif options.report or options.dataset or options.minutes is not None:
        raise UserError("--report, --dataset and --minutes are for run --missing; for one experiment there is --time-budget.")
    else:
        run_experiment(options, common)


def run_experiment(options, common: dict) -> None:
    """Run one experiment, write its record and print its result."""
    declared = experiments.recipe_for(experiments.find(options.experiment), options.profile)
    changed = options.epochs not in (None, declared.epochs)
    places = {"checkpoint_dir": options.checkpoint_dir, "epochs": options.epochs}
    record, predictions = experiments.run(options.experiment, options.seed, options.profile, **common, **places)
    test = record["test"]
    low, high = intervals.wilson(round(test["accuracy"] * test["n"]), test["n"])
    print(
        f"{options.experiment}, seed {options.seed}, {options.profile}: test accuracy {test['accuracy']:.2%} "
        f"({low:.2%} to {high:.2%}) on {test['n']} images of {record['dataset']['source']}."
    )
    if options.results_dir is None and (options.profile == "smoke" or changed):
        print("No record was written: a smoke run, or one with other epochs, writes it only into a --results-dir.")
        return
    print(f"Record: {results.save(record, predictions, options.results_dir).name}")


def make_tables(options) -> None:
    """Rebuild tables and figures; README's table too, when the records are the repository's own."""
    records = results.load_all(options.results_dir)
    written = tables.write(records, options.results_dir) + figures.write(records, options.results_dir)
    written += claims.write(options.results_dir, records)
    if options.results_dir is None:
        written += [*tables.save({"memory": memory.table()}), readme.write(records)]
    print("\n".join(path.name for path in written))


def run_bench(options) -> None:
    """Measure the training speed; keep what was measured if a file is named."""
    if options.json:
        require_writable(options.json.parent, "--json")
        if options.json.is_dir():
            raise UserError(f"{options.json} is a folder; name a file with --json.")
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
            raise UserError(
                f"{options.json.name} could not be written ({error.strerror}); what was measured is above."
            ) from error


def save_model(options) -> None:
    """Write the model of a recorded run."""
    experiments.recipe_for(experiments.find(options.experiment), options.profile)
    path = results.record_path(options.experiment, options.profile, options.seed, options.results_dir)
    if not path.exists():
        again = f"python -m helpers run {options.experiment} --seed {options.seed} --profile {options.profile}"
        raise UserError(
            f"There is no record of {options.experiment}, seed {options.seed}, {options.profile}; run {again} first."
        )
    record = results.load(path)
    if options.file:
        print(f"Model: {demo.save_run(options.file, record, options.checkpoint_dir).name}")
    else:
        written = demo.ship(record, options.checkpoint_dir, results_dir=options.results_dir)
        print(f"Model: {written.name}, and its card {written.stem}.md")


def classify_images(options) -> None:
    """Print a line an image; then, as an error, those that could not be read."""
    model = demo.load_model(demo.find_model(options.model), options.device)
    table = demo.classify(model, options.images)
    if len(table) == 1 and (reason := table["error"][0]):
        raise UserError(f"{table['image'][0]} cannot be classified: {reason}.")
    if options.csv:
        try:
            runtime.save_text(Path(options.csv).expanduser(), table.to_csv(index=False))
        except OSError as error:
            raise UserError(
                f"The table {options.csv} could not be written ({error.strerror}); choose another --csv."
            ) from error
    if model.about.sample:
        print("SAMPLE: this model was trained on generated images; its labels mean nothing.")
    shown = table[["image", "label", "probability", "error"]].rename(columns={"error": ""})
    print(shown.to_string(index=False, float_format="{:.2%}".format, na_rep=""))
    if failed := list(table["image"][table["error"] != ""]):
        raise UserError(f"{len(failed)} of {len(table)} images could not be read: {listed(failed)}.")


def evaluate_model(options) -> None:
    """Print how a model of results/models does on the data at hand, beside its card."""
    print(demo.evaluate(options.model, options.data_dir, options.device))


def write_colab(options) -> None:
    """Write badges and setup cells."""
    changed = colab.write(options.repository, options.ref)
    print("\n".join(path.name for path in changed) or "Everything was already so.")


COMMANDS = {
    "list": list_experiments,
    "run": run_experiments,
    "table": make_tables,
    "bench": run_bench,
    "save": save_model,
    "classify": classify_images,
    "evaluate": evaluate_model,
    "colab": write_colab,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 the user's input or data is wrong, 130 Ctrl-C."""
    try:
        options = make_parser().parse_args(arguments)
        COMMANDS[options.command](options)
        sys.stdout.flush()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads has had enough, as in list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
