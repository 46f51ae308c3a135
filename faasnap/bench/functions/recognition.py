# Stands in for the recognition of an image by a ResNet-50: as many bytes of
# weights, which are in memory already, applied to what an image gives.
import base64
import os

import numpy

SIDE = 1024
LAYERS = max(int(os.environ["SYNTHETIC_MB"]) * 100 // 1024, 1)  # of 4 MiB: 200 MB if lists have 512
weights = numpy.empty((LAYERS, SIDE, SIDE), dtype=numpy.float32)
for layer in range(LAYERS):
    weights[layer] = (numpy.arange(SIDE * SIDE, dtype=numpy.float32).reshape(SIDE, SIDE) % (97 + layer) - 48) / 1024


def handler(event, context):
    pixels = numpy.frombuffer(base64.b64decode(event["data"]), dtype=numpy.uint8)
    x = numpy.bincount(numpy.arange(len(pixels)) % SIDE, weights=pixels, minlength=SIDE).astype(numpy.float32)
    x /= x.max()
    for w in weights:
        x = numpy.tanh(w @ x)
    return {"answer": int(x.argmax())}
