"""Runs Lambda handlers written in Python.

It finds the handler that _HANDLER names below LAMBDA_TASK_ROOT, and serves the
Runtime API's invocations with it, one at a time. It imports little, since every
import is a part of a cold start; traceback and the like come when needed.
"""

import json
import os
import sys
import time

import _socket  # socket itself costs more to import than all that is used here

_BASE = "/2018-06-01/runtime/"


class _Client:
    """One connection to the Runtime API, kept open."""

    def __init__(self, address, shortcut):
        self._host = address
        if shortcut:
            self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            self._socket.connect(shortcut)
        else:
            host, port = address.rsplit(":", 1)
            self._socket = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
            self._socket.connect((host, int(port)))
            self._socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self._left = b""

    def next(self):
        status, headers, body = self._call(f"GET {_BASE}invocation/next HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        if status != 200:
            raise OSError(f"next invocation: status {status}: {body[:200]!r}")
        return headers, body

    def post(self, path, body, content_type="application/json", headers=""):
        head = (
            f"POST {_BASE}{path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: {content_type}\r\n"
            f"{headers}Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        return self._call(head + body if len(body) < 65536 else head, body if len(body) >= 65536 else None)[0]

    def _call(self, request, body=None):
        self._socket.sendall(request)
        if body is not None:
            self._socket.sendall(body)
        data = self._left
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._receive(65536)
        lines = data[:end].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0))
        body = data[end + 4 :]
        if len(body) < length:
            parts = [body]
            missing = length - len(body)
            while missing > 0:
                parts.append(self._receive(min(missing, 1 << 20)))
                missing -= len(parts[-1])
            body = b"".join(parts)
        self._left = body[length:]
        return int(lines[0].split(" ", 2)[1]), headers, body[:length]

    def _receive(self, size):
        data = self._socket.recv(size)
        if not data:
            raise EOFError("the Runtime API closed the connection")
        return data


class _Fields:
    """An object with the given attributes."""

    def __init__(self, **fields):
        self.__dict__.update(fields)

    def __repr__(self):
        inner = ", ".join(f"{k}={v!r}" for k, v in self.__dict__.items() if not k.startswith("_"))
        return f"{type(self).__name__}([{inner}])"


class ClientContext(_Fields):
    """What the client says of itself: client, custom, env."""


class CognitoIdentity(_Fields):
    """Who the client is, for mobile SDKs."""


class LambdaContext(_Fields):
    """The second argument of a handler."""

    def get_remaining_time_in_millis(self):
        return max(int(self._deadline_ms - time.time() * 1000), 0)

    def log(self, message):
        sys.stdout.write(str(message))


def _context(headers):
    client = json.loads(headers.get("lambda-runtime-client-context") or "null")
    if isinstance(client, dict):
        app = client.get("client")
        if isinstance(app, dict):
            names = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")
            app = _Fields(**{name: app.get(name) for name in names})
        client = ClientContext(client=app, custom=client.get("custom"), env=client.get("env"))
    identity = json.loads(headers.get("lambda-runtime-cognito-identity") or "{}")
    env = os.environ.get
    return LambdaContext(
        aws_request_id=headers["lambda-runtime-aws-request-id"],
        invoked_function_arn=headers.get("lambda-runtime-invoked-function-arn"),
        function_name=env("AWS_LAMBDA_FUNCTION_NAME"),
        function_version=env("AWS_LAMBDA_FUNCTION_VERSION"),
        memory_limit_in_mb=env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE"),
        log_group_name=env("AWS_LAMBDA_LOG_GROUP_NAME"),
        log_stream_name=env("AWS_LAMBDA_LOG_STREAM_NAME"),
        client_context=client,
        identity=CognitoIdentity(
            cognito_identity_id=identity.get("cognitoIdentityId"),
            cognito_identity_pool_id=identity.get("cognitoIdentityPoolId"),
        ),
        tenant_id=headers.get("lambda-runtime-aws-tenant-id"),
        _deadline_ms=int(headers["lambda-runtime-deadline-ms"]),
    )


class _Fault(Exception):
    """An error that is reported with a type of the platform's."""

    def __init__(self, kind, message, trace=()):
        super().__init__(message)
        self.kind, self.trace = kind, list(trace)


