"""The model that assets measure with: loaded on first use, once a run, on one device or on several.

Plain data goes in and comes out, so that what asks for measurements needs neither torch nor a GPU to import.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING

from resources.quiet import quieten_transformers
from resources.scoring.samples import Request, Sample, SampleSignals
from resources.scoring.spec import PassSpec

if TYPE_CHECKING:
    from resources.embedder import EmbeddingPass
    from resources.scoring.devices import DeviceGroup
    from resources.scoring.forward import ForwardPass


class Scorer:
    """Measures samples with one checkpoint. Use it in a `with` block: worker processes end with it.

    Args:
        spec: the checkpoint and the settings that it is measured under.
        device: `auto` (every visible CUDA device, else the CPU), `cpu`, `cuda`, or several: `cuda:0,cuda:1`.
    """

    def __init__(self, spec: PassSpec, device: str = "auto") -> None:
        self.spec = spec
        self.device = device
        self._workers = ExitStack()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    @cached_property
    def _devices(self) -> list[str]:
        from resources.scoring.devices import devices_of  # noqa: PLC0415

        return devices_of(self.device)

    @property
    def device_count(self) -> int:
        """On how many devices it measures."""
        return len(self._devices)

    @cached_property
    def _pass(self) -> ForwardPass | DeviceGroup | EmbeddingPass:
        # Torch and transformers take seconds to import: only runs that measure pay for them.
        quieten_transformers()
        from resources.scoring.devices import DeviceGroup, make_pass  # noqa: PLC0415

        if self.spec.embedding_model:
            from resources.embedder import EmbeddingPass  # noqa: PLC0415

            return EmbeddingPass(self.spec, self._devices[0])
        if len(self._devices) > 1:
            return self._workers.enter_context(DeviceGroup(self.spec, self._devices, quieten_transformers))
        return make_pass(self.spec, self._devices[0])

    def device_name(self) -> str:
        """What the model runs on, as people call it."""
        from resources.scoring.devices import device_name  # noqa: PLC0415

        names = [device_name(device) for device in self._devices]
        return names[0] if len(names) == 1 else " + ".join(f"{names.count(n)} x {n}" for n in sorted(set(names)))

    def measure(
        self, samples: Sequence[Sample], request: Request, progress: Callable[[int], None] | None = None
    ) -> Generator[list[SampleSignals], None, None]:
        """The requested signals of samples, in order of completion; see `resources.scoring.forward.ForwardPass`.

        Close it when it is not used up: what works on it ends then.
        """
        yield from self._pass.stream(samples, request, progress)
