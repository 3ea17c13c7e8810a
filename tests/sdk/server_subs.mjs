// Server-side subscriptions with npm `centrifuge`, JSON or Protobuf (argument 1): from the token, the personal channel as
// offline queue, from the HTTP API at run time; positions across reconnects.
import assert from 'node:assert/strict';
import { ENCODINGS, api, apiCount, apiPublish, cutProxy, refused, run, token, until, within } from './common.mjs';

const encoding = process.argv[2];
const { make, read } = ENCODINGS[encoding];
const user = `alice-${encoding}`;
const news = `backend:news-${encoding}`;
const extra = `backend:extra-${encoding}`;
const later = `backend:later-${encoding}`;
const inbox = `inbox:#${user}`;
const proxy = await cutProxy();
const client = make(proxy.url, {
  token: token({ sub: user, channels: [news, extra], subs: { [extra]: { data: { x: 1 } } } }),
  minReconnectDelay: 100, maxReconnectDelay: 500,
});
const log = { subscribed: [], unsubscribed: [], publication: [], connected: [] };
for (const name of Object.keys(log)) client.on(name, (ctx) => log[name].push(ctx));
const seen = (channel) => log.publication.filter((ctx) => ctx.channel === channel).map((ctx) => read(ctx.data));
const last = (channel) => log.subscribed.findLast((ctx) => ctx.channel === channel);

async function cut(meanwhile) {
  const before = log.connected.length;
  proxy.cut();
  await until(() => client.state === 'connecting', 'the cut is noticed');
  await meanwhile();
  proxy.mend();
  await until(() => log.connected.length > before, 'connected again');
}

await run([
  ['from the token, and the personal channel', async () => {
    client.connect();
    await within(client.ready(), 'connect');
    await until(() => log.subscribed.length === 3, 'three subscriptions');
    assert.deepEqual(log.subscribed.map((ctx) => ctx.channel).sort(), [extra, inbox, news].sort());
    assert.deepEqual(read(last(extra).data), { x: 1 });
    for (const ctx of log.subscribed) assert.deepEqual([ctx.recoverable, ctx.wasRecovering], [true, false]);
    await apiPublish(news, 'n1');
    await apiPublish(inbox, 1);
    await until(() => log.publication.length === 2, 'both deliver');
    assert.deepEqual([seen(news), seen(inbox)], [['n1'], [1]]);
  }],
  ['what was sent to the user meanwhile comes in order, once', async () => {
    for (let round = 0; round < 3; round++) {
      await cut(() => apiCount(inbox, 5, round * 5 + 2));
      await until(() => seen(inbox).length >= 5 * round + 6, 'what waited');
      const { wasRecovering, recovered } = last(inbox);
      assert.deepEqual({ wasRecovering, recovered }, { wasRecovering: true, recovered: true });
    }
    assert.deepEqual(seen(inbox), Array.from({ length: 16 }, (_, n) => n + 1));
  }],
  ['positions of all of them', async () => {
    await cut(async () => {
      for (const channel of [news, extra, news]) await apiPublish(channel, `away ${channel}`);
    });
    await until(() => seen(news).length === 3 && seen(extra).length === 1, 'what was missed');
    await apiPublish(news, 'live');
    await until(() => seen(news).length === 4, 'live');
    assert.deepEqual(seen(news), ['n1', `away ${news}`, `away ${news}`, 'live']);
  }],
  ['from the API, at run time', async () => {
    await api('subscribe', { user, channel: later });
    await until(() => last(later), 'told');
    await apiPublish(later, 'l1');
    await until(() => seen(later).length === 1, 'delivers');
    await api('unsubscribe', { user, channel: later });
    await until(() => log.unsubscribed.some((ctx) => ctx.channel === later), 'told of the end');
    await apiPublish(later, 'l2');
    await apiPublish(news, 'behind');
    await until(() => seen(news).includes('behind'), 'others go on');
    assert.deepEqual(seen(later), ['l1']);
  }],
  ['of other users, nobody', async () => {
    const bob = make(proxy.url, { token: token({ sub: `bob-${encoding}` }) });
    bob.connect();
    await within(bob.ready(), 'connect');
    assert.equal(await refused(bob, inbox), 103);
    assert.equal(await refused(bob, news), 103);
  }],
]);
