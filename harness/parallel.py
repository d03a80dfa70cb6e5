"""A run in several processes: in training each makes some of a step's passes, in prediction some batches.

Gradients are summed once a step. Only what learns has gradients to sum; it is small, and every process
holds it whole. The frozen language model is held whole too (``ddp``), or in shares that are gathered layer
by layer (``fsdp``; prediction holds it whole). So checkpoints are the same files, whatever the strategy and
the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, distributed, nn

__all__ = ["Workers"]

Item = TypeVar("Item")


class Workers:
    """This process among those that work on one run; alone where :func:`harness.running.processes.launch` did
    not start it.

    Attributes:
        rank: of this process, from 0.
        count: of processes.
        device: this process's own.
    """

    def __init__(self) -> None:
        """Join the process group that the launcher's environment names, if any."""
        state = PartialState(cpu=not torch.cuda.is_available())
        self._wait = state.wait_for_everyone
        self.rank: int = state.process_index
        self.count: int = state.num_processes
        self.device: torch.device = state.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def own(self, items: Sequence[Item]) -> list[tuple[int, Item]]:
        """This process's share of ``items``, each with its place among all of them."""
        return list(enumerate(items))[self.rank :: self.count]

    def wait(self) -> None:
        """Until every process is here."""
        self._wait()

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes, in every process; those of the first come first."""
        return items if self.count == 1 else gather_object(items)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over processes; a part that no forward pass touched has a gradient of 0."""
        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self.count > 1:
                distributed.all_reduce(parameter.grad)

    def sum_values(self, values: dict[str, float]) -> dict[str, float]:
        """Sum of each value over processes."""
        if self.count == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def share_out(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's ``tensors``: they start from the same bits."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def shard_frozen(self, language: Any) -> None:
        """Leave each process a share of the language model's frozen weights (FSDP2), layer by layer.

        Adapters, embeddings and the head are left whole, and what the decoder holds beside its layers: tokens
        that are dropped between layers pass through them one by one (:mod:`harness.models.pruning`).
        """
        if self.count == 1:
            return
        from torch.distributed.fsdp import fully_shard

        decoder = language.get_decoder()
        whole = {p for name, p in language.named_parameters() if "lora_" in name}
        whole |= {language.get_input_embeddings().weight, language.get_output_embeddings().weight}
        whole |= {p for name, p in decoder.named_parameters() if not name.startswith("layers.")}
        for layer in decoder.layers:
            fully_shard(layer, ignored_params=whole)
        fully_shard(decoder, ignored_params=whole)
