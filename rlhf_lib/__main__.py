"""The course without a notebook: `python -m rlhf_lib STAGE --recipe NAME [--set ppo.kl_coef=0.1 ...]`."""

import argparse
import contextlib
import csv
import io
import json
import os
import sys
import time

from rlhf_lib import processes
from rlhf_lib.recipes import RECIPES, clinic_recipe, get_recipe, scaling_recipe
from rlhf_lib.runtime import ROOT, Paths, TrainingFailure, UsageError, check_tracker

STAGES = ("sft", "reward", "ppo", "evaluate", "run", "results", "doctor", "clinic", "scaling", "demo", "push")
FLAGS = {  # the stages that read a flag
    "seeds": ("results", "clinic", "scaling"),
    "faults": ("clinic",),
    "resume": ("sft", "reward", "ppo", "run", "results"),
    "tensorboard": ("sft", "reward", "ppo", "run"),
    **dict.fromkeys(("repo", "stages", "private", "space"), ("push",)),
    "wandb": ("sft", "reward", "ppo", "run"),
    "host": ("demo",),
    "port": ("demo",),
}
SHARED = ("sft", "reward", "ppo", "evaluate", "run")  # the stages that several processes can share


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
    p.add_argument(
        "--dry-run", action="store_true", help="print the resolved recipe, estimate memory and work, and stop"
    )
    p.add_argument("--gpu", action="store_true", help="with --dry-run: estimate for a GPU under bf16, whatever is here")
    p.add_argument(
        "--tokens-per-second", type=float, metavar="N", help="with --dry-run: a measured speed, for the hours"
    )
    p.add_argument("--tensorboard", action="store_true", help="also write TensorBoard logs")
    p.add_argument(
        "--wandb", action="store_true", help="also log to Weights & Biases; WANDB_MODE=offline keeps it here"
    )
    p.add_argument("--repo", metavar="USER/NAME", help="push: each stage goes to USER/NAME-STAGE on the Hub")
    p.add_argument("--stages", nargs="+", metavar="STAGE", help="push: default sft reward ppo")
    p.add_argument("--private", action="store_true", help="push: new repositories are private")
    p.add_argument("--space", metavar="USER/NAME", help="push: also a Space with the demo")
    p.add_argument("--host", help="demo: default 127.0.0.1, which only this machine can reach")
    p.add_argument("--port", type=int, help="demo: default 7860")
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
        with contextlib.redirect_stdout(sys.stdout if processes.is_main() else io.StringIO()):
            code = _run(parser().parse_args(argv))
        processes.part_company()
        return code
    except UsageError as error:
        if debug:
            raise
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted; a training stage goes on from its last resume point with --resume", 1)
    except TrainingFailure as error:
        if debug:
            raise
        return _fail(str(error), 1)
    except Exception as error:
        if debug:
            raise
        return _fail(f"{type(error).__name__}: {error}", 1, everywhere=False)


def _fail(sentence: str, code: int, everywhere: bool = True) -> int:
    """Say what went wrong, on one line; returns the exit code.

    Of several processes the main one speaks for all where the error is the same `everywhere`. The others wait, and so
    does the main one where it may only have lost another process: the launcher ends who waits when one has failed.
    """
    if _several() and not (everywhere and processes.is_main()):
        time.sleep(5)
        sentence = f"process {processes.index()}: {sentence}"
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _several() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def _run(args) -> int:
    if args.stage not in STAGES:
        raise UsageError(f"unknown stage {args.stage!r}: choose one of {', '.join(STAGES)}")
    for flag, readers in FLAGS.items():
        if getattr(args, flag) and args.stage not in readers:
            raise UsageError(
                f"--{flag} does nothing for {args.stage}: leave it out, it belongs to {', '.join(readers)}"
            )
    if _several() and args.stage not in SHARED:
        raise UsageError(
            f"{args.stage} runs in one process: start it with plain `python -m rlhf_lib`, or launch one of {', '.join(SHARED)}"
        )
    make = {"clinic": clinic_recipe, "scaling": scaling_recipe}.get(args.stage, get_recipe)
    files = {"data.dir": args.data_dir, "data.limit": args.limit}
    settings = overrides(args.set) | {key: value for key, value in files.items() if value is not None}
    recipe = make(args.recipe, args.scale, args.seed, settings)
    if args.stage == "push":
        return _push(args, recipe)
    if args.dry_run:
        return _dry_run(args, recipe)
    for flag in ("gpu", "tokens_per_second"):
        if getattr(args, flag):
            raise UsageError(f"--{flag.replace('_', '-')} does nothing without --dry-run: add it, or leave both out")
    if args.stage in FLAGS["seeds"]:
        if args.seed is not None:
            raise UsageError(f"{args.stage} runs several seeds: give them with --seeds, like --seeds 11 12 13")
        for seed in args.seeds or ():
            get_recipe(args.recipe, args.scale, seed)  # refuses a seed that cannot work
    trackers = tuple(name for name in ("tensorboard", "wandb") if getattr(args, name))
    for name in trackers:
        check_tracker(name)
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
        _, _, rows = train(recipe, paths, args.resume, trackers)
        print(f"{args.stage}: {len(rows)} rows of metrics in {paths.evaluation}, checkpoint in {folder}")
    elif args.stage == "doctor":
        folder, source = models.find_checkpoint(recipe, paths, "sft")
        tokenizer = models.load_tokenizer(recipe.policy)
        policy, ref_policy = models.load_policy(folder, tokenizer), models.load_policy(folder, tokenizer)
        report = stages.run_doctor(recipe, policy, ref_policy, tokenizer)
        print(f"examined: {source}\n{report}")
        return 0 if report.healthy else 1
    elif args.stage == "demo":
        from rlhf_lib import demo

        demo.run(recipe, paths, args.host or "127.0.0.1", 7860 if args.port is None else args.port)
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
            stages.run(recipe, paths, args.resume, trackers) if args.stage == "run" else stages.evaluate(recipe, paths)
        )
        if processes.is_main():
            print(reporting.comparison_table(report))
            print(f"evaluation in {paths.evaluation}, plots in {reporting.draw_all(paths)}")
    return 0


def _dry_run(args, recipe) -> int:
    """The resolved recipe with the estimates as JSON on stdout, the same to read on stderr."""
    from rlhf_lib import estimate

    stages = {"run": estimate.STAGES, "results": estimate.STAGES}.get(args.stage, (args.stage,))
    estimates = [estimate.estimate(recipe, stage, args.gpu) for stage in stages if stage in estimate.STAGES]
    print(json.dumps(recipe.resolved() | {"estimates": estimates}, indent=1), flush=True)
    if estimates:
        print("\n\n".join(estimate.report(e, args.tokens_per_second) for e in estimates), file=sys.stderr)
    return 0


def _push(args, recipe) -> int:
    if not args.repo:
        raise UsageError("push needs a repository of the Hub: write it like --repo USER/NAME")
    from rlhf_lib import publish

    paths = Paths(recipe.name, recipe.scale, args.output_dir)
    print("\n".join(publish.push(recipe, paths, args.repo, args.stages, args.private, args.dry_run, args.space)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
