"""NetCDF files of conversions, written whole or not at all."""

from __future__ import annotations

import os
from typing import Any

from pyro_nfvi._files.atomic_files import whole_file
from pyro_nfvi._option_names import knows_options
from pyro_nfvi.errors import OptionError


@knows_options
def save_netcdf(data: Any, path: str | os.PathLike[str], *, engine: str = "h5netcdf") -> None:
    """Write what :func:`to_arviz` returned to a netCDF file, all of it or nothing.

    ``data.to_netcdf(path)`` writes into the file itself: a process that ends meanwhile leaves half
    of it, and nothing of an earlier one. Read it with ``arviz.from_netcdf``.

    Args:
        data: What :func:`to_arviz` returned, of either line of ArviZ.
        path: The file.
        engine: What writes it, as in ``to_netcdf``.

    Raises:
        OptionError: ``data`` is no conversion.
        FileError: The folder is missing or read-only, or the disk is full.

    Example:
        >>> import os, tempfile, torch
        >>> from pyro_nfvi import to_arviz
        >>> from pyro_nfvi.arviz import save_netcdf
        >>> path = os.path.join(tempfile.mkdtemp(), "draws.nc")
        >>> save_netcdf(to_arviz({"x": torch.zeros(10)}), path)
        >>> os.listdir(os.path.dirname(path))
        ['draws.nc']
    """
    if not hasattr(data, "to_netcdf"):
        raise OptionError(
            f"save_netcdf takes what to_arviz returned; got {type(data).__name__}. Convert it "
            "first: save_netcdf(fit.to_arviz(), path)."
        )
    with whole_file(path, "netCDF file") as draft:
        data.to_netcdf(str(draft), engine=engine)
