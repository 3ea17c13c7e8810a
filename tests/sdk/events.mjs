// A backend on the ingest port decides (tests/sdk_events.rs), as npm `centrifuge` sees it, JSON or Protobuf (argument 1):
// connect, subscribe, publish, rpc: allowed with data, changed, refused, late. Late answers delay nothing else.
import assert from 'node:assert/strict';
import { ENCODINGS, WS_URL, connected, refused, run, subscribed, until, within } from './common.mjs';

const encoding = process.argv[2];
const { make, read, write } = ENCODINGS[encoding];
const channel = `asked:room-${encoding}`;
const as = (user) => ({ data: write({ user }) });
let alice, sub;

await run([
  ['connect: admitted, with data and a subscription', async () => {
    alice = make(WS_URL, as(`alice-${encoding}`));
    const log = { connected: [], subscribed: [], connecting: [] };
    for (const name of Object.keys(log)) alice.on(name, (ctx) => log[name].push(ctx));
    alice.log = log;
    alice.connect();
    await within(alice.ready(), 'connect');
    assert.deepEqual(read(log.connected[0].data), { welcome: `alice-${encoding}` });
    await until(() => log.subscribed.length === 1, 'a server-side subscription');
    assert.equal(log.subscribed[0].channel, 'backend:from-connect');
  }],
  ['connect: refused', async () => {
    for (const [user, code] of [['stranger', 1001], ['banned', 4500]]) {
      const client = make(WS_URL, as(user));
      const ended = new Promise((resolve) => client.once('disconnected', resolve));
      client.connect();
      assert.equal((await within(ended, 'the refusal')).code, code);
    }
  }],
  ['subscribe: with info and data, or refused', async () => {
    sub = await subscribed(alice, encoding, channel);
    assert.deepEqual(read(sub.events[0].data), { topic: 'tea' });
    const [info] = Object.values((await sub.presence()).clients);
    assert.deepEqual([info.user, read(info.connInfo), read(info.chanInfo)], [`alice-${encoding}`, { name: 'A' }, { role: 'guest' }]);
    assert.equal(await refused(alice, `asked:secret-${encoding}`), 1003);
  }],
  ['publish: as it is, changed, refused', async () => {
    await sub.publish(write({ text: 'plain' }));
    await sub.publish(write({ text: 'rude' }));
    await assert.rejects(sub.publish(write({ text: 'forbidden' })), { code: 1005 });
    await sub.publish(write({ text: 'last' }));
    await until(() => sub.seen.length === 3, 'what is left');
    assert.deepEqual(sub.seen.map(({ data }) => data), [{ text: 'plain' }, { text: 'censored' }, { text: 'last' }]);
  }],
  ['rpc', async () => {
    const { data } = await alice.rpc('echo', write({ n: [1, 2, 3] }));
    assert.deepEqual(read(data), { n: [1, 2, 3] });
    await assert.rejects(alice.rpc('unknown', write(null)), { code: 104 });
  }],
  ['a slow backend delays neither pongs nor other commands', async () => {
    let slow;
    // Answered after 3 s, while a ping each second must be answered within 0.9 s.
    const waiting = alice.rpc('slow', write('x')).then(({ data }) => { slow = read(data); });
    for (let n = 0; n < 20; n++) {
      await alice.presenceStats(channel);
      assert.equal(slow, undefined, 'other answers overtake it');
    }
    const other = await connected(encoding, WS_URL, as('bob'));
    assert.equal(slow, undefined, 'other clients are not held up');
    other.disconnect();
    await within(waiting, 'the late answer');
    assert.equal(slow, 'late');
    assert.deepEqual([alice.state, alice.log.connected.length], ['connected', 1]);
  }],
  ['the end', async () => {
    sub.unsubscribe();
    await assert.rejects(alice.rpc('unknown', write(null)), { code: 104 });
    alice.disconnect();
  }],
]);
