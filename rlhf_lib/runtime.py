"""Seeding, device and precision, paths, atomic saving, metric logs and progress bars."""

import contextlib
import csv
import importlib.util
import json
import math
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from IPython import get_ipython
from tqdm.auto import tqdm

from rlhf_lib import processes

ROOT = Path(__file__).resolve().parent.parent


class UsageError(ValueError):
    """Wrong usage or input; its message is one sentence that says what is wrong, what was expected, what to do."""


class TrainingFailure(RuntimeError):
    """Training cannot go on: names the step, the metric and the likely causes."""


def set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def mixed_precision() -> str:
    """ "bf16" where the hardware multiplies bf16 quickly, else "no"."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # torch has no public name for it
    return "bf16" if supported() else "no"


def make_accelerator(precision: str = "auto") -> Accelerator:
    """Accelerate's devices, processes and autocast; `precision` is "auto", "bf16", "fp16" or "no" (fp32).

    Raises UsageError for another precision, one that the device cannot compute in, or a launcher that divides the weights.
    """
    if precision not in ("auto", "bf16", "fp16", "no"):
        raise UsageError(f"unknown precision {precision!r}: choose auto, bf16, fp16 or no")
    precision = mixed_precision() if precision == "auto" else precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("precision fp16 needs a GPU, and torch sees none: choose auto, bf16 or no")
    if precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise UsageError("this GPU does not compute in bf16: choose precision fp16 or no")
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise UsageError(
                f"{name} divides the weights of a model over processes, and sampling here needs them whole: launch with "
                "rlhf_lib/accelerate/several_gpus.yaml, and save memory with method lora or qlora"
            )
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # one notebook or test may use both
    return Accelerator(
        mixed_precision=precision, cpu=not torch.cuda.is_available()
    )  # MPS has no float64: sampling needs it


def autocast(device, precision: str = "auto"):
    """Autocast on `device` to what `precision` ("auto", "bf16", "fp16", "no") says."""
    precision = mixed_precision() if precision == "auto" else precision
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=precision != "no")


def prepare(accelerator: Accelerator, model: torch.nn.Module, optimizer) -> tuple:
    """The model on its device, with autocast in its forward, and the optimizer: `Accelerator.prepare` without DDP."""
    return accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare_optimizer(optimizer)


def clip_gradients(accelerator: Accelerator, model: torch.nn.Module, max_norm: float) -> float:
    """Clip the gradients, unscaled first under fp16, to a global norm; returns the norm that they had.

    0 if they overflowed under fp16: the optimizer then skips the step, and the next one is scaled less.
    """
    norm = float(accelerator.clip_grad_norm_(model.parameters(), max_norm))
    return 0.0 if accelerator.scaler and not math.isfinite(norm) else norm


def scaler_part(accelerator: Accelerator) -> dict:
    """What fp16 adds to a resume point: the scale of the loss."""
    return {"scaler": accelerator.scaler} if accelerator.scaler else {}


# ------------------------------------------------------------------------------------------------------ paths


class Paths:
    """Where a run reads and writes: `checkpoints`, `evaluation` and `plots` of one recipe, each made when used.

    Smoke runs live under `outputs/smoke`, so that they never touch a full run's results.
    """

    def __init__(self, recipe: str, scale: str = "full", output_dir: str | Path | None = None):
        home = ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()  # a checkout, or an installed package
        self.output_dir = Path(output_dir or os.environ.get("RLHF_OUTPUT_DIR") or home / "outputs")
        self.root = self.output_dir / "smoke" if scale == "smoke" else self.output_dir
        self.recipe = recipe

    def _folder(self, kind: str) -> Path:
        folder = self.root / kind / self.recipe
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UsageError(f"cannot write to {folder} ({error.strerror}): choose another --output-dir") from error
        return folder

    @property
    def checkpoints(self) -> Path:
        return self._folder("checkpoints")

    @property
    def evaluation(self) -> Path:
        return self._folder("evaluation")

    @property
    def plots(self) -> Path:
        return self._folder("plots")


@contextlib.contextmanager
def atomic_folder(folder: Path, keep_as: Path | None = None):
    """Write into the yielded temporary folder; on success it takes the place of `folder`, on failure nothing changes.

    What stood there before is deleted, or kept as `keep_as`.
    """
    folder = recover_folder(Path(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    if keep_as and old.exists():
        shutil.rmtree(keep_as, ignore_errors=True)
        old.rename(keep_as)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> Path:
    """`folder`, put back first if a kill fell between the two renames of `atomic_folder`."""
    old = folder.with_name(f".{folder.name}.old")
    if not folder.exists() and old.exists():
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            old.rename(folder)
    return folder


def write_atomic(path: Path, write) -> None:
    """Call `write(temporary_path)`, then move the file to `path` in one step; only the main process does."""
    if not processes.is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    write_atomic(Path(path), lambda p: p.write_text(json.dumps(value, indent=1) + "\n"))


def write_lines(file: Path, parts: dict) -> None:
    """JSON with one line for each entry of each part, so that one more run is one more line."""

    def text(part) -> str:
        if isinstance(part, dict):
            return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in part.items()) + "\n}"
        return "[\n" + ",\n".join(map(json.dumps, part)) + "\n]"

    whole = "{\n" + ",\n".join(f"{json.dumps(key)}: {text(part)}" for key, part in parts.items()) + "\n}\n"
    write_atomic(file, lambda p: p.write_text(whole))


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows of plain values under the union of their keys, in order of first appearance."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    returns = any("\r" in str(value) for row in rows for value in row.values())  # csv quotes only its own line ends

    def write(p):
        with open(p, "w", newline="") as file:
            writer = csv.DictWriter(
                file, keys, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
            )
            writer.writeheader()
            writer.writerows(rows)

    write_atomic(Path(path), write)


# ------------------------------------------------------------------------------------- training state and logs


class TrainingState:
    """One file that holds all a killed run needs to go on to the same numbers: see `save` and `load`."""

    def __init__(self, path: Path, fingerprint: dict):
        self.path, self.fingerprint = Path(path), fingerprint

    def save(self, step: int, rows: list[dict], **parts) -> None:
        """Keep the step, the logged rows, torch's random states and what training changes in every part.

        Of a model that is its trainable parameters: the others are those that it was loaded with.
        """
        state = {
            name: _trainable(part) if isinstance(part, torch.nn.Module) else part.state_dict()
            for name, part in parts.items()
        }
        rng = processes.gathered(
            (torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None)
        )
        payload = dict(step=step, rows=rows, parts=state, rng=rng, fingerprint=self.fingerprint)
        write_atomic(self.path, lambda p: torch.save(payload, p))

    def load(self, **parts) -> tuple[int, list[dict]]:
        """Restore the parts in place; returns (step, rows), or (0, []) when there is nothing to resume.

        Raises UsageError if the file belongs to another recipe, scale or seed.
        """
        if not self.path.exists():
            return 0, []
        payload = torch.load(self.path, map_location="cpu", weights_only=False)
        if payload["fingerprint"] != self.fingerprint:
            raise UsageError(
                f"cannot resume from {self.path}: it was written with other settings than this run's; "
                "use the same recipe, overrides, scale and seed, or start again without --resume"
            )
        for name, part in parts.items():
            saved = payload["parts"][name]
            if isinstance(part, torch.nn.Module):
                for key, parameter in _trainable(part).items():
                    parameter.copy_(saved[key])
            else:
                part.load_state_dict(saved)
        if processes.index() < len(payload["rng"]):  # else one more process than before, with a fresh state
            cpu, gpu = payload["rng"][processes.index()]
            torch.set_rng_state(cpu)
            if gpu is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(gpu)
        return payload["step"], payload["rows"]

    def set_aside(self) -> tuple[int, list]:
        """A fresh start: keep the resume point of an earlier run beside the new one's; returns (0, [])."""
        if processes.is_main() and self.path.exists():
            self.path.replace(self.path.with_suffix(".previous.pt"))
        return 0, []


