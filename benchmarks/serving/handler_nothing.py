"""The handler to compare with that does nothing: what TorchServe itself takes."""

from __future__ import annotations

from typing import Any

ANSWER_BYTES = 17_000  # of an answer to 100 candidates


class Nothing:
    """Answers the same bytes to everybody, as many as a real answer has: what TorchServe itself takes."""

    def initialize(self, context: Any) -> None:
        import torch

        torch.set_num_threads(1)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        return [b'{"predictions": []}'.ljust(ANSWER_BYTES)] * len(data)
