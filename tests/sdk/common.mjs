// What the Node scripts share: addresses from the environment, SDK clients in both encodings, waits with an end, a
// proxy that can cut its connections. In: RINGWAY_WS, RINGWAY_CLIENT, RINGWAY_CONTROL, RINGWAY_API_KEY.
// A script ends with exit code 0 only when it reached its end; every failed check is an exception.
import { createHmac } from 'node:crypto';
import net from 'node:net';
import readline from 'node:readline';
import { Centrifuge as JsonCentrifuge } from 'centrifuge';
import { Centrifuge as ProtobufCentrifuge } from 'centrifuge/build/protobuf';
import WebSocket from 'ws';

const required = (name) => {
  if (!process.env[name]) throw new Error(`${name} is not set: run through \`cargo test -p ringway-tests --test sdk\``);
  return process.env[name];
};

export const WS_URL = required('RINGWAY_WS');
export const CONTROL_URL = required('RINGWAY_CONTROL');
export const API_KEY = required('RINGWAY_API_KEY');
const [CLIENT_HOST, CLIENT_PORT] = required('RINGWAY_CLIENT').split(':');

/// How long a check waits for something that should come at once.
export const PATIENCE_MS = 20_000;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/// One encoding of the SDK: how to make a client, and how payloads are written and read.
export const ENCODINGS = {
  json: { make: (url, options) => new JsonCentrifuge(url, { websocket: WebSocket, ...options }), write: (v) => v, read: (v) => v },
  protobuf: {
    make: (url, options) => new ProtobufCentrifuge(url, { websocket: WebSocket, ...options }),
    write: (v) => encoder.encode(JSON.stringify(v)),
    read: (v) => JSON.parse(decoder.decode(v)),
  },
};

/// A connected client.
export async function connected(encoding, url = WS_URL, options = {}) {
  const client = ENCODINGS[encoding].make(url, { minReconnectDelay: 100, maxReconnectDelay: 500, ...options });
  client.connect();
  await within(client.ready(), 'connect');
  return client;
}

/// A subscription that is subscribed, with everything it received in `sub.seen` ({data, offset, info}), `sub.events`
/// (subscribed), `sub.comings` (`+<user>` and `-<user>`) and `sub.ends` (unsubscribed).
export async function subscribed(client, encoding, channel, options = {}) {
  const sub = client.newSubscription(channel, options);
  sub.seen = [];
  sub.events = [];
  sub.comings = [];
  sub.ends = [];
  sub.on('join', ({ info }) => sub.comings.push(`+${info.user}`));
  sub.on('leave', ({ info }) => sub.comings.push(`-${info.user}`));
  sub.on('unsubscribed', (ctx) => sub.ends.push(ctx));
  sub.on('publication', (ctx) => sub.seen.push({ ...ctx, data: ENCODINGS[encoding].read(ctx.data) }));
  sub.on('subscribed', (ctx) => sub.events.push(ctx));
  sub.subscribe();
  await within(sub.ready(), `subscribe ${channel}`);
  return sub;
}

/// The promise, or an error after a time.
export function within(promise, what, ms = PATIENCE_MS) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${ms} ms: ${what}`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/// Waits until `condition()` holds.
export async function until(condition, what, ms = PATIENCE_MS) {
  const end = Date.now() + ms;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`not within ${ms} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/// A call of the HTTP API; gives its result.
export async function api(method, parameters) {
  const response = await fetch(`${CONTROL_URL}/api/${method}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', 'X-API-Key': API_KEY },
    body: JSON.stringify(parameters),
  });
  const answer = await response.json();
  if (response.status !== 200 || !answer.result) throw new Error(`${method}: ${response.status} ${JSON.stringify(answer)}`);
  return answer.result;
}

/// Publishes over the HTTP API.
export const apiPublish = (channel, data) => api('publish', { channel, data });

/// Publishes 1, 2, … `count` over the HTTP API, or `from`, ….
export async function apiCount(channel, count, from = 1) {
  for (let n = from; n < from + count; n++) await apiPublish(channel, n);
}

const SECRET = 'dev';
export const nowS = () => Math.floor(Date.now() / 1000);

/// A token with these claims, signed with the secret of `--dev` or another.
export function token(claims, secret = SECRET) {
  const text = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const signed = `${text({ alg: 'HS256', typ: 'JWT' })}.${text(claims)}`;
  return `${signed}.${createHmac('sha256', secret).update(signed).digest('base64url')}`;
}

/// A connected client of a user.
export const connectedAs = (encoding, user, { url = WS_URL, info, ...options } = {}) =>
  connected(encoding, url, { token: token({ sub: user, info }), ...options });

/// What a subscription's end says, when a subscribe is refused.
export async function refused(client, channel, options = {}) {
  const sub = client.newSubscription(channel, options);
  const ended = new Promise((resolve) => sub.once('unsubscribed', resolve));
  sub.subscribe();
  const { code } = await within(ended, `the refusal of ${channel}`);
  client.removeSubscription(sub);
  return code;
}

/// A TCP proxy in front of the client port whose connections can be cut without a Close frame.
export async function cutProxy() {
  const pairs = new Set();
  let open = true;
  const bytes = { down: 0 };
  const server = net.createServer((near) => {
    if (!open) return near.destroy();
    const far = net.connect(Number(CLIENT_PORT), CLIENT_HOST);
    const pair = [near, far];
    pairs.add(pair);
    near.pipe(far);
    far.pipe(near);
    far.on('data', (chunk) => { bytes.down += chunk.length; });
    for (const socket of pair) {
      socket.on('error', () => {});
      // A peer of a silent pair must not hear that the other one is gone.
      socket.on('close', () => { pairs.delete(pair); if (!pair.silent) pair.forEach((s) => s.destroy()); });
    }
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `ws://127.0.0.1:${server.address().port}/connection/websocket`,
    bytes,
    /// Both sides keep their connections, and nothing passes any more: a half-open peer. New connections are let through.
    silence() {
      for (const pair of pairs) {
        const [near, far] = pair;
        pair.silent = true;
        near.unpipe(far);
        far.unpipe(near);
        near.resume();
        far.resume();
      }
      pairs.clear();
    },
    /// New connections are refused.
    shut() { open = false; },
    cut() { open = false; for (const pair of pairs) pair.forEach((socket) => socket.resetAndDestroy()); },
    mend() { open = true; },
    close() { server.close(); this.cut(); },
  };
}

const answers = readline.createInterface({ input: process.stdin });

/// The next line that the test writes.
export const nextLine = () => new Promise((resolve) => answers.once('line', resolve));

/// Asks the test that runs this script for something, e.g. `@restart`, and waits until it is done.
export async function ask(request) {
  const answer = nextLine();
  console.log(request);
  await within(answer, `the answer to ${request}`, 60_000);
}

/// Runs the steps of a script in order and ends the process.
export async function run(steps) {
  try {
    for (const [name, step] of steps) {
      await step();
      console.log(`ok: ${name}`);
    }
  } catch (error) {
    console.error(`FAILED: ${error.stack}`);
    process.exit(1);
  }
  process.exit(0);
}
