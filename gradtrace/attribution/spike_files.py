"""A ready `on_spike` callback: what is needed to look at a spike's batches again, in a file."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradtrace.records import Spike, event_to_dict
from gradtrace.runlog.atomic import write_atomically

if TYPE_CHECKING:
    from torch import Tensor


class SpikeFiles:
    """Writes one JSON file a spike into `directory`, which is made when the first one comes.

        gradtrace(model, loader=loader, on_spike=SpikeFiles("spikes"))

    A file holds the whole event, batches and sample ids included, and the state of torch's CPU
    generator when the event was handled: in the background, up to half a second after the step, so
    it is the state that the loop went on with, not the one the batch was drawn with. `read` gives
    both back. Raises OSError where the file cannot be written, which the trace notes and survives;
    TypeError or ValueError where it is made, for what is no path of a folder.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        text = os.fspath(directory) if isinstance(directory, (str, os.PathLike)) else directory
        advice = "expected the path of a folder for spikes (made when missing), such as 'spikes'"
        if not isinstance(text, str):
            raise TypeError(f"directory is {directory!r}; {advice}")
        if not text or "\0" in text:
            raise ValueError(f"directory is {text!r}; {advice}")
        self.directory = Path(text)
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(
                f"directory is {str(directory)!r}, which is a file; expected a folder for spikes"
            )

    def __call__(self, spike: Spike) -> None:
        """Writes the file of one spike."""
        import torch  # loaded already where there is a training to have a spike

        self.directory.mkdir(parents=True, exist_ok=True)
        signal = re.sub(r"\W", "_", spike.signal)
        path = self.directory / f"spike-{spike.step:08d}-{signal}-rank{spike.rank}.json"
        state = torch.get_rng_state().numpy().tobytes()
        whole = {"spike": event_to_dict(spike), "rng": base64.b64encode(state).decode()}
        write_atomically(path, json.dumps(whole, default=str))

    @staticmethod
    def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Tensor]:
        """The event as a mapping, and the generator's state for `torch.set_rng_state`.

        Raises ValueError for a file that is not of this kind.
        """
        import torch

        try:
            whole = json.loads(Path(path).read_text(encoding="utf-8"))
            state = bytearray(base64.b64decode(whole["rng"], validate=True))
            return whole["spike"], torch.frombuffer(state, dtype=torch.uint8).clone()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} is no file of a spike: {error}") from error
