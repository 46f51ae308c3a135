# Multiplies two square matrices.
import numpy


def handler(event, context):
    n, rng = event["size"], numpy.random.default_rng(event["seed"])
    a = rng.integers(-8, 8, (n, n)).astype(float)
    b = rng.integers(-8, 8, (n, n)).astype(float)
    # The elements are whole numbers, so their sum does not depend on an order.
    return {"answer": float(numpy.abs(a @ b).sum())}
