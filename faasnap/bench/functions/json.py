# Deserialises and serialises JSON.
import hashlib
import json


def handler(event, context):
    text = json.dumps(json.loads(event["data"]), indent=4)
    return {"answer": hashlib.sha256(text.encode()).hexdigest()}
