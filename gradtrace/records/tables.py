"""Statistics of many layers at one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
"""float64 of any shape."""

MOMENT_COLUMNS = ("norm", "mean", "std", "max_abs", "zero_fraction", "nonfinite")
ACTIVATION_COLUMNS = (*MOMENT_COLUMNS, "min", "max")
UPDATE_COLUMNS = ("norm", "ratio")

TABLE_COLUMNS: dict[str, tuple[str, ...]] = {
    "gradients": MOMENT_COLUMNS,
    "weights": MOMENT_COLUMNS,
    "activations": ACTIVATION_COLUMNS,
    "output_gradients": MOMENT_COLUMNS,
    "updates": UPDATE_COLUMNS,
}
"""The statistics of a step's layers and their columns; also the names of the run log's files.

The order is that of the `layers` column on disk: a new table comes last.
"""

HISTOGRAMS = "histograms"
LAYER_TABLES = (*TABLE_COLUMNS, HISTOGRAMS)
"""The fields of a `StepRecord` that hold a row for each layer."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerTable:
    """Statistics of many layers at one step: `values` [layers, columns], float64.

    Rows are in the order of `names`, columns in that of `columns`: `norm` (L2), `mean`, `std`
    (population), `max_abs`, all in the tensor's own unit, `zero_fraction` (0 to 1), `nonfinite`
    (count); activations also `min` and `max`; updates `norm` and `ratio` (|update| / |weight|).
    NaN in a cell means not measured or not measurable; `nonfinite` tells bad tensors apart.
    """

    names: tuple[str, ...]
    values: Array
    columns: tuple[str, ...]

    def __getitem__(self, key: tuple[str, str]) -> float:
        """One cell: `table["fc1.weight", "norm"]`. Raises KeyError naming what there is."""
        name, column = key
        if name not in self.names:
            shown = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
            raise KeyError(f"no layer {name!r} in this table; it has: {shown}")
        return float(self.column(column)[self.names.index(name)])

    def column(self, column: str) -> Array:
        """All layers' values of one column, [layers], in the order of `names`; a view.

        Raises KeyError naming what there is.
        """
        if column not in self.columns:
            raise KeyError(f"no column {column!r} in this table; it has: {', '.join(self.columns)}")
        values: Array = self.values[:, self.columns.index(column)]
        return values

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        """Equal names, columns and values; NaN cells equal each other."""
        if not isinstance(other, LayerTable):
            return NotImplemented
        return (
            self.names == other.names
            and self.columns == other.columns
            and np.array_equal(self.values, other.values, equal_nan=True)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def nbytes(self) -> int:
        """What the values take, in bytes."""
        return self.values.nbytes
