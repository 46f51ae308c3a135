"""The function that the conformance scripts deploy and call."""

import json
import os
import time

VERSION = "one"


def handler(event, context):
    """Answers with what it was called with, or does what the event asks."""
    print("handling", json.dumps(event))
    if not isinstance(event, dict):
        return event
    if "fail" in event:
        raise ValueError(event["fail"])
    if "sleep" in event:
        time.sleep(event["sleep"])
    client = getattr(context, "client_context", None)
    custom = getattr(client, "custom", None) if client else None
    return {
        "version": VERSION,
        "event": event,
        "function": context.function_name,
        "request": context.aws_request_id,
        "memory": int(context.memory_limit_in_mb),
        "greeting": os.environ.get("GREETING", ""),
        "custom": custom,
    }
