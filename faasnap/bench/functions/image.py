# Rotates a JPEG image.
import base64
import hashlib
import io

from PIL import Image


def handler(event, context):
    with Image.open(io.BytesIO(base64.b64decode(event["data"]))) as image:
        out = io.BytesIO()
        image.transpose(Image.ROTATE_90).save(out, format="jpeg")
    return {"answer": hashlib.sha256(out.getvalue()).hexdigest()}