def _load(name):
    """Imports the module of a handler and returns it and the function in it."""
    module_name, dot, function_name = name.rpartition(".")
    if not dot or not module_name or not function_name:
        raise _Fault("Runtime.MalformedHandlerName", f"Bad handler '{name}': write module.function")
    import importlib

    module_name = module_name.replace("/", ".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise _Fault("Runtime.ImportModuleError", f"Unable to import module '{module_name}': {error}") from error
    except SyntaxError as error:
        where = [f'  File "{error.filename}" Line {error.lineno}\n    {error.text}']
        raise _Fault("Runtime.UserCodeSyntaxError", f"Syntax error in module '{module_name}': {error}", where) from error
    if not hasattr(module, function_name):
        raise _Fault("Runtime.HandlerNotFound", f"Handler '{function_name}' missing on module '{module_name}'")
    return module, getattr(module, function_name)


def _after_restore(module, headers):
    """Makes this copy of a process, restored from a snapshot, one of its own.

    The kernel's random numbers are already. What libraries have drawn from them
    for later is not, and neither is what the function knows to be its own: its
    hook after_restore sees to that.
    """
    if random := sys.modules.get("random"):
        random.seed()
    if numpy := sys.modules.get("numpy.random"):
        numpy.seed()
    if ssl := sys.modules.get("ssl"):
        ssl.RAND_add(os.urandom(32), 32.0)
    for name in ("VOLLEY_ADDRESS", "VOLLEY_ADDRESS6"):
        if address := headers.get(name.lower().replace("_", "-")):
            os.environ[name] = address
    if hook := getattr(module, "after_restore", None):
        hook()


def _failure(error, request_id=""):
    """Returns the type of an error, and what is reported of it; logs it."""
    if isinstance(error, _Fault):
        kind, trace = error.kind, error.trace
    else:
        import traceback

        kind = type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        while frames and frames[0].filename == __file__:
            del frames[0]
        trace = traceback.format_list(frames)
    report = {"errorMessage": str(error), "errorType": kind, "requestId": request_id, "stackTrace": trace}
    text = f"[ERROR] {kind}: {error}"
    if trace:
        text += "\nTraceback (most recent call last):\n" + "".join(trace)
    print(text.rstrip("\n"), flush=True)
    # One message of many megabytes shall not hide itself behind a limit.
    report["errorMessage"] = report["errorMessage"][: 1 << 18]
    return kind, json.dumps(report).encode("utf-8", "replace")


def _encode_other(value):
    """Says how json writes what it does not know."""
    decimal = sys.modules.get("decimal")
    if decimal and isinstance(value, decimal.Decimal):
        return float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _answer(handler, event, context):
    """Calls the handler and returns its answer as bytes with their type."""
    try:
        event = json.loads(event) if event else None
    except ValueError as error:
        raise _Fault("Runtime.UnmarshalError", f"Unable to unmarshal input: {error}") from None
    result = handler(event, context)
    if isinstance(result, (bytes, bytearray, memoryview)):
        return bytes(result), "application/octet-stream"
    try:
        return json.dumps(result, ensure_ascii=False, default=_encode_other).encode(), "application/json"
    except (TypeError, ValueError, UnicodeError) as error:
        raise _Fault("Runtime.MarshalError", f"Unable to marshal response: {error}") from None


class _Logging:
    """Gives the root logger a handler, once the function uses logging."""

    def __init__(self):
        self.request_id = ""
        self._done = False

    def attach(self):
        if self._done or "logging" not in sys.modules:
            return
        self._done = True
        logging = sys.modules["logging"]
        if logging.root.handlers:
            return
        ours = self

        class Formatter(logging.Formatter):
            converter = time.gmtime

            def format(self, record):
                record.aws_request_id = ours.request_id
                return super().format(record)

        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(
            Formatter("[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s", "%Y-%m-%dT%H:%M:%S")
        )
        logging.root.addHandler(handler)


def _flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # the function closed it
            pass


def main():
    sys.path[0] = os.environ["LAMBDA_TASK_ROOT"]
    sys.stdout.reconfigure(line_buffering=True)
    client = _Client(os.environ["AWS_LAMBDA_RUNTIME_API"], os.environ.pop("VOLLEY_RUNTIME_SOCKET", ""))
    logs = _Logging()
    try:
        module, handler = _load(os.environ.get("_HANDLER", ""))
    except Exception as error:
        kind, report = _failure(error)
        client.post("init/error", report, headers=f"Lambda-Runtime-Function-Error-Type: {kind}\r\n")
        sys.exit(1)
    restored = False
    while True:
        logs.attach()
        headers, event = client.next()
        request_id = headers["lambda-runtime-aws-request-id"]
        logs.request_id = request_id
        if trace_id := headers.get("lambda-runtime-trace-id"):
            os.environ["_X_AMZN_TRACE_ID"] = trace_id
        else:
            os.environ.pop("_X_AMZN_TRACE_ID", None)
        restored = restored or "volley-restored" in headers
        try:
            if restored:
                _after_restore(module, headers)
                restored = False  # after an error it is tried again
            answer, content_type = _answer(handler, event, _context(headers))
        except Exception as error:
            kind, report = _failure(error, request_id)
            _flush()
            client.post(f"invocation/{request_id}/error", report, headers=f"Lambda-Runtime-Function-Error-Type: {kind}\r\n")
        else:
            _flush()
            client.post(f"invocation/{request_id}/response", answer, content_type)


if __name__ == "__main__":
    main()
