"""Checkpoints of a run that may be stopped at any time."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Run:
    """A run's weights, their running average, AdamW's moments and the step, kept in a folder.

    A checkpoint goes on only with the plan that it was made with; its end alone may be moved.
    """

    def __init__(
        self, folder: Path, plan: Mapping[str, Any], weights: Mapping[str, Parameter], *, weight_decay: float = 0.01
    ) -> None:
        self.folder, self.plan, self.weights = folder, dict(plan), dict(weights)
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=1.0, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True
        )
        self.average = {name: one.detach().clone() for name, one in self.weights.items()}
        self.step = 0
        self._load()

    def learn(self, loss: Tensor, *, rate: float, decay: float) -> None:
        """Take one step down the loss; `decay` is that of the running average."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        now = min(decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - now)

    def use_average(self) -> None:
        """Put the running average into the networks; the run is over for this process."""
        with torch.no_grad():
            for name, parameter in self.weights.items():
                parameter.copy_(self.average[name])

    def save(self) -> None:
        """Write weights, average and moments; the rename makes it one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name, parameter in self.weights.items():
            tensors[f"weight.{name}"] = parameter.detach().contiguous()
            tensors[f"average.{name}"] = self.average[name].contiguous()
            for moment in MOMENTS:
                tensors[f"{moment}.{name}"] = self.optimizer.state[parameter][moment].contiguous()
        told = {"step": str(self.step), "plan": json.dumps(self.plan)}
        save_file(tensors, str(self.folder / "next.safetensors"), metadata=told)
        (self.folder / "next.safetensors").replace(self.folder / "state.safetensors")

    def _load(self) -> None:
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        with safe_open(str(path), "pt") as file:
            told = file.metadata()
            if {**json.loads(told["plan"]), "steps": 0} != json.loads(json.dumps({**self.plan, "steps": 0})):
                raise SystemExit(f"{self.folder} holds a run with another plan; remove it or give the same options.")
            self.step = int(told["step"])
            with torch.no_grad():
                for name, parameter in self.weights.items():
                    parameter.copy_(file.get_tensor(f"weight.{name}"))
                    self.average[name] = file.get_tensor(f"average.{name}")
                    self.optimizer.state[parameter] = {m: file.get_tensor(f"{m}.{name}") for m in MOMENTS}
