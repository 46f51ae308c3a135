// Runs Lambda handlers written in JavaScript: ECMAScript modules and CommonJS,
// asynchronous, with callbacks, and streaming.
//
// It finds the handler that _HANDLER names below LAMBDA_TASK_ROOT and serves the
// Runtime API's invocations with it, one at a time, over one connection. It
// speaks HTTP itself: node:http costs more to load and to use than all of this.

import fs from 'node:fs';
import { createRequire } from 'node:module';
import net from 'node:net';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const BASE = '/2018-06-01/runtime/';
const STREAMING = Symbol.for('volley.streaming');
const HTTP_INTEGRATION = 'application/vnd.awslambda.http-integration-response';

// Fault is an error that is reported with a type of the platform's.
class Fault extends Error {
  constructor(type, message, cause) {
    super(message, { cause });
    this.name = type;
    if (cause?.stack) this.stack = `${type}: ${message}\n${cause.stack}`;
  }
}

// Client is one connection to the Runtime API, kept open, with one request at
// a time.
class Client {
  constructor(address) {
    const at = address.lastIndexOf(':');
    this.host = address;
    this.received = Buffer.alloc(0);
    this.waiting = null;
    const shortcut = process.env.VOLLEY_RUNTIME_SOCKET;
    delete process.env.VOLLEY_RUNTIME_SOCKET;
    this.socket = shortcut ? net.connect(shortcut) : net.connect({ host: address.slice(0, at), port: Number(address.slice(at + 1)), noDelay: true });
    this.socket.on('data', (data) => this.receive(data));
    const lost = (error) => {
      console.error(`Runtime API: ${error?.message ?? 'the connection was closed'}`);
      process.exit(1);
    };
    this.socket.on('error', lost);
    this.socket.on('close', () => lost());
  }

  receive(data) {
    if (this.received.length === 0) this.received = data;
    else if (this.parts) this.parts.push(data);
    else this.received = Buffer.concat([this.received, data]);
    if (this.parts) {
      // A long body is put together once, when it is all there.
      this.missing -= data.length;
      if (this.missing > 0) return;
      this.received = Buffer.concat(this.parts);
      this.parts = null;
    }
    const end = this.received.indexOf('\r\n\r\n');
    if (end < 0) return;
    const lines = this.received.toString('latin1', 0, end).split('\r\n');
    const headers = {};
    for (const line of lines.slice(1)) {
      const colon = line.indexOf(':');
      headers[line.slice(0, colon).toLowerCase()] = line.slice(colon + 1).trim();
    }
    const from = end + 4;
    const to = from + Number(headers['content-length'] ?? 0);
    if (this.received.length < to) {
      this.parts = [this.received];
      this.missing = to - this.received.length;
      return;
    }
    const body = this.received.subarray(from, to);
    this.received = this.received.subarray(to);
    const waiting = this.waiting;
    this.waiting = null;
    waiting?.({ status: Number(lines[0].split(' ')[1]), headers, body });
  }

  answer() {
    return new Promise((resolve) => { this.waiting = resolve; });
  }

  async next() {
    this.socket.write(`GET ${BASE}invocation/next HTTP/1.1\r\nHost: ${this.host}\r\n\r\n`);
    const { status, headers, body } = await this.answer();
    if (status !== 200) throw new Error(`next invocation: status ${status}: ${body}`);
    return { headers, body };
  }

  head(where, contentType, more) {
    return `POST ${BASE}${where} HTTP/1.1\r\nHost: ${this.host}\r\nContent-Type: ${contentType}\r\n${more}\r\n`;
  }

  async post(where, body, { contentType = 'application/json', more = '' } = {}) {
    const data = Buffer.from(body);
    this.socket.cork();
    this.socket.write(this.head(where, contentType, `${more}Content-Length: ${data.length}\r\n`));
    this.socket.write(data);
    this.socket.uncork();
    return (await this.answer()).status;
  }
}

