// Presence with npm `centrifuge`, JSON or Protobuf (argument 1): who is there by connection and by user, and who is not any
// more: after an unsubscribe, a disconnect, and a half-open cut. The server pings each second (see sdk_behaviours.rs).
import assert from 'node:assert/strict';
import { ENCODINGS, connected, connectedAs, cutProxy, run, subscribed, until } from './common.mjs';

const encoding = process.argv[2];
const { read } = ENCODINGS[encoding];
const channel = `room:presence-${encoding}`;
let watcher, tab, alice, bob;

const stats = async () => {
  const { numClients, numUsers } = await watcher.presenceStats();
  return `${numClients} of ${numUsers}`;
};

async function untilStats(expected, what) {
  let now;
  const end = Date.now() + 20_000;
  while ((now = await stats()) !== expected) {
    if (Date.now() > end) throw new Error(`${what}: ${now}, not ${expected}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

await run([
  ['several tabs of one user', async () => {
    alice = await connectedAs(encoding, 'alice', { info: { name: 'Älice' } });
    tab = await connectedAs(encoding, 'alice', { info: { name: 'Älice' } });
    bob = await connectedAs(encoding, 'bob');
    watcher = await subscribed(alice, encoding, channel);
    await subscribed(tab, encoding, channel);
    await subscribed(bob, encoding, channel);
    assert.equal(await stats(), '3 of 2');
    const { clients } = await watcher.presence();
    const users = Object.entries(clients).map(([id, info]) => {
      assert.equal(info.client, id);
      return info.user;
    });
    assert.deepEqual(users.sort(), ['alice', 'alice', 'bob']);
    const own = Object.values(clients).find((info) => info.user === 'alice');
    assert.deepEqual(read(own.connInfo), { name: 'Älice' });
  }],
  ['gone after a disconnect', async () => {
    tab.disconnect();
    await untilStats('2 of 2', 'a tab is closed');
  }],
  ['gone after an unsubscribe', async () => {
    bob.getSubscription(channel).unsubscribe();
    await untilStats('1 of 1', 'bob is gone');
    assert.deepEqual(Object.values((await watcher.presence()).clients).map((info) => info.user), ['alice']);
  }],
  ['gone after a half-open cut, within ping and pong', async () => {
    const proxy = await cutProxy();
    const carol = await connectedAs(encoding, 'carol', { url: proxy.url });
    await subscribed(carol, encoding, channel);
    assert.equal(await stats(), '2 of 2');
    proxy.shut();
    proxy.silence();
    await untilStats('1 of 1', 'carol is gone');
    carol.disconnect();
    proxy.close();
  }],
  ['refusals', async () => {
    await assert.rejects(alice.presence('plain:x'), { code: 108 });
    await assert.rejects(alice.presenceStats('plain:x'), { code: 108 });
    // Only subscribers read it there.
    const stranger = await connected(encoding);
    await assert.rejects(stranger.presence(channel), { code: 103 });
    await assert.rejects(stranger.presenceStats(channel), { code: 103 });
    await assert.rejects(alice.presence('no-such-namespace:x'), { code: 102 });
    await until(() => alice.state === 'connected', 'a refusal ends nothing');
  }],
]);
