# Writes to every page of a large anonymous mapping.
import mmap
import os

SIZE = int(os.environ["SYNTHETIC_MB"]) << 20


def handler(event, context):
    with mmap.mmap(-1, SIZE) as region:
        for at in range(0, SIZE, mmap.PAGESIZE):
            region[at] = 1
        return {"answer": region[0] + region[SIZE - mmap.PAGESIZE]}
