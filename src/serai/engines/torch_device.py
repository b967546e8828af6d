"""Taking the device that the runtime gave, for every engine that computes with torch."""

from serai.engines.base import EngineSpec
from serai.engines.quiet import quieten, quieten_transformers
from serai.errors import LoadFailed

quieten()
import torch  # noqa: E402 - what the fork server is to have imported


def take_device(spec: EngineSpec) -> None:
    """Keep to the threads, the card and the share of its memory that `spec` gives. Raises LoadFailed."""
    torch.set_num_threads(spec.threads)
    quieten_transformers()
    if not spec.device.startswith("cuda"):
        return
    if not torch.cuda.is_available():
        raise LoadFailed("torch finds no CUDA device.", hint="Check 'nvidia-smi' and that torch is built for CUDA.")
    torch.cuda.set_device(spec.device)
    if spec.memory_bytes:
        total = torch.cuda.get_device_properties(spec.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, spec.memory_bytes / total), spec.device)
