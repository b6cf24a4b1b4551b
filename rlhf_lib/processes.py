"""Several processes, one for each GPU: what each takes as its share, and how the shares come together again.

Every process runs the same lines over the same rows, and draws the same order and the same noise. What costs is divided:
a process samples, scores and learns its share of the rows. Then the results are added up, so that all of them go on with
the same numbers: the weights stay equal without being sent. Only the main process writes and prints.

Left out: DistributedDataParallel. It adds gradients up while the backward pass still runs, and for that wraps the model,
which here also samples, switches its adapter off and trains its critic alone. Added up once a step, after the last
micro-batch, they are the same. Also left out is FSDP, which divides the weights themselves: sampling needs them whole.
With one process nothing here does anything.
"""

import os

import torch
import torch.distributed as dist
from accelerate.state import PartialState


def count() -> int:
    """Processes that work together; `runtime.make_accelerator` brings them together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    """This process's number, which the launcher gives it at once; 0 is the main process."""
    return dist.get_rank() if count() > 1 else int(os.environ.get("RANK", 0))


def is_main() -> bool:
    return index() == 0


def share(rows):
    """This process's part of a list or range: every `count()`-th row, so that shares of sorted rows are alike."""
    return rows if count() == 1 else rows[index() :: count()]


def gathered(part) -> list:
    """`part`, which lies on no GPU, of each process in order."""
    if count() == 1:
        return [part]
    parts = [None] * count()
    dist.all_gather_object(parts, part)
    return parts


def summed(x: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over the processes: where each filled its own rows and left the others 0, all rows."""
    if count() == 1:
        return x
    total = x.to(PartialState().device, copy=True)
    dist.all_reduce(total)
    return total.to(x.device)


def summed_stats(stats: dict[str, float]) -> dict[str, float]:
    """The sum of each number over the processes; one whose share was empty brings none."""
    if count() == 1:
        return stats
    parts = gathered(stats)
    return {key: sum(part.get(key, 0.0) for part in parts) for key in dict.fromkeys(k for part in parts for k in part)}


def sum_gradients(module: torch.nn.Module) -> None:
    """Add up the gradients of all processes, in place; each has weighted its losses by its share of the tokens."""
    if count() == 1:
        return
    parameters = [p for p in module.parameters() if p.requires_grad]
    for start in range(0, len(parameters), 32):  # one message for many small tensors
        some = parameters[start : start + 32]
        whole = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in some])
        dist.all_reduce(whole)
        for parameter, part in zip(some, whole.split([p.numel() for p in some]), strict=True):
            parameter.grad = part.view_as(parameter)


def wait() -> None:
    """Until every process is here: what the main process wrote before can be read after."""
    if count() > 1:
        PartialState().wait_for_everyone()


def part_company() -> None:
    """At the end of a run."""
    if count() > 1:
        PartialState().destroy_process_group()
