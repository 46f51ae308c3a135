# Writes to every page of a large anonymous mapping.
import mmap
import os

SIZE = int(os.environ["SYNTHETIC_MB"]) << 20


def handler(event, context):
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as region:
        for at in range(0, SIZE, mmap.PAGESIZE):
            region[at] = 1
        return {"answer": region[0] + region[SIZE - mmap.PAGESIZE]}
