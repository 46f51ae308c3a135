"""Works with a function through boto3, as a user of AWS Lambda would, and
checks every answer.

    boto3_client.py --endpoint-url URL [--code FILE] [--prefix NAME]

Keys and region come from the environment, as always with boto3. The exit
status is 0 when all is as it should be, and 1 with a traceback when not.
"""

import argparse
import base64
import hashlib
import io
import json
import os
import pathlib
import re
import time
import urllib.request
import zipfile

import boto3
import botocore.config
import botocore.exceptions

ROLE = "arn:aws:iam::000000000000:role/any"
LATEST = "$LATEST"


def client(endpoint, **keys):
    config = botocore.config.Config(retries={"max_attempts": 0}, parameter_validation=keys.pop("validate", True))
    region = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
    return boto3.client("lambda", endpoint_url=endpoint, region_name=region, config=config, **keys)


def pack(source, version):
    """The zip file of the function, as the given version."""
    text = re.sub(r'(?m)^VERSION = .*$', f'VERSION = "{version}"', source)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("index.py", text)
    return out.getvalue()


def want(got, expected):
    assert got == expected, f"got {got!r}, want {expected!r}"


def refused(error, status, call, **args):
    """Makes a call that must fail with an error and a status."""
    try:
        answer = call(**args)
    except botocore.exceptions.ClientError as e:
        want((e.response["Error"]["Code"], e.response["ResponseMetadata"]["HTTPStatusCode"]), (error, status))
        return e.response
    raise AssertionError(f"succeeded with {answer}, want {error}")


def invoke(api, name, event=None, **args):
    if event is not None:
        args["Payload"] = json.dumps(event)
    answer = api.invoke(FunctionName=name, **args)
    return answer, json.loads(answer["Payload"].read() or "null")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint-url", required=True)
    parser.add_argument("--code", type=pathlib.Path, default=pathlib.Path(__file__).with_name("index.py"))
    parser.add_argument("--prefix", default="boto3")
    o = parser.parse_args()
    api = client(o.endpoint_url)
    name = f"{o.prefix}-{os.getpid()}"
    try:
        work(api, name, o.code.read_text(), o.endpoint_url)
    finally:
        try:
            api.delete_function(FunctionName=name)
        except botocore.exceptions.ClientError:
            pass  # it is gone already
    print("boto3 works as it should")


