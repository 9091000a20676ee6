"""Encoders of a guide: networks from the data of a plate's rows to codes of the rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_nfvi._pyro_model.plate_layout import PlateLayout
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._plate_flow import PlateBlock
from pyro_nfvi.guides._row_data import RowData, Select, check_encoder, encode


class RowEncoders(nn.Module):
    """The encoders of a guide, with where their data are among the model's arguments.

    Args:
        nets: An encoder for some plates.
        select: For some of these a function of the model's arguments that returns its data.
        layout: The rows of all plates.
        batch: The rows that each plate has with these arguments.
        args: The model's arguments.
        kwargs: Its keyword arguments.

    Raises:
        OptionError: A plate without latents, data that are not found, an encoder that does not
            return a row for each row or that mixes rows.
    """

    def __init__(
        self,
        nets: Mapping[str, nn.Module],
        select: Mapping[str, Select],
        layout: PlateLayout,
        batch: Mapping[str, int],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets.values())
        self._data: dict[str, RowData] = {}
        #: Numbers that each plate's encoder makes of a row.
        self.widths: dict[str, int] = {}
        for plate, net in nets.items():
            if plate not in layout.sizes:
                raise OptionError(
                    f"There is an encoder for {plate!r}, and no latent in a plate of this name; "
                    f"the plates are {list(layout.sizes)}."
                )
            if plate in select:
                data = RowData(plate, (), select[plate])
            else:
                data = RowData.find(plate, (layout.sizes[plate], batch[plate]), args, kwargs)
            # Whatever the rows are: the data of all, or of a mini-batch.
            size = data.size(args, kwargs)
            given = data.take(args, kwargs, None, -1 if size is None else size)
            self._data[plate], self.widths[plate] = data, check_encoder(net, plate, given)

    def __getstate__(self) -> dict[str, Any]:
        # Functions of a user's own stay out of files.
        data = {plate: own.without_select() for plate, own in self._data.items()}
        return {**self.__dict__, "_data": data}

    def __deepcopy__(self, memo: dict[int, Any]) -> RowEncoders:
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        return clone

    def width(self, block: PlateBlock) -> int:
        """Return the numbers that encoders make of a row of a block; 0 where it has none."""
        return sum(self.widths.get(plate, 0) for plate in block.plates)

    def size(self, plate: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
        """Return the rows that an encoder's data have; None where they are no tensors."""
        return self._data[plate].size(args, kwargs)

    def encode(
        self,
        layout: PlateLayout,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        like: Tensor,
        *,
        trusted: bool = False,
    ) -> TensorDict:
        """Run the encoders on the data of a layout's rows: ``(R, k)`` for blocks that have one.

        With ``trusted`` no value is looked at, for a step that is recorded.
        """
        codes: TensorDict = {}
        for net, (plate, data) in zip(self.nets, self._data.items()):
            rows = layout.rows.get(plate)
            indexed = plate in layout.indexed
            given = data.take(
                args, kwargs, rows, layout.sizes[plate], indexed=indexed, trusted=trusted
            )
            code = encode(net, plate, given, self.widths[plate], rows, trusted=trusted)
            codes[plate] = code.to(like)
        found: TensorDict = {}
        for block in layout.blocks:
            if self.width(block):
                cells = layout.cells(block)
                parts = [codes[p][cells[p].to(like.device)] for p in block.plates if p in codes]
                found[block.name] = torch.cat(parts, -1)
        return found
