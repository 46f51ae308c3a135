def handler(event, context):
    return {"answer": "hello"}