def work(api, name, source, endpoint):
    one, two = pack(source, "one"), pack(source, "two")
    create = dict(
        FunctionName=name, Runtime="python3.11", Handler="index.handler", Role=ROLE, Code={"ZipFile": one}, Timeout=20,
        MemorySize=128, Environment={"Variables": {"GREETING": "hello"}}, Tags={"team": "a"}, Publish=True,
        EphemeralStorage={"Size": 512}, TracingConfig={"Mode": "PassThrough"}, Architectures=["x86_64"])
    made = api.create_function(**create)
    want(made["CodeSha256"], base64.b64encode(hashlib.sha256(one).digest()).decode())
    want((made["State"], made["LastUpdateStatus"], made["Version"]), ("Active", "Successful", LATEST))
    api.get_waiter("function_active_v2").wait(FunctionName=name)
    refused("ResourceConflictException", 409, api.create_function, **create)
    arn = made["FunctionArn"]

    names = [f["FunctionName"] for page in api.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 2})
             for f in page["Functions"]]
    want(names.count(name), 1)
    got = api.get_function(FunctionName=arn)
    want(urllib.request.urlopen(got["Code"]["Location"]).read(), one)
    want(got["Tags"], {"team": "a"})
    want(api.get_function_configuration(FunctionName=name, Qualifier=LATEST)["FunctionArn"], f"{arn}:{LATEST}")
    refused("ResourceNotFoundException", 404, api.get_function, FunctionName=name + "-none")

    context = base64.b64encode(b'{"custom": {"k": "v"}}').decode()
    answer, result = invoke(api, name, {"a": [1, "ü"]}, LogType="Tail", ClientContext=context)
    want((answer["StatusCode"], answer["ExecutedVersion"], "FunctionError" in answer), (200, LATEST, False))
    want((result["event"], result["custom"], result["version"], result["greeting"]), ({"a": [1, "ü"]}, {"k": "v"}, "one", "hello"))
    want(result["request"], answer["ResponseMetadata"]["RequestId"])
    assert b"handling" in base64.b64decode(answer["LogResult"])
    answer, result = invoke(api, name, {"fail": "on purpose"})
    want((answer["StatusCode"], answer["FunctionError"]), (200, "Unhandled"))
    want((result["errorType"], result["errorMessage"]), ("ValueError", "on purpose"))
    for event in (None, "text", 1, [], {}, {"large": "x" * 1_000_000}):
        answer, result = invoke(api, arn, event)
        want(answer["StatusCode"], 200)
        want(result["event"] if isinstance(result, dict) else result, {} if event is None else event)
    want(invoke(api, name, {"b": 2}, InvocationType="Event")[0]["StatusCode"], 202)
    want(invoke(api, name, {}, InvocationType="DryRun")[0]["StatusCode"], 204)
    want(api.invoke_async(FunctionName=name, InvokeArgs=b"{}")["Status"], 202)
    refused("InvalidRequestContentException", 400, api.invoke, FunctionName=name, Payload=b"no JSON")
    refused("RequestTooLargeException", 413, api.invoke, FunctionName=name, Payload=json.dumps("x" * (6 << 20)))
    refused("RequestTooLargeException", 413, api.invoke, FunctionName=name, Payload=json.dumps("x" * (1 << 20)), InvocationType="Event")
    if hasattr(api, "invoke_with_response_stream"):
        stream(api, name)

    refused("PreconditionFailedException", 412, api.update_function_code, FunctionName=name, ZipFile=two, RevisionId="other")
    want(api.update_function_code(FunctionName=name, ZipFile=two, DryRun=True)["RevisionId"], made["RevisionId"])
    updated = api.update_function_code(FunctionName=name, ZipFile=two, RevisionId=made["RevisionId"])
    api.get_waiter("function_updated_v2").wait(FunctionName=name)
    assert updated["RevisionId"] != made["RevisionId"]
    want(invoke(api, name)[1]["version"], "two")
    updated = api.update_function_configuration(FunctionName=name, MemorySize=192, Environment={"Variables": {"GREETING": "bye"}})
    want((updated["MemorySize"], updated["Timeout"], updated["Handler"]), (192, 20, "index.handler"))
    result = invoke(api, name)[1]
    want((result["memory"], result["greeting"]), (192, "bye"))
    careless = client(endpoint, validate=False)
    refused("InvalidParameterValueException", 400, careless.update_function_configuration, FunctionName=name, MemorySize=-1)

    want(api.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)["ReservedConcurrentExecutions"], 0)
    throttled = refused("TooManyRequestsException", 429, api.invoke, FunctionName=name)
    want(throttled["Reason"], "ReservedFunctionConcurrentInvocationLimitExceeded")
    want(api.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=5)["ReservedConcurrentExecutions"], 5)
    want(api.get_function_concurrency(FunctionName=name)["ReservedConcurrentExecutions"], 5)
    provisioned(api, name)
    api.delete_function_concurrency(FunctionName=name)
    want("ReservedConcurrentExecutions" in api.get_function_concurrency(FunctionName=name), False)

    api.put_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=1, MaximumEventAgeInSeconds=60,
                                         DestinationConfig={"OnFailure": {"Destination": arn}, "OnSuccess": {}})
    api.update_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=0)
    got = api.get_function_event_invoke_config(FunctionName=name)
    want((got["MaximumRetryAttempts"], got["MaximumEventAgeInSeconds"], got["DestinationConfig"]["OnFailure"]["Destination"]), (0, 60, arn))
    assert abs(got["LastModified"].timestamp() - time.time()) < 300
    want(len(api.list_function_event_invoke_configs(FunctionName=name)["FunctionEventInvokeConfigs"]), 1)
    api.delete_function_event_invoke_config(FunctionName=name)
    refused("ResourceNotFoundException", 404, api.get_function_event_invoke_config, FunctionName=name)

    api.tag_resource(Resource=arn, Tags={"team": "b", "place": "there"})
    api.untag_resource(Resource=arn, TagKeys=["place"])
    want(api.list_tags(Resource=arn)["Tags"], {"team": "b"})
    want([v["Version"] for v in api.list_versions_by_function(FunctionName=name)["Versions"]], [LATEST])
    want(api.list_aliases(FunctionName=name)["Aliases"], [])
    assert api.get_account_settings()["AccountUsage"]["FunctionCount"] >= 1
    refused("ResourceNotFoundException", 404, api.get_policy, FunctionName=name)
    refused("InvalidParameterValueException", 400, api.publish_version, FunctionName=name)

    wrong = client(endpoint, aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"], aws_secret_access_key="wrong")
    refused("InvalidSignatureException", 403, wrong.list_functions)
    unknown = client(endpoint, aws_access_key_id="AKIAUNKNOWN", aws_secret_access_key="wrong")
    refused("UnrecognizedClientException", 403, unknown.invoke, FunctionName=name)

    api.delete_function(FunctionName=name)
    refused("ResourceNotFoundException", 404, api.delete_function, FunctionName=name)


def stream(api, name):
    """Only newer versions of boto3 can do this."""
    answer = api.invoke_with_response_stream(FunctionName=name, Payload=json.dumps({"s": 1}), LogType="Tail")
    events = list(answer["EventStream"])
    text = b"".join(e["PayloadChunk"]["Payload"] for e in events if "PayloadChunk" in e)
    want(json.loads(text)["event"], {"s": 1})
    assert b"handling" in base64.b64decode(events[-1]["InvokeComplete"]["LogResult"])


def provisioned(api, name):
    refused("ProvisionedConcurrencyConfigNotFoundException", 404, api.get_provisioned_concurrency_config, FunctionName=name, Qualifier=LATEST)
    put = api.put_provisioned_concurrency_config(FunctionName=name, Qualifier=LATEST, ProvisionedConcurrentExecutions=1)
    want(put["RequestedProvisionedConcurrentExecutions"], 1)
    deadline = time.monotonic() + 30
    while True:
        got = api.get_provisioned_concurrency_config(FunctionName=name, Qualifier=LATEST)
        if got["Status"] == "READY":
            break
        assert time.monotonic() < deadline, f"it does not get ready: {got}"
        time.sleep(0.2)
    want(got["AvailableProvisionedConcurrentExecutions"], 1)
    want(len(api.list_provisioned_concurrency_configs(FunctionName=name)["ProvisionedConcurrencyConfigs"]), 1)
    api.delete_provisioned_concurrency_config(FunctionName=name, Qualifier=LATEST)
    want(api.list_provisioned_concurrency_configs(FunctionName=name)["ProvisionedConcurrencyConfigs"], [])


if __name__ == "__main__":
    main()
