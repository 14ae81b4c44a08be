from torch import Tensor

def instruction_sets() -> list[str]: ...

class Plan:
    def __init__(
        self,
        matrices: Tensor,
        offsets: list[tuple[int, int]],
        is_lower: bool,
        num_channels: int,
        height: int,
        width: int,
        instruction_set: str,
    ) -> None: ...
    def solve(self, z: Tensor, x: Tensor, channels_last: bool, num_threads: int) -> int: ...

class MaskedPlan:
    def __init__(
        self,
        first: Tensor,
        second: Tensor,
        last: Tensor,
        first_units: tuple[int, ...],
        max_log_scale: float,
        max_shift: float,
        max_input: float,
        offset: float,
        is_reversed: bool,
        height: int,
        width: int,
        instruction_set: str,
    ) -> None: ...
    def solve(self, z: Tensor, x: Tensor, num_threads: int) -> int: ...

def convolve(
    numbers: tuple[int, ...], x: Tensor, weight: Tensor, added: Tensor | None, z: Tensor, num_threads: int
) -> None: ...
def convolve_backward(numbers: tuple[int, ...], x: Tensor, weight: Tensor, *others: Tensor | int | None) -> None: ...
def convolve_mapped(
    numbers: tuple[int, ...], mapping_numbers: tuple[int, ...], x: Tensor, *others: Tensor | int | None
) -> None: ...
def convolve_mapped_backward(
    numbers: tuple[int, ...], mapping_numbers: tuple[int, ...], x: Tensor, *others: Tensor | int | None
) -> None: ...
def log_abs_det_of_spectrum(
    filters: Tensor, waves: Tensor, multiplicity: Tensor, of_filters: Tensor | None, num_threads: int
) -> float: ...
