"""The time of a model's matrix products alone, at the shapes of one request.

Every product that a forward pass computes runs bare: torch and ONNX Runtime multiply prepared operands into a prepared result on
one thread, and the faster of the two counts. What is left out is everything else: lookups, sums, activations, the order of the operations. No
backend that multiplies float32 matrices with one of the two can score a request in less time.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from thinktwice.data.encoded import Batch
from thinktwice.models import Backbone

Shape = tuple[int, int, int, int]  # number of products, rows, inner size, columns
SECONDS = 0.02  # of measuring one shape with one library
LEAST = 5  # calls
ONE = 1e-5  # seconds below which a call is repeated within one measurement

aten = torch.ops.aten


def products_of(model: Backbone, request: Batch) -> Counter[Shape]:
    """Shapes of the products in one request, with how often each occurs."""
    shapes: Counter[Shape] = Counter()

    def product(a: torch.Size, b: torch.Size, *rest: object, **options: object) -> int:
        shapes[(a[0] if len(a) == 3 else 1, a[-2], a[-1], b[-1])] += 1
        return 0

    def sum_and_product(start: torch.Size, a: torch.Size, b: torch.Size, *rest: object, **options: object) -> int:
        return product(a, b)

    counted = {aten.mm: product, aten.bmm: product, aten.addmm: sum_and_product, aten.baddbmm: sum_and_product}
    with FlopCounterMode(display=False, custom_mapping=counted):
        model(request)
    return shapes


def floor_seconds(shapes: Counter[Shape]) -> float:
    """CPU seconds of these products on one thread."""
    return sum(number * min(_torch_seconds(shape), _onnx_seconds(shape)) for shape, number in shapes.items())


def _torch_seconds(shape: Shape) -> float:
    number, rows, inner, columns = shape
    if number == 1:
        a, b, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
        return _seconds(lambda: torch.mm(a, b, out=out))
    a, b = torch.randn(number, rows, inner), torch.randn(number, inner, columns)
    out = torch.empty(number, rows, columns)
    return _seconds(lambda: torch.bmm(a, b, out=out))


def _onnx_seconds(shape: Shape) -> float:
    """The second operand of a single product is part of the graph, as weights are, so that the runtime may store it as it likes."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    number, rows, inner, columns = shape
    random, batch = np.random.default_rng(0), [] if number == 1 else [number]
    a = random.standard_normal([*batch, rows, inner], np.float32)
    b = random.standard_normal([*batch, inner, columns], np.float32)
    out = np.empty((*batch, rows, columns), np.float32)
    values = {"a": a} if number == 1 else {"a": a, "b": b}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["out"])],
        "product",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in values.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, out.shape)],
        [numpy_helper.from_array(b, "b")] if number == 1 else [],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    binding.bind_ortvalue_output("out", onnxruntime.OrtValue.ortvalue_from_numpy(out))
    return _seconds(lambda: session.run_with_iobinding(binding))


def _seconds(call: Callable[[], object]) -> float:
    """Median CPU seconds of a call."""
    call()
    start = time.process_time()
    call()
    repeats = max(1, round(ONE / max(time.process_time() - start, 1e-9)))
    spent: list[float] = []
    while len(spent) < LEAST or sum(spent) * repeats < SECONDS:
        start = time.process_time()
        for _ in range(repeats):
            call()
        spent.append((time.process_time() - start) / repeats)
    return statistics.median(spent)
