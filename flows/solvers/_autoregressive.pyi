def instruction_sets() -> list[str]: ...

class Plan:
    def __init__(
        self,
        matrices: int,
        real_size: int,
        offsets: list[tuple[int, int]],
        is_lower: bool,
        num_channels: int,
        height: int,
        width: int,
        instruction_set: str,
    ) -> None: ...
    def solve(self, z: int, x: int, num_images: int, channels_last: bool, num_threads: int) -> int: ...

class MaskedPlan:
    def __init__(
        self,
        first: int,
        second: int,
        last: int,
        real_size: int,
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
    def solve(self, z: int, x: int, num_images: int, num_threads: int) -> int: ...