// describe returns the type of an error, and what is reported of it.
function describe(error) {
  if (error instanceof Error || (error && typeof error === 'object' && 'message' in error)) {
    return {
      errorType: String(error.name ?? 'Error'),
      errorMessage: String(error.message),
      trace: String(error.stack ?? '').split('\n'),
    };
  }
  let message = String(error);
  if (typeof error === 'object') {
    try { message = JSON.stringify(error); } catch { /* what String says has to do */ }
  }
  return { errorType: typeof error, errorMessage: message, trace: [] };
}

function typeHeader(report) {
  return `Lambda-Runtime-Function-Error-Type: ${report.errorType.replace(/[^\x21-\x7e]/g, '_').slice(0, 200)}\r\n`;
}

// ---- the handler

function nearestType(file) {
  for (let dir = path.dirname(file); ; dir = path.dirname(dir)) {
    try {
      return JSON.parse(fs.readFileSync(path.join(dir, 'package.json'), 'utf8')).type;
    } catch (error) {
      if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') return undefined;
    }
    if (dir === path.dirname(dir)) return undefined;
  }
}

async function loadModule(file) {
  if (file.endsWith('.mjs') || (!file.endsWith('.cjs') && nearestType(file) === 'module')) {
    return import(pathToFileURL(file).href);
  }
  return createRequire(file)(file);
}

async function loadHandler(root, name) {
  const dir = path.dirname(name);
  const match = /^([^.]+)\.(.+)$/.exec(path.basename(name));
  if (!match) throw new Fault('Runtime.MalformedHandlerName', `Bad handler '${name}': write module.function`);
  const stem = path.join(root, dir, match[1]);
  const file = ['', '.js', '.mjs', '.cjs'].map((ext) => stem + ext).find((f) => fs.statSync(f, { throwIfNoEntry: false })?.isFile());
  if (!file) throw new Fault('Runtime.ImportModuleError', `Cannot find module '${path.join(dir, match[1])}'`);
  let module;
  try {
    module = await loadModule(file);
  } catch (error) {
    if (error instanceof SyntaxError) throw new Fault('Runtime.UserCodeSyntaxError', String(error), error);
    if (error?.code === 'MODULE_NOT_FOUND' || error?.code === 'ERR_MODULE_NOT_FOUND') {
      throw new Fault('Runtime.ImportModuleError', String(error.message ?? error), error);
    }
    throw error;
  }
  const find = (from) => match[2].split('.').reduce((value, key) => value?.[key], from);
  const handler = find(module) ?? find(module?.default);
  if (handler === undefined) throw new Fault('Runtime.HandlerNotFound', `${name} is undefined or not exported`);
  if (typeof handler !== 'function') throw new Fault('Runtime.HandlerNotFound', `${name} is not a function`);
  return { handler, hook: module.afterRestore ?? module.default?.afterRestore };
}

// setAddresses tells where on its network this copy is.
function setAddresses(headers) {
  for (const name of ['VOLLEY_ADDRESS', 'VOLLEY_ADDRESS6']) {
    const address = headers[name.toLowerCase().replace('_', '-')];
    if (address) process.env[name] = address;
  }
}

// reseed gives Math.random, whose state is the same in all processes restored
// from one snapshot, one from the kernel's random numbers.
function reseed() {
  const file = fs.openSync('/dev/urandom', 'r');
  const seed = new Uint32Array(4);
  try {
    fs.readSync(file, seed, 0, seed.byteLength, null);
  } finally {
    fs.closeSync(file);
  }
  let [a, b, c, d] = seed;
  const word = () => { // sfc32
    const t = (a + b + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + t) | 0;
    return t >>> 0;
  };
  Math.random = () => ((word() >>> 5) * 67108864 + (word() >>> 6)) / 9007199254740992;
}

// ---- streaming

// lambdaGlobals is what functions find as awslambda.
function lambdaGlobals() {
  return {
    streamifyResponse(handler, options) {
      handler[STREAMING] = options ?? {};
      return handler;
    },
    HttpResponseStream: {
      // from makes a stream's answer begin with status and headers.
      from(stream, metadata) {
        stream.setContentType(HTTP_INTEGRATION);
        stream.prelude = Buffer.concat([Buffer.from(JSON.stringify(metadata)), Buffer.alloc(8)]);
        return stream;
      },
    },
  };
}

