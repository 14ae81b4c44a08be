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
