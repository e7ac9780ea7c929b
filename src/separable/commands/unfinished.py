"""What a distillation that has not ended leaves beside --out, so that a killed one goes on.

OUT.distilling/converted    the converted network before distillation, a saved network like any other
OUT.distilling/run          the checkpoints of `distill`, and curves for TensorBoard
"""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from separable import store
from separable.conversion.calibrate import replace
from separable.errors import InputError


class Unfinished:
    """The folder of one distillation.

    Args:
        out: where the result is to go.
        asked: what decides the converted network, as plain data by the name of its option.
        resume: take up what is there. overwrite: throw it away.
    """

    def __init__(self, out: Path, asked: dict[str, Any], *, resume: bool, overwrite: bool):
        place = out.absolute()
        self.folder = place.with_name(f"{place.name}.distilling")
        self.converted, self.run = self.folder / "converted", self.folder / "run"
        self.asked, self.resume = asked, resume
        if self.folder.exists() and not resume and not overwrite:
            rule = "holds a distillation that did not end; go on with --resume, or begin anew with --overwrite"
            raise InputError("--out", self.folder, rule)

    def load(self, dense: nn.Module) -> tuple[nn.Module, dict[str, Any]] | None:
        """The converted network and what is known of its conversion, where there is one to go on with.

        It is the dense network's own modules with the new layers in their places, for distillation matches blocks of
        the same class. The folder is refused if something else was asked for when it was written.
        """
        if not self.resume or not self.converted.exists():
            return None
        about = store.read_about(self.converted)
        for name, wanted in self.asked.items():
            before = about["asked"].get(name)
            if before != wanted:
                rule = f"was begun with {name} {before}, not {wanted}; ask for the same, or begin anew with --overwrite"
                raise InputError("--resume", self.folder, rule)
        loaded, network = store.load(self.converted), copy.deepcopy(dense)
        for layer in about["conversion"]["layers"]:
            if layer["form"] is not None:
                name = layer["name"]
                network = replace(network, network.get_submodule(name), loaded.get_submodule(name))
        for name, module in list(network.named_modules()):
            if _shapes(module) != _shapes(loaded.get_submodule(name)):  # a norm that lost channels with its layer
                network = replace(network, module, loaded.get_submodule(name))
        network.load_state_dict(loaded.state_dict())
        return network, about["conversion"]

    def keep(self, network: nn.Module, example: Tensor, conversion: dict[str, Any]) -> None:
        """Write the converted network; what an earlier distillation left goes."""
        self.remove()
        store.save(network, self.converted, example=example, about={"asked": self.asked, "conversion": conversion})

    def remove(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)


def _shapes(module: nn.Module) -> list[torch.Size]:
    """Of the tensors that a module itself holds."""
    return [tensor.shape for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
