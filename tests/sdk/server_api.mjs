// What clients see of server API calls, with npm `centrifuge`, JSON or Protobuf (argument 1): unsubscribe, disconnect,
// refresh, messages to a user, broadcast; only the user that is named, on all its connections or on one.
import assert from 'node:assert/strict';
import { ENCODINGS, api, connectedAs, nowS, run, subscribed, until } from './common.mjs';

const encoding = process.argv[2];
const { read } = ENCODINGS[encoding];
const user = `bob-${encoding}`;
const channel = `room:api-${encoding}`;

async function device(name) {
  const client = await connectedAs(encoding, name);
  client.log = { message: [], connecting: [], disconnected: [], connected: [] };
  for (const event of Object.keys(client.log)) client.on(event, (ctx) => client.log[event].push(ctx));
  client.sub = await subscribed(client, encoding, channel);
  return client;
}

const phone = await device(user);
const laptop = await device(user);
const stranger = await device(`eve-${encoding}`);
const untouched = (client) => assert.deepEqual([client.log.connecting.length, client.log.disconnected.length, client.state], [0, 0, 'connected']);

await run([
  ['a message to all connections of a user, in order', async () => {
    for (let n = 1; n <= 3; n++) await api('rpc', { user, data: { n } });
    for (const client of [phone, laptop]) {
      await until(() => client.log.message.length === 3, 'the messages');
      assert.deepEqual(client.log.message.map(({ data }) => read(data)), [{ n: 1 }, { n: 2 }, { n: 3 }]);
    }
    assert.equal(stranger.log.message.length, 0);
  }],
  ['broadcast', async () => {
    await api('broadcast', { channels: [channel, `log:api-${encoding}`], data: 'to all' });
    for (const client of [phone, laptop, stranger]) await until(() => client.sub.seen.length === 1, 'broadcast');
  }],
  ['tags, live and in history', async () => {
    await api('publish', { channel, data: 'tagged', tags: { lang: 'en', 'a"b': '' } });
    for (const client of [phone, laptop, stranger]) {
      await until(() => client.sub.seen.length === 2, 'the publication');
      assert.deepEqual({ ...client.sub.seen[1].tags }, { lang: 'en', 'a"b': '' });
    }
    await api('publish', { channel: `log:api-${encoding}`, data: 'kept', tags: { lang: 'de' } });
    const { publications } = await api('history', { channel: `log:api-${encoding}`, limit: 10 });
    assert.deepEqual(publications.at(-1).tags, { lang: 'de' });
  }],
  ['unsubscribe', async () => {
    await api('unsubscribe', { user, channel });
    for (const client of [phone, laptop]) {
      await until(() => client.sub.ends.length === 1, 'told');
      assert.equal(client.sub.ends[0].code, 2000);
      untouched(client);
    }
    const { presence } = await api('presence', { channel });
    assert.deepEqual(Object.values(presence).map((info) => info.user), [`eve-${encoding}`]);
    assert.equal(stranger.sub.state, 'subscribed');
  }],
  ['disconnect, to come back', async () => {
    await api('disconnect', { user, disconnect: { code: 4001, reason: 'move on' } });
    for (const client of [phone, laptop]) {
      await until(() => client.log.connecting.length === 1, 'told');
      assert.deepEqual([client.log.connecting[0].code, client.log.connecting[0].reason], [4001, 'move on']);
      await until(() => client.log.connected.length === 1, 'back');
    }
    untouched(stranger);
  }],
  ['refresh: expired at once', async () => {
    await api('refresh', { user, expired: true });
    for (const client of [phone, laptop]) {
      await until(() => client.log.connecting.length === 2, 'told');
      assert.equal(client.log.connecting[1].code, 3005);
      await until(() => client.log.connected.length === 2, 'back');
    }
    await api('refresh', { user, expire_at: nowS() + 3600 });
  }],
  ['disconnect for good, but for one', async () => {
    const { client: id } = laptop.log.connected.at(-1);
    await api('disconnect', { user, whitelist: [id] });
    await until(() => phone.log.disconnected.length === 1, 'told');
    assert.equal(phone.log.disconnected[0].code, 3503);
    await api('rpc', { user, data: 'still there' });
    await until(() => laptop.log.message.length === 4, 'the other one stays');
    assert.equal(laptop.state, 'connected');
    untouched(stranger);
  }],
]);
