"""Nothing saved is ever lost, a resumed run belongs to its settings, and divergence stops with its likely causes."""

import csv
import json
import math
import sys
import types

import pytest
import torch
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_lib import runtime
from rlhf_lib.runtime import MetricLog, Paths, TrainingFailure, TrainingState, UsageError, atomic_folder, recover_folder

# --------------------------------------------------------------------------------------------- folders and files


@pytest.fixture
def folder(tmp_path):
    """A folder that holds a model already."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    return tmp_path / "model"


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_a_folder_is_replaced_as_a_whole(folder):
    (folder / "stale").write_text("x")
    with atomic_folder(folder) as fresh:
        (fresh / "weights").write_text("new")
        assert (folder / "weights").read_text() == "old"  # until the body is done
    assert names(folder) == ["weights"] and (folder / "weights").read_text() == "new"
    assert names(folder.parent) == ["model"]


def test_what_stood_there_can_be_kept_beside_the_new_folder(folder):
    for new, kept in (("new", "old"), ("newer", "new")):
        with atomic_folder(folder, keep_as=folder.with_name("model.previous")) as fresh:
            (fresh / "weights").write_text(new)
        assert (folder / "weights").read_text() == new
        assert (folder.with_name("model.previous") / "weights").read_text() == kept
    assert names(folder.parent) == ["model", "model.previous"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_body_that_raises_leaves_the_old_folder_and_no_litter(folder, error):
    with pytest.raises(type(error)), atomic_folder(folder) as fresh:
        (fresh / "weights").write_text("half")
        raise error
    assert (folder / "weights").read_text() == "old"
    assert names(folder.parent) == ["model"]


def test_a_new_folder_appears_with_its_parents(tmp_path):
    with atomic_folder(tmp_path / "a" / "b") as fresh:
        (fresh / "weights").write_text("new")
    assert names(tmp_path / "a" / "b") == ["weights"]


def test_a_kill_between_the_two_renames_loses_nothing(folder, monkeypatch):
    rename, renamed = type(folder).rename, []

    def killed_at_the_second(self, target):
        renamed.append(target)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(folder), "rename", killed_at_the_second)
        with atomic_folder(folder) as fresh:
            (fresh / "weights").write_text("new")
    assert not folder.exists()
    assert recover_folder(folder) == folder
    assert (folder / "weights").read_text() == "old"
    with atomic_folder(folder) as fresh:  # and what the kill left behind is in nobody's way
        (fresh / "weights").write_text("newer")
    assert names(folder.parent) == ["model"] and (folder / "weights").read_text() == "newer"


def test_recovery_leaves_a_present_folder_alone(folder):
    (folder.parent / ".model.old").mkdir()
    assert (recover_folder(folder) / "weights").read_text() == "old"
    assert not recover_folder(folder.parent / "absent").exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "x.json"
    runtime.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        runtime.write_json(path, {"a": object()})

    def half(p):
        p.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        runtime.write_atomic(path, half)
    assert json.loads(path.read_text()) == {"a": 1} and names(path.parent) == ["x.json"]


def test_csv_rows_share_the_union_of_their_keys(tmp_path):
    runtime.write_csv(tmp_path / "x.csv", [{"step": 1, "a": 2.0}, {"step": 2, "b": 3.0}])
    assert (tmp_path / "x.csv").read_text() == "step,a,b\n1,2.0,\n2,,3.0\n"


def test_csv_gives_back_whatever_a_model_wrote(tmp_path):
    texts = ["a\rb", "\r\n", 'say "hi", please', "", "\u2028"]
    runtime.write_csv(tmp_path / "x.csv", [{"text": text, "n": 1} for text in texts])
    with open(tmp_path / "x.csv", newline="") as file:
        assert [(row["text"], row["n"]) for row in csv.DictReader(file)] == [(text, "1") for text in texts]


def test_smoke_runs_write_beside_full_runs_and_never_among_them(tmp_path):
    full, smoke = Paths("tiny", "full", tmp_path), Paths("tiny", "smoke", tmp_path)
    assert full.checkpoints == tmp_path / "checkpoints" / "tiny"
    for kind in ("checkpoints", "evaluation", "plots"):
        assert getattr(smoke, kind) == tmp_path / "smoke" / kind / "tiny"
        assert getattr(smoke, kind).is_dir()


# ------------------------------------------------------------------------------------------------ training state


def parts(seed: int) -> dict:
    torch.manual_seed(seed)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return dict(model=model, optimizer=optimizer)


def walk(model, optimizer, steps: int):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.randn(4, 2)) - 1).square().mean().backward()
        optimizer.step()


def test_a_loaded_state_goes_on_to_the_same_numbers(tmp_path):
    state, first = TrainingState(tmp_path / "s.pt", {"seed": 1}), parts(0)
    walk(**first, steps=3)
    state.save(3, [{"step": 3}], **first)
    walk(**first, steps=3)
    second = parts(1)
    assert state.load(**second) == (3, [{"step": 3}])
    walk(**second, steps=3)  # its moments and its random numbers are the first one's
    assert torch.equal(first["model"].weight, second["model"].weight)


def test_without_a_file_there_is_nothing_to_resume(tmp_path):
    assert TrainingState(tmp_path / "s.pt", {}).load(**parts(0)) == (0, [])


def test_a_state_of_other_settings_is_a_usage_error_and_changes_nothing(tmp_path):
    TrainingState(tmp_path / "s.pt", {"lr": 1.0}).save(3, [], **parts(0))
    other = parts(1)
    before = other["model"].weight.detach().clone()
    with pytest.raises(UsageError, match="s.pt: it was written with other settings .* without --resume$"):
        TrainingState(tmp_path / "s.pt", {"lr": 2.0}).load(**other)
    assert torch.equal(other["model"].weight, before)


def test_a_disk_that_fills_while_saving_keeps_the_last_state(tmp_path, monkeypatch):
    state, model = TrainingState(tmp_path / "s.pt", {}), parts(0)
    state.save(1, [], **model)

    def full(payload, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(torch, "save", full)
        state.save(2, [], **model)
    assert state.load(**model)[0] == 1 and names(tmp_path) == ["s.pt"]


def test_a_fresh_start_keeps_the_resume_point_of_an_earlier_run(tmp_path):
    state, model = TrainingState(tmp_path / "s.pt", {}), parts(0)
    assert state.set_aside() == (0, []) and names(tmp_path) == []
    state.save(7, [], **model)
    assert state.set_aside() == (0, []) and names(tmp_path) == ["s.previous.pt"]
    assert TrainingState(tmp_path / "s.previous.pt", {}).load(**model)[0] == 7


def test_a_log_of_an_earlier_run_stays_until_the_new_run_has_a_row(tmp_path):
    MetricLog(tmp_path, "sft").add(1, {"loss": 1.0})
    before = (tmp_path / "sft_metrics.jsonl").read_text()
    log = MetricLog(tmp_path, "sft")
    assert (tmp_path / "sft_metrics.jsonl").read_text() == before
    with pytest.raises(TrainingFailure):
        log.add(1, {"loss": math.nan})
    assert (tmp_path / "sft_metrics.jsonl").read_text() == before  # and NaN, which is no JSON, is never written
    log.add(1, {"loss": 2.0})
    assert read(tmp_path / "sft_metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def test_an_output_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another --output-dir"):
        _ = Paths("tiny", "full", tmp_path / "file").checkpoints


def test_a_folder_left_by_a_kill_between_two_renames_survives_the_next_save(tmp_path):
    (tmp_path / ".sft.old").mkdir()
    (tmp_path / ".sft.old" / "weights").write_text("precious")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "sft"):
        raise RuntimeError("killed again")
    assert (tmp_path / "sft" / "weights").read_text() == "precious"


# ----------------------------------------------------------------------------------------------------- metric log


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path):
    log = MetricLog(tmp_path, "sft")
    assert log.add(1, {"loss": torch.tensor(2.0)}) == {"step": 1, "loss": 2.0}
    log.add(2, {"loss": 1.0, "validation_loss": 1.5})
    assert read(log.path) == log.rows == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "validation_loss": 1.5}]
    assert log.close() == log.rows
    with open(tmp_path / "sft_metrics.csv", newline="") as file:
        assert [row["validation_loss"] for row in csv.DictReader(file)] == ["", "1.5"]


def test_a_resumed_log_drops_the_rows_after_its_state(tmp_path):
    log = MetricLog(tmp_path, "sft")
    for step in (1, 2, 3):
        log.add(step, {"loss": 1.0})
    again = MetricLog(tmp_path, "sft", log.rows[:1])
    again.add(2, {"loss": 0.5})
    assert read(again.path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert len(log.rows) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_stops_and_keeps_the_earlier_rows(tmp_path, value):
    log = MetricLog(tmp_path, "reward")
    log.add(1, {"loss": 0.5})
    with pytest.raises(TrainingFailure, match="reward diverged at step 2: grad_norm is .*likely causes") as error:
        log.add(2, {"loss": 0.4, "grad_norm": value})
    assert "\n" not in str(error.value)
    assert read(log.path)[0] == {"step": 1, "loss": 0.5}


def test_tensorboard_gets_every_metric(tmp_path):
    log = MetricLog(tmp_path, "ppo", trackers=("tensorboard",))
    log.add(1, {"objective/kl": 2.0})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "ppo")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("ppo/objective/kl")] == [(1, 2.0)]


def test_wandb_offline_writes_a_run_folder_with_every_metric(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="an extra: pip install rlhf-course[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = MetricLog(tmp_path, "ppo", trackers=("wandb",), settings={"seed": 1})
    log.add(1, {"objective/kl": 2.0})
    log.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"ppo/objective/kl" in file.read_bytes()


class FakeRun:
    def __init__(self):
        self.rows, self.finished = [], False

    def log(self, row, step):
        self.rows.append((step, row))

    def finish(self):
        self.finished = True


def test_wandb_gets_every_row_and_the_settings(tmp_path, monkeypatch):
    run, started = FakeRun(), {}
    module = types.SimpleNamespace(init=lambda **settings: started.update(settings) or run)
    monkeypatch.setattr(runtime, "check_tracker", lambda name: None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    log = MetricLog(tmp_path, "sft", trackers=("wandb",), settings={"seed": 1})
    log.add(3, {"loss": 0.5})
    log.close()
    assert run.rows == [(3, {"sft/step": 3, "sft/loss": 0.5})] and run.finished
    assert started["config"] == {"seed": 1} and started["dir"] == tmp_path and started["name"] == "sft"


def test_a_missing_wandb_is_one_sentence(monkeypatch):
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install wandb"):
        MetricLog("nowhere", "sft", trackers=("wandb",))


def test_without_a_checkout_outputs_go_to_the_working_directory(tmp_path, monkeypatch):
    """A package installed with pip lies in site-packages, where nobody looks for plots."""
    monkeypatch.delenv("RLHF_OUTPUT_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Paths("tiny").output_dir == runtime.ROOT / "outputs"
    monkeypatch.setattr(runtime, "ROOT", tmp_path / "site-packages")
    assert Paths("tiny").output_dir == tmp_path / "outputs"


def test_a_mac_trains_on_its_cpu(monkeypatch):
    """Sampling needs float64, which Apple's GPUs lack."""
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda *_: True)
    AcceleratorState._reset_state(True)
    assert runtime.make_accelerator("no").device.type in ("cpu", "cuda")
    AcceleratorState._reset_state(True)
