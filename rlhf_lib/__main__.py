"""The course without a notebook: `python -m rlhf_lib STAGE --recipe NAME [--set ppo.kl_coef=0.1 ...]`."""

import argparse
import csv
import json
import sys

from rlhf_lib.recipes import RECIPES, clinic_recipe, get_recipe, scaling_recipe
from rlhf_lib.runtime import ROOT, Paths, TrainingFailure, UsageError

STAGES = ("sft", "reward", "ppo", "evaluate", "run", "results", "doctor", "clinic", "scaling")
FLAGS = {  # the stages that read a flag
    "seeds": ("results", "clinic", "scaling"),
    "faults": ("clinic",),
    "resume": ("sft", "reward", "ppo", "run", "results"),
    "tensorboard": ("sft", "reward", "ppo", "run"),
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m rlhf_lib", description=__doc__)
    p.error = _refuse
    p.add_argument("stage", metavar="STAGE", help=", ".join(STAGES) + "; `run` is the whole main path")
    p.add_argument("--recipe", required=True, help=", ".join(RECIPES))
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="such as ppo.kl_coef=0.1")
    p.add_argument("--scale", default="full", help="full, or smoke for a run of seconds")
    p.add_argument("--seed", type=int, help="default: the recipe's")
    p.add_argument("--seeds", type=int, nargs="+", help="results, clinic, scaling: the seeds to run")
    p.add_argument("--faults", nargs="+", metavar="NAME", help="clinic: only these, and again even if they are done")
    p.add_argument(
        "--data-dir", help="local copies of the recipe's data sets, as rlhf_lib/corpora.py says; default: the Hub"
    )
    p.add_argument("--limit", help="rows to read of each split of the recipe's data sets; default: all")
    p.add_argument("--output-dir", help="default: outputs/ beside the library")
    p.add_argument("--resume", action="store_true", help="go on where a killed run stopped")
    p.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    p.add_argument("--tensorboard", action="store_true", help="also write TensorBoard logs")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def _refuse(message: str):
    raise UsageError(f"{message}; see python -m rlhf_lib --help")


def overrides(pairs: list[str]) -> dict:
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--set {pair} has no value: write it like --set ppo.kl_coef=0.1")
    return dict(pair.split("=", 1) for pair in pairs)


def main(argv: list[str] | None = None) -> int:
    debug = "--debug" in (sys.argv if argv is None else argv)
    try:
        return _run(parser().parse_args(argv))
    except UsageError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; a training stage goes on from its last resume point with --resume", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            raise
        kind = "" if isinstance(error, TrainingFailure) else f"{type(error).__name__}: "
        print(f"error: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _run(args) -> int:
    if args.stage not in STAGES:
        raise UsageError(f"unknown stage {args.stage!r}: choose one of {', '.join(STAGES)}")
    for flag, readers in FLAGS.items():
        if getattr(args, flag) and args.stage not in readers:
            raise UsageError(
                f"--{flag} does nothing for {args.stage}: leave it out, it belongs to {', '.join(readers)}"
            )
    make = {"clinic": clinic_recipe, "scaling": scaling_recipe}.get(args.stage, get_recipe)
    files = {"data.dir": args.data_dir, "data.limit": args.limit}
    settings = overrides(args.set) | {key: value for key, value in files.items() if value is not None}
    recipe = make(args.recipe, args.scale, args.seed, settings)
    if args.dry_run:
        print(json.dumps(recipe.resolved(), indent=1))
        return 0
    if args.stage in FLAGS["seeds"]:
        if args.seed is not None:
            raise UsageError(f"{args.stage} runs several seeds: give them with --seeds, like --seeds 11 12 13")
        for seed in args.seeds or ():
            get_recipe(args.recipe, args.scale, seed)  # refuses a seed that cannot work
    from rlhf_lib import models, reporting, stages  # slow to import: after the arguments are known to be good

    paths = Paths(recipe.name, recipe.scale, args.output_dir)
    if args.stage in ("sft", "reward", "ppo"):
        folder = paths.checkpoints / models.folder_of(recipe, args.stage)
        if args.resume and stages.finished(recipe, paths, args.stage):
            print(f"{args.stage}: already finished with these settings, checkpoint in {folder}")
            return 0
        if args.resume and not (paths.checkpoints / f"{args.stage}_state.pt").exists():
            print(f"{args.stage}: nothing to resume, starting from the beginning")
        train = {"sft": stages.train_sft, "reward": stages.train_reward, "ppo": stages.train_ppo}[args.stage]
        _, _, rows = train(recipe, paths, args.resume, args.tensorboard)
        print(f"{args.stage}: {len(rows)} rows of metrics in {paths.evaluation}, checkpoint in {folder}")
    elif args.stage == "doctor":
        folder, source = models.find_checkpoint(recipe, paths, "sft")
        tokenizer = models.load_tokenizer(recipe.policy)
        policy, ref_policy = models.load_policy(folder, tokenizer), models.load_policy(folder, tokenizer)
        report = stages.run_doctor(recipe, policy, ref_policy, tokenizer)
        print(f"examined: {source}\n{report}")
        return 0 if report.healthy else 1
    elif args.stage == "results":
        summary = stages.results(recipe, paths, args.seeds, args.resume)
        print(reporting.results_table(summary))
        readme = ROOT / "README.md"
        default = recipe.scale == "full" and not (args.output_dir or args.set or args.seeds)
        if readme.exists() and default:
            with open(paths.evaluation / f"seed_{summary['seeds'][0]}" / "samples.csv", newline="") as file:
                samples = list(csv.DictReader(file))
            text = reporting.readme_with(readme.read_text(), "results", reporting.results_table(summary))
            readme.write_text(reporting.readme_with(text, "samples", reporting.samples_table(samples)))
    elif args.stage == "clinic":
        from rlhf_lib import clinic

        summary = clinic.run_clinic(recipe, paths, args.seeds, args.faults)
        print(reporting.clinic_table(summary))
        print(f"matrix and runs in {paths.evaluation / 'clinic.json'}")
    elif args.stage == "scaling":
        from rlhf_lib import scaling

        study = scaling.run_scaling(recipe, paths, args.seeds)
        print(reporting.scaling_table(scaling.summary(study["runs"])))
        print(f"all runs in {paths.evaluation / 'scaling.json'}")
    else:
        report = (
            stages.run(recipe, paths, args.resume, args.tensorboard)
            if args.stage == "run"
            else stages.evaluate(recipe, paths)
        )
        print(reporting.comparison_table(report))
        print(f"evaluation in {paths.evaluation}, plots in {reporting.draw_all(paths)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
