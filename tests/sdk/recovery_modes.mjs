// Recovery with npm `centrifuge`, JSON or Protobuf (argument 1): everything missed or nothing of it, cache mode, positioned
// without recovery, and state loaded by the application (`getState`, error 112).
import assert from 'node:assert/strict';
import { api, apiCount, apiPublish, connected, cutProxy, run, subscribed, until } from './common.mjs';

const encoding = process.argv[2];
const values = (sub) => sub.seen.map(({ data }) => data);

/// A subscriber behind a proxy, and its cut: `meanwhile` happens while it is away.
async function behindProxy(channel, options) {
  const proxy = await cutProxy();
  const client = await connected(encoding, proxy.url);
  const sub = await subscribed(client, encoding, channel, options);
  const cut = async (meanwhile) => {
    const before = sub.events.length;
    proxy.cut();
    await until(() => client.state === 'connecting', 'the cut is noticed');
    await meanwhile();
    proxy.mend();
    await until(() => sub.events.length > before, 'subscribed again');
    const { wasRecovering, recovered } = sub.events.at(-1);
    return { wasRecovering, recovered };
  };
  return { sub, cut };
}

const RECOVERED = { wasRecovering: true, recovered: true };
const LOST = { wasRecovering: true, recovered: false };

await run([
  ['everything missed, as often as it is cut', async () => {
    const channel = `short:all-${encoding}`;
    const { sub, cut } = await behindProxy(channel);
    for (let round = 0; round < 5; round++) {
      assert.deepEqual(await cut(() => apiCount(channel, 5, round * 5 + 1)), RECOVERED);
      await until(() => sub.seen.length === 5 * (round + 1), 'what was missed');
    }
    assert.deepEqual(await cut(async () => {}), RECOVERED);
    await apiPublish(channel, 26);
    await until(() => sub.seen.length >= 26, 'live again');
    assert.deepEqual(values(sub), Array.from({ length: 26 }, (_, n) => n + 1));
  }],
  ['too much missed: nothing of it, then live', async () => {
    const channel = `short:lost-${encoding}`;
    const { sub, cut } = await behindProxy(channel);
    await apiPublish(channel, 1);
    await until(() => sub.seen.length === 1, 'live');
    assert.deepEqual(await cut(() => apiCount(channel, 6, 2)), LOST);
    assert.equal(sub.events.at(-1).streamPosition.offset, 7);
    await apiPublish(channel, 8);
    await until(() => values(sub).includes(8), 'live again');
    assert.deepEqual(values(sub), [1, 8]);
    assert.deepEqual(await cut(() => apiCount(channel, 2, 9)), RECOVERED);
    await until(() => sub.seen.length === 4, 'recovers from there');
    assert.deepEqual(values(sub), [1, 8, 9, 10]);
  }],
  ['cache mode: the newest only', async () => {
    const channel = `price:${encoding}`;
    await apiCount(channel, 3);
    const { sub, cut } = await behindProxy(channel, { since: {} });
    await until(() => sub.seen.length === 1, 'the newest at the first subscribe');
    assert.equal(sub.events[0].recovered, true);
    assert.deepEqual(await cut(() => apiCount(channel, 10, 4)), RECOVERED);
    await until(() => sub.seen.length === 2, 'the newest after a cut');
    assert.deepEqual(await cut(async () => {}), RECOVERED);
    await apiPublish(channel, 14);
    await until(() => sub.seen.length >= 3, 'live');
    assert.deepEqual(values(sub), [3, 13, 14]);
  }],
  ['positioned without recovery', async () => {
    const channel = `gauge:${encoding}`;
    const { sub, cut } = await behindProxy(channel);
    assert.deepEqual([sub.events[0].positioned, sub.events[0].recoverable], [true, false]);
    assert.deepEqual(await cut(() => apiCount(channel, 2)), { wasRecovering: false, recovered: false });
    assert.equal(sub.events.at(-1).streamPosition.offset, 2);
    assert.deepEqual(values(sub), []);
  }],
  ['state of the application, and error 112', async () => {
    const channel = `short:state-${encoding}`;
    await apiCount(channel, 3);
    let loads = 0;
    const getState = async () => {
      loads += 1;
      const { offset, epoch } = await api('history', { channel, limit: 0 });
      // Published between the position and the subscribe: it must come as a publication.
      await apiPublish(channel, `between ${loads}`);
      return { offset, epoch };
    };
    const { sub, cut } = await behindProxy(channel, { getState });
    await until(() => sub.seen.length === 1, 'what came between');
    assert.deepEqual(await cut(() => apiCount(channel, 2, 10)), RECOVERED);
    await until(() => sub.seen.length === 3, 'what was missed');
    assert.equal(loads, 1, 'no state is needed where the stream recovers');
    await cut(() => apiCount(channel, 9, 20));
    await until(() => values(sub).includes('between 2'), 'loaded again');
    assert.equal(loads, 2);
    assert.deepEqual(values(sub), ['between 1', 10, 11, 'between 2']);
  }],
]);
