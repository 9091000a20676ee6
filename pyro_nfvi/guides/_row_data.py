"""Data of the rows of a plate among the model's arguments, and encoders of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import DataError, ModelWarning, NFVIError, OptionError

#: Takes the model's arguments, returns a tensor, or several, with the rows on the leading axis.
Select: TypeAlias = Callable[..., Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class RowData:
    """Places of a plate's data among the model's arguments.

    Attributes:
        plate: The plate.
        places: Positions and names of the arguments.
        select: A function of the user's in their place.
    """

    plate: str
    places: tuple[int | str, ...]
    select: Select | None = None

    @classmethod
    def find(
        cls, plate: str, counts: tuple[int, int], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> RowData:
        """Find the tensors whose leading axis is the plate's, of all rows or of the mini-batch.

        Raises:
            OptionError: There is none.
        """
        given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        places = tuple(
            place
            for place, value in given
            if isinstance(value, Tensor) and value.dim() and len(value) in counts
        )
        if not places:
            raise OptionError(
                f"The encoder of the plate {plate!r} needs data of its rows: no argument of the "
                f"model is a tensor with {' or '.join(map(str, dict.fromkeys(counts)))} on its "
                f"leading axis. Say what it gets: select={{{plate!r}: lambda *args: ...}}."
            )
        return cls(plate, places)

    def without_select(self) -> RowData:
        """Return the same without the user's function."""
        return replace(self, select=None)

    def take(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rows: Tensor | None,
        count: int,
        *,
        indexed: bool = False,
        trusted: bool = False,
    ) -> list[Tensor]:
        """Return the data of some rows.

        Args:
            args: The model's arguments: those of all rows, or those of the mini-batch.
            kwargs: Its keyword arguments.
            rows: Numbers of the rows; None for all.
            count: How many they are.
            indexed: They are places in these data, also where the data have as many rows.
            trusted: They are rows of the data; their numbers are not looked at.

        Raises:
            OptionError: An argument is missing or has another number of rows.
        """
        found = list[Tensor]()
        for value in self._given(args, kwargs):
            size = len(value) if isinstance(value, Tensor) and value.dim() else None
            if size == count and not indexed:
                found.append(value)
            elif size is not None and rows is not None and (trusted or size > int(rows.max())):
                found.append(value[rows.to(value.device)])
            else:
                came = type(value).__name__ if size is None else f"{size} rows"
                raise OptionError(
                    f"The encoder of the plate {self.plate!r} needs the data of its rows, {count} "
                    f"now; got {came}. Pass the model's arguments, those of all rows or those of "
                    "the mini-batch."
                )
        return found

    def size(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
        """Return the number of rows of the data; None where they are no tensors."""
        given = self._given(args, kwargs)
        first = given[0] if given else None
        return len(first) if isinstance(first, Tensor) and first.dim() else None

    def _given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        if self.select is not None:
            chosen = self.select(*args, **kwargs)
            return [chosen] if isinstance(chosen, Tensor) else list(chosen)
        if not self.places:
            raise OptionError(
                f"The function that selects the data of the plate {self.plate!r} is not part of a "
                "file. Build the guide with it, and take load_state_dict."
            )
        missing = [
            p for p in self.places if (p >= len(args) if isinstance(p, int) else p not in kwargs)
        ]
        if missing:
            raise OptionError(
                f"The encoder of the plate {self.plate!r} needs the model's argument "
                f"{missing[0]!r}, which has the data of its rows; it was not given. Pass the "
                "model's arguments."
            )
        return [args[p] if isinstance(p, int) else kwargs[p] for p in self.places]


def encode(
    net: nn.Module,
    plate: str,
    data: Sequence[Tensor],
    width: int | None,
    rows: Tensor | None = None,
    *,
    trusted: bool = False,
) -> Tensor:
    """Run an encoder on rows' data: ``(B, k)``.

    Args:
        net: The encoder.
        plate: Its plate.
        data: What it gets, with B rows on the leading axis.
        width: k as it was at set-up; None if it is not known yet.
        rows: Numbers of the rows, for errors; 0 to B - 1 if None.
        trusted: Its numbers are not looked at.

    Raises:
        OptionError: What it returns is no tensor ``(B, k)``, or of another width than at set-up.
        DataError: It is not finite in a row, which is named.
    """
    try:
        code = net(*data)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, NFVIError):
            raise
        shapes = ", ".join(str(tuple(x.shape)) for x in data)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OptionError(
            f"The encoder of the plate {plate!r} cannot take the data of its rows, {shapes}: "
            f"{reason}. Build it for these; or say what it gets: select={{{plate!r}: lambda *args: "
            "...}."
        ) from error
    count = len(data[0])
    came = tuple(code.shape) if isinstance(code, Tensor) else type(code).__name__
    if not isinstance(code, Tensor) or code.dim() != 2 or len(code) != count:
        raise OptionError(
            f"The encoder of the plate {plate!r} needs to return a tensor ({count}, k), a row for "
            f"each row of its data; got {came}."
        )
    if width is not None and code.shape[1] != width:
        raise OptionError(
            f"The encoder of the plate {plate!r} returned {width} numbers a row when the guide was "
            f"set up, and {code.shape[1]} now. Its width has to stay."
        )
    if trusted:
        return code
    bad = ~code.detach().isfinite().all(-1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        number = row if rows is None else int(rows[row])
        broken = not all(bool(x[row].isfinite().all()) for x in data if x.is_floating_point())
        cause = "its data are not finite there" if broken else "its data are finite there"
        raise DataError(
            f"The encoder of the plate {plate!r} gives numbers that are not finite for row "
            f"{number}: {cause}. Take the row out, or fill in what is missing."
        )
    return code


@torch.no_grad()
def check_encoder(net: nn.Module, plate: str, data: Sequence[Tensor]) -> int:
    """Examine an encoder on the data of set-up; return its width k.

    Raises:
        OptionError: It returns no row for each row, or a row depends on others.

    Warns:
        ModelWarning: It has batch normalisation, which mixes rows in training alone.
    """
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules()):
        warn(
            f"The encoder of the plate {plate!r} has batch normalisation, by which a row depends "
            "on the others of its mini-batch in train mode. NFVI leaves its running numbers as "
            "they are; SVI trains on mixed rows, and draws by the running numbers. Standardise the "
            "data once, or take torch.nn.LayerNorm.",
            ModelWarning,
        )
    with scoring(net):
        code = encode(net, plate, data, None)
        count = len(code)
        order = torch.arange(count)
        trials = {
            "in another order": torch.roll(order.flip(0), count // 3),
            "without the others": order[: max(1, count // 3)],
        }
        for how, rows in trials.items():
            again = encode(net, plate, [x[rows.to(x.device)] for x in data], None)
            # A row alone takes other kernels than a batch: they differ by rounding.
            if not torch.allclose(again, code[rows.to(code.device)], rtol=1e-3, atol=1e-4):
                raise OptionError(
                    f"The encoder of the plate {plate!r} mixes rows: a row gets other numbers "
                    f"{how}. Each row's code may depend on its own data alone; take statistics "
                    "over rows (batch normalisation without running numbers, centring, attention "
                    "over the batch) out of it."
                )
    return code.shape[1]
