// Fossil deltas and channel compaction with npm `centrifuge`, JSON or Protobuf (argument 1): what the SDK puts together is
// what was published, live and after recovery, and most of it was never sent.
import assert from 'node:assert/strict';
import WebSocket from 'ws';
import { ENCODINGS, apiPublish, connected, cutProxy, run, subscribed, until } from './common.mjs';

const encoding = process.argv[2];
const channel = `doc:a-rather-long-channel-name-${encoding}`;
const proxy = await cutProxy();

/// A WebSocket that notes what it got.
class Noting extends WebSocket {
  static bytes = 0;
  static texts = [];
  constructor(...args) {
    super(...args);
    this.on('message', (data, binary) => {
      Noting.bytes += data.byteLength ?? data.length;
      if (!binary) Noting.texts.push(...data.toString().split('\n'));
    });
  }
}

// 4 KB of words, of which one changes each time.
const words = Array.from({ length: 400 }, (_, n) => `word-${(n * 7919) % 1000}`);
const document = (version) => ({ version, words: words.map((word, n) => (n === version % 400 ? `changed-${version}` : word)) });
const published = [];
const publish = async () => {
  published.push(document(published.length));
  await apiPublish(channel, published.at(-1));
};
const SIZE = JSON.stringify(document(0)).length;
let plain, delta, client;

await run([
  ['live', async () => {
    client = await connected(encoding, proxy.url, { websocket: Noting });
    delta = await subscribed(client, encoding, channel, { delta: 'fossil' });
    plain = await subscribed(await connected(encoding), encoding, channel);
    Noting.bytes = 0;
    for (let n = 0; n < 30; n++) await publish();
    for (const sub of [plain, delta]) {
      await until(() => sub.seen.length === 30, 'all versions');
      assert.deepEqual(sub.seen.map(({ data }) => data), published);
    }
    assert.ok(Noting.bytes < 30 * SIZE / 4, `${Noting.bytes} bytes for 30 times ${SIZE}`);
  }],
  ['names of channels are sent once', async () => {
    const pushes = Noting.texts.filter((text) => text.includes('"push"')).map((text) => JSON.parse(text).push);
    // This SDK offers to take numbers in Protobuf, too, and would drop each push with one: it gets names.
    if (encoding === 'protobuf') return assert.deepEqual(pushes, []);
    assert.ok(pushes.length >= 30);
    assert.ok(pushes.every((push) => push.id > 0 && push.channel === undefined), JSON.stringify(pushes[0]).slice(0, 200));
    assert.ok(pushes.filter(({ pub }) => pub.delta).length >= 28);
  }],
  ['after recovery', async () => {
    for (let round = 0; round < 3; round++) {
      const before = delta.events.length;
      proxy.cut();
      await until(() => client.state === 'connecting', 'the cut is noticed');
      for (let n = 0; n < 10; n++) await publish();
      proxy.mend();
      await until(() => delta.events.length > before, 'subscribed again');
      assert.equal(delta.events.at(-1).recovered, true);
      await until(() => delta.seen.length === published.length, 'what was missed');
      Noting.bytes = 0;
      for (let n = 0; n < 10; n++) await publish();
      await until(() => delta.seen.length === published.length, 'all versions');
      assert.deepEqual(delta.seen.map(({ data }) => data), published);
      assert.ok(Noting.bytes < 10 * SIZE / 3, `${Noting.bytes} bytes for 10 times ${SIZE}`);
    }
  }],
  ['an unlike version is sent whole', async () => {
    await apiPublish(channel, 'x');
    await publish();
    for (const sub of [plain, delta]) await until(() => sub.seen.length === published.length + 1, 'both');
    assert.deepEqual(delta.seen.slice(-2).map(({ data }) => data), ['x', published.at(-1)]);
    assert.deepEqual(plain.seen.slice(-2).map(({ data }) => data), ['x', published.at(-1)]);
  }],
]);