// responseStream returns the stream that a streaming handler writes to. Nothing
// is sent before the first byte, so that an error until then is an ordinary one.
async function responseStream(client, requestId) {
  const { Writable } = await import('node:stream');
  return new class extends Writable {
    begun = false;
    contentType = 'application/octet-stream';
    prelude = null;

    setContentType(type) {
      if (this.begun) throw new Error('setContentType after the answer has begun');
      this.contentType = type;
    }

    begin() {
      if (this.begun) return;
      this.begun = true;
      this.accepted = client.answer();
      client.socket.write(client.head(`invocation/${requestId}/response`, this.contentType,
        'Lambda-Runtime-Function-Response-Mode: streaming\r\nTransfer-Encoding: chunked\r\n'
        + 'Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n'));
      if (this.prelude) this.chunk(this.prelude);
    }

    chunk(data, done) {
      if (data.length === 0) { done?.(); return; }
      client.socket.cork();
      client.socket.write(`${data.length.toString(16)}\r\n`);
      client.socket.write(data);
      client.socket.write('\r\n', done);
      client.socket.uncork();
    }

    _write(data, encoding, done) {
      this.begin();
      this.chunk(typeof data === 'string' ? Buffer.from(data, encoding) : data, done);
    }

    _final(done) {
      this.begin();
      done();
    }

    // close of the answer, with an error if there is one.
    finish(report) {
      let trailers = '';
      if (report) {
        trailers = `${typeHeader(report)}Lambda-Runtime-Function-Error-Body: ${Buffer.from(JSON.stringify(report)).toString('base64')}\r\n`;
      }
      client.socket.write(`0\r\n${trailers}\r\n`);
      return this.accepted;
    }
  }();
}

async function serveStream(client, handler, event, context, control, requestId) {
  const stream = await responseStream(client, requestId);
  control.stream = stream;
  const finished = new Promise((resolve, reject) => {
    stream.on('finish', resolve);
    stream.on('error', reject);
  });
  finished.catch(() => {});
  try {
    await handler(event, stream, context);
    if (!stream.writableEnded) stream.end();
    await finished;
  } catch (error) {
    const report = describe(error);
    console.error('Invoke Error', error);
    stream.on('error', () => {});
    if (!stream.begun) {
      await client.post(`invocation/${requestId}/error`, JSON.stringify(report), { more: typeHeader(report) });
      return;
    }
    await stream.finish(report);
    return;
  }
  await stream.finish();
}

// ---- whole answers

// call runs a handler to its end: a promise, a callback, or an event loop with
// nothing left to do.
function call(handler, event, context, control) {
  return new Promise((resolve, reject) => {
    let settled = null;
    const settle = (act) => {
      if (settled) return;
      settled = act;
      if (!control.waitForEmptyLoop) act();
    };
    const callback = (error, value) => settle(() => (error ? reject(error) : resolve(value)));
    context.done = callback;
    context.succeed = (value) => settle(() => resolve(value));
    context.fail = (error) => settle(() => reject(error ?? new Error('handled')));
    control.loopIsEmpty = () => (settled ?? (() => resolve(undefined)))();
    let returned;
    try {
      returned = handler(event, context, callback);
    } catch (error) {
      reject(error);
      return;
    }
    if (typeof returned?.then === 'function') returned.then(resolve, reject);
  });
}

function makeContext(headers, control) {
  const deadline = Number(headers['lambda-runtime-deadline-ms']);
  const json = (name) => (headers[name] ? JSON.parse(headers[name]) : undefined);
  return {
    get callbackWaitsForEmptyEventLoop() { return control.waitForEmptyLoop; },
    set callbackWaitsForEmptyEventLoop(wait) { control.waitForEmptyLoop = Boolean(wait); },
    functionVersion: process.env.AWS_LAMBDA_FUNCTION_VERSION,
    functionName: process.env.AWS_LAMBDA_FUNCTION_NAME,
    memoryLimitInMB: process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: process.env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: process.env.AWS_LAMBDA_LOG_STREAM_NAME,
    clientContext: json('lambda-runtime-client-context'),
    identity: json('lambda-runtime-cognito-identity'),
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    awsRequestId: headers['lambda-runtime-aws-request-id'],
    getRemainingTimeInMillis: () => Math.max(deadline - Date.now(), 0),
  };
}

