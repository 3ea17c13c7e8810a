// npm `centrifuge` (argument 1: encoding) is cut, argument 3 times, while somebody publishes to argument 2; payload n has
// offset n. Prints READY when subscribed. `lossless` (argument 4): cut by RST, by the server, by a half-open peer in turn;
// it must recover each time and see every publication once, in order. `lossy`: cut by RST and held away for 1 s, which is
// more than the history holds; it must be told so each time and get no part of it. Prints ENOUGH after the last cut and
// waits for the number of publications on stdin.
import assert from 'node:assert/strict';
import { ENCODINGS, api, cutProxy, nextLine, run, sleep, token, until, within } from './common.mjs';

const [encoding, channel, cuts, mode] = [process.argv[2], process.argv[3], Number(process.argv[4]), process.argv[5]];
const { make, read } = ENCODINGS[encoding];
const user = `cut-${encoding}`;
const proxy = await cutProxy();
// The server pings each second, so a silent peer is noticed within two.
const client = make(proxy.url, { token: token({ sub: user }), minReconnectDelay: 50, maxReconnectDelay: 200, maxServerPingDelay: 1000 });
const sub = client.newSubscription(channel);
const subscribed = [];
const codes = {};
let next = 1;
let received = 0;
let holes = 0;
let failure;
client.on('connecting', ({ code }) => { codes[code] = (codes[code] ?? 0) + 1; });
client.on('disconnected', (ctx) => { failure ??= `disconnected: ${JSON.stringify(ctx)}`; });
sub.on('unsubscribed', (ctx) => { failure ??= `unsubscribed: ${JSON.stringify(ctx)}`; });
sub.on('subscribed', (ctx) => {
  subscribed.push(ctx);
  const again = subscribed.length > 1;
  if (ctx.wasRecovering !== again || ctx.recovered !== (again && mode === 'lossless')) {
    failure ??= `subscribe ${subscribed.length}: ${JSON.stringify(ctx)}, next is ${next}`;
  }
  if (!ctx.recovered) {
    // The next one is the first after the position that the server told: no part of what was missed.
    if (again) holes += 1;
    next = ctx.streamPosition.offset + 1;
  }
});
sub.on('publication', ({ offset, data }) => {
  if (offset !== next || read(data) !== offset) failure ??= `expected ${next}, got ${offset}: ${JSON.stringify(read(data))}`;
  next += 1;
  received += 1;
});

const KINDS = {
  lossless: [
    ['RST', async () => { proxy.cut(); proxy.mend(); }],
    ['server close', () => api('disconnect', { user, disconnect: { code: 3011, reason: 'force reconnect' } })],
    ['half-open', async () => proxy.silence()],
  ],
  lossy: [['RST and a second away', async () => { proxy.cut(); await sleep(1000); proxy.mend(); }]],
};

const answer = nextLine();
await run([
  [`${cuts} cuts`, async () => {
    sub.subscribe();
    client.connect();
    await within(sub.ready(), 'subscribe');
    console.log('READY');
    for (let n = 0; n < cuts && !failure; n++) {
      const [name, cut] = KINDS[mode][n % KINDS[mode].length];
      const before = { subscribed: subscribed.length, received };
      await cut();
      await until(() => failure || subscribed.length > before.subscribed, `back after cut ${n}, ${name}`);
      // Some live ones behind the recovered ones, before the next cut.
      await until(() => failure || received > before.received, `publications after cut ${n}, ${name}`);
      const live = received;
      await until(() => failure || received > live + 50, `live after cut ${n}, ${name}`);
    }
    assert.equal(failure, undefined);
    assert.equal(subscribed.length, cuts + 1);
  }],
  [mode === 'lossless' ? 'every publication once, in order' : 'told of each hole, and nothing in part', async () => {
    console.log('ENOUGH');
    const total = Number(await within(answer, 'how many there are', 60_000));
    await until(() => failure || next > total, 'the last publication');
    await sleep(200);
    assert.equal(failure, undefined);
    assert.equal(next, total + 1);
    if (mode === 'lossless') assert.equal(received, total);
    else assert.equal(holes, cuts);
    console.log(`${received} of ${total} publications, ${subscribed.length} subscribes, closes ${JSON.stringify(codes)}`);
  }],
]);
