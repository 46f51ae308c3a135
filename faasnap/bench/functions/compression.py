# Compresses a file in two ways.
import base64
import hashlib
import lzma
import zlib


def handler(event, context):
    path = "/tmp/input"
    with open(path, "wb") as f:
        f.write(base64.b64decode(event["data"]))
    with open(path, "rb") as f:
        content = f.read()
    packed = zlib.compress(content, 9) + lzma.compress(content, preset=1)
    return {"answer": hashlib.sha256(packed).hexdigest()}