async function serveWhole(client, handler, event, context, control, requestId) {
  let answer;
  try {
    const value = await call(handler, event, context, control);
    answer = JSON.stringify(value === undefined ? null : value);
    if (answer === undefined) throw new Fault('Runtime.MarshalError', `Unable to stringify an answer of type ${typeof value}`);
  } catch (error) {
    const report = describe(error);
    console.error('Invoke Error', error);
    client.socket.ref();
    await client.post(`invocation/${requestId}/error`, JSON.stringify(report), { more: typeHeader(report) });
    return;
  }
  client.socket.ref();
  await client.post(`invocation/${requestId}/response`, answer);
}

// ---- the loop

async function main() {
  const client = new Client(process.env.AWS_LAMBDA_RUNTIME_API);
  globalThis.awslambda = lambdaGlobals();
  let requestId = '';
  const control = { waitForEmptyLoop: true, loopIsEmpty: null, stream: null };

  // What nobody catches ends the process, after it has been told.
  const die = async (type, error, status) => {
    const report = describe(error);
    if (type) report.errorType = type;
    console.error(type ?? 'Uncaught Exception', error);
    setTimeout(() => process.exit(status), 1000);
    client.socket.ref();
    if (control.stream?.begun) {
      await control.stream.finish(report);
      process.exit(status);
    }
    const where = requestId ? `invocation/${requestId}/error` : 'init/error';
    await client.post(where, JSON.stringify(report), { more: typeHeader(report) });
    process.exit(status);
  };
  process.on('uncaughtException', (error) => die(undefined, error, 129));
  process.on('unhandledRejection', (error) => die('Runtime.UnhandledPromiseRejection', error, 128));
  process.on('beforeExit', () => control.loopIsEmpty?.());

  let handler;
  let hook;
  try {
    ({ handler, hook } = await loadHandler(process.env.LAMBDA_TASK_ROOT, process.env._HANDLER ?? ''));
  } catch (error) {
    await die(error?.name, error, 1);
    return;
  }

  let restored = false;
  for (;;) {
    const { headers, body } = await client.next();
    requestId = headers['lambda-runtime-aws-request-id'];
    if (headers['lambda-runtime-trace-id']) process.env._X_AMZN_TRACE_ID = headers['lambda-runtime-trace-id'];
    else delete process.env._X_AMZN_TRACE_ID;
    control.waitForEmptyLoop = true;
    control.loopIsEmpty = null;
    let event;
    let context;
    try {
      event = body.length > 0 ? JSON.parse(body.toString()) : undefined;
      context = makeContext(headers, control);
    } catch (error) {
      const report = describe(new Fault('Runtime.UnmarshalError', `Unable to parse the event: ${error.message}`));
      await client.post(`invocation/${requestId}/error`, JSON.stringify(report), { more: typeHeader(report) });
      continue;
    }
    restored ||= 'volley-restored' in headers;
    if (restored) {
      try {
        reseed();
        setAddresses(headers);
        await hook?.();
        restored = false; // after an error it is tried again
      } catch (error) {
        const report = describe(error);
        console.error('Invoke Error', error);
        await client.post(`invocation/${requestId}/error`, JSON.stringify(report), { more: typeHeader(report) });
        requestId = '';
        continue;
      }
    }
    if (handler[STREAMING]) {
      await serveStream(client, handler, event, context, control, requestId);
      control.stream = null;
    } else {
      // Only what the handler itself waits for keeps the loop going.
      client.socket.unref();
      await serveWhole(client, handler, event, context, control, requestId);
    }
    control.loopIsEmpty = null;
    requestId = '';
  }
}

await main();