def _trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


class MetricLog:
    """Rows of plain floats: kept in memory, and by the main process written as JSONL while training, as CSV at the end.

    `trackers` also get every row: "tensorboard", "wandb", both or none. W&B starts a run in the project `rlhf-course` (or
    WANDB_PROJECT), with WANDB_MODE=offline on this machine alone. Raises UsageError if a tracker cannot start.
    """

    def __init__(self, folder: Path, stage: str, rows: list[dict] = (), trackers: tuple[str, ...] = (),
                 settings: dict | None = None):  # fmt: skip
        self.folder, self.stage, self.rows = Path(folder), stage, list(rows)
        self.path = self.folder / f"{stage}_metrics.jsonl"
        self.started = False  # an earlier run's file stays until this run has something to say
        self.board = self.wandb = None
        if "tensorboard" in trackers and processes.is_main():
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.folder / "tensorboard" / stage)
        if "wandb" in trackers and processes.is_main():
            self.wandb = _start_wandb(self.folder, stage, settings)

    def add(self, step: int, metrics: dict) -> dict:
        """Append one row; raises TrainingFailure if a value is not finite."""
        row = {"step": step} | {key: float(value) for key, value in metrics.items()}
        check_finite(self.stage, step, row)
        self.rows.append(row)
        if not processes.is_main():
            return row
        new = self.rows if not self.started else [row]
        with open(self.path, "a" if self.started else "w") as file:
            file.write("".join(json.dumps(r) + "\n" for r in new))
        self.started = True
        if self.board:
            for key, value in metrics.items():
                self.board.add_scalar(f"{self.stage}/{key}", value, step)
        if self.wandb:
            self.wandb.log({f"{self.stage}/{key}": value for key, value in row.items()}, step=step)
        return row

    def close(self) -> list[dict]:
        write_csv(self.path.with_suffix(".csv"), self.rows)
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()
        return self.rows


def check_tracker(name: str) -> None:
    """Raises UsageError if a tracker's package is missing: before a run, not in the middle of it."""
    if name == "wandb" and importlib.util.find_spec("wandb") is None:
        raise UsageError(
            "--wandb needs the package wandb, which is not installed: run `pip install wandb`, or leave --wandb out"
        )


def _start_wandb(folder: Path, stage: str, settings: dict | None):
    check_tracker("wandb")
    import wandb

    project = os.environ.get("WANDB_PROJECT", "rlhf-course")
    try:
        return wandb.init(project=project, name=stage, dir=folder, config=settings or {})
    except (wandb.errors.Error, OSError) as error:
        raise UsageError(
            f"W&B cannot start ({' '.join(str(error).split())}): log in with `wandb login`, or set WANDB_MODE=offline"
        ) from error


def check_finite(stage: str, step: int, metrics: dict) -> None:
    for key, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingFailure(
                f"{stage} diverged at step {step}: {key} is {value}; likely causes are a learning rate that is too "
                "high, a bad batch or half precision, so lower the learning rate or set precision=no"
            )


def progress(iterable=None, **kwargs):
    """A tqdm bar; silent in CI, under RLHF_QUIET=1 (stored outputs), where nobody watches, in all but the main process."""
    in_notebook = getattr(get_ipython(), "kernel", None) is not None
    quiet = "CI" in os.environ or os.environ.get("RLHF_QUIET") == "1" or not (in_notebook or sys.stderr.isatty())
    return tqdm(iterable, disable=quiet or not processes.is_main(), leave=False, **kwargs)
